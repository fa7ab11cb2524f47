"""AY20's panel as one product: matching x move x scheme gives a continuous path from A to B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lossland.adjust import SOLVES, adjusted
from lossland.errors import choose
from lossland.layers import Layer, axes, free_axes, gather, permute, unit_count
from lossland.legs import Swaps, carried
from lossland.neurons import Move, match
from lossland.paths import Path
from lossland.stages import ordered_writers, staged
from lossland.tasks import Task
from lossland.tracing import layers_of
from lossland.weights import Weights, check_belongs, check_finite, check_match

SCHEMES = ("butterfly", "rows", "adjust")


@torch.no_grad()
def connect(net: nn.Module, a: Weights, b: Weights, *, matching: str | Mapping[str, Tensor] | None = None,
            move: str | Move = "linear", scheme: str = "butterfly", match_on: str | None = None,
            layers: Sequence[Layer] | None = None, task: Task | None = None, knots: int = 11,
            ridge: float | None = None, patches: int | None = None, solve: str = "knots",
            progress: bool = False) -> Path:
    """Return a continuous path from `a` to `b`, both reached to the last bit.

    Three choices make AY20's methods, for networks of any depth: Linear is (None, "linear", "rows"), Arc (None, "arc",
    "rows"), each "+ Butterfly" with the scheme "butterfly", each "+ WA" with "adjust"; OT + Butterfly is ("ot",
    "linear", "butterfly"), OT + WA ("ot", "linear", "adjust"). IAF flow and RealNVP are (None, a flow's move). With one
    hidden layer rows and butterflies on straight lines are the same, and the paper says Linear, Arc and OT.

    Args:
        net: the network: dense, convolutional, residual, or any other that has a layer list.
        a, b: the ends.
        matching: which unit of `b` a unit of `a` moves to. None: the one with the same number. "ot": exact optimal
            transport, layer by layer in forward order; axes whose order matters (`Layer.fixed`) are left as they are.
            Or unit axis -> (n,) permutation, as `layers.permute` takes it. With a matching the path leads to `b` with
            its units in another order, and then, on a leg of swaps, to `b` itself.
        move: how units move: "linear", "arc" (about the mean of the pooled units), or any `Move`, such as `flow.move`.
        scheme: what counts as a unit, and what becomes of the layers behind it. "rows": the rows of every layer on
            their own, all layers at once; a `Move` is given those of hidden layers, and the output layer moves
            straight. "butterfly": row, bias and columns. "adjust": rows; the layers that read them are solved for at
            knots. The last two go layer by layer where there are several hidden layers: see `stages.staged`.
        match_on: what "ot" matches: "butterfly" or "rows"; None: butterflies with the scheme "butterfly" and with one
            hidden layer, unless the scheme is "adjust".
        layers: the network's layers; None: `net.layers()`, or else what `tracing.trace` finds on the task's images.
        task: its training images are what readers are solved for on: needed for "adjust", and for "butterfly" where
            there are several hidden layers. Batch-norm statistics come from them, too.
        knots: with "adjust", number of equidistant points with a solution in each stage, its ends included.
        ridge: of the solutions, relative to the mean eigenvalue of X X^T; None: see `adjust.adjusted`, `stages.staged`.
        patches: of an image, that a convolution is fitted on. None: all of them; 4: two by two, half a map apart.
        solve: "knots", or with one hidden layer "everywhere": see `adjust.adjusted`.
        progress: show a line.

    Returns:
        The transport leg, or the legs of the stages; then, where units have to be put in order, one leg of `Swaps`.
        With several hidden layers and stages a `stages.Staged`, which tells where they begin and end; with one and the
        scheme "adjust" an `adjust.Adjusted`. Both tell how well every knot was solved.

    Raises:
        ValueError: for an unknown choice; ends that do not match; different widths where "ot" needs equal ones; no task
            where readers are solved for; a `Move` that is not finite or does not start and end at the units; a network
            that cannot be traced.
        TypeError: if `move` is neither a name nor a function, or the network has no layer list and there is no task to
            trace it on.

    Source: AY20 section 3: 3.2 linear and arc, 3.3 flows, 3.4 transport with its swaps, 3.5 weight adjustment; section
        4: deep, convolutional and residual networks.
    """
    layers = layers_of(net, layers, None if task is None else task.prepare(task.train.images[:2]))
    choose("scheme", scheme, SCHEMES)
    staged_path = scheme != "rows" and not _is_shallow(layers)
    _check_means(staged_path, scheme, task, solve)
    check_belongs(net, a, "a")
    check_finite(a, "a")
    check_finite(b, "b")
    if staged_path:
        check_match(a, b, dtypes=True)
        return staged(net, a, b, task, layers=layers, matching=matching, match_on=match_on, move=move, scheme=scheme,
                      knots=knots, ridge=ridge, patches=patches, progress=progress)
    on = "rows" if scheme == "adjust" or not _is_shallow(layers) else "butterfly"
    order = _order(a, b, layers, matching, match_on or on)
    check_match(a, b, dtypes=True)
    target = permute(b, layers, order)
    path = _moved(a, target, layers, move, scheme)
    if scheme == "adjust":
        path = adjusted(net, path, a, target, task, layers=layers, knots=knots, ridge=ridge, patches=patches,
                        solve=solve, progress=progress)
    if all(torch.equal(p.cpu(), torch.arange(len(p))) for p in order.values()):
        return path
    return replace(path, legs=(*path.legs, Swaps(b, layers, order)))


def _check_means(staged_path: bool, scheme: str, task: Task | None, solve: str) -> None:
    if task is None and (staged_path or scheme == "adjust"):
        raise ValueError(f"task must be given for scheme={scheme!r}{' of several hidden layers' if staged_path else ''}"
                         ": the next layer is solved for on its training images")
    if staged_path and choose("solve", solve, SOLVES) != "knots":
        raise ValueError(f"solve must be 'knots' where there are several hidden layers, got {solve!r}")


def _is_shallow(layers: Sequence[Layer]) -> bool:
    found = axes(layers)
    return len(found) <= 1 and all(len(writers) == len(readers) == 1 for writers, readers in found.values())


def _order(a: Weights, b: Weights, layers: Sequence[Layer], matching: str | Mapping[str, Tensor] | None,
           match_on: str) -> dict[str, Tensor]:
    """Return unit axis -> permutation that puts the units of `b` into the order of `a`."""
    choose("match_on", match_on, ("butterfly", "rows"))
    if matching is None or isinstance(matching, Mapping):
        return dict(matching or {})
    choose("matching", matching, (None, "ot"))
    if match_on == "butterfly" and not _is_shallow(layers):
        raise ValueError("match_on must be 'rows' for scheme='rows' of several hidden layers, whose columns belong to "
                         "units that are not in order yet; got 'butterfly'")
    for axis in free_axes(layers):
        widths = [unit_count(weights, layers, axis) for weights in (a, b)]
        if widths[0] != widths[1]:
            raise ValueError(f"a and b must have equal numbers of units of {axis!r} for matching='ot', since a "
                             f"bijection needs them; got {widths[0]} and {widths[1]}")
    check_match(a, b)
    order: dict[str, Tensor] = {}
    for axis, (writers, readers) in axes(layers).items():
        if axis in free_axes(layers):
            units = [gather(weights, ordered_writers(writers, order, free_axes(layers)),
                            readers if match_on == "butterfly" else ()) for weights in (a, permute(b, layers, order))]
            order[axis] = match(*units)
    return order


def _moved(a: Weights, b: Weights, layers: tuple[Layer, ...], move: str | Move, scheme: str) -> Path:
    """Return the leg that carries the units of `a` to those of `b`."""
    if scheme == "butterfly":
        return Path((carried(a, b, tuple(axes(layers).values()), move),))
    # An arc has a centre for the rows of the output layer, too; a `Move` knows hidden units only.
    return Path((carried(a, b, tuple(((layer,), ()) for layer in layers
                                     if layer.writes is not None or move == "arc"), move),))
