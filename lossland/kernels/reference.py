"""Plain torch versions of the kernels: the specification that any faster one must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

_POINTS = 64  # at a time, which bounds the memory of their logits
_SWAPS = (16, 4096)  # and images at a time, which bounds the memory of theirs
_TILE = 2 * 1024 * 1024  # bytes of one pre-activation tile: measured best on x86, between second- and third-level cache


Activation = Callable[[Tensor], Tensor]
Scores = tuple[Tensor, Tensor, Tensor]


def mix_head(features: Tensor, coefficients: Tensor, head: Tensor, bias: Tensor,
             activation: Activation | None = None) -> Tensor:
    """Return the logits of T one-hidden-layer networks whose first layers are mixtures of k fixed ones.

    logits[t] = act(sum_i coefficients[t, i] features[i]) @ head[t]^T + bias[t]. The products of the data with the k
    first layers (`features`, biases included) are shared by all T networks; what is left per t runs in tiles of images
    that stay in cache.

    Args:
        features: (k, N, n) pre-activations of the N images under each of the k fixed first layers.
        coefficients: (T, k) mixing coefficients.
        head: (T, C, n) second-layer weights.
        bias: (T, C) second-layer biases.
        activation: an elementwise function, in no place; None: ReLU.

    Returns:
        (T, N, C) logits, in the dtype of `features`.

    Raises:
        ValueError: if shapes do not fit together, or there is nothing to do (k, N or T = 0).

    Source: AY20 Eqs. (5), (6) on the first layer; the sharing is ours.
    """
    k, images, units = features.shape
    points, classes = bias.shape
    if coefficients.shape != (points, k) or head.shape != (points, classes, units):
        raise ValueError(
            f"features (k, N, n) = {tuple(features.shape)} needs coefficients (T, k), head (T, C, n) and bias (T, C); "
            f"got {tuple(coefficients.shape)}, {tuple(head.shape)}, {tuple(bias.shape)}"
        )
    if not (k and images and points):
        raise ValueError(f"there must be at least one point, image and t, got k={k}, N={images}, T={points}")
    # Matrix products with 10 columns are slow; a multiple of 16 is 2 to 3 times faster and the padding costs nothing.
    columns = -(-classes // 16) * 16
    heads = pad(head, (0, 0, 0, columns - classes)).transpose(1, 2).contiguous()  # (T, n, C')
    logits = features.new_empty(points, images, classes)
    tile = max(16, _TILE // (units * features.element_size())) if features.device.type == "cpu" else images
    hidden = features.new_empty(min(tile, images), units)
    scales = coefficients.tolist()
    for start in range(0, images, tile):
        block = features[:, start : start + tile]  # (k, b, n)
        buffer = hidden[: block.shape[1]]
        for t in range(points):
            torch.mul(block[0], scales[t][0], out=buffer)
            for i in range(1, k):
                buffer.add_(block[i], alpha=scales[t][i])
            units_on = activation(buffer) if activation else buffer.relu_()
            logits[t, start : start + tile] = torch.mm(units_on, heads[t])[:, :classes]
    return logits.add_(bias[:, None])


def class_scores(logits: Tensor, labels: Tensor, bins: int = 20) -> Scores:
    """Return sums over images from which nll, accuracy and expected calibration error follow.

    Args:
        logits: (T, N, C); half precision is read as float32.
        labels: (N,) int64 classes.
        bins: equal-width confidence bins on [0, 1], closed on the right.

    Returns:
        nll: (T,) float64, summed cross-entropy [nats].
        hits: (T,) float64, images whose largest logit is the label's. NaN is never a hit.
        histogram: (T, 3, bins) float64: images, summed confidence, hits per confidence bin.

    Source: cross-entropy as in AY20 section 5; ECE with 20 bins as in W21.
    """
    points, images, _ = logits.shape
    logits = logits.float() if logits.itemsize < 4 else logits
    log_norm = logits.logsumexp(dim=-1)  # (T, N)
    chosen = logits.gather(-1, labels.expand(points, images)[..., None])[..., 0]
    top, guess = logits.max(dim=-1)
    hit = (guess == labels) & ~top.isnan()
    confidence = (top - log_norm).exp().double()
    which = (confidence * bins).ceil().long().sub_(1).clamp_(0, bins - 1)
    which = torch.where(confidence.isnan(), 0, which)
    values = torch.stack([torch.ones_like(confidence), confidence, hit.double()], dim=1)  # (T, 3, N)
    histogram = values.new_zeros(points, 3, bins).scatter_add_(2, which[:, None].expand(-1, 3, -1), values)
    return (log_norm - chosen).double().sum(-1), hit.double().sum(-1), histogram


def path_scores(features: Sequence[Tensor], coefficients: Tensor, heads: Sequence[Tensor], biases: Sequence[Tensor],
                labels: Tensor, *, bins: int = 20, activation: Activation | None = None,
                scored: Callable[..., Scores] = class_scores) -> Scores:
    """Return the scores of T one-hidden-layer networks that are mixtures of k fixed ones, both layers alike.

    Args:
        features: k tensors (N, n), pre-activations of the N images under the k first layers, biases included.
        coefficients: (T, k) mixing coefficients.
        heads: k second layers (C, n).
        biases: k second-layer biases (C,).
        labels: (N,) int64 classes.
        bins: of the histogram.
        activation: as `mix_head` takes it.
        scored: what makes scores of logits.

    Returns:
        nll (T,), hits (T,) and histogram (T, 3, bins), as `class_scores`.

    Raises:
        ValueError: as `mix_head`.

    Source: AY20 section 5, the quantities that are reported along a path.
    """
    every, found = torch.stack(list(features)), []
    for rows in coefficients.to(device=every.device, dtype=every.dtype).split(_POINTS):
        head, bias = (sum(c[(...,) + (None,) * part.ndim] * part for c, part in zip(rows.T, parts, strict=True))
                      for parts in (heads, biases))
        found.append(scored(mix_head(every, rows, head, bias, activation), labels, bins))
    nll, hits, histogram = (torch.cat(parts) for parts in zip(*found, strict=True))
    return nll, hits, histogram


def exchange_logits(logits: Tensor, features: tuple[Tensor, Tensor], heads: tuple[Tensor, Tensor], u: Tensor,
                    activation: Activation | None = None) -> Tensor:
    """Return the logits of T networks that differ from one in two hidden units each, half exchanged.

    In network t the places of units p and q hold (1 - u) p + u q and (1 - u) q + u p, incoming and outgoing weights
    alike. With r1, r2 the activations of the mixed pre-activations, and heads c, the update has rank two:
    c_p ((1 - u) r1 + u r2 - act(z_p)) + c_q (u r1 + (1 - u) r2 - act(z_q)). At u = 0 and 1 it is zero to the last bit.

    Args:
        logits: (C, N) of the network with p and q in place, images last: classes are few.
        features: (T, N) and (T, N) pre-activations z_p and z_q, biases included.
        heads: (T, C) and (T, C) outgoing weights c_p and c_q.
        u: (T,) in [0, 1].
        activation: an elementwise function, in no place; None: ReLU.

    Returns:
        (T, N, C) logits; a view of memory laid out (T, C, N).

    Raises:
        ValueError: if shapes do not fit together.

    Source: the swaps of AY20 section 3.4; the rank-two update is ours.
    """
    (p, q), (head_p, head_q) = features, heads
    classes, images = logits.shape
    points = len(u)
    if {p.shape, q.shape} != {(points, images)} or {head_p.shape, head_q.shape} != {(points, classes)}:
        raise ValueError(f"logits (C, N) = {tuple(logits.shape)} and T = {points} need features (T, N) and heads (T, C)"
                         f", got {tuple(p.shape)}, {tuple(q.shape)} and {tuple(head_p.shape)}, {tuple(head_q.shape)}")
    done = u[:, None].to(p.dtype)
    left, act = 1 - done, activation or torch.relu
    first, second = act(left * p + done * q), act(left * q + done * p)
    of_p, of_q = left * first + done * second - act(p), done * first + left * second - act(q)
    heads = torch.stack([head_p, head_q], 2)  # (T, C, 2)
    return torch.baddbmm(logits, heads, torch.stack([of_p, of_q], 1)).transpose(1, 2)


def swap_scores(logits: Tensor, features: Tensor, head: Tensor, swaps: tuple[Tensor, Tensor], labels: Tensor, *,
                bins: int = 20, activation: Activation | None = None) -> Scores:
    """Return the scores of T networks that differ from one in two hidden units each, half exchanged.

    Args:
        logits: (C, N) of the network with all units in place, images last.
        features: (n, N) pre-activations of its units, biases included.
        head: (C, n) second layer.
        swaps: the units (T, 2) int64 that are exchanged, and u (T,) in [0, 1], how much of each exchange is done.
        labels: (N,) int64 classes.
        bins: of the histogram.
        activation: of the units; None: ReLU.

    Returns:
        nll (T,), hits (T,) and histogram (T, 3, bins), as `class_scores`.

    Source: the swaps of AY20 section 3.4.
    """
    (pairs, u), (rows, columns), found = swaps, _SWAPS, []
    for (p, q), some in zip((part.unbind(1) for part in pairs.split(rows)), u.split(rows), strict=True):
        parts = [class_scores(exchange_logits(base, (z[p], z[q]), (head.T[p], head.T[q]), some, activation), y, bins)
                 for base, z, y in zip(logits.split(columns, 1), features.split(columns, 1), labels.split(columns),
                                       strict=True)]
        found.append([sum(one) for one in zip(*parts, strict=True)])
    nll, hits, histogram = (torch.cat(parts) for parts in zip(*found, strict=True))
    return nll, hits, histogram
