"""Matching of units by optimal transport; cycles and swaps of a permutation."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import NegativeCycleError, bellman_ford
from torch import Tensor
from torch.testing import assert_close

from lossland import neurons
from lossland.neurons import bijection, cycles, match, swaps, transport_plan


def units(n: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def order(n: int, seed: int = 7) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def squares(x: Tensor, y: Tensor, permutation: Tensor) -> float:
    return float((x - y[permutation]).square().sum())


def is_optimal(x: Tensor, y: Tensor, permutation: Tensor) -> bool:
    """The dual certificate: potentials exist where no cycle of reassignments saves anything."""
    costs = torch.cdist(x, y).square()[:, permutation].numpy()
    saved = costs - costs.diagonal()[:, None]  # [i, j]: unit i takes what unit j has now
    graph = np.ma.masked_array(saved + 1e-12, mask=np.eye(len(x), dtype=bool))
    try:
        bellman_ford(graph, indices=0)
    except NegativeCycleError:
        return False
    return True


@pytest.mark.parametrize("solver", ["assignment", "emd"])
def test_a_planted_permutation_is_found(solver):
    x, planted = units(37, 10, 1), order(37)
    y = torch.empty_like(x)
    y[planted] = x + 0.1 * units(37, 10, 2)
    assert torch.equal(match(x, y, solver=solver), planted)


@pytest.mark.parametrize("n, width", [(1, 3), (2, 1), (37, 10), (150, 5)])
def test_both_exact_solvers_agree_and_have_a_dual_certificate(n, width):
    x, y = units(n, width, 1), units(n, width, 2)
    first, second = match(x, y), match(x, y, solver="emd")
    assert first.dtype == torch.int64 and torch.equal(first.sort().values, torch.arange(n))
    assert squares(x, y, first) == pytest.approx(squares(x, y, second), rel=1e-12)
    assert n == 1 or is_optimal(x, y, first)
    assert n < 3 or not is_optimal(x, y, first.roll(1))


def test_matching_follows_the_order_of_the_units():
    x, y = units(30, 6, 1), units(30, 6, 2)
    p, q = match(x, y), order(30)
    assert torch.equal(match(x[q], y), p[q])
    assert torch.equal(q[match(x, y[q])], p)


def test_a_common_shift_and_scale_change_nothing():
    x, y = units(30, 6, 1), units(30, 6, 2)
    assert torch.equal(match(3 * x + 1, 3 * y - 2), match(x, y))


def test_matching_survives_a_large_common_offset_in_single_precision():
    x, y = units(60, 8, 1, torch.float32), units(60, 8, 2, torch.float32)
    shifted = x + 10_000, y + 10_000
    centred = [(side - 10_000).double() for side in shifted]  # what single precision has left of them
    assert is_optimal(*centred, match(*shifted))


def test_blocks_of_products_change_nothing(monkeypatch):
    x, y = units(30, 6, 1), units(30, 6, 2)
    whole = match(x, y)
    monkeypatch.setattr(neurons, "_ROWS", 7)
    assert torch.equal(match(x, y), whole)


def test_exact_plans_are_permutations_and_entropic_plans_spread_the_mass():
    x, y = units(20, 6, 1), units(20, 6, 2)
    exact = transport_plan(x, y)
    assert_close(exact.sum(0), torch.full((20,), 1 / 20, dtype=torch.float64))
    assert torch.equal(bijection(exact), match(x, y)) and int((exact > 0).sum()) == 20
    entropic = transport_plan(x, y, solver="entropic", regularisation=0.1)
    assert_close(entropic.sum(0), exact.sum(0), rtol=0, atol=1e-5)
    assert_close(entropic.sum(1), exact.sum(1), rtol=0, atol=1e-5)
    assert int((entropic > 1e-6).sum()) > 40


def test_a_smaller_regularisation_comes_nearer_to_the_exact_plan_in_any_unit_of_length():
    x, y = units(20, 6, 1), units(20, 6, 2)
    costs, exact = torch.cdist(x, y).square(), squares(x, y, match(x, y)) / 20
    spent = [float((transport_plan(x, y, solver="entropic", regularisation=r) * costs).sum()) for r in (0.03, 0.1, 1.0)]
    assert exact < spent[0] < spent[1] < spent[2] < float(costs.mean())
    assert spent[0] < 1.05 * exact
    scaled = transport_plan(10 * x, 10 * y, solver="entropic", regularisation=0.1)
    assert_close(scaled, transport_plan(x, y, solver="entropic", regularisation=0.1), rtol=0, atol=1e-6)


def test_plans_between_different_numbers_of_units_split_masses():
    plan = transport_plan(units(4, 3, 1), units(6, 3, 2))
    assert_close(plan.sum(1), torch.full((4,), 1 / 4, dtype=torch.float64))
    assert_close(plan.sum(0), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_a_plan_that_is_no_bijection_is_refused():
    plan = torch.tensor([[0.3, 0.1, 0.0], [0.2, 0.1, 0.0], [0.0, 0.1, 0.2]])
    with pytest.raises(ValueError, match="must be a bijection, but .* take 2 of 3 columns, one of them 2 times"):
        bijection(plan)
    with pytest.raises(ValueError, match="plan must be square to be a bijection, got shape \\(2, 3\\)"):
        bijection(plan[:2])
    with pytest.raises(ValueError, match="must be a bijection"):
        match(units(64, 75, 1), units(64, 75, 2), solver="entropic")


@pytest.mark.parametrize("solver", ["emd", "entropic"])
def test_a_solver_that_stops_short_is_an_error(solver):
    with pytest.raises(RuntimeError, match=f"solver '{solver}' has not converged after max_iterations=3 on \\(60, 60\\) units"):
        transport_plan(units(60, 9, 1), units(60, 9, 2), solver=solver, max_iterations=3)


@pytest.mark.parametrize("x, y, kind, message", [
    (units(5, 3, 1), units(7, 3, 2), {}, "equal numbers of units, since a bijection needs them; got 5 and 7"),
    (units(5, 3, 1), units(5, 4, 2), {}, "units of equal length D, got 3 and 4"),
    (units(5, 3, 1)[0], units(5, 3, 2), {}, "x must be a matrix \\(n, D\\) of units, got shape \\(3,\\)"),
    (units(5, 3, 1), units(5, 3, 2) / 0, {}, "y must be finite, got 15 NaN or infinite entries"),
    (units(5, 3, 1), units(5, 3, 2), {"solver": "emb"}, "did you mean 'emd'"),
])
def test_bad_units_are_refused_by_name(x, y, kind, message):
    with pytest.raises(ValueError, match=message):
        match(x, y, **kind)


def test_a_regularisation_must_be_positive():
    with pytest.raises(ValueError, match="regularisation must be > 0, got 0"):
        transport_plan(units(3, 2, 1), units(3, 2, 2), solver="entropic", regularisation=0)


@pytest.mark.parametrize("permutation", [order(n, seed) for n in (1, 2, 9, 40) for seed in (1, 2)])
def test_swaps_bring_every_unit_home_one_by_one(permutation):
    pairs, held = swaps(permutation), permutation.clone()
    assert len(pairs) == len(permutation) - len(cycles(permutation))
    for number, (first, second) in enumerate(pairs.tolist(), 1):
        held[[first, second]] = held[[second, first]]
        assert held[second] == second
        assert int((held == torch.arange(len(held))).sum()) >= number
    assert torch.equal(held, torch.arange(len(held)))


def test_cycles_cover_every_entry_once():
    permutation = torch.tensor([2, 1, 3, 0, 5, 4])
    assert cycles(permutation) == [(0, 2, 3), (1,), (4, 5)]
    assert cycles(torch.arange(3)) == [(0,), (1,), (2,)] and len(swaps(torch.arange(3))) == 0


def test_what_is_no_permutation_is_refused():
    with pytest.raises(ValueError, match="permutation must hold each of 0..n-1 once, got 3 entries"):
        swaps(torch.tensor([0, 0, 2]))
