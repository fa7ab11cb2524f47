"""AY20's panel as one product: matching x move x scheme gives a continuous path from A to B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lossland.adjust import adjusted
from lossland.errors import choose
from lossland.layers import Layer, axes, gather, permute, unit_count
from lossland.legs import Swaps, carried
from lossland.neurons import Move, match
from lossland.paths import Path
from lossland.stages import staged
from lossland.tasks import Task
from lossland.weights import Weights, check_finite, check_match

SCHEMES = ("butterfly", "rows", "adjust")


@torch.no_grad()
def connect(net: nn.Module, a: Weights, b: Weights, *, matching: str | Mapping[str, Tensor] | None = None,
            move: str | Move = "linear", scheme: str = "butterfly", match_on: str | None = None,
            layers: Sequence[Layer] | None = None, task: Task | None = None, knots: int = 11,
            ridge: float | None = None, patches: int | None = None, solve: str = "knots",
            progress: bool = False) -> Path:
    """Return a continuous path from `a` to `b`, both reached to the last bit.

    Three choices make AY20's methods: Linear is (None, "linear"), Arc (None, "arc"), IAF flow and RealNVP (None, a
    flow's move), each on butterflies; Linear + WA and Arc + WA have scheme "adjust"; OT is ("ot", "linear"), OT + WA
    ("ot", "linear", "adjust").

    Args:
        net: the network.
        a, b: the ends.
        matching: which unit of `b` a unit of `a` moves to. None: the one with the same number. "ot": exact optimal
            transport. Or unit axis -> (n,) permutation, as `layers.permute` takes it. With a matching the path leads to
            `b` with its units in another order, and then, on a leg of swaps, to `b` itself.
        move: how units move: "linear", "arc" (about the mean of the pooled units), or any `Move`, such as `flow.move`.
        scheme: what counts as a unit. "butterfly": row, bias and column, for networks with one hidden layer. "rows":
            the rows of every layer on their own, all layers at once; a `Move` is given those of hidden layers, and the
            output layer moves straight. "adjust": the rows of the first layer; the second is solved for
            (`adjust.adjusted`).
        match_on: what "ot" matches: "butterfly" or "rows"; None: "rows" where the scheme is "adjust".
        layers: the network's layers; None: `net.layers()`.
        task: its training images are what "adjust" needs.
        knots, ridge, solve, progress: of "adjust".

    Returns:
        The transport leg, or the legs of the adjustment; then, where units have to be put in order, one leg of `Swaps`.
        With scheme "adjust" an `adjust.Adjusted`, which tells how well every knot was solved.

    Raises:
        ValueError: for an unknown choice; ends that do not match; different widths or several hidden layers where "ot"
            or butterflies need one; no task for "adjust"; a `Move` that is not finite or does not start and end at the
            units.
        TypeError: if `move` is neither a name nor a function, or the network has no layer list.

    Source: AY20 section 3: 3.2 linear and arc, 3.3 flows, 3.4 transport with its swaps, 3.5 weight adjustment.
    """
    if layers is None and not hasattr(net, "layers"):
        raise TypeError(f"layers must be given for {type(net).__name__}, which has no method layers(): a list such as "
                        "[ll.Layer('first', None, 'hidden'), ll.Layer('second', 'hidden', None)]")
    layers = tuple(net.layers() if layers is None else layers)
    choose("scheme", scheme, SCHEMES)
    deep = scheme != "rows" and not _is_shallow(layers)
    if task is None and (deep or scheme == "adjust"):
        raise ValueError(f"task must be given for scheme={scheme!r}{' of several hidden layers' if deep else ''}: the "
                         "next layer is solved for on its training images")
    check_finite(a, "a")
    check_finite(b, "b")
    if deep:
        check_match(a, b)
        return staged(net, a, b, task, layers=layers, matching=matching, match_on=match_on, move=move, scheme=scheme,
                      knots=knots, ridge=ridge, patches=patches, progress=progress)
    order = _order(a, b, layers, matching, match_on or ("rows" if scheme == "adjust" else "butterfly"))
    check_match(a, b)
    target = permute(b, layers, order)
    path = _moved(a, target, layers, move, scheme)
    if scheme == "adjust":
        path = adjusted(net, path, a, target, task, layers=layers, knots=knots, ridge=ridge, solve=solve,
                        progress=progress)
    if all(torch.equal(p.cpu(), torch.arange(len(p))) for p in order.values()):
        return path
    return replace(path, legs=(*path.legs, Swaps(b, layers, order)))


def _is_shallow(layers: Sequence[Layer]) -> bool:
    found = axes(layers)
    return len(found) <= 1 and all(len(writers) == len(readers) == 1 for writers, readers in found.values())


def _one_axis(layers: Sequence[Layer], what: str, instead: str) -> str:
    found = axes(layers)
    if len(found) != 1:
        raise ValueError(f"{what} needs a network with one hidden layer, got unit axes {sorted(found)}; {instead}")
    return next(iter(found))


def _order(a: Weights, b: Weights, layers: Sequence[Layer], matching: str | Mapping[str, Tensor] | None,
           match_on: str) -> dict[str, Tensor]:
    """Return unit axis -> permutation that puts the units of `b` into the order of `a`."""
    choose("match_on", match_on, ("butterfly", "rows"))
    if matching is None or isinstance(matching, Mapping):
        return dict(matching or {})
    choose("matching", matching, (None, "ot"))
    axis = _one_axis(layers, "matching='ot'", "give a permutation for each axis")
    widths = [unit_count(weights, layers, axis) for weights in (a, b)]
    if widths[0] != widths[1]:
        raise ValueError(f"a and b must have equal numbers of units of {axis!r} for matching='ot', since a bijection "
                         f"needs them; got {widths[0]} and {widths[1]}")
    check_match(a, b)
    writers, readers = axes(layers)[axis]
    units = [gather(weights, writers, readers if match_on == "butterfly" else ()) for weights in (a, b)]
    return {axis: match(*units)}


def _moved(a: Weights, b: Weights, layers: tuple[Layer, ...], move: str | Move, scheme: str) -> Path:
    """Return the leg that carries the units of `a` to those of `b`."""
    if scheme == "butterfly":
        _one_axis(layers, "scheme='butterfly'", "use scheme='rows'")
        return Path((carried(a, b, tuple(axes(layers).values()), move),))
    # An arc has a centre for the rows of the output layer, too; a `Move` knows hidden units only.
    return Path((carried(a, b, tuple(((layer,), ()) for layer in layers
                                     if layer.writes is not None or move == "arc"), move),))
