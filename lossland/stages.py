"""AY20's connection of deep networks, layer by layer: one loop over layers, whatever the kind of network.

Switch layer k to B, then refit every later reader of its units to A's own outputs, in order; the output layer comes
last. Dense, convolutional and residual networks differ in who reads what, and the layer list says that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.errors import choose
from lossland.features import Target
from lossland.layers import Layer, axes, free_axes, gather, named, permute
from lossland.least_squares import Solution
from lossland.legs import Swaps, carried
from lossland.neurons import Groups, Move, match
from lossland.paths import Leg, Mix, Path, linear_basis
from lossland.refit import Refit, names_of
from lossland.tasks import Task
from lossland.weights import Weights

# Checked on images held out of digits' training split, see `staged`.
STAGE_RIDGE = 1e-5
BUTTERFLY_RIDGE = 1e-2  # columns that are solved for are moved and matched, too: their size matters
_SOLVED = ["module", "residual", "condition", "rank"]


@dataclass(frozen=True, eq=False)
class Staged(Path):
    """A path on which layers move from A to B one after the other.

    Attributes:
        stages: one row per stage: stage (1, 2, ...), module [the layer that moves], axis [the units it writes], kind
            ("units", "output", "permutation"), readers [tuple of the modules that are refit], t0, t1, legs [how many].
        knots: one row per linear system: stage, t, module [the reader that was solved for], residual [fraction],
            condition, rank.
    """

    stages: pd.DataFrame
    knots: pd.DataFrame


def bare(readers: Sequence[Layer]) -> list[Layer]:
    """Return the readers without the normalisations in front of them."""
    return [replace(reader, pre_norm=None) for reader in readers]


def ordered_writers(writers: Sequence[Layer], order: Collection[str], matched: Collection[str]) -> list[Layer]:
    """Return the layers, of those that write an axis, whose own inputs are in order already.

    A stream has several writers; the later ones read units that are put in order after the stream's.

    Args:
        writers: of the axis.
        order: axes that have been put in order.
        matched: axes that are or will be.
    """
    return [layer for layer in writers if all(read in order or read not in matched for read in named(layer.reads))]


class _Course:
    """The way from A to B as far as it has been built."""

    def __init__(self, refit: Refit, b: Weights, matching: str | Mapping[str, Tensor] | None, match_on: str,
                 move: str | Move) -> None:
        self.refit, self.layers, self.move = refit, refit.layers, move
        self.order = dict(matching) if isinstance(matching, Mapping) else {}
        self.axes, self.free = axes(self.layers), free_axes(self.layers)
        self.matched = self.free if matching == "ot" else []
        self.match_on = match_on
        self.b, self.goal, self.now = b, permute(b, self.layers, self.order), dict(refit.target.weights)
        self.legs: list[Leg] = []
        self.stages: list[dict] = []
        self.knots: list[dict] = []
        self.inner = [k for k, layer in enumerate(self.layers) if layer.writes is not None]

    def switched(self, layers: Sequence[Layer]) -> Weights:
        """Return the present point with some layers as they are in B."""
        return {**self.now, **{name: self.goal[name] for layer in layers for name in names_of(layer, self.now)}}

    def samples(self, k: int, readers: Sequence[Layer], *, norms: bool = False) -> Groups:
        """Return the sets of units that move with layer k: its rows, with its readers' columns, and what precedes it.

        A normalisation in front of layer k belongs to the units that it reads, whose own rows have arrived by then; one
        in front of a reader moves in the reader's own stage, or with `norms`, here.
        """
        layer = self.layers[k]
        groups: Groups = (((layer,), ()),)
        if layer.writes in self.free:
            writers, behind = self.axes[layer.writes]
            columns = [reader for reader in behind if reader in readers]
            groups = (((writers[writers.index(layer)],), tuple(columns if norms else bare(columns))),)
        front = Layer(layer.pre_norm, None, None) if layer.pre_norm else None
        return (*groups, ((front,), ())) if front and f"{front.module}.weight" in self.now else groups

    def match(self, k: int, readers: Sequence[Layer], *, final: bool = False) -> None:
        """Put the units of B that layer k writes into the order of the present ones, once for each axis."""
        for axis in named(self.layers[k].writes):
            if axis not in self.matched or axis in self.order:
                continue
            writers = ordered_writers(self.axes[axis][0], self.order, self.matched)
            columns = []
            if self.match_on == "butterfly" and self.layers[k].writes == axis:
                columns = [reader for reader in self.axes[axis][1] if reader in readers]
            if columns and final:
                self._order(axis, writers, columns, self.goal)
                continue
            self._order(axis, writers, (), self.goal)
            if columns:  # after rows: what a normalisation in front of a reader makes of units depends on their order
                end = self.switched(writers)
                self.refit.solve([end], readers)
                self._order(axis, writers, bare(columns), end)

    def _order(self, axis: str, writers: Sequence[Layer], columns: Sequence[Layer], end: Weights) -> None:
        """Match the present units with those of `end`, and put those of B into that order."""
        found = match(gather(self.now, writers, columns), gather(end, writers, columns)).to("cpu")
        self.order[axis] = self.order[axis][found] if axis in self.order else found
        self.goal = permute(self.goal, self.layers, {axis: found})

    def _add(self, legs: Sequence[Leg], **row: object) -> None:
        self.stages.append({"stage": len(self.stages) + 1, **row, "start": len(self.legs), "legs": len(legs)})
        self.legs += legs

    def _note(self, leg: int, found: Sequence[tuple[str, Solution]]) -> None:
        self.knots += [{"stage": len(self.stages) + 1, "leg": leg, "module": name, "residual": one.residual,
                        "condition": one.condition, "rank": one.rank} for name, one in found]

    def adjust(self, k: int, knots: int) -> None:
        """Add the stage of layer k: its rows move, its readers are solved for at the knots."""
        layer, readers = self.layers[k], self.refit.readers(k)
        self.match(k, readers)
        if not readers:
            self._direct(k, (), self.switched([layer]))
            return
        names = names_of(layer, self.now)
        ends = [{name: weights[name] for name in names} for weights in (self.now, self.goal)]
        moved = carried(*ends, self.samples(k, ()), self.move)(torch.linspace(0, 1, knots, dtype=torch.float64))
        inside = [{**self.now, **{name: rows[i].clone() for name, rows in moved.items()}}
                  for i in range(1, knots - 1)]
        points = [dict(self.now), *inside, self.switched([layer])]
        for i, found in enumerate(self.refit.solve(points, readers)):
            self._note(len(self.legs) + i + 1, found)
        self._add([Mix(pair, linear_basis) for pair in pairwise([self.now, *points])], module=layer.module,
                  axis=_listed(layer.writes), kind="units", readers=tuple(reader.module for reader in readers))
        self.now = points[-1]

    def butterfly(self, k: int) -> None:
        """Add the stage of layer k: its rows and its readers' columns move to the next intermediate point."""
        readers, final = self.refit.readers(k), k == self.inner[-1]
        self.match(k, readers, final=final)
        end = self.goal if final else self.switched([self.layers[k]])
        if not final:
            for found in self.refit.solve([end], readers):
                self._note(len(self.legs) + 1, found)
        self._direct(k, readers, end)

    def _direct(self, k: int, readers: Sequence[Layer], end: Weights) -> None:
        layer, arrived = self.layers[k], end is self.goal
        groups = self.samples(k, readers, norms=arrived)
        self._add([carried(self.now, end, groups, self.move)], module=layer.module, axis=_listed(layer.writes),
                  kind="units", readers=() if arrived else tuple(reader.module for reader in readers))
        self.now = end

    def finish(self) -> Staged:
        """Return the path, with the output layer's stage and the permutation where they are needed."""
        if any(self.now[name] is not tensor for name, tensor in self.goal.items()):
            outputs = [layer.module for layer in self.layers if layer.writes is None]
            self._add([Mix((self.now, self.goal), linear_basis)], module=" + ".join(outputs), axis=None, kind="output",
                      readers=())
        order = {axis: p for axis, p in self.order.items() if not torch.equal(p.cpu(), torch.arange(len(p)))}
        if order:
            self._add([Swaps(self.b, self.layers, order)], module=None, axis=" + ".join(order), kind="permutation",
                      readers=())
        stages, count = pd.DataFrame(self.stages), len(self.legs)
        stages["t0"], stages["t1"] = stages.start / count, (stages.start + stages.legs) / count
        knots = pd.DataFrame(self.knots, columns=["stage", "leg", *_SOLVED])
        knots["t"] = knots.leg / count
        return Staged(tuple(self.legs), stages[["stage", "module", "axis", "kind", "readers", "t0", "t1", "legs"]],
                      knots[["stage", "t", *_SOLVED]])


def _listed(writes: str | tuple[str, ...] | None) -> str:
    return " + ".join(dict.fromkeys(named(writes)))


@torch.no_grad()
def staged(net: nn.Module, a: Weights, b: Weights, task: Task, *, layers: Sequence[Layer],
           matching: str | Mapping[str, Tensor] | None = None, match_on: str | None = None, move: str | Move = "linear",
           scheme: str = "adjust", knots: int = 11, ridge: float | None = None, patches: int | None = None,
           progress: bool = False) -> Staged:
    """Return the path on which layers move from `a` to `b` one after the other, whatever the kind of network.

    With the scheme "adjust" the stage of a hidden layer has a leg on which the later readers of its units are refitted
    to A's outputs, then straight legs between knots at which the layer's rows have moved on and its readers are solved
    for again, in order; after it the layer is B's. The output layer comes last, alone: the loss is convex there. With
    "butterfly" a stage is one leg, on which rows and the readers' columns move to the next intermediate point, whose
    columns are solved for; the stage of the last hidden layer leads to B with the output layer (the paper skips the
    last intermediate point).

    A reader that is no linear map of its own (a depth-wise convolution, attention) is not refitted: it is switched in a
    stage of its own, and the readers behind it are refitted in its stead.

    Args:
        net: the network.
        a, b: the ends, of equal names and shapes.
        task: its training images are used, without augmentation.
        layers: the network's layers, in forward order.
        matching: None, "ot", or unit axis -> permutation. "ot" matches rows ("adjust") or butterflies, layer by layer:
            those of the present point, whose inputs are B's already, with B's. An axis is matched once, on the writers
            whose inputs are in order by then; axes whose order matters are left as they are.
        match_on: "butterfly" or "rows"; None: butterflies with the scheme "butterfly".
        move: "linear", "arc" (about the mean of a layer's pooled units), or any `Move`.
        scheme: "adjust" or "butterfly".
        knots: number of equidistant points with a solution in each stage of "adjust", its ends included.
        ridge: relative to the mean eigenvalue of X X^T; None: 1e-5 with "adjust", 1e-2 with "butterfly", where the
            columns that are solved for are moved and matched, too, so that their size matters. Checked on images
            held out of digits' training split (FC3 64-32 and FC5 64-32-24, two pairs of nets each): worst accuracies on
            the way differ by at most 0.4 points from 1e-7 to 1e-3 with "adjust"; with "butterfly" 1e-2 is best of 1e-4
            to 1e-1 where units are matched, and up to 4.3 points below 1e-1 where they are not.
        patches: of an image, that a convolution is fitted on. None: all of them; 4: two by two, half a map apart.
        progress: show a line.

    Raises:
        ValueError: for an unknown choice, knots < 2, a negative ridge, or a `Move` that does not start and end at the
            units.

    Source: AY20 section 4.1, Fig. 4; convolutions and skip connections: section 4.2, left undone there. Biases and the
        permutation at the end are ours: the released code's paths jump, and stop at the permuted B.
    """
    ridge = (STAGE_RIDGE if scheme == "adjust" else BUTTERFLY_RIDGE) if ridge is None else ridge
    # Without a ridge every direction above rounding counts, so rounding must be small.
    target = Target(net, a, task, patches=patches, products=None if ridge else torch.float64)
    refit = Refit(target, tuple(layers), ridge)
    choose("match_on", match_on, (None, "butterfly", "rows"))
    if not isinstance(matching, Mapping):
        choose("matching", matching, (None, "ot"))
    if knots < 2:
        raise ValueError(f"knots must be >= 2 (both ends of a stage), got {knots}")
    course = _Course(refit, b, matching, match_on or ("rows" if scheme == "adjust" else "butterfly"), move)
    for k in tqdm(course.inner, scheme, unit="layer", disable=not progress):
        course.adjust(k, knots) if scheme == "adjust" else course.butterfly(k)
    return course.finish()
