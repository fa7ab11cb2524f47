"""Weight adjustment: give the next layer the outputs of network A on features that move from A to B.

A layer's weight enters its outputs linearly, so the best one solves a linear system. It depends on the data through
second moments alone, which are added up over blocks of images: no feature matrix of all images is ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from tqdm import tqdm

from lossland import features
from lossland.errors import choose
from lossland.layers import Layer, axes
from lossland.least_squares import RIDGE, Moments, Solution, solve
from lossland.models import MLP
from lossland.paths import Mix, Path, linear_basis
from lossland.paths import chain as chain_path
from lossland.products import packed, product
from lossland.tasks import Task
from lossland.weights import Weights, check_match, stack

SOLVES = ("knots", "everywhere")
_KNOT_BYTES = 512 * 2**20  # of the moments that one pass over the data adds up


def _dtype(weights: Weights) -> torch.dtype:
    return next(iter(weights.values())).dtype


@torch.no_grad()
def moments(net: nn.Module, weights: Weights, layer: Layer, target_weights: Weights, task: Task, *,
            patches: int | None = None, products: torch.dtype | None = None) -> Moments:
    """Return the moments of a layer's inputs at `weights` and its outputs, without bias, at `target_weights`.

    They are added up over the whole training split, without augmentation, block by block. A convolution is the linear
    map of its unfolded patches. Batch-norm statistics are re-estimated for both networks.

    Args:
        net: the network; its modules are not touched, a private copy is.
        weights: gives the features X.
        layer: the layer to be adjusted, linear or convolutional.
        target_weights: give the targets Y: the layer's own outputs there.
        task: its training images are used.
        patches: of an image, that a convolution is fitted on. None: all of them; 4: two by two, half a map apart.
        products: dtype of a block's products; None: that of the weights, or float64 where there are fewer than 10
            samples per unit. Sums are always float64.

    Raises:
        TypeError: if the layer's module is neither linear nor a 2-D convolution, naming it.
        ValueError: if a convolution has groups, patches is neither None nor 4, or the two weights do not match.

    Source: AY20 Eqs. (9) and (10); conv layers: the released code takes four patches an image.
    """
    check_match(weights, target_weights, ("weights", "target_weights"))
    target = features.Target(net, target_weights, task, patches=patches, products=products)
    groups = target.moments([weights], [layer.module])[0][layer.module]
    if len(groups) > 1:
        raise ValueError(f"layer {layer.module!r} must have groups=1, got {len(groups)}: its moments are those of "
                         "several linear maps, see features.Target")
    return groups[0]


def _shared_moments(leg: Mix, coefficients: Tensor, a: Weights, task: Task, products: torch.dtype) -> list[Moments]:
    """Return the moments of T members of a leg of one-hidden-layer nets: one first-layer product per fixed point."""
    dtype, head = _dtype(a), a["linear.1.weight"]
    sums = [Moments.zeros(head.shape[1], head.shape[0], products=products, device=head.device) for _ in coefficients]
    size = max(1, min(features.BLOCK, features.BLOCK_BYTES // (head.shape[1] * head.itemsize)))
    ends = [(p["linear.0.weight"], p.get("linear.0.bias")) for p in (a, *leg.points)]
    keys = [tuple(map(id, end)) for end in ends]  # A itself is a point of most legs: its product is needed once
    first = {key: (packed(weight), bias) for key, (weight, bias) in zip(keys, ends, strict=True)}
    for images in features.blocks(task, size, dtype):
        flat = packed(images.flatten(1))
        known = {key: product(weight, flat) for key, (weight, _) in first.items()}  # (n, b): units first
        for key, (_, bias) in first.items():
            known[key] = known[key] if bias is None else known[key].add_(bias[:, None])
        target, *outputs = (known[key] for key in keys)
        y, mixed = linear(target.relu().T, head), torch.empty_like(target)
        for total, row in zip(sums, coefficients.tolist(), strict=True):
            torch.mul(outputs[0], row[0], out=mixed)
            for c, output in zip(row[1:], outputs[1:], strict=True):
                mixed.add_(output, alpha=c)
            total.add(mixed.relu_().T, y)
    return sums


def _along(net: nn.Module, path: Path, t: Tensor, *, layer: Layer, a: Weights, task: Task,
           products: torch.dtype, patches: int | None = None) -> Iterator[Moments]:
    """Yield the moments at each t of a path, t increasing."""
    fused = isinstance(net, MLP) and len(net.linear) == 2
    leg, s = path.locate(t)
    units = a[f"{layer.module}.weight"].flatten(1).shape[1]
    together = max(1, _KNOT_BYTES // (8 * units**2))
    for number in leg.unique().tolist():
        piece, where = path.legs[number], s[leg == number]
        if fused and isinstance(piece, Mix):
            for some in where.split(together):
                yield from _shared_moments(piece, piece.basis(some), a, task, products)
        else:
            for one in where.tolist():
                moved = {name: tensor[0] for name, tensor in piece(torch.tensor([one], dtype=torch.float64)).items()}
                yield moments(net, moved, layer, a, task, patches=patches, products=products)


@dataclass(frozen=True, eq=False)
class Adjusted(Path):
    """A path whose next layer is adjusted: from A to B to the last bit.

    Attributes:
        knots: one row per solved point: t [on the path that was adjusted], residual [fraction], condition, rank.
    """

    knots: pd.DataFrame


@dataclass(frozen=True)
class _Problem:
    """What stays the same along an adjusted path."""

    net: nn.Module
    layer: Layer
    a: Weights
    task: Task
    ridge: float
    patches: int | None

    def points(self, path: Path, t: Tensor, *, progress: bool) -> Iterator[tuple[Weights, Solution]]:
        """Yield the adjusted point and its solution at each t (T,), increasing."""
        weight = f"{self.layer.module}.weight"
        units = self.a[weight].flatten(1).shape[1]
        # Without a ridge every direction above rounding counts, so rounding must be small.
        products = features.products_dtype(len(self.task.train), units, _dtype(self.a)) if self.ridge else torch.float64
        sums = _along(self.net, path, t, layer=self.layer, a=self.a, task=self.task, products=products,
                      patches=self.patches)
        for one, each in zip(t.tolist(), tqdm(sums, "adjust", len(t), unit="knot", disable=not progress), strict=True):
            found = solve(each, ridge=self.ridge)
            adjusted = found.weight.to(self.a[weight].dtype).reshape(self.a[weight].shape)
            yield {**path.point(one), **self.kept, weight: adjusted}, found

    @property
    def kept(self) -> Weights:
        """A's bias of the adjusted layer: at the knots the outputs are A's, bias included."""
        bias = f"{self.layer.module}.bias"
        return {bias: self.a[bias]} if bias in self.a else {}


@dataclass(frozen=True)
class _Everywhere:
    """A leg that solves again at every point: AY20's released setting; not linear in anything, one pass per point."""

    problem: _Problem
    path: Path

    def __call__(self, s: Tensor) -> Weights:
        return stack([point for point, _ in self.problem.points(self.path, s.double().cpu(), progress=False)])


@torch.no_grad()
def adjusted(net: nn.Module, path: Path, a: Weights, b: Weights, task: Task, *, layers: Sequence[Layer] | None = None,
             knots: int = 11, ridge: float | None = None, patches: int | None = None, solve: str = "knots",
             progress: bool = False) -> Adjusted:
    """Return a path from `a` to `b` that moves the first layer as `path` does and adjusts the layer behind it.

    Legs: W2(A) -> W2(0); straight pieces between the knots; W2(1) -> W2(B). At a knot at t, W2(t) solves
    W2(t) X(t) = W2(A) X(A) in the least-squares sense, X(t) the hidden features of the training images, and the output
    bias is A's: there the network computes about what A does. On the last leg W2 and the output bias go to B's, and
    nothing else moves, so that the loss is convex there and never above its ends.

    Args:
        net: a network with one hidden layer.
        path: moves the units' incoming weights from `a`'s to `b`'s; what it says about the next layer is not used.
        a, b: the ends.
        task: its training images are used, without augmentation.
        layers: the network's layers; None: `net.layers()`.
        knots: number of equidistant t with a solution, 0 and 1 included; rounded up so that every leg boundary of the
            path is a knot.
        ridge: relative to the mean eigenvalue of X X^T; None: 1e-7 at knots, 0 everywhere.
        patches: see `moments`.
        solve: "knots"; or "everywhere": solve again at every point that is asked for (AY20's released code evaluates
            only such points). It need not be continuous, and costs passes over the data at each point.
        progress: show a line.

    Raises:
        ValueError: for several hidden layers or readers, an unknown `solve`, knots < 2, a negative ridge, ends that do
            not match, or a path that does not lead from `a`'s units to `b`'s.

    Source: AY20 section 3.5, Eqs. (9) and (10), with both end legs; the ridge is ours.
    """
    choose("solve", solve, SOLVES)
    if knots < 2:
        raise ValueError(f"knots must be >= 2 (both ends of the path), got {knots}")
    layer = _reader(net.layers() if layers is None else layers)
    check_match(a, b)
    _check_ends(path, a, b, layer)
    ridge = (0.0 if solve == "everywhere" else RIDGE) if ridge is None else ridge
    problem = _Problem(net, layer, a, task, ridge, patches)
    t = path.grid(math.ceil((knots - 1) / len(path.legs)) + 1)
    t = t if solve == "knots" else t[[0, -1]]
    solved = list(problem.points(path, t, progress=progress))
    points = [point for point, _ in solved]
    found = [solution for _, solution in solved]
    table = pd.DataFrame({"t": t.numpy(), **{name: [getattr(one, name) for one in found]
                                             for name in ("residual", "condition", "rank")}})
    table.attrs.update(ridge=problem.ridge, solve=solve, task=task.name)
    if solve == "knots":
        return Adjusted(chain_path([a, *points, b]).legs, table)
    ends = (Mix((a, points[0]), linear_basis), Mix((points[1], b), linear_basis))
    return Adjusted((ends[0], _Everywhere(problem, path), ends[1]), table)


def _reader(layers: Sequence[Layer]) -> Layer:
    found = axes(layers)
    readers = [reader for _, behind in found.values() for reader in behind]
    if len(found) != 1 or len(readers) != 1:
        raise ValueError("layers must have one hidden layer and one layer that reads it, got unit axes "
                         f"{sorted(found)} read by {[reader.module for reader in readers]}")
    return readers[0]


def _check_ends(path: Path, a: Weights, b: Weights, layer: Layer) -> None:
    for t, end, name in ((0.0, a, "a"), (1.0, b, "b")):
        point = path.point(t)
        check_match(end, point, (name, f"path({t:g})"))
        for key, tensor in point.items():
            if key.startswith(f"{layer.module}."):
                continue
            gap = float((tensor - end[key]).norm())
            if gap > 1e-6 * max(float(end[key].norm()), 1e-30):
                raise ValueError(f"path must move the units from a's to b's, but at t = {t:g} {key!r} is {gap:.2g} "
                                 f"away from {name}'s")
