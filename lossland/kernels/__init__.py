"""Hot spots of path evaluation. `reference` is the specification in plain torch; faster ones must equal it.

All of them take tensors of one dtype on one device, of any layout in memory, give no gradients, and refuse what is
empty. NaN and infinity go through as in the reference: a loss that is NaN, and never a hit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from lossland.kernels import gpu, reference, scores
from lossland.kernels._checks import check_labels, check_range, check_tensors
from lossland.kernels.reference import Activation, Scores
from lossland.kernels.sweep import path_sweep, pays

__all__ = ["Activation", "Scores", "class_scores", "path_scores", "path_way", "swap_scores", "swaps_pay"]

_ON_GPU = {None: "relu", torch.tanh: "tanh", torch.sigmoid: "sigmoid", silu: "silu", gelu: "gelu"}


def _tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent, to 1e-7 (absolute) in float32, on a CPU in a fifth of torch's time."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


def path_way(coefficients: Tensor, heads: Sequence[Tensor], activation: Activation | None = None) -> str:
    """Return how `path_scores` evaluates points with coefficients (T, k) between k second layers (C, n).

    "sweep" for more than a few points of a segment, of an arc about a centre or of a quadratic Bezier curve, in float32
    or float64 on a CPU, of ReLU networks; "triton" on a GPU, for its activations; else "fused", a loop over the points
    that shares the products of the first layers.
    """
    if gpu.serves(heads[0], len(heads)) and activation in _ON_GPU:
        return "triton"
    return "sweep" if activation is None and pays(coefficients, heads) else "fused"


def path_scores(features: Sequence[Tensor], coefficients: Tensor, heads: Sequence[Tensor], biases: Sequence[Tensor],
                labels: Tensor, *, bins: int = 20, activation: Activation | None = None, exact: bool = False) -> Scores:
    """Return the scores of T one-hidden-layer networks that are mixtures of k fixed ones, both layers alike.

    `reference.path_scores` says what they are. The fast way equals it up to rounding: in float64 nll to 1e-10, hits and
    the histogram up to ties. NaN and infinite pre-activations go the reference's way. Results depend on the number of
    threads (`torch.get_num_threads()`) only by the rounding of float64.

    Args:
        features: k tensors (N, n), pre-activations of the N images under the k first layers, biases included.
        coefficients: (T, k) mixing coefficients; the rows may come in any order.
        heads: k second layers (C, n).
        biases: k second-layer biases (C,).
        labels: (N,) int64 classes.
        bins: equal-width confidence bins.
        activation: of the hidden units, an elementwise function, in no place; None: ReLU.
        exact: let the reference do it.

    Returns:
        nll (T,) float64 [nats, summed over images], hits (T,) float64, histogram (T, 3, bins) float64: images, summed
        confidence, hits per bin. Nothing flows back through them.

    Raises:
        ValueError: if shapes, dtypes or devices differ, there is nothing to do (k, N, n, C or T = 0), labels are no
            classes, there are no bins, or gradients are asked for.
    """
    features, heads, biases = list(features), list(heads), list(biases)
    _check_path(features, coefficients, heads, biases, labels, bins=bins)
    way = "reference" if exact else path_way(coefficients, heads, activation)
    if way == "triton":
        from lossland.kernels import _triton

        return _triton.path_scores(features, coefficients, heads, biases, labels, bins=bins,
                                   activation=_ON_GPU[activation])
    if way == "fused":
        quick = _tanh if activation is torch.tanh and heads[0].device.type == "cpu" else activation
        return reference.path_scores(features, coefficients, heads, biases, labels, bins=bins, activation=quick,
                                     scored=class_scores)
    if way != "sweep":
        return reference.path_scores(features, coefficients, heads, biases, labels, bins=bins, activation=activation)
    nll, hits, histogram, left = path_sweep(features, coefficients, heads, biases, labels, bins=bins)
    if left.any():
        rest = reference.path_scores([one[left] for one in features], coefficients, heads, biases, labels[left],
                                     bins=bins)
        nll, hits, histogram = (one + other for one, other in zip((nll, hits, histogram), rest, strict=True))
    return nll, hits, histogram


def class_scores(logits: Tensor, labels: Tensor, bins: int = 20) -> Scores:
    """Return sums over images from which nll, accuracy and expected calibration error follow.

    Args:
        logits: (T, N, C) of T networks; half precision is read as float32.
        labels: (N,) int64 classes.
        bins: equal-width confidence bins on [0, 1], closed on the right.

    Returns:
        nll (T,) float64 [nats, summed over images], hits (T,) float64, histogram (T, 3, bins) float64: images, summed
        confidence, hits per bin, as `reference.class_scores`.

    Raises:
        ValueError: if shapes do not fit, there is nothing to do (T, N or C = 0), labels are no classes, or gradients
            are asked for.
    """
    check_tensors("class_scores", {"logits": logits}, {"labels": labels})
    if logits.ndim != 3 or not logits.numel():
        raise ValueError("logits must be (T, N, C) of at least one network, image and class, got "
                         f"{tuple(logits.shape)}")
    check_labels(labels, *logits.shape[1:], logits.device, bins)
    logits = logits.float() if logits.itemsize < 4 else logits
    if gpu.serves(logits):
        from lossland.kernels import _triton_scores

        return _triton_scores.class_scores(logits, labels, bins)
    if not scores.serves(logits, logits.shape[-1]):
        return reference.class_scores(logits, labels, bins)
    found = scores.score(logits, labels, bins)
    return _mended(found, lambda bad: reference.class_scores(logits[bad], labels, bins))


def swaps_pay(head: Tensor, activation: Activation | None = None) -> bool:
    """Say whether `swap_scores` is compiled for networks with such a second layer (C, n)."""
    return activation is None and (gpu.serves(head) or scores.serves(head, len(head)))


def swap_scores(logits: Tensor, features: Tensor, head: Tensor, swaps: tuple[Tensor, Tensor], labels: Tensor, *,
                bins: int = 20, activation: Activation | None = None, exact: bool = False) -> Scores:
    """Return the scores of T networks that differ from one in two hidden units each, half exchanged.

    `reference.swap_scores` says what they are: each a rank-two update of the one network's logits
    (`reference.exchange_logits`), which on a CPU is scored as soon as it is computed. At u = 0 and 1 the scores are
    exactly those of the one network; they do not depend on the number of threads.

    Args:
        logits: (C, N) of the network with all units in place, images last.
        features: (n, N) pre-activations of its units, biases included.
        head: (C, n) second layer.
        swaps: the units (T, 2) int64 that are exchanged, and u (T,) in [0, 1], how much of each exchange is done.
        labels: (N,) int64 classes.
        bins: equal-width confidence bins.
        activation: of the hidden units, an elementwise function, in no place; None: ReLU.
        exact: let the reference do it.

    Returns:
        nll (T,), hits (T,) and histogram (T, 3, bins), as `class_scores`.

    Raises:
        ValueError: if shapes, dtypes or devices differ, there is nothing to do (N, n, C or T = 0), labels are no
            classes, pairs no units, there are no bins, or gradients are asked for.
    """
    _check_swaps(logits, features, head, swaps, labels, bins=bins)
    pairs, u = (one.to(features.device) for one in swaps)
    if exact or not swaps_pay(head, activation):
        return reference.swap_scores(logits, features, head, (pairs, u), labels, bins=bins, activation=activation)
    if logits.device.type != "cpu":
        from lossland.kernels import _triton_scores

        return _triton_scores.swap_scores(logits, features, head, (pairs, u), labels, bins=bins)
    found = scores.exchange(logits, features, head, (pairs, u), labels, bins=bins)
    return _mended(found, lambda bad: reference.swap_scores(logits, features, head, (pairs[bad], u[bad]), labels,
                                                            bins=bins))


def _mended(found: tuple[Tensor, ...], again: Callable[[Tensor], Scores]) -> Scores:
    """Return scores with those of the networks (T,) marked last replaced: they have logits that are not finite."""
    *parts, bad = found
    if bad.any():
        for part, other in zip(parts, again(bad), strict=True):
            part[bad] = other
    return tuple(parts)


def _check_path(features: list[Tensor], coefficients: Tensor, heads: list[Tensor], biases: list[Tensor],
                labels: Tensor, *, bins: int) -> None:
    parts = {"features": features, "heads": heads, "biases": biases}
    named = {f"{name}[{i}]": one for name, part in parts.items() for i, one in enumerate(part)}
    check_tensors("path_scores", named, {"coefficients": coefficients, "labels": labels})
    k = coefficients.shape[-1] if coefficients.ndim else 0
    if coefficients.ndim != 2 or {len(part) for part in parts.values()} != {k}:
        raise ValueError(f"coefficients {tuple(coefficients.shape)} must be (T, k), with k features, heads and biases; "
                         f"got {len(features)}, {len(heads)} and {len(biases)}")
    if not (k and len(coefficients)):
        raise ValueError(f"there must be at least one point and one t, got k={k}, T={len(coefficients)}")
    (images, units), classes = (features[0].shape[0], features[0].shape[-1]), heads[0].shape[0]
    wanted = [(images, units)] * k + [(classes, units)] * k + [(classes,)] * k
    if [tuple(one.shape) for one in named.values()] != wanted:
        raise ValueError(f"features (N, n), heads (C, n) and biases (C,) must fit together, got "
                         f"{[tuple(one.shape) for one in named.values()]}")
    if not (images and units and classes):
        raise ValueError(f"there must be at least one image, unit and class, got {images}, {units}, {classes}")
    check_labels(labels, images, classes, features[0].device, bins)


def _check_swaps(logits: Tensor, features: Tensor, head: Tensor, swaps: tuple[Tensor, Tensor],
                 labels: Tensor, *, bins: int) -> None:
    pairs, u = swaps
    check_tensors("swap_scores", {"logits": logits, "features": features, "head": head},
                  {"pairs": pairs, "u": u, "labels": labels})
    shapes = [tuple(one.shape) for one in (logits, features, head, pairs, u)]
    if [len(shape) for shape in shapes] != [2, 2, 2, 2, 1] or shapes[2] != (len(logits), len(features)) or (
            shapes[0][1] != shapes[1][1] or shapes[3] != (len(u), 2)):
        raise ValueError("logits (C, N), features (n, N), head (C, n) and swaps (T, 2), (T,) must fit together, got "
                         f"{shapes}")
    if not (logits.numel() and len(features) and len(u)):
        raise ValueError(f"there must be at least one image, unit, class and network, got {shapes}")
    if pairs.dtype != torch.int64:
        raise ValueError(f"swaps must be int64 units 0..{len(features) - 1}, got {pairs.dtype}")
    check_range("swaps", pairs, len(features), "units")
    check_labels(labels, logits.shape[1], len(logits), logits.device, bins)
