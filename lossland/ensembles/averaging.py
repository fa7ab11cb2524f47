"""The average of networks' predictions, taken one member after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lossland.errors import choose

AVERAGES = ("probabilities", "logits")


class Average:
    """The scores of an ensemble that grows: only their mean is kept, never those of single members.

    Args:
        average: "probabilities": the logarithm of the mean softmax output (AY20, G18); "logits": the mean of the
            logits (W21), a geometric mean of probabilities up to normalisation.

    Attributes:
        count: how many members have been added.

    Raises:
        ValueError: for an average that does not exist.

    Examples:
        >>> mean = Average("logits")
        >>> mean.add(torch.tensor([[0.0, 4.0]])), mean.add(torch.tensor([[2.0, 0.0]]))
        (tensor([[0., 4.]]), tensor([[1., 2.]]))
    """

    def __init__(self, average: str = "probabilities") -> None:
        self.average, self.count = choose("average", average, AVERAGES), 0
        self._mean: Tensor | None = None

    def add(self, logits: Tensor) -> Tensor:
        """Return the scores (..., C) [nats] of all members so far, this one (..., C) included."""
        self.count += 1
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # In logarithms: a probability that a softmax rounds to zero keeps its place in the mean.
        scores = scores if self.average == "logits" else scores.log_softmax(-1)
        if self._mean is None:
            self._mean = scores
        elif self.average == "logits":
            self._mean = self._mean + (scores - self._mean) / self.count
        else:
            share = scores.new_tensor((self.count - 1) / self.count)
            self._mean = torch.logaddexp(self._mean + share.log(), scores + torch.log1p(-share))
        return self._mean


def running_average(outputs: Iterable[Tensor], average: str = "probabilities") -> Iterator[Tensor]:
    """Yield the scores of the ensembles of the first 1, 2, 3, ... members; one of them is in memory at a time.

    Args:
        outputs: (..., C) logits of one member after the other.
        average: "probabilities" or "logits", as `Average`.

    Yields:
        (..., C) scores [nats]; their softmax is the ensemble's prediction, and `metrics` take them as logits.

    Raises:
        ValueError: for an average that does not exist, or no members.

    Examples:
        >>> two = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> [scores.exp() for scores in running_average(two)][-1]
        tensor([[0.7000, 0.3000]])
    """
    mean = Average(average)
    for logits in outputs:
        yield mean.add(logits)
    if not mean.count:
        raise ValueError("outputs must hold at least one member, got none")


def averaged(outputs: Iterable[Tensor], average: str = "probabilities") -> Tensor:
    """Return the scores (..., C) [nats] of all members together: the last of `running_average`."""
    for scores in running_average(outputs, average):
        last = scores
    return last
