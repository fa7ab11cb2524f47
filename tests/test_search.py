"""The search for the worst point, on a network of one parameter whose loss along a path is a formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import make_task
from lossland.evaluation import evaluate
from lossland.families import bezier
from lossland.models import build, initial_weights
from lossland.paths import Path, chain, segment
from lossland.tasks import Split
from lossland.search import worst


PLAIN = make_task(classes=2)
TASK = replace(PLAIN, test=Split(PLAIN.test.images, torch.zeros(len(PLAIN.test), dtype=torch.int64)))


class Margin(nn.Module):
    """Logits (margin, 0) for every image: the loss on class 0 is log(1 + exp(-margin))."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        margin = self.margin.expand(len(images))
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def with_loss(loss) -> Path:
    """Return the path on which the test loss is loss(t)."""
    return Path((lambda s: {"margin": -torch.expm1(loss(s.double())).log()},))


def cone(t: Tensor, peak: float = 0.4083, half: float = 0.02) -> Tensor:
    return 0.1 + 2.0 * (1 - (t - peak).abs() / half).clamp(min=0)


def bell(t: Tensor) -> Tensor:
    return 0.1 + 0.5 * torch.exp(-(((t - 0.2) / 0.1) ** 2)) + 1.5 / (1 + ((t - 0.7085) / 0.004) ** 2)


def test_the_loss_is_the_formula():
    table = evaluate(Margin(), with_loss(bell), TASK, points=7, splits=("test",))
    np.testing.assert_allclose(table.nll, bell(torch.tensor(table.t.values)), rtol=1e-9)


def test_a_narrow_cone_that_the_grid_misses_is_climbed_to_its_tip():
    found = worst(Margin(), with_loss(cone), TASK, points=61, tolerance=1e-4)
    assert found.grid_value < 1.3 and found.value == pytest.approx(2.1, abs=1e-4)
    assert found.t == pytest.approx(0.4083, abs=1e-5) and found.settled
    assert found.evaluations == len(found.table) <= 61 + 12


def test_a_grid_that_costs_next_to_nothing_is_dense():
    net = build("mlp", TASK.input_shape, 2, width=9)
    a, b, c = (initial_weights(net, torch.Generator().manual_seed(seed)) for seed in range(3))
    for path, points in ((segment(a, b), 1001), (bezier(a, b), 1001), (chain([a, c, b]), 1001), (bezier(a, b, bends=2), 121),
                         (Path((lambda s: segment(a, b)(s),)), 61)):
        found = worst(net, path, TASK)
        assert (found.table["round"] == 0).sum() == points and found.evaluations < points + 40
        assert found.value >= found.grid_value >= worst(net, path, TASK, points=61, most=0).value - 1e-6
    assert (worst(Margin(), with_loss(bell), TASK).table["round"] == 0).sum() == 61


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_a_smooth_peak_is_found_within_the_tolerance(tolerance):
    found = worst(Margin(), with_loss(bell), TASK, points=61, tolerance=tolerance)
    fine = float(bell(torch.linspace(0, 1, 200_001, dtype=torch.float64)).max())
    assert found.settled and fine - tolerance <= found.value <= fine + 1e-12
    assert found.grid_value < fine - 0.1 and found.evaluations < 61 + 40
    assert found.table["round"].max() >= 2 and found.table.t.is_monotonic_increasing
    assert found.table.query("round == 0").nll.max() == found.grid_value


def test_accuracy_is_worst_where_it_is_smallest():
    def loss(t: Tensor) -> Tensor:  # wrong, at accuracy 0, for |t - 0.5083| < 0.004, a grid of 61 sees nothing of it
        return cone(t, 0.5, 0.3)

    found = worst(Margin(), with_loss(loss), TASK, metric="accuracy", points=11)
    assert found.value == found.grid_value == 0.0 and found.settled
    error = worst(Margin(), with_loss(loss), TASK, metric="error", points=11)
    assert error.value == 1.0


def test_a_peak_at_the_very_start_or_end_needs_no_search():
    for sign in (1, -1):
        found = worst(Margin(), with_loss(lambda t: 1 + sign * t / 2), TASK, points=5)
        assert found.t == (1.0 if sign > 0 else 0.0) and found.evaluations <= 9


def test_an_ascent_to_an_end_is_followed():
    found = worst(Margin(), with_loss(lambda t: 0.1 + (1 - (t - 0.004).abs() / 0.1).clamp(min=0)), TASK, points=21)
    assert found.value == pytest.approx(1.1, abs=2e-3)


def test_the_search_stops_at_the_most_evaluations_and_says_so():
    rough = lambda t: 1 + 0.1 * torch.sin(9000 * t**2)  # noqa: E731
    found = worst(Margin(), with_loss(rough), TASK, points=21, tolerance=1e-6, most=20)
    assert found.evaluations == 41 and not found.settled


def test_real_paths_and_their_bends_work_too():
    net = Margin()
    points = [{"margin": torch.tensor(v)} for v in (3.0, -2.0, 1.0)]
    assert worst(net, chain(points), TASK, points=5).value == pytest.approx(math.log1p(math.exp(2)))
    assert worst(net, segment(*points[:2]), TASK, points=[0.0, 1.0]).t == 1.0


@pytest.mark.parametrize("arguments, message", [
    ({"metric": "los"}, "metric"), ({"tolerance": 0.0}, "tolerance must be > 0, got 0.0"), ({"most": -1}, "most must be >= 0, got -1"),
    ({"split": "tset"}, "test"),
])
def test_bad_input_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        worst(Margin(), with_loss(bell), TASK, **arguments)


def test_the_table_says_how_it_came_about_and_the_result_is_short():
    found = worst(Margin(), with_loss(bell), TASK, points=61)
    assert found.evaluations > 61
    assert found.table.attrs == {"grid": 61, "task": TASK.name, "way": "one by one"}
    assert "table" not in repr(found) and len(repr(found)) < 200 and f"value={found.value}" in str(found)


def test_the_search_can_be_exact():
    net = build("mlp", TASK.input_shape, 2, width=9)
    a, b = (initial_weights(net, torch.Generator().manual_seed(seed)) for seed in range(2))
    fast, exact = (worst(net, segment(a, b), TASK, points=61, exact=exact) for exact in (False, True))
    assert exact.table.attrs["way"] == "reference" and "sweep" in fast.table.attrs["way"]
    assert exact.value == pytest.approx(fast.value, rel=1e-5)
    assert (worst(net, segment(a, b), TASK, exact=True).table["round"] == 0).sum() == 61
