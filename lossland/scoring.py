"""Scores of networks on a split: sums over images, with work shared between the members of a span.

Networks that are linear in k fixed points of weight space share the products of the data with the k first layers; those
on the way of a swap share everything but two units; all others are scored one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear

from lossland import batchnorm, kernels
from lossland.layers import axes, gather
from lossland.legs import Swaps
from lossland.models import MLP
from lossland.targets import flatten
from lossland.tasks import Split, Task
from lossland.weights import Weights, distance, inner, mix, skeleton

_SHARED = 256 * 2**20  # bytes of first-layer features kept at a time
_BATCH = 1000  # images per pass where nothing is shared
_TILE = (16, 4096)  # swaps and images scored at a time: logits that stay in cache
BINS = 20  # of the calibration error, as in W21


@dataclass
class Sums:
    """Sums over images per point: what nll, accuracy and calibration error follow from."""

    nll: Tensor  # (T,)
    hits: Tensor  # (T,)
    histogram: Tensor  # (T, 3, bins)

    @staticmethod
    def zeros(points: int) -> Sums:
        """Return empty sums for T = `points` networks."""
        return Sums(*(torch.zeros(points, *shape, dtype=torch.float64) for shape in ((), (), (3, BINS))))

    def add(self, where: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the scores of logits (T', b, C) to the rows `where` (T',); (T', b, C, L) and labels (b, L) for words."""
        logits, labels = flatten(logits, labels)
        nll, hits, histogram = kernels.class_scores(logits, labels, BINS)
        self.nll[where] += nll.cpu()
        self.hits[where] += hits.cpu()
        self.histogram[where] += histogram.cpu()

    def columns(self, targets: int) -> dict[str, np.ndarray]:
        """Return nll [nats], accuracy and ece [fractions], each (T,), for sums over so many images (words)."""
        _, confidence, hits = self.histogram.unbind(1)
        return {"nll": (self.nll / targets).numpy(), "accuracy": (self.hits / targets).numpy(),
                "ece": ((confidence - hits).abs().sum(-1) / targets).numpy()}


def batches(task: Task, split: Split, size: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (prepared images (b, C, H, W), labels (b,)) in order."""
    for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
        yield task.prepare(images, dtype), labels


class Stateless:
    """A network as a pure function of (weights, images), with batch-norm statistics re-estimated for each weights."""

    def __init__(self, net: nn.Module, task: Task) -> None:
        self.net, self.task, self.bare = net, task, skeleton(net)
        self.has_norms = bool(batchnorm.norms(net))

    def buffers(self, weights: Weights) -> dict[str, Tensor]:
        """Return the buffers that belong to `weights`: statistics from one pass over the training split."""
        dtype = next(iter(weights.values())).dtype
        images = (batch for batch, _ in batches(self.task, self.task.train, _BATCH, dtype))
        return batchnorm.refresh(self.net, weights, images)

    def __call__(self, weights: Weights, buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return logits (b, C)."""
        return functional_call(self.bare, (weights, buffers), (images,))


class _Given(nn.Module):
    """Stands in for a first layer whose outputs are known already."""

    output: Tensor

    def forward(self, _: Tensor) -> Tensor:
        return self.output


def _first_layer(net: nn.Module) -> tuple[str, nn.Module] | None:
    """Return name and module of the only layer that reads the data, where it is a linear map that can be shared."""
    readers = [layer for layer in net.layers() if layer.reads is None] if hasattr(net, "layers") else []
    if len(readers) != 1 or batchnorm.norms(net):
        return None
    module = net.get_submodule(readers[0].module)
    zero_padding = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
    return (readers[0].module, module) if isinstance(module, nn.Linear) or zero_padding else None


def _features(module: nn.Module, name: str, point: Weights, images: Tensor) -> Tensor:
    """Return the outputs of the first layer (b, ...), bias included."""
    weight, bias = point[f"{name}.weight"], point.get(f"{name}.bias")
    if isinstance(module, nn.Linear):
        return linear(images.flatten(1), weight, bias)
    return conv2d(images, weight, bias, module.stride, module.padding, module.dilation, module.groups)


@dataclass(frozen=True)
class _Block:
    """Some images with what the k first layers make of them."""

    features: Tensor  # (k, b, ...)
    images: Tensor  # (b, C, H, W)
    labels: Tensor  # (b,)


class Mixtures:
    """Members of the span of k fixed points, evaluated together."""

    def __init__(self, net: nn.Module, task: Task, points: Sequence[Weights]) -> None:
        self.net, self.task, self.points = net, task, points
        self.first = _first_layer(net)
        self.fused = _one_hidden(net)
        self.way = "one by one" if self.first is None else "fused" if self.fused else "shared first layer"
        self.function = Stateless(net, task)

    def add(self, sums: Sums, where: Tensor, coefficients: Tensor, split: Split, tick: Callable[[int], None]) -> None:
        """Add the scores of the members with coefficients (T, k) to the rows `where` (T,) of `sums`."""
        if self.first is None:
            for row, c in zip(where, coefficients, strict=True):
                add_point(sums, int(row), self.function, mix(self.points, c), split)
                tick(1)
            return
        name, module = self.first
        dtype = self.points[0][f"{name}.weight"].dtype
        probe = _features(module, name, self.points[0], self.task.prepare(split.images[:1], dtype))
        size = max(1, _SHARED // (len(self.points) * probe.numel() * probe.element_size()))
        for images, labels in batches(self.task, split, size, dtype):
            features = torch.stack([_features(module, name, point, images) for point in self.points])  # (k, b, ...)
            score = self._fused if self.fused else self._rest
            score(sums, where, coefficients, _Block(features, images, labels))
            tick(len(where) * len(labels) / len(split))

    def _fused(self, sums: Sums, where: Tensor, coefficients: Tensor, block: _Block) -> None:
        keys = [f"linear.1.{part}" for part in ("weight", "bias") if f"linear.1.{part}" in self.points[0]]
        ends = [{key: point[key] for key in keys} for point in self.points]
        for rows in torch.arange(len(where)).split(64):  # bounds the memory of logits (T, b, C)
            heads = mix(ends, coefficients[rows])
            bias = heads.get("linear.1.bias", heads["linear.1.weight"].new_zeros(heads["linear.1.weight"].shape[:2]))
            c = coefficients[rows].to(block.features.dtype)
            logits = kernels.mix_relu_head(block.features, c, heads["linear.1.weight"], bias)
            sums.add(where[rows], logits, block.labels)

    def _rest(self, sums: Sums, where: Tensor, coefficients: Tensor, block: _Block) -> None:
        given = _Given()
        rest = skeleton(self.net)
        rest.set_submodule(self.first[0], given)
        buffers = batchnorm.fresh_buffers(self.net, block.features)
        rows = [{"output": features} for features in block.features]
        later = [{key: value for key, value in point.items() if not key.startswith(f"{self.first[0]}.")}
                 for point in self.points]
        for row, c in zip(where, coefficients, strict=True):
            weights = mix(later, c)
            mixed = mix(rows, c)["output"]
            for start in range(0, len(block.labels), _BATCH):
                part = slice(start, start + _BATCH)
                given.output = mixed[part]
                logits = functional_call(rest, (weights, buffers), (block.images[part],))
                sums.add(row[None], logits[None], block.labels[part])

    def distances(self, coefficients: Tensor, origin: Weights | None) -> Tensor:
        """Return the distances (T,) float64 of the members from `origin`; None: from zero, their norms.

        From inner products of the k points. Distances from an `origin` are exact for coefficients that add up to one,
        as those of every basis here do.
        """
        away = self.points if origin is None else [{key: point[key].double() - origin[key].double() for key in origin}
                                                   for point in self.points]
        gram = torch.tensor([[inner(p, q) for q in away] for p in away], dtype=torch.float64)
        c = coefficients.double().cpu()
        return torch.einsum("ti,ij,tj->t", c, gram, c).clamp(min=0).sqrt()


def _one_hidden(net: nn.Module) -> bool:
    return isinstance(net, MLP) and len(net.linear) == 2


class Exchanges:
    """Points of the permutation stage of a one-hidden-layer network, evaluated together.

    On the way of a swap two units differ from the network at the end, so its features are computed once for all swaps,
    and a point's logits are a rank-two update of its logits. Completed swaps change nothing and share one evaluation.
    """

    way = "rank two"

    def __init__(self, net: nn.Module, task: Task, leg: Swaps) -> None:
        self.task, self.leg = task, leg
        (self.writers, self.readers), = axes(net.layers()).values()

    @staticmethod
    def serves(net: nn.Module, leg: object) -> bool:
        """Say whether points of this leg can be evaluated so."""
        return isinstance(leg, Swaps) and _one_hidden(net)

    def add(self, sums: Sums, where: Tensor, s: Tensor, split: Split, tick: Callable[[float], None]) -> None:
        """Add the scores of the points at s (T,) to the rows `where` (T,) of `sums`."""
        w, (swap, u) = self.leg.weights, self.leg.locate(s)
        weight, head = w["linear.0.weight"], w["linear.1.weight"]
        bias, shift = (w.get(f"linear.{i}.bias", m.new_zeros(len(m)))[:, None] for i, m in enumerate((weight, head)))
        moving = ((u > 0) & (u < 1)).nonzero()[:, 0]
        resting = ((u == 0) | (u == 1)).nonzero()[:, 0]
        units, u = self.leg.units.to(weight.device), u.to(weight.device)
        size = max(1, _SHARED // (len(weight) * weight.itemsize))
        for images, labels in batches(self.task, split, size, weight.dtype):
            features = torch.addmm(bias, weight, images.flatten(1).T)  # (n, b): a unit's features lie together
            for z, y in zip(features.split(_TILE[1], 1), labels.split(_TILE[1]), strict=True):
                logits = torch.addmm(shift, head, z.relu())  # (C, b')
                if len(resting):
                    sums.add(where[resting], logits.T[None], y)
                for rows in moving.split(_TILE[0]):
                    p, q = units[swap[rows].to(units.device)].unbind(1)
                    heads = head.T[p], head.T[q]
                    sums.add(where[rows], kernels.exchange_logits(logits, (z[p], z[q]), heads, u[rows.to(u.device)]), y)
            tick(len(where) * len(labels) / len(split))

    def distances(self, s: Tensor, origin: Weights | None) -> Tensor:
        """Return the distances (T,) float64 of the points from `origin`; None: from zero, their norms.

        Squared, a distance is quadratic along every swap: two units move, on a straight line.
        """
        w, (swap, u) = self.leg.weights, self.leg.locate(s)
        origin = origin or {name: torch.zeros_like(tensor) for name, tensor in w.items()}
        places, units = self.leg.places, self.leg.units
        ours, theirs = (gather(x, self.writers, self.readers).double().cpu() for x in (w, origin))
        way = ours[units[:, 1]] - ours[units[:, 0]]  # (m, D): what a swap adds to its first place
        square, slope = way.square().sum(1), ((theirs[places[:, 1]] - theirs[places[:, 0]]) * way).sum(1)
        start = self.leg(torch.zeros(1))
        rest = torch.cat([torch.zeros(1, dtype=torch.float64), 2 * slope.cumsum(0)])
        rest += distance({name: tensor[0] for name, tensor in start.items()}, origin) ** 2
        if not len(square):
            return rest[:1].sqrt().expand(len(s)).clone()
        return (rest[swap] + 2 * u * (slope[swap] - (1 - u) * square[swap])).clamp(min=0).sqrt()


def logits_of(function: Stateless, weights: Weights, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits (b, C), labels (b,)) of one network, batch by batch."""
    buffers, dtype = function.buffers(weights), next(iter(weights.values())).dtype
    size = max(1, _BATCH // split.labels[0].numel())
    for images, labels in batches(function.task, split, size, dtype):
        yield function(weights, buffers, images), labels


def add_point(sums: Sums, row: int, function: Stateless, weights: Weights, split: Split) -> None:
    """Add the scores of one network to row `row` of `sums`."""
    for logits, labels in logits_of(function, weights, split):
        sums.add(torch.tensor([row]), logits[None], labels)
