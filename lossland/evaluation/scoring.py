"""Scores of networks on a split: sums over images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland import batchnorm, kernels
from lossland.allocation import keep_memory
from lossland.evaluation.arguments import check_task, naming
from lossland.targets import flatten
from lossland.tasks import Split, Task
from lossland.weights import Weights, skeleton

__all__ = ["BATCH", "BINS", "SHARED", "Manner", "Stateless", "Sums", "add_point", "batches", "check_task",
           "logits_of"]

SHARED = 256 * 2**20  # bytes kept at a time for use at other points
BATCH = 1000  # images per pass
BINS = 20  # of the calibration error, as in W21


@dataclass(frozen=True)
class Manner:
    """How networks are scored.

    Attributes:
        exact: by the reference, not by compiled kernels.
        precision: as `evaluate` takes it.
        statistics: on which batch-norm statistics are estimated; None: the task's training split.
        each: whether the scores of every image are kept.
    """

    exact: bool = False
    precision: str | None = None
    statistics: Split | None = None
    each: bool = False


@dataclass
class Sums:
    """Sums over images per point: what nll, accuracy and calibration error follow from."""

    nll: Tensor  # (T,)
    hits: Tensor  # (T,)
    histogram: Tensor  # (T, 3, bins)
    PARTS: ClassVar = ("nll", "hits", "histogram")
    SMOOTH: ClassVar = ("nll",)  # what changes smoothly along a smooth path

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
        except (RuntimeError, IndexError, ValueError) as error:
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


def logits_of(function: Stateless, weights: Weights, split: Split,
              buffers: dict[str, Tensor] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits (b, C), labels (b,)) of one network, batch by batch; its buffers are estimated unless given."""
    buffers = function.buffers(weights) if buffers is None else buffers
    dtype = next(iter(weights.values())).dtype
    size = max(1, BATCH // split.labels[0].numel())
    for images, labels in batches(function.task, split, size, dtype):
        yield function(weights, buffers, images), labels


@keep_memory()
def add_point(sums: Sums, row: int, function: Stateless, weights: Weights, split: Split) -> None:
    """Add the scores of one network to row `row` of `sums`."""
    for logits, labels in logits_of(function, weights, split):
        sums.add(torch.tensor([row]), logits[None], labels)
