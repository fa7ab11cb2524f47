"""AY20's connection of deep networks, layer by layer: one loop over layers, whatever the kind of network.

Switch layer k to B, then refit every later reader of its units to A's own outputs, in order; the output layer comes
last. Dense, convolutional and residual networks differ in who reads what, and the layer list says that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.errors import choose
from lossland.features import Target
from lossland.layers import Layer, axes, gather, permute
from lossland.least_squares import RIDGE, Solution, solve
from lossland.legs import Swaps, carried
from lossland.neurons import Groups, Move, match
from lossland.paths import Leg, Mix, Path, linear_basis
from lossland.tasks import Task
from lossland.weights import Weights, at

BUTTERFLY_RIDGE = 1e-3  # columns that are solved for are moved and matched, too: their size matters
_SOLVED = ["module", "residual", "condition", "rank"]
_KNOT_BYTES = 512 * 2**20  # of the moments that one pass over the data adds up


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


@dataclass(frozen=True)
class Fit:
    """How the readers of moved units are solved for.

    Attributes:
        target: network A.
        layers: the network's layers.
        ridge: relative to the mean eigenvalue of X X^T.
        progress: whether to show a line.
    """

    target: Target
    layers: tuple[Layer, ...]
    ridge: float

    def solved(self, points: list[Weights], readers: Sequence[Layer]) -> list[list[tuple[str, Solution]]]:
        """Fit the readers to A's outputs at each point, in order, and put their weights into the points.

        Args:
            points: changed in place: a reader's weight is replaced, its bias is A's before and after.
            readers: in forward order; a later one sees what the earlier ones have become.

        Returns:
            For every point (module, solution) of each reader.
        """
        found: list[list[tuple[str, Solution]]] = [[] for _ in points]
        for together in independent(readers, self.layers):
            names = [reader.module for reader in together]
            first = min(self.layers.index(reader) for reader in together)
            units = max(self.target.weights[f"{name}.weight"][0].numel() for name in names)
            count = max(1, _KNOT_BYTES // (8 * units**2 * len(names)))
            for start in range(0, len(points), count):
                some = points[start : start + count]
                sums = self.target.moments(some, names, held=self._held(some, first))
                for i, moments in enumerate(sums, start):
                    for name in names:
                        found[i].append((name, self._put(points[i], name, moments[name])))
        return found

    def _held(self, points: Sequence[Weights], before: int) -> list[str]:
        """Return the modules in front of the first layer in which the points differ: they need one pass for all."""
        held = []
        for layer in self.layers[:before]:
            if any(len({id(point[name]) for point in points}) > 1 for name in names_of(layer, points[0])):
                break
            held.append(layer.module)
        return held

    def _put(self, point: Weights, name: str, groups: Sequence) -> Solution:
        solutions = [solve(moments, ridge=self.ridge) for moments in groups]
        like = point[f"{name}.weight"]
        point[f"{name}.weight"] = torch.cat([one.weight for one in solutions]).to(like.dtype).reshape(like.shape)
        parts = [(float(moments.yy), one.residual) for moments, one in zip(groups, solutions, strict=True)]
        total = sum(square for square, _ in parts)
        residual = (sum(square * part**2 for square, part in parts) / total) ** 0.5 if total else 0.0
        return Solution(point[f"{name}.weight"].flatten(1), residual, max(one.condition for one in solutions),
                        sum(one.rank for one in solutions))


def reads_of(layer: Layer) -> tuple[str, ...]:
    """Return the unit axes that a layer reads: none where it reads the data, several where it reads a concatenation."""
    return (layer.reads,) if isinstance(layer.reads, str) else tuple(layer.reads or ())


def names_of(layer: Layer, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of all parameters of a layer, its normalisations' included."""
    modules = [module for module in (layer.module, layer.norm, layer.pre_norm) if module]
    return [name for module in modules for part in ("weight", "bias") if (name := f"{module}.{part}") in weights]


def independent(readers: Sequence[Layer], layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield the readers in order, in runs in which no reader's inputs depend on another one's outputs."""
    run: list[Layer] = []
    for reader in readers:
        if any(_feeds(other, reader, layers) for other in run):
            yield run
            run = []
        run.append(reader)
    if run:
        yield run


def _feeds(first: Layer, second: Layer, layers: Sequence[Layer]) -> bool:
    reached = {first.writes}
    start, stop = layers.index(first), layers.index(second)
    for layer in layers[start + 1 : stop]:
        if reached & set(reads_of(layer)):
            reached.add(layer.writes)
    return bool(reached & set(reads_of(second)))


def units_of(layer: Layer, readers: Sequence[Layer], weights: Mapping[str, Tensor]) -> Groups:
    """Return the sets of units that move with a layer: its rows, with its readers' columns; and what precedes it.

    A normalisation in front of the layer belongs to the units that the layer reads, whose own rows stand still by then.
    """
    groups: Groups = (((layer,), tuple(readers)),)
    front = Layer(layer.pre_norm, None, None) if layer.pre_norm else None
    return (*groups, ((front,), ())) if front and f"{front.module}.weight" in weights else groups


def bare(readers: Sequence[Layer]) -> list[Layer]:
    """Return the readers without the normalisations in front of them, which move with a reader in its own stage."""
    return [replace(reader, pre_norm=None) for reader in readers]


class _Course:
    """The way from A to B as far as it has been built."""

    def __init__(self, fit: Fit, b: Weights, matching: str | Mapping[str, Tensor] | None, match_on: str,
                 move: str | Move) -> None:
        self.fit, self.layers, self.move = fit, fit.layers, move
        self.order = dict(matching) if isinstance(matching, Mapping) else {}
        self.transport, self.match_on = matching == "ot", match_on
        self.b, self.goal, self.now = b, permute(b, fit.layers, self.order), dict(fit.target.weights)
        self.fixed = {layer.writes for layer in fit.layers if getattr(layer, "fixed", False)}
        self.legs: list[Leg] = []
        self.stages: list[dict] = []
        self.knots: list[dict] = []
        inner = [i for i, layer in enumerate(self.layers) if layer.writes is not None]
        self.last = inner[-1] if inner else -1

    def switched(self, k: int, **fitted: Tensor) -> Weights:
        """Return the present point with layer k as it is in B."""
        return {**self.now, **{name: self.goal[name] for name in names_of(self.layers[k], self.now)}, **fitted}

    def readers(self, k: int) -> list[Layer]:
        """Return the later readers of the units of layer k that can be refit: a depth-wise convolution cannot."""
        layer, later = self.layers[k], self.layers[k + 1 :]
        net = self.fit.target.net
        return [other for other in later if layer.writes in reads_of(other)
                and not (getattr(net.get_submodule(other.module), "groups", 1) > 1
                         and self.now[f"{other.module}.weight"].shape[1] == 1)]

    def match(self, k: int, readers: Sequence[Layer], direct: bool) -> None:
        """Put the units of B that layer k writes into the order of the present ones, once for each axis."""
        axis = self.layers[k].writes
        if not self.transport or axis in self.order or axis in self.fixed:
            return
        writers = [layer for layer in axes(self.layers)[axis][0]
                   if all(read in self.order or read in self.fixed for read in reads_of(layer))]
        end = self.goal
        if self.match_on == "butterfly" and not direct:
            end = {**self.now, **{name: self.goal[name] for w in writers for name in names_of(w, self.now)}}
            self.fit.solved([end], readers)
        columns = readers if direct else bare(readers)
        columns = columns if self.match_on == "butterfly" else ()
        self.order[axis] = match(gather(self.now, writers, columns), gather(end, writers, columns))
        self.goal = permute(self.goal, self.layers, {axis: self.order[axis]})

    def _add(self, points: Sequence[Leg], **row: object) -> None:
        self.stages.append({"stage": len(self.stages) + 1, **row, "start": len(self.legs), "legs": len(points)})
        self.legs += points

    def _note(self, leg: int, found: Sequence[tuple[str, Solution]]) -> None:
        self.knots += [{"stage": len(self.stages) + 1, "leg": leg, "module": name, "residual": one.residual,
                        "condition": one.condition, "rank": one.rank} for name, one in found]

    def adjust(self, k: int, knots: int) -> None:
        """Add the stage of layer k: its rows move, its readers are solved for at the knots."""
        layer, readers = self.layers[k], self.readers(k)
        self.match(k, readers, False)
        if not readers:
            self._direct(k, readers, self.switched(k))
            return
        names = names_of(layer, self.now)
        ends = [{name: weights[name] for name in names} for weights in (self.now, self.goal)]
        moved = carried(*ends, units_of(layer, (), self.now), self.move)(torch.linspace(0, 1, knots).double())
        inside = [{**self.now, **at(moved, i)} for i in range(1, knots - 1)]
        points = [dict(self.now), *inside, self.switched(k)]
        for i, found in enumerate(self.fit.solved(points, readers)):
            self._note(len(self.legs) + i + 1, found)
        self._add([Mix(pair, linear_basis) for pair in pairwise([self.now, *points])], module=layer.module,
                  axis=layer.writes, kind="units", readers=tuple(reader.module for reader in readers))
        self.now = points[-1]

    def butterfly(self, k: int) -> None:
        """Add the stage of layer k: its rows and its readers' columns move to the next intermediate point."""
        readers, final = self.readers(k), k == self.last
        self.match(k, readers, final)
        end = self.goal if final else self.switched(k)
        if not final:
            for found in self.fit.solved([end], readers):
                self._note(len(self.legs) + 1, found)
        self._direct(k, readers if final else bare(readers), end)

    def _direct(self, k: int, columns: Sequence[Layer], end: Weights) -> None:
        layer = self.layers[k]
        groups = units_of(layer, columns, self.now)
        refit = () if k == self.last else tuple(reader.module for reader in columns)
        self._add([carried(self.now, end, groups, self.move)], module=layer.module, axis=layer.writes, kind="units",
                  readers=refit)
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
        stages, knots, count = pd.DataFrame(self.stages), pd.DataFrame(self.knots), len(self.legs)
        stages["t0"], stages["t1"] = stages.start / count, (stages.start + stages.legs) / count
        knots = knots if len(knots) else pd.DataFrame(columns=["stage", "leg", *_SOLVED])
        knots["t"] = knots.leg / count
        return Staged(tuple(self.legs),
                      stages[["stage", "module", "axis", "kind", "readers", "t0", "t1", "legs"]],
                      knots[["stage", "t", *_SOLVED]])


@torch.no_grad()
def staged(net: nn.Module, a: Weights, b: Weights, task: Task, *, layers: Sequence[Layer],
           matching: str | Mapping[str, Tensor] | None = None, match_on: str | None = None, move: str | Move = "linear",
           scheme: str = "adjust", knots: int = 11, ridge: float | None = None, patches: int | None = None,
           progress: bool = False) -> Staged:
    """Return the staged path."""
    ridge = (RIDGE if scheme == "adjust" else BUTTERFLY_RIDGE) if ridge is None else ridge
    fit = Fit(Target(net, a, task, patches=patches, exact=not ridge), tuple(layers), ridge)
    choose("match_on", match_on, (None, "butterfly", "rows"))
    if not isinstance(matching, Mapping):
        choose("matching", matching, (None, "ot"))
    if knots < 2:
        raise ValueError(f"knots must be >= 2 (both ends of a stage), got {knots}")
    course = _Course(fit, b, matching, match_on or ("rows" if scheme == "adjust" else "butterfly"), move)
    inner = [k for k, layer in enumerate(course.layers) if layer.writes is not None]
    for k in tqdm(inner, scheme, unit="layer", disable=not progress):
        course.adjust(k, knots) if scheme == "adjust" else course.butterfly(k)
    return course.finish()
