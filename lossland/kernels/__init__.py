"""Hot spots of path evaluation. `reference` is the specification in plain torch; faster ones must equal it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossland.kernels import reference
from lossland.kernels.reference import class_scores, exchange_logits, mix_relu_head
from lossland.kernels.sweep import path_sweep, pays

__all__ = ["class_scores", "exchange_logits", "mix_relu_head", "path_scores", "path_way"]


def path_way(coefficients: Tensor, heads: Sequence[Tensor]) -> str:
    """Return how `path_scores` evaluates points with coefficients (T, k) between k second layers (C, n).

    "sweep" for more than a few points of a segment, of an arc about a centre or of a quadratic Bezier curve, in float32
    or float64 on a CPU; else "fused", a loop over the points that shares the products of the first layers.
    """
    return "sweep" if pays(coefficients, heads) else "fused"


def path_scores(features: Sequence[Tensor], coefficients: Tensor, heads: Sequence[Tensor], biases: Sequence[Tensor],
                labels: Tensor, *, bins: int = 20, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of T one-hidden-layer ReLU networks that are mixtures of k fixed ones, both layers alike.

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
        exact: let the reference do it.

    Returns:
        nll (T,) float64 [nats, summed over images], hits (T,) float64, histogram (T, 3, bins) float64: images, summed
        confidence, hits per bin. Nothing flows back through them.

    Raises:
        ValueError: if shapes, dtypes or devices differ, there is nothing to do (k, N, n, C or T = 0), labels are no
            classes, or gradients are asked for.
    """
    features, heads, biases = list(features), list(heads), list(biases)
    _check(features, coefficients, heads, biases, labels)
    if exact or not pays(coefficients, heads):
        return reference.path_scores(features, coefficients, heads, biases, labels, bins=bins)
    features, heads, biases = ([one.detach().contiguous() for one in part] for part in (features, heads, biases))
    nll, hits, histogram, left = path_sweep(features, coefficients, heads, biases, labels.contiguous(), bins=bins)
    if left.any():
        rest = reference.path_scores([one[left] for one in features], coefficients, heads, biases, labels[left],
                                     bins=bins)
        nll, hits, histogram = (one + other for one, other in zip((nll, hits, histogram), rest, strict=True))
    return nll, hits, histogram


def _check(features: list[Tensor], coefficients: Tensor, heads: list[Tensor], biases: list[Tensor],
           labels: Tensor) -> None:
    k = coefficients.shape[-1]
    every = [*features, *heads, *biases]
    if coefficients.ndim != 2 or {len(features), len(heads), len(biases)} != {k}:
        raise ValueError(f"coefficients {tuple(coefficients.shape)} must be (T, k), with k features, heads and biases; "
                         f"got {len(features)}, {len(heads)} and {len(biases)}")
    if not (k and len(coefficients)):
        raise ValueError(f"there must be at least one point and one t, got k={k}, T={len(coefficients)}")
    (images, units), classes = (features[0].shape[0], features[0].shape[-1]), heads[0].shape[0]
    wanted = [(images, units)] * k + [(classes, units)] * k + [(classes,)] * k
    if [tuple(one.shape) for one in every] != wanted or tuple(labels.shape) != (images,):
        raise ValueError(f"features (N, n), heads (C, n), biases (C,) and labels (N,) must fit together, got "
                         f"{[tuple(one.shape) for one in (*every, labels)]}")
    if not (images and units and classes):
        raise ValueError(f"there must be at least one image, unit and class, got {images}, {units}, {classes}")
    if len(kinds := {(one.dtype, one.device.type) for one in every}) > 1 or labels.device != features[0].device:
        raise ValueError(f"features, heads, biases and labels must be of one dtype on one device, got "
                         f"{sorted(map(str, kinds))} and labels on {labels.device}")
    if torch.is_grad_enabled() and any(one.requires_grad for one in (*every, coefficients)):
        raise ValueError("path_scores gives no gradients: call it under torch.no_grad(), or detach its arguments")
    if labels.dtype != torch.int64 or (labels.device.type == "cpu" and not 0 <= labels.min() <= labels.max() < classes):
        raise ValueError(f"labels must be int64 classes 0..{classes - 1}, got {labels.dtype}, {labels.min()}.."
                         f"{labels.max()}")
