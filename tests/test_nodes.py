"""Losses from Chebyshev nodes, on some of the images, in bfloat16."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import make_task
from lossland import metrics, models
from lossland.evaluation import evaluate, nodes, subsets
from lossland.evaluation.scoring import Sums
from lossland.paths import Mix, Path, chain, segment
from lossland.search import worst
from test_search import TASK as MARGIN_TASK
from test_search import Margin, with_loss

TASK = make_task(shape=(1, 8, 8), test=600)
S = torch.linspace(0, 1, 101, dtype=torch.float64)


def ends(name: str = "fc3", scale: float = 1.0, dtype: torch.dtype = torch.float64, **sizes):
    sizes = sizes or {"first": 30, "second": 20, "rest": 10}
    net = models.build(name, TASK.input_shape, 3, **sizes)
    return net, *({k: scale * v for k, v in models.initial_weights(net, torch.Generator().manual_seed(s), dtype=dtype).items()}
                  for s in (1, 2, 3))


def smooth(t: Tensor) -> Tensor:
    return 0.5 + 0.4 * torch.sin(5 * t) + 0.2 * t


def kinked(t: Tensor) -> Tensor:
    return 0.2 + 2 * (t - 0.37).abs()


@pytest.mark.parametrize("count", [3, 4, 9, 13, 17])
def test_nodes_include_the_ends_and_doubled_nodes_include_them(count):
    s = nodes.positions(count)
    assert s[0] == 0 and s[-1] == 1 and (s.diff() > 0).all()
    assert set(s.tolist()) <= set(nodes.positions(2 * count - 1).tolist())


@pytest.mark.parametrize("count", [5, 6, 13])
def test_polynomials_are_interpolated_exactly(count):
    f = lambda s: 3 * s**4 - s**3 + 2 * s - 7  # noqa: E731
    assert_close(nodes.interpolation(S, count) @ f(nodes.positions(count)), f(S), rtol=1e-13, atol=1e-13)
    found = nodes.coefficients(f(nodes.positions(count)))
    assert found[4].abs() > 0.02 and (found[5:].abs() < 1e-13).all()
    x = 2 * S - 1  # coefficients are those of Chebyshev polynomials in x
    series = sum(c * torch.cos(k * torch.arccos(x.clamp(-1, 1))) for k, c in enumerate(found))
    assert_close(series, f(S), rtol=1e-12, atol=1e-12)


def test_rows_at_nodes_are_unit_vectors():
    assert torch.equal(nodes.interpolation(nodes.positions(9), 9), torch.eye(9, dtype=torch.float64))


def test_the_error_estimate_is_not_far_below_the_error():
    for f in (smooth, kinked, lambda s: torch.exp(-(((s - 0.4) / 0.1) ** 2)), lambda s: 1 / (1 + 25 * (s - 0.5) ** 2),
              lambda s: smooth(s) + 0.01 * kinked(s)):  # whose coefficients shrink at first
        for count in (9, 13, 17, 25):
            values = f(nodes.positions(count))
            true = float((nodes.interpolation(S, count) @ values - f(S)).abs().max())
            assert 10 * float(nodes.error(values)) > true or true < 1e-6
    assert float(nodes.error(smooth(nodes.positions(13)))) < 1e-5


def tanh_net() -> tuple[nn.Module, dict, dict]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    draws = [torch.Generator().manual_seed(s) for s in (1, 2)]
    return net, *({k: 0.35 * torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in net.named_parameters()} for g in draws)


@pytest.mark.parametrize("make, most", [(tanh_net, 1e-4), (lambda: ends(scale=1.5)[:3], 1e-3)])
def test_an_interpolated_curve_is_the_dense_one(make, most):
    net, a, b = make()
    dense = evaluate(net, segment(a, b), TASK, points=61)
    table = evaluate(net, segment(a, b), TASK, points=61, nodes=17)
    assert table.attrs["nodes"] == 17 and table.attrs["refined"] == 0 and table.attrs["grid"] == 61 + 17 - 3
    both = dense.merge(table, on=["t", "split"], suffixes=("", "_2"))
    assert len(both) == len(dense)
    assert (both.nll - both.nll_2).abs().max() < most < np.ptp(dense.nll) / 10
    assert np.allclose(both.distance, both.distance_2) and np.allclose(both.norm, both.norm_2)
    assert (table.evaluated == table.accuracy.notna()).all() and (table.evaluated == table.ece.notna()).all()
    at_nodes = both[both.evaluated]
    assert len(at_nodes) == 2 * 3
    assert np.allclose(at_nodes.nll, at_nodes.nll_2, rtol=1e-12) and (at_nodes.accuracy == at_nodes.accuracy_2).all()
    assert (table[table.evaluated].nll_error == 0).all() and (table[~table.evaluated].nll_error > 0).all()
    test = table[table["split"] == "test"]
    assert metrics.barrier(test.t, test.nll) >= 0


def test_nodes_are_doubled_where_they_do_not_do():
    table = evaluate(Margin(), with_loss(lambda t: smooth(5 * t)), MARGIN_TASK, points=101, nodes=13, splits=("test",))
    assert table.attrs["nodes"] == 25 and table.attrs["refined"] == 1
    np.testing.assert_allclose(table.nll, smooth(5 * torch.tensor(table.t.values)), atol=1e-3)


def test_a_kink_ends_with_every_point_evaluated():
    table = evaluate(Margin(), with_loss(kinked), MARGIN_TASK, points=61, nodes=13, splits=("test",))
    assert table.evaluated.all() and table.attrs["refined"] == 1 and table.accuracy.notna().all()
    assert table.attrs["nodes"] == 61 + 25 - 3  # doubled once, not again: the kink will not go away
    np.testing.assert_allclose(table.nll, kinked(torch.tensor(table.t.values)), atol=1e-9)


def test_every_leg_has_nodes_of_its_own():
    parts = [lambda s: {"margin": -torch.expm1(smooth(s.double())).log()},
             lambda s: {"margin": -torch.expm1(smooth(1 + 0 * s.double()) + (s.double() - 0.3).abs() - 0.3).log()}]
    table = evaluate(Margin(), Path(tuple(parts)), MARGIN_TASK, points=101, nodes=13, splits=("test",))
    assert table[table.leg == 1].evaluated.all()
    assert table[table.leg == 0].evaluated.sum() == 12 and table.attrs["refined"] == 1  # t = 1/2 belongs to the second


def test_legs_with_fewer_points_than_nodes_are_evaluated_at_their_points():
    net, a, b, c = ends()
    plain, table = (evaluate(net, chain([a, c, b]), TASK, points=9, nodes=count) for count in (None, 13))
    assert table.evaluated.all() and table.t.tolist() == plain.t.tolist() and np.allclose(table.nll, plain.nll)


@pytest.mark.parametrize("arguments, error, message", [
    ({"nodes": 2}, ValueError, "nodes must be >= 3, got 2"), ({"nodes": 13.0}, TypeError, "nodes must be a whole number"),
    ({"nodes": 9, "tolerance": 0}, ValueError, "tolerance must be > 0"), ({"images": 1}, ValueError, "images must be >= 2, got 1"),
    ({"statistics": True}, TypeError, "statistics must be a whole number"),
])
def test_bad_requests_are_refused(arguments, error, message):
    net, a, b, _ = ends()
    with pytest.raises(error, match=message):
        evaluate(net, segment(a, b), TASK, **arguments)


def test_the_worst_point_of_a_smooth_curve_needs_few_evaluations():
    def quadratic(s: Tensor) -> Tensor:
        return torch.stack([1 - s, s], -1)

    net = Margin()
    leg = Mix(({"margin": torch.tensor(3.0)}, {"margin": torch.tensor(1.0)}), lambda s: quadratic(torch.sin(math.pi * 0.9 * s)))
    fine = evaluate(net, Path((leg,)), MARGIN_TASK, points=501, splits=("test",))
    found = worst(net, Path((leg,)), MARGIN_TASK)
    assert found.settled and found.evaluations <= 13 + 3 and found.value == pytest.approx(fine.nll.max(), abs=1e-3)
    assert found.value > found.grid_value and not found.table.isna().any().any()


def test_a_worst_point_that_nodes_do_not_see_brings_the_grid_back():
    bump = lambda s: torch.exp(-(((s.double() - 0.06) / 0.004) ** 2))  # noqa: E731  between two of 13 nodes
    basis = lambda s: torch.stack([1 - s - 3 * bump(s), s + 3 * bump(s)], -1)  # noqa: E731
    leg = Mix(({"margin": torch.tensor(2.0)}, {"margin": torch.tensor(1.8)}), basis)
    found = worst(Margin(), Path((leg,)), MARGIN_TASK)
    assert found.settled and found.value == pytest.approx(math.log1p(math.exp(-1.388)), abs=1e-3)
    assert found.evaluations > 61 and found.grid_value < 0.2


def test_a_maximum_that_polynomials_get_wrong_beside_its_place_brings_the_grid_back():
    bump = lambda s: torch.exp(-(((s.double() - 0.437) / 0.004) ** 2))  # noqa: E731  halfway between two of 13 nodes
    top = lambda s: 1 - 2 * (s - 0.55) ** 2 + 3 * bump(s)  # noqa: E731
    leg = Mix(({"margin": torch.tensor(2.0)}, {"margin": torch.tensor(1.8)}), lambda s: torch.stack([1 - top(s), top(s)], -1))
    found = worst(Margin(), Path((leg,)), MARGIN_TASK)
    assert found.settled and found.value == pytest.approx(math.log1p(math.exp(-1.205)), abs=1e-3)


def test_the_error_on_a_subset_is_the_spread_over_subsets():
    net, a, b, _ = ends(scale=2.0)
    whole = evaluate(net, segment(a, b), TASK, points=5, splits=("test",)).set_index("t")
    line = whole.nll[0.0] + whole.index.to_numpy() * (whole.nll[1.0] - whole.nll[0.0])
    draws = [evaluate(net, segment(a, b), TASK, points=5, splits=("test",), images=60, seed=s).set_index("t") for s in range(60)]
    for column, true in (("nll", whole.nll), ("accuracy", whole.accuracy), ("height", whole.nll - line)):
        gaps = np.stack([(one[column] - true) / one[f"{column}_se"].where(one[f"{column}_se"] > 0, 1) for one in draws])
        inner = gaps[:, 1:4]
        assert (np.abs(inner) < 2).mean() > 0.88 and 0.75 < inner.std() < 1.25, column


def test_all_images_have_no_error_and_equal_the_plain_table():
    net, a, b, _ = ends()
    plain, table = (evaluate(net, segment(a, b), TASK, points=5, images=count) for count in (None, 10**6))
    assert np.allclose(plain.nll, table.nll) and np.allclose(plain.accuracy, table.accuracy) and np.allclose(plain.ece, table.ece)
    assert (table[["nll_se", "accuracy_se", "height_se"]] == 0).all().all()
    test = table[table["split"] == "test"]
    assert test.height.max() == pytest.approx(metrics.barrier(test.t, test.nll), abs=1e-6)


def test_subsets_work_with_nodes_and_one_hidden_layer():
    net, a, b, _ = ends("mlp", width=9)
    few = evaluate(net, segment(a, b), TASK, points=61, images=100, seed=1)
    table = evaluate(net, segment(a, b), TASK, points=61, images=100, seed=1, nodes=25, tolerance=0.05)
    assert table.attrs["images"] == 100 and table.attrs["seed"] == 1 and table.attrs["nodes"] == 25
    both = few.merge(table, on=["t", "split"], suffixes=("", "_2"))
    assert np.allclose(both.height, both.height_2, atol=5e-3) and np.allclose(both.nll_se, both.nll_se_2, rtol=0.1)
    assert table[~table.evaluated].accuracy_se.isna().all()


def test_drawn_images_come_from_the_seed_alone():
    one, same, other = (subsets.drawn(TASK.test, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images) and not torch.equal(one.images, other.images)
    assert subsets.drawn(TASK.test, 600, 1) is TASK.test and subsets.drawn(TASK.test, None, 1) is TASK.test


def test_statistics_come_from_as_many_images_as_asked_for():
    net, a, b, _ = ends("preresnet20", channels=2, blocks=1)
    full, all_of_them, few = (evaluate(net, segment(a, b), TASK, points=3, statistics=count) for count in (None, 96, 24))
    assert (full.nll == all_of_them.nll).all() and few.attrs["statistics"] == 24
    gap = (full.nll - few.nll).abs().max()
    assert 0 < gap < 0.5


def test_bfloat16_is_close_and_says_how_close():
    for name, sizes in (("conv2fc1", {"channels": (4, 6)}), ("preresnet20", {"channels": 4, "blocks": 1})):
        net, a, b, _ = ends(name, dtype=torch.float32, **sizes)
        full, low = (evaluate(net, segment(a, b), TASK, points=5, precision=one) for one in (None, "bfloat16"))
        gap = (full.nll - low.nll).abs()
        assert 0 < gap.max() < 0.02 and low.attrs["product"] == "bfloat16" and "bfloat16_error" not in full.attrs
        three = gap[full.t.isin([0.0, low.t[low.nll.idxmax()], 1.0])].max()
        assert low.attrs["bfloat16_error"] == pytest.approx(three, rel=1e-4)  # the splits are smaller than 1000


def test_bfloat16_needs_float32_weights():
    net, a, b, _ = ends("conv2fc1", channels=(2, 3))
    with pytest.raises(ValueError, match="precision='bfloat16' needs float32 weights, got float64"):
        evaluate(net, segment(a, b), TASK, points=3, precision="bfloat16")


def test_sums_that_are_added_up_elsewhere_are_the_same():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 50, 4, generator=g), torch.randint(0, 4, (50,), generator=g)
    at_once, apart = Sums.zeros(5), Sums.zeros(5)
    here = apart.like(3, torch.device("cpu"))
    for start in range(0, 50, 20):
        window = slice(start, start + 20)
        at_once.add(torch.tensor([4, 0, 2]), logits[:, window], labels[window])
        for row in range(3):
            here.add(slice(row, row + 1), logits[row, None, window], labels[window])
    apart.add_all(torch.tensor([4, 0, 2]), here)
    for part in Sums.PARTS:
        assert_close(getattr(at_once, part), getattr(apart, part))


def test_errors_of_heights_are_paired():
    sums = subsets.Each.of(3, 40)
    hard = torch.randn(40, generator=torch.Generator().manual_seed(0))
    for row, level in enumerate((1.0, 3.0, 1.5)):  # every image is as hard everywhere
        sums.losses[row] = level + hard
    found = sums.errors(torch.tensor([0.0, 0.5, 1.0]), 10_000)
    assert_close(torch.tensor(found["height"]), torch.tensor([0.0, 1.75, 0.0]).double(), atol=1e-6, rtol=0)
    assert (found["height_se"] < 1e-7).all() and (found["nll_se"] > 0.1).all()
