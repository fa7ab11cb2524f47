"""Hidden units as samples of a distribution: what AY20 moves and matches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lossland.errors import choose
from lossland.layers import Layer, axes, gather, scatter
from lossland.paths import arc_basis, linear_basis
from lossland.weights import Weights, check_match, mix

Move = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x (n, D), y (n, D), s (T,) -> (T, n, D): unit i of x goes to unit i of y; s = 0 gives x and s = 1 gives y."""

Groups = tuple[tuple[tuple[Layer, ...], tuple[Layer, ...]], ...]
"""(writers, readers) of sets of units, as `layers.gather` takes them."""

_PLANS = {"emd": 10_000_000, "entropic": 100_000}  # solver -> iterations allowed
_STOP = 1e-6  # error of the marginals of an entropic plan, whose total mass is 1
_ROWS = 1024  # of one block of inner products


def pooled_centre(a: Weights, b: Weights, layers: Sequence[Layer], *, samples: str = "butterfly") -> Weights:
    """Return the arc centre mu: per coordinate, the mean over the pooled units of both networks.

    Every unit gets the same mu. A tensor outside all samples (the output bias of a one-hidden-layer network) is a pool
    of two rows, itself in `a` and in `b`; its mu is their mean, and an arc about it is the straight segment in warped
    time.

    Args:
        a, b: the two ends.
        layers: the network's layers.
        samples: "butterfly": a unit is [row | bias | column], for networks with one hidden layer; "rows": the rows
            [weight | bias | normalisation] of every layer, the output layer's included.

    Returns:
        Weights; every unit's slice equals the pooled mean.

    Raises:
        ValueError: if the ends differ in names or shapes, or butterflies of several unit axes would overlap.

    Source: AY20 Eq. (6), mu = E X = E Y; pooling over both networks as in the released settings.
    """
    choose("samples", samples, ("butterfly", "rows"))
    if samples == "butterfly":
        groups = tuple(axes(layers).values())
        if len(groups) != 1:
            raise ValueError(f"samples='butterfly' needs one hidden layer, got unit axes {sorted(axes(layers))}; "
                             "use samples='rows'")
    else:
        groups = tuple(((layer,), ()) for layer in layers)
    return group_centre(a, b, groups)


def group_centre(a: Weights, b: Weights, groups: Groups) -> Weights:
    """Return the arc centre of several sets of units, each with the mean over its own pooled units of both ends.

    Args:
        a, b: the ends; a tensor that both hold as the same object stays that object.
        groups: (writers, readers) of each set of units, as `layers.gather` takes them; a tensor outside of them gets
            the mean of both ends.

    Raises:
        ValueError: if the ends differ in names or shapes.

    Source: AY20 Eq. (6), for the stages of section 4.1.
    """
    check_match(a, b)
    centre = {name: a[name] if a[name] is b[name] else (a[name] + b[name]) / 2 for name in a}
    for writers, readers in groups:
        pool = torch.cat([gather(a, writers, readers), gather(b, writers, readers)])
        centre = scatter(centre, pool.mean(0).expand(len(pool) // 2, -1).contiguous(), writers, readers)
    return centre


def straight_move(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """Return units (T, n, D) on straight segments from x (n, D) to y (n, D) at s (T,).

    Source: AY20 Eq. (5).
    """
    return _combined(linear_basis(s), (x, y))


def arc_move(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """Return units (T, n, D) on arcs from x (n, D) to y (n, D) at s (T,), about the mean of all 2n of them.

    Source: AY20 Eq. (6).
    """
    return _combined(arc_basis(s), (x, y, torch.cat([x, y]).mean(0).expand_as(x)))


def _combined(coefficients: Tensor, points: Sequence[Tensor]) -> Tensor:
    return mix([{"units": point} for point in points], coefficients)["units"]


def match(x: Tensor, y: Tensor, *, solver: str = "assignment", max_iterations: int | None = None) -> Tensor:
    """Return the bijection that moves the units x onto the units y at the least sum of squared distances.

    It is the assignment problem, and minimising squared distances is maximising inner products: one (n, n) product,
    added up in float64, and never an (n, n, D) array.

    Args:
        x, y: (n, D) units, such as butterflies or rows.
        solver: "assignment" (SciPy, exact), "emd" (POT's network simplex, exact), or "entropic" (POT's Sinkhorn; its
            rounded plan is a bijection by luck only, and is refused where it is not one).
        max_iterations: of POT; None: see `transport_plan`.

    Returns:
        (n,) int64: unit i of x goes to unit permutation[i] of y; where x lives.

    Raises:
        ValueError: if x and y are not finite (n, D) with equal n and D, for an unknown solver, or a plan that is no
            bijection.
        RuntimeError: if POT has not converged after `max_iterations`.

    Source: AY20 section 3.4; the released code uses POT's `emd` and the row argmax of its plan.
    """
    choose("solver", solver, ("assignment", *_PLANS))
    _check_units(x, y)
    if len(x) != len(y):
        raise ValueError("x and y must have equal numbers of units, since a bijection needs them; "
                         f"got {len(x)} and {len(y)}")
    if solver != "assignment":
        return bijection(transport_plan(x, y, solver=solver, max_iterations=max_iterations)).to(x.device)
    from scipy.optimize import linear_sum_assignment  # 0.4 seconds, here only

    _, columns = linear_sum_assignment(_products(x, y).cpu().numpy(), maximize=True)
    return torch.as_tensor(columns, dtype=torch.int64, device=x.device)


def transport_plan(x: Tensor, y: Tensor, *, solver: str = "emd", regularisation: float = 0.01,
                   max_iterations: int | None = None) -> Tensor:
    """Return the plan (n, m) that transports n units of equal mass onto m such units at the least squared distance.

    Args:
        x, y: (n, D) and (m, D) units.
        solver: "emd": exact; "entropic": Sinkhorn's, which spreads the mass of every unit.
        regularisation: of "entropic": weight of the entropy, in units of the mean squared distance.
        max_iterations: None: 10,000,000 for "emd" (POT's own default of 100,000 ends short of the optimum at 2,000
            units), 100,000 for "entropic".

    Returns:
        (n, m) float64 masses on the CPU that add up to 1; rows add up to 1/n, columns to 1/m.

    Raises:
        ValueError: for units that are not finite matrices of one width, an unknown solver, regularisation <= 0.
        RuntimeError: if the solver has not converged after `max_iterations`.

    Source: AY20 section 3.4 (POT); entropic plans: Cuturi 2013.
    """
    import ot  # takes a second, and only plans need it

    choose("solver", solver, _PLANS)
    _check_units(x, y)
    if not regularisation > 0:
        raise ValueError(f"regularisation must be > 0, got {regularisation}")
    squares = (x.double().square().sum(1)[:, None], y.double().square().sum(1))
    costs = (squares[0] + squares[1] - 2 * _products(x, y)).clamp_(min=0).cpu().numpy()
    masses = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    cap = max_iterations or _PLANS[solver]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what POT warns of is an error here
        if solver == "emd":
            plan, log = ot.emd(*masses, costs, numItermax=cap, log=True)
            converged = log["warning"] is None
        else:
            plan, log = ot.sinkhorn(*masses, costs, regularisation * costs.mean(), method="sinkhorn_log",
                                    numItermax=cap, stopThr=_STOP, log=True)
            converged = log["err"][-1] < _STOP
    if not converged:
        raise RuntimeError(f"solver {solver!r} has not converged after max_iterations={cap} on {costs.shape} units; "
                           "allow more")
    return torch.from_numpy(plan)


def bijection(plan: Tensor) -> Tensor:
    """Return the permutation (n,) int64 that a transport plan (n, n) describes: the largest entry of every row.

    Raises:
        ValueError: if the plan is not square, or rows share their largest column: then it is no bijection.

    Source: the released code of AY20, which rounds in this way.
    """
    if plan.ndim != 2 or plan.shape[0] != plan.shape[1]:
        raise ValueError(f"plan must be square to be a bijection, got shape {tuple(plan.shape)}")
    columns = plan.argmax(1)
    wanted = torch.bincount(columns, minlength=len(plan))
    if wanted.max() > 1:
        raise ValueError(f"plan must be a bijection, but the rows' largest entries take {int((wanted > 0).sum())} of "
                         f"{len(plan)} columns, one of them {int(wanted.max())} times")
    return columns


def cycles(permutation: Tensor) -> list[tuple[int, ...]]:
    """Return the cycles i -> permutation[i] -> ..., fixed points included, each from its smallest entry, in order.

    Raises:
        ValueError: if `permutation` does not hold each of 0..n-1 once.

    Examples:
        >>> cycles(torch.tensor([2, 1, 3, 0]))
        [(0, 2, 3), (1,)]
    """
    following = _entries(permutation)
    found, seen = [], [False] * len(following)
    for start in range(len(following)):
        cycle, i = [], start
        while not seen[i]:
            seen[i] = True
            cycle.append(i)
            i = following[i]
        if cycle:
            found.append(tuple(cycle))
    return found


def swaps(permutation: Tensor) -> Tensor:
    """Return the fewest exchanges (m, 2) of places, m = n - number of cycles, that bring every unit home.

    Place i holds unit permutation[i] at first, as in `layers.permute`. Exchanging what the two places of each row
    hold, row after row, ends with unit i in place i; each exchange brings the unit `row[1]` home for good.

    Raises:
        ValueError: if `permutation` does not hold each of 0..n-1 once.

    Source: AY20 section 3.4, "a pair of neurons is swapped placing one of them at the required position".

    Examples:
        >>> swaps(torch.tensor([2, 1, 3, 0]))
        tensor([[0, 2],
                [0, 3]])
    """
    pairs = [(cycle[0], other) for cycle in cycles(permutation) for other in cycle[1:]]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _entries(permutation: Tensor) -> list[int]:
    entries = torch.as_tensor(permutation).reshape(-1).tolist()
    if sorted(entries) != list(range(len(entries))):
        raise ValueError(f"permutation must hold each of 0..n-1 once, got {len(entries)} entries that do not")
    return entries


def _check_units(x: Tensor, y: Tensor) -> None:
    for name, units in (("x", x), ("y", y)):
        if units.ndim != 2 or not len(units):
            raise ValueError(f"{name} must be a matrix (n, D) of units, got shape {tuple(units.shape)}")
        if not torch.isfinite(units).all():
            bad = int((~torch.isfinite(units)).sum())
            raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have units of equal length D, got {x.shape[1]} and {y.shape[1]}")


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products (n, m) in float64."""
    other = y.double().T  # single precision would round away what tells one matching from the next best
    return torch.cat([rows.double() @ other for rows in x.split(_ROWS)])
