"""Numbers that describe a network's outputs and a path: loss, accuracy, calibration, distance, barrier, length.

Metrics of outputs take a leading batch of any shape, for instance (T, n, C) for T points of a path; they average over
the n images and keep the leading axes. Loss, accuracy and calibration of words take (..., n, C, L) with labels (n, L),
and average over the n L words. Fractions, never per cent; nats, never bits.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lossland.errors import choose
from lossland.targets import flatten
from lossland.targets import perplexity as perplexity  # a metric like those here

BARRIERS = ("line", "mean", "worse")


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood (cross-entropy) in nats.

    Averaged probabilities go in as their logarithm. NaN or infinite scores never give a finite loss.

    Args:
        logits: (..., n, C) scores [nats]; half precision is widened to float32.
        labels: (n,) class of each image, integers in [0, C).

    Returns:
        (...) mean over the n images [nats].

    Raises:
        TypeError: Scores that are not floating point, labels that are not integers.
        ValueError: Shapes that do not fit, no images, a label outside the classes.
    """
    logits, labels = flatten(logits, labels)
    _check(logits, labels, "logits")
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = labels.long().to(scores.device).unsqueeze(-1).expand(*scores.shape[:-1], 1)
    return (scores.logsumexp(-1) - scores.gather(-1, index).squeeze(-1)).mean(-1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of images whose largest score is that of their label.

    An image with a NaN among its scores is counted wrong: `argmax` alone would return the place of the NaN, and a
    broken network would score the share of one class.

    Args:
        logits: (..., n, C) scores; any increasing function of the probabilities will do.
        labels: (n,) class of each image, integers in [0, C).

    Returns:
        (...) fractions in [0, 1], float32 unless the scores are float64.

    Raises:
        TypeError, ValueError: As `nll`.
    """
    logits, labels = flatten(logits, labels)
    _check(logits, labels, "logits")
    hits = _hits(*logits.max(-1), labels)
    return hits.to(torch.promote_types(logits.dtype, torch.float32)).mean(-1)


def ece(probabilities: Tensor, labels: Tensor, bins: int = 20) -> Tensor:
    """Expected calibration error: mean gap between confidence and accuracy over bins of equal width.

    Bin m of M holds the images with confidence (largest probability) in ((m - 1) / M, m / M], closed on the right, so
    confidence 1 is in the last bin. The error is sum_m (n_m / n) |accuracy_m - confidence_m|; empty bins add nothing.

    Args:
        probabilities: (..., n, C), each row non-negative with sum 1.
        labels: (n,) class of each image, integers in [0, C).
        bins: Number M of bins, at least 1; W21 uses 20.

    Returns:
        (...) fractions in [0, 1].

    Raises:
        TypeError, ValueError: As `nll`; rows that are not probabilities (logits, NaN); bins that is no int or < 1.

    Source: Guo et al. 2017, Eq. (3), as W21 Figures 8 and 10 use it.
    """
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be an int >= 1, got {bins!r}")
    probabilities, labels = flatten(probabilities, labels)
    _check(probabilities, labels, "probabilities")
    _check_probabilities(probabilities, "probabilities")
    confidence, choice = probabilities.max(-1)
    # Edges in the dtype of the confidence: 3 / 20 then equals a confidence of 0.15, and "closed on the right" holds.
    edges = torch.arange(1, bins, device=confidence.device, dtype=confidence.dtype) / bins
    place = torch.bucketize(confidence.contiguous(), edges)
    gaps = _hits(confidence, choice, labels).double() - confidence.double()
    total = gaps.new_zeros(*gaps.shape[:-1], bins).scatter_add_(-1, place, gaps)  # (..., bins)
    return (total.abs().sum(-1) / labels.numel()).to(torch.promote_types(confidence.dtype, torch.float32))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation distance of two networks' predictions: the mean over images of 1/2 sum_c |p_c - q_c|.

    Args:
        p: (..., n, C) probabilities (softmax outputs).
        q: (..., n, C) probabilities; leading axes broadcast, so (T, n, C) against (n, C) compares T points with one.

    Returns:
        (...) fractions in [0, 1]: 0 for equal predictions, 1 for predictions that share no class.

    Raises:
        TypeError, ValueError: Not floating point, different n or C, no images, rows that are not probabilities.

    Source: W21 appendix E, Figure 17.
    """
    for name, value in (("p", p), ("q", q)):
        _check_scores(value, name)
        _check_probabilities(value, name)
    if p.shape[-2:] != q.shape[-2:]:
        raise ValueError(f"p and q must agree in (n, C), got {tuple(p.shape)} and {tuple(q.shape)}")
    return (p - q).abs().sum(-1).mean(-1) / 2


def barrier(t: ArrayLike | Tensor, loss: ArrayLike | Tensor, *, against: str = "line") -> float:
    """Height of the highest loss on a path above a reference made from its two ends.

    With L0 and L1 the losses at the first and the last t:

    - `"line"`: max over t of loss(t) - [(1 - s) L0 + s L1], s the position of t between the ends, in [0, 1];
    - `"mean"`: max over t of loss(t) - (L0 + L1) / 2 (Frankle et al. 2020); |L0 - L1| / 2 even on a monotone path;
    - `"worse"`: max over t of loss(t) - max(L0, L1).

    The maximum includes the ends, so no barrier is negative; `"line"` and `"worse"` are 0 where the path stays below.

    Args:
        t: (T,) strictly increasing positions, T >= 2: one split of a table, not several stacked.
        loss: (T,) loss [nats] or error [fraction]; for an accuracy pass `1 - accuracy`.
        against: The reference: "line", "mean" or "worse".

    Returns:
        The height in units of `loss`, over the grid that was given.

    Raises:
        ValueError: Lengths that differ or are below 2, t not increasing, NaN or infinite values, an unknown choice.

    Source: Frankle et al. 2020 (`"mean"`); the other references are ours.
    """
    choose("against", against, BARRIERS)
    where, height = _grid(t, loss, "loss")
    first, last = height[0], height[-1]
    if against == "line":
        share = (where - where[0]) / (where[-1] - where[0])
        # Written so that the reference equals the ends exactly: no negative barrier from rounding.
        return float(np.max(height - (first * (1 - share) + last * share)))
    return float(height.max() - ((first + last) / 2 if against == "mean" else max(first, last)))


def along(t: ArrayLike | Tensor, values: ArrayLike | Tensor, distances: ArrayLike | Tensor) -> dict[str, float]:
    """Summary of a metric along a path: minimum, integral over arc length, maximum, mean over t.

    `integral` (G18 loss (1), "Int") is the trapezoid rule in arc length divided by the arc length: stretches where the
    path moves fast in weight space weigh more. `mean` (G18 loss (3)) is the trapezoid rule in t over the range of t.

    Args:
        t: (T,) strictly increasing positions, T >= 2.
        values: (T,) the metric at these positions.
        distances: (T - 1,) l2 distances of consecutive points, see `Path.steps`; not the distances from the start.

    Returns:
        `{"min", "integral", "max", "mean"}` in units of `values`.

    Raises:
        ValueError: As `barrier`; one distance too many or too few, negative distances, distances all 0.

    Source: G18 Eqs. (1) and (3), Table 2.
    """
    where, metric = _grid(t, values, "values")
    steps = _vector(distances, "distances")
    if steps.size != metric.size - 1:
        need = f"{metric.size - 1} for {metric.size} points"
        raise ValueError(f"distances must hold one value per step, {need}, got {steps.size}")
    if steps.min() < 0 or steps.max() == 0:
        raise ValueError(f"distances must be >= 0 and not all 0, got minimum {steps.min()} and maximum {steps.max()}")
    middle, widths = (metric[1:] + metric[:-1]) / 2, np.diff(where)
    integral, mean = float(middle @ steps / steps.sum()), float(middle @ widths / widths.sum())
    return {"min": float(metric.min()), "integral": integral, "max": float(metric.max()), "mean": mean}


def _hits(best: Tensor, choice: Tensor, labels: Tensor) -> Tensor:
    # max() hands a NaN on as the best score, which is how it is recognised without a pass over all classes.
    return (choice == labels.to(choice.device)) & ~best.isnan()


def _check_scores(scores: Tensor, name: str) -> None:
    if not scores.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {scores.dtype}")
    if scores.ndim < 2 or scores.numel() == 0:
        raise ValueError(f"{name} must have shape (..., n, C) with n, C >= 1, got {tuple(scores.shape)}")


def _check(scores: Tensor, labels: Tensor, name: str) -> None:
    _check_scores(scores, name)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    count, classes = scores.shape[-2:]
    if labels.shape != (count,):
        fit = f"({count},) to fit {name} {tuple(scores.shape)}"
        raise ValueError(f"labels must have shape {fit}, got {tuple(labels.shape)}")
    places = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(places):
        bad = sorted(set(labels[places].tolist()))[:5]
        raise ValueError(f"labels must lie in [0, {classes}), got {bad}, first at position {int(places[0])}")


def _check_probabilities(value: Tensor, name: str) -> None:
    gap = float((value.sum(-1) - 1).abs().max())
    low = float(value.min())
    # Negated comparisons, so that a NaN fails them. Half-precision rows miss 1 by a few rounding errors per class.
    if not (low >= 0 and gap <= max(1e-3, 8 * torch.finfo(value.dtype).eps)):
        came = f"got a minimum of {low:.6g} and row sums up to {gap:.6g} away from 1"
        raise ValueError(f"{name} must be probabilities (rows >= 0 with sum 1; softmax the logits first), {came}")


def _vector(value: ArrayLike | Tensor, name: str) -> np.ndarray:
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold numbers, such as the column table.{'t' if name == 't' else 'nll'} of one "
                        f"split, got {type(value).__name__}") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {array.shape}")
    broken = np.flatnonzero(~np.isfinite(array))
    if broken.size:
        nodes = "; of a table made with nodes, rows with evaluated == False have no accuracy and no ece: leave them out"
        hint = nodes if name in ("loss", "values") and np.isnan(array[broken[0]]) else ""
        raise ValueError(f"{name} must be finite, got {array[broken[0]]} at position {broken[0]}{hint}")
    return array


def _grid(t: ArrayLike | Tensor, values: ArrayLike | Tensor, name: str) -> tuple[np.ndarray, np.ndarray]:
    where, heights = _vector(t, "t"), _vector(values, name)
    if where.size < 2 or where.shape != heights.shape:
        raise ValueError(f"t and {name} must have one length >= 2, got {where.size} and {heights.size}")
    falls = np.flatnonzero(np.diff(where) <= 0)
    if falls.size:
        pair = f"{where[falls[0]]} before {where[falls[0] + 1]} at position {falls[0]}"
        raise ValueError(f"t must increase strictly (one split of one path), got {pair}")
    return where, heights
