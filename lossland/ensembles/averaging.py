"""The average of networks' predictions, taken one member after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lossland.errors import choose

AVERAGES = ("probabilities", "logits")


def running_average(outputs: Iterable[Tensor], average: str = "probabilities") -> Iterator[Tensor]:
    """Yield the scores of the ensembles of the first 1, 2, 3, ... members; one of them is in memory at a time.

    Args:
        outputs: (..., C) logits of one member after the other.
        average: "probabilities": the logarithm of the mean softmax output (AY20, G18); "logits": the mean of the
            logits (W21), a geometric mean of probabilities up to normalisation.

    Yields:
        (..., C) scores [nats]; their softmax is the ensemble's prediction, and `metrics` take them as logits.

    Raises:
        ValueError: for an average that does not exist, or no members.

    Examples:
        >>> two = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> [scores.exp() for scores in running_average(two)][-1]
        tensor([[0.7000, 0.3000]])
    """
    choose("average", average, AVERAGES)
    mean, count = None, 0
    for count, logits in enumerate(outputs, 1):
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if average == "logits":
            mean = scores if mean is None else mean + (scores - mean) / count
        else:
            # In logarithms: a probability that a softmax rounds to zero keeps its place in the mean.
            scores = scores.log_softmax(-1)
            share = scores.new_tensor((count - 1) / count)
            mean = scores if mean is None else torch.logaddexp(mean + share.log(), scores + torch.log1p(-share))
        yield mean
    if not count:
        raise ValueError("outputs must hold at least one member, got none")


def averaged(outputs: Iterable[Tensor], average: str = "probabilities") -> Tensor:
    """Return the scores (..., C) [nats] of all members together: the last of `running_average`."""
    for scores in running_average(outputs, average):
        last = scores
    return last
