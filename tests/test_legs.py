"""Legs that move units by a function or swap them, and how the permutation stage is evaluated."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from conftest import make_task
from lossland import evaluation as ev
from lossland import models
from lossland.layers import axes, gather, permute
from lossland.legs import Moved, Swaps
from lossland.neurons import arc_move, pooled_centre, straight_move
from lossland.paths import Path, arc, segment
from lossland.weights import Weights, distance, to_vector

TASK = make_task(shape=(1, 8, 8))
SEED = 4  # nine units: cycles of several lengths and a fixed point
KINDS = {"mlp": {"width": 9}, "fc3": {"first": 7, "second": 5}, "conv2fc1": {"channels": (2, 3)},
         "cresnet20": {"channels": 2, "blocks": 1}}


def draw(net: nn.Module, seed: int) -> Weights:
    start = models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = torch.Generator().manual_seed(seed + 100)
    return {name: tensor + 0.3 * torch.randn(tensor.shape, generator=noise, dtype=torch.float64) for name, tensor in start.items()}


def order(n: int, seed: int = SEED) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def stage(name: str = "mlp", *, bias: bool = True) -> tuple[nn.Module, Weights, Swaps]:
    net = models.MLP(TASK.input_shape, 3, widths=(9,), bias=False) if not bias else models.build(name, TASK.input_shape, 3, **KINDS[name])
    b, layers = draw(net, 2), tuple(net.layers())
    widths = {axis: len(gather(b, *groups)) for axis, groups in axes(layers).items()}
    return net, b, Swaps(b, layers, {axis: order(n) for axis, n in widths.items()})


@pytest.mark.parametrize("name", KINDS)
def test_the_stage_leads_from_the_permuted_network_to_the_network_itself(name):
    _, b, leg = stage(name)
    path = Path((leg,))
    assert_close(path.point(0.0), permute(b, leg.layers, leg.permutations), rtol=0, atol=0)
    assert_close(path.point(1.0), b, rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_every_completed_swap_keeps_the_function(name):
    net, b, leg = stage(name)
    path, exact = Path((leg,)), ev.predict(net, b, TASK)
    for k in range(leg.count + 1):
        assert_close(ev.predict(net, path.point(k / leg.count), TASK), exact, rtol=0, atol=1e-10)
    assert float((ev.predict(net, path.point(0.5 / leg.count), TASK) - exact).abs().max()) > 1e-6


@pytest.mark.parametrize("name", KINDS)
def test_a_swap_is_one_straight_segment_that_exchanges_two_places(name):
    _, _, leg = stage(name)
    for k in range(leg.count):
        before, middle, after = (at_swap(leg, k + u) for u in (0, 0.25, 1))
        between = segment(before, after).point(0.25)
        assert_close(middle, between, atol=1e-14, rtol=0)
        moved = [(gather(before, *groups) != gather(after, *groups)).any(1).nonzero()[:, 0] for groups in axes(leg.layers).values()]
        assert any(torch.equal(places, leg.places[k].sort().values) for places in moved)


def at_swap(leg: Swaps, done: float) -> Weights:
    return Path((leg,)).point(done / leg.count)


def test_the_two_units_of_a_swap_are_what_its_places_hold():
    _, b, leg = stage()
    (groups,) = axes(leg.layers).values()
    for k, (places, units) in enumerate(zip(leg.places, leg.units, strict=True)):
        assert_close(gather(at_swap(leg, k), *groups)[places], gather(b, *groups)[units], rtol=0, atol=0)
        assert torch.equal(leg.arrangement(k)["hidden0"][places], units)
        assert places[1] == units[0]


def test_half_of_a_swap_and_its_mirror_image_are_the_same_function():
    net, _, leg = stage()
    for k in range(leg.count):
        there, back = (ev.predict(net, at_swap(leg, k + u), TASK) for u in (0.3, 0.7))
        assert_close(there, back)


@pytest.mark.parametrize("name", ["fc3", "cresnet20"])
def test_axes_are_put_in_order_one_after_another(name):
    _, b, leg = stage(name)
    assert leg.count == sum(len(Swaps(b, leg.layers, {axis: p}).places) for axis, p in leg.permutations.items())
    for k in range(leg.count + 1):
        held = leg.arrangement(k)
        out = [axis for axis, p in leg.permutations.items() if not torch.equal(held[axis], torch.arange(len(p)))]
        begun = [axis for axis, p in leg.permutations.items() if not torch.equal(held[axis], p)]
        assert not set(out[1:]) & set(begun)


def test_knots_hold_the_middle_and_the_end_of_every_swap():
    _, _, leg = stage()
    m = leg.count
    assert_close(leg.knots(), torch.arange(2 * m + 1, dtype=torch.float64) / (2 * m))
    assert len(leg.knots(2)) == 5  # the start; middle and end of the first swap and of the last
    k, u = leg.locate(leg.knots())
    assert set(u.tolist()) == {0.0, 0.5, 1.0} and k.max() == m - 1


def test_a_permutation_that_moves_nothing_is_a_stage_that_rests():
    net, b, leg = stage()
    still = Swaps(b, leg.layers, {"hidden0": torch.arange(9)})
    assert still.count == 0 and still.knots().tolist() == [0, 1]
    assert_close(Path((still,)).point(0.7), b, rtol=0, atol=0)
    table = ev.evaluate(net, Path((still,)), TASK, points=3)
    assert table.nll.nunique() == 2 and table.distance.max() == 0


@pytest.mark.parametrize("bias", [True, False])
def test_rank_two_updates_equal_one_network_at_a_time(bias):
    net, b, leg = stage(bias=bias)
    a = draw(net, 1)
    path = Path((*segment(a, permute(b, leg.layers, leg.permutations)).legs, leg))
    t = torch.cat([ev.grid(path, 9), torch.tensor([0.51, 0.77, 0.93])]).sort().values
    table = ev.evaluate(net, path, TASK, points=t)
    assert table.attrs["way"] == "fused + swap sweep"
    for row in table.itertuples():
        weights, split = path.point(row.t), TASK.split(row.split)
        logits = ev.predict(net, weights, TASK, row.split)
        assert abs(row.nll - float(cross_entropy(logits, split.labels))) < 1e-10
        assert row.accuracy == pytest.approx(float((logits.argmax(1) == split.labels).double().mean()))
        assert abs(row.distance - distance(weights, a)) < 1e-10
        assert abs(row.norm - float(to_vector(weights).norm())) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planted_permutation_is_scored_as_the_network_at_every_rest(dtype):
    net, b, leg = stage()
    b = {name: tensor.to(dtype) for name, tensor in b.items()}
    planted = Path((Swaps(b, leg.layers, leg.permutations),))
    table = ev.evaluate(net, planted, TASK, points=planted.legs[0].knots())
    exact = ev.evaluate(net, planted, TASK, points=planted.legs[0].knots(), exact=True)
    assert table.attrs["way"] == "swap sweep" and exact.attrs["way"] == "rank two"
    rest = np.isclose(table.t * leg.count, np.round(table.t * leg.count))
    for _, rows in table[rest].groupby("split"):
        assert len(rows) == leg.count + 1
        for column in ("nll", "accuracy", "ece"):
            assert (rows[column] == rows[column].iloc[0]).all()
    for column in ("nll", "accuracy", "ece"):
        assert np.allclose(table[column], exact[column], rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-6)
    assert not np.allclose(table[~rest].nll, table.nll.iloc[0])


def test_tiles_change_nothing(monkeypatch):
    net, _, leg = stage()
    whole = ev.evaluate(net, Path((leg,)), TASK, points=3)
    monkeypatch.setattr("lossland.kernels.scores._TILE", 1)
    monkeypatch.setattr("lossland.evaluation.exchanges._FEATURES", 8 * 9 * 20)
    assert np.allclose(ev.evaluate(net, Path((leg,)), TASK, points=3).nll, whole.nll, rtol=1e-12, atol=0)


def test_single_precision_agrees_with_double():
    net, b, leg = stage()
    single = Swaps({name: tensor.float() for name, tensor in b.items()}, leg.layers, leg.permutations)
    tables = [ev.evaluate(net, Path((each,)), TASK, points=3) for each in (leg, single)]
    assert 0 < np.abs(tables[0].nll - tables[1].nll).max() < 1e-6


def test_other_networks_are_evaluated_at_as_many_swaps_as_asked():
    net, b, leg = stage("cresnet20")
    table = ev.evaluate(net, Path((leg,)), TASK, points=2, swaps=2, splits=("test",))
    assert table.attrs["way"] == "shared prefix" and len(table) == 5
    assert table.norm.iloc[-1] == pytest.approx(float(to_vector(b).norm()))


def test_grids_hold_every_swap_and_the_points_of_the_other_legs():
    net, b, leg = stage()
    path = Path((*segment(draw(net, 1), permute(b, leg.layers, leg.permutations)).legs, leg))
    t = ev.grid(path, 9)
    assert len(t) == 4 + 2 * leg.count + 1 and (t.diff() > 1e-6).all()
    assert_close(t[:5], torch.linspace(0, 0.5, 5, dtype=torch.float64))
    assert len(ev.grid(path, 9, swaps=1)) == 4 + 4


def test_a_move_reaches_both_ends_to_the_last_bit_and_the_arc_is_the_arc():
    net, b, leg = stage()
    a, groups = draw(net, 1), tuple(axes(leg.layers).values())
    s = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    moved = Moved(a, b, groups, arc_move)(s)
    assert_close(moved["linear.0.weight"], arc(a, b, pooled_centre(a, b, leg.layers)).legs[0](s)["linear.0.weight"])
    assert_close(moved["linear.1.bias"], segment(a, b).legs[0](s)["linear.1.bias"])
    assert_close(Moved(a, b, groups, straight_move)(s), segment(a, b).legs[0](s))
    rough = Moved(a, b, groups, lambda x, y, s: straight_move(x, y, s) + 1e-9)(s)
    for i, end in ((0, a), (-1, b)):
        assert_close({name: tensor[i] for name, tensor in rough.items()}, end, rtol=0, atol=0)


def test_a_stage_is_continuous_from_swap_to_swap():
    _, _, leg = stage()
    longest = max(distance(at_swap(leg, k), at_swap(leg, k + 1)) for k in range(leg.count))
    points = [at_swap(leg, i / 40) for i in range(40 * leg.count + 1)]
    assert max(distance(p, q) for p, q in pairwise(points)) == pytest.approx(longest / 40)


@pytest.mark.parametrize("call, message", [
    (lambda b, layers: Swaps(b, layers, {"hidden0": torch.arange(5)}), "permutation of 'hidden0' must have 9 entries, got 5"),
    (lambda b, layers: Swaps(b, layers, {"hidden0": torch.zeros(9)}), "permutation must hold each of 0..n-1 once"),
    (lambda b, layers: Swaps(b, layers, {"hidden": torch.arange(9)}), "did you mean 'hidden0'"),
    (lambda b, layers: Swaps(b, layers, {"hidden0": order(9)}).knots(0), "swaps must be >= 1 or None for all of them, got 0"),
    (lambda b, layers: Swaps(b, layers, {"hidden0": order(9)}).arrangement(99), "k must lie in 0..6, got 99"),
    (lambda b, layers: Moved(b, b, tuple(axes(layers).values()), lambda x, y, s: x)(torch.tensor([0.0])),
     "move must return \\(T, n, D\\) = \\(1, 9, 68\\), got \\(9, 68\\)"),
])
def test_bad_input_is_refused_by_name(call, message):
    _, b, leg = stage()
    with pytest.raises(ValueError, match=message):
        call(b, leg.layers)


def test_knots_are_found_again_from_t_and_units_at_rest_do_not_move_a_bit():
    net = models.build("mlp", TASK.input_shape, 3, width=301)
    b, (groups,) = draw(net, 2), axes(net.layers()).values()
    leg = Swaps(b, tuple(net.layers()), {"hidden0": order(301)})
    path = Path((*segment(b, b).legs * 12, leg))
    t = ev.grid(path, 20)
    _, u = leg.locate(path.locate(t[path.locate(t)[0] == 12])[1])
    assert set(u.tolist()) == {0.0, 0.5, 1.0}
    before, during = (gather(at_swap(leg, 7 + u), *groups) for u in (0, 0.3))
    assert (before != during).any(1).nonzero()[:, 0].tolist() == leg.places[7].sort().values.tolist()
