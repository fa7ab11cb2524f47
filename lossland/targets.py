"""Several targets per input: the words of a window, the pixels of a picture. A score is an average over all targets."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Number = TypeVar("Number", bound=ArrayLike | Tensor)


def flatten(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and labels with one row per target.

    Args:
        logits: (..., n, C) where an input has one label, (..., n, C, L, ...) where it has several, as
            `torch.nn.functional.cross_entropy` takes them.
        labels: (n,) or (n, L, ...) classes.

    Returns:
        (..., N, C) logits and (N,) labels, N = n * L * ...; with one label per input they are returned as they came,
        and so are shapes that do not fit, for whoever uses them to refuse.

    Examples:
        >>> logits, labels = flatten(torch.zeros(7, 5, 100, 35), torch.zeros(5, 35))
        >>> tuple(logits.shape), tuple(labels.shape)
        ((7, 175, 100), (175,))
    """
    more = labels.ndim - 1
    if more < 1 or logits.shape[-more:] != labels.shape[1:] or logits.shape[: -1 - more][-1:] != labels.shape[:1]:
        return logits, labels
    logits = logits.movedim(-1 - more, -1)  # (..., n, L, ..., C): free for networks whose last layer wrote it so
    return logits.flatten(-2 - more, -2), labels.flatten()


def perplexity(nll: Number) -> Number:
    """Return exp(nll): the number of equally likely words among which a network is as unsure as it is on average.

    Uniform guesses over C classes have perplexity C, a network that is always sure and right has 1. Averages are taken
    over losses first: the perplexity of a text is exp of its mean loss, not the mean of its words' perplexities.

    Args:
        nll: mean losses per word [nats] of any shape: a number, an array, a tensor, a column of a table.

    Returns:
        The same kind, >= 1.

    Source: G18 Table 3.

    Examples:
        >>> float(perplexity(np.log(1000.0)).round(6))
        1000.0
    """
    return nll.exp() if isinstance(nll, Tensor) else np.exp(nll)
