"""Scores on some of the images, with standard errors.

All points of a path see the same images, and an image that is hard at one point is mostly hard at others, too. Standard
errors of differences between points therefore come from the differences of every image (paired), not from the standard
errors of two losses, and are mostly smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lossland.evaluation.arguments import check_whole
from lossland.evaluation.scoring import Sums
from lossland.targets import flatten
from lossland.tasks import Split


def check_count(name: str, count: int | None) -> None:
    """Raise unless this is None or a number of images from which a spread follows.

    Raises:
        TypeError: for what is no whole number.
        ValueError: for fewer than two.
    """
    if count is not None:
        check_whole(name, count, 2)


def drawn(split: Split, count: int | None, seed: int) -> Split:
    """Return some images of a split, drawn without replacement, in their order; all of them if there are no more."""
    if count is None or count >= len(split):
        return split
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(int(seed)))
    return split.rows(order[:count].sort().values.to(split.labels.device))


@dataclass
class Each(Sums):
    """Sums over images that keep the summands: loss and hit of every image; of a window the mean over its words."""

    losses: Tensor  # (T, n) float32
    right: Tensor  # (T, n) float32
    PARTS: ClassVar = (*Sums.PARTS, "losses", "right")
    SMOOTH: ClassVar = (*Sums.SMOOTH, "losses")

    def __post_init__(self) -> None:
        self._seen = torch.zeros(len(self.nll), dtype=torch.int64)

    @staticmethod
    def of(points: int, images: int, device: torch.device | str = "cpu") -> Each:
        """Return empty sums for T = `points` networks and n = `images` images."""
        empty = Sums.zeros(points, device)
        return Each(empty.nll, empty.hits, empty.histogram, *torch.zeros(2, points, images, device=device))

    def like(self, points: int, device: torch.device) -> Each:
        """Return empty sums of this kind for T = `points` networks on a device, to be added by `add_all`."""
        return Each.of(points, self.losses.shape[1], device)

    def add_all(self, where: Tensor, others: Sums) -> None:
        """Put in the scores of other networks (T',) at the rows `where` (T',)."""
        assert isinstance(others, Each)
        super().add_all(where, others)
        self.losses[where], self.right[where] = (x.to(self.nll.device) for x in (others.losses, others.right))

    def add(self, where: Tensor | slice, logits: Tensor, labels: Tensor) -> None:
        """Add the scores of logits (T', b, C) to the rows `where` (T',), which have seen the same images so far."""
        super().add(where, logits, labels)
        flat, targets = flatten(logits, labels)
        chosen = flat.gather(-1, targets.expand(flat.shape[:-1])[..., None])[..., 0]
        top, guess = flat.max(-1)
        start = int(self._seen[where][0])
        images = slice(start, start + len(labels))
        hits = (guess == targets) & ~top.isnan()
        for part, values in ((self.losses, flat.logsumexp(-1) - chosen), (self.right, hits)):
            part[where, images] = values.float().unflatten(-1, (len(labels), -1)).mean(-1).to(part.device)
        self._seen[where] += len(labels)

    def errors(self, t: Tensor, population: int) -> dict[str, np.ndarray]:
        """Return standard errors and heights, each (T,), for t (T,) in order and images out of so many.

        nll_se [nats] and accuracy_se [fractions]: of the columns of the same names. height [nats]: of nll above the
        straight line in t between its values at the first and the last t; height_se: its standard error, from the
        heights of every image.
        """
        count = self.losses.shape[1]
        share = (t - t[0]) / (t[-1] - t[0] if t[-1] > t[0] else 1.0)
        factor = math.sqrt(max(0.0, 1 - count / population) / count)  # drawn without replacement
        found = {"nll_se": [], "accuracy_se": [], "height": [], "height_se": []}
        first, last = self.losses[0].double(), self.losses[-1].double()
        for row, one in enumerate(share.tolist()):
            loss = self.losses[row].double()
            height = loss - torch.lerp(first, last, one)
            found["nll_se"].append(loss.std() * factor)
            found["accuracy_se"].append(self.right[row].double().std() * factor)
            found["height"].append(height.mean())
            found["height_se"].append(height.std() * factor)
        return {name: torch.stack(values).numpy() for name, values in found.items()}


