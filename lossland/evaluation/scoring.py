"""Scores of networks on a split: sums over images; the networks on the way of a swap, which differ in two units, share
all other work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland import batchnorm, kernels
from lossland.evaluation.arguments import check_task, naming
from lossland.layers import axes, gather
from lossland.legs import Swaps
from lossland.models import MLP
from lossland.targets import flatten
from lossland.tasks import Split, Task
from lossland.weights import Weights, distance, skeleton

__all__ = ["BATCH", "BINS", "SHARED", "Exchanges", "Manner", "Stateless", "Sums", "add_point", "batches", "check_task",
           "logits_of", "one_hidden"]

SHARED = 256 * 2**20  # bytes kept at a time for use at other points
BATCH = 1000  # images per pass
_TILE = (16, 4096)  # swaps and images scored at a time: logits that stay in cache
BINS = 20  # of the calibration error, as in W21


@dataclass(frozen=True)
class Manner:
    """How networks are scored.

    Attributes:
        exact: by the reference, not by compiled kernels.
        precision: as `evaluate` takes it.
        statistics: on which batch-norm statistics are estimated; None: the task's training split.
    """

    exact: bool = False
    precision: str | None = None
    statistics: Split | None = None


@dataclass
class Sums:
    """Sums over images per point: what nll, accuracy and calibration error follow from."""

    nll: Tensor  # (T,)
    hits: Tensor  # (T,)
    histogram: Tensor  # (T, 3, bins)

    @staticmethod
    def zeros(points: int, device: torch.device | str = "cpu") -> Sums:
        """Return empty sums for T = `points` networks."""
        shapes = (), (), (3, BINS)
        return Sums(*(torch.zeros(points, *shape, dtype=torch.float64, device=device) for shape in shapes))

    def like(self, points: int, device: torch.device) -> Sums:
        """Return empty sums of this kind for T = `points` networks on a device, to be added by `add_all`."""
        return Sums.zeros(points, device)

    def add_all(self, where: Tensor, others: Sums) -> None:
        """Add the sums of other networks (T',) to the rows `where` (T',): the one time that a device is waited for."""
        self.add_scores(where, others.nll, others.hits, others.histogram)

    def rows(self, where: Tensor) -> Sums:
        """Return the sums of some of the networks."""
        return Sums(self.nll[where], self.hits[where], self.histogram[where])

    def add(self, where: Tensor | slice, logits: Tensor, labels: Tensor) -> None:
        """Add the scores of logits (T', b, C) to the rows `where` (T',); (T', b, C, L) and labels (b, L) for words."""
        logits, labels = flatten(logits, labels)
        try:
            scores = kernels.class_scores(logits, labels, BINS)
        except (RuntimeError, IndexError) as error:
            error.add_note(f"the network gave {logits.shape[-1]} logits for each label: there must be one for each "
                           "class of the task")
            raise
        self.add_scores(where, *scores)

    def add_scores(self, where: Tensor | slice, nll: Tensor, hits: Tensor, histogram: Tensor) -> None:
        """Add sums over images to the rows `where` (T',), as `kernels.class_scores` returns them."""
        device = self.nll.device
        self.nll[where] += nll.to(device)
        self.hits[where] += hits.to(device)
        self.histogram[where] += histogram.to(device)

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
        images = (batch for batch, _ in batches(self.task, self.task.train, BATCH, dtype))
        with naming(self.net, self.task):
            return batchnorm.refresh(self.net, weights, images)

    def __call__(self, weights: Weights, buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return logits (b, C)."""
        with naming(self.net, self.task):
            return functional_call(self.bare, (weights, buffers), (images,))


def one_hidden(net: nn.Module) -> bool:
    """Say whether a network is dense with one hidden layer: points on its paths share their first products."""
    return isinstance(net, MLP) and len(net.linear) == 2


class Exchanges:
    """Points of the permutation stage of a one-hidden-layer network, evaluated together.

    On the way of a swap two units differ from the network at the end, so its features are computed once for all swaps,
    and a point's logits are a rank-two update of its logits. Completed swaps change nothing and share one evaluation.
    """

    way = "rank two"

    def __init__(self, net: nn.Module, task: Task, leg: Swaps) -> None:
        self.task, self.leg = task, leg
        self.product = str(leg.weights["linear.0.weight"].dtype).removeprefix("torch.")
        (self.writers, self.readers), = axes(net.layers()).values()

    @staticmethod
    def serves(net: nn.Module, leg: object) -> bool:
        """Say whether points of this leg can be evaluated so."""
        return isinstance(leg, Swaps) and one_hidden(net)

    def score(self, totals: Mapping[str, Sums], where: Tensor, s: Tensor, tick: Callable[[float], None]) -> None:
        """Add the scores of the points at s (T,) to the rows `where` (T,) of the sums of each split."""
        for name, sums in totals.items():
            self._score(sums, where, s, self.task.split(name), tick)

    def _score(self, sums: Sums, where: Tensor, s: Tensor, split: Split, tick: Callable[[float], None]) -> None:
        w, (swap, u) = self.leg.weights, self.leg.locate(s)
        weight, head = w["linear.0.weight"], w["linear.1.weight"]
        bias, shift = (w.get(f"linear.{i}.bias", m.new_zeros(len(m)))[:, None] for i, m in enumerate((weight, head)))
        moving = ((u > 0) & (u < 1)).nonzero()[:, 0]
        resting = ((u == 0) | (u == 1)).nonzero()[:, 0]
        units, u = self.leg.units.to(weight.device), u.to(weight.device)
        size = max(1, SHARED // (len(weight) * weight.itemsize))
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


def logits_of(function: Stateless, weights: Weights, split: Split,
              buffers: dict[str, Tensor] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits (b, C), labels (b,)) of one network, batch by batch; its buffers are estimated unless given."""
    buffers = function.buffers(weights) if buffers is None else buffers
    dtype = next(iter(weights.values())).dtype
    size = max(1, BATCH // split.labels[0].numel())
    for images, labels in batches(function.task, split, size, dtype):
        yield function(weights, buffers, images), labels


def add_point(sums: Sums, row: int, function: Stateless, weights: Weights, split: Split) -> None:
    """Add the scores of one network to row `row` of `sums`."""
    for logits, labels in logits_of(function, weights, split):
        sums.add(torch.tensor([row]), logits[None], labels)
