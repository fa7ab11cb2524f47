"""Class scores from logits, scores of swaps of hidden units, and mixtures of control points, on a GPU.

What each moves through memory at least, which bounds its time: class scores read T N C logits; mixtures read k P
numbers and write T P; swaps read two rows of N features each, from a cache once they are there, and the logits of the
network at rest once per `_TOGETHER` swaps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lossland.kernels._triton_rows import Rows, activated, fresh, keep, look

_TOGETHER = 16  # swaps or mixtures of a program
_NUMBERS = 2048  # of a tile of logits
_PLACES = 1024  # of a tile of mixtures


@triton.jit
def _class_scores(tensors: tl.tuple, scores: tl.tuple, sizes: tl.tuple, BN: tl.constexpr, CT: tl.constexpr) -> None:
    logits, labels = tensors
    N, C, blocks, along_t, along_n, along_c = sizes
    program = tl.program_id(0)
    t, block = program // blocks, program % blocks
    rows = block * BN + tl.arange(0, BN)
    valid = rows < N
    label = tl.load(labels + rows, mask=valid, other=0).to(tl.int32)
    acc: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    base = logits + t.to(tl.int64) * along_t + rows[:, None].to(tl.int64) * along_n
    state = fresh(label, C, acc)
    for c0 in range(0, C, CT):
        classes = c0 + tl.arange(0, CT)
        inside = valid[:, None] & (classes < C)[None, :]
        tile = tl.load(base + classes[None, :].to(tl.int64) * along_c, mask=inside, other=0.0).to(acc)
        state = look(state, tile, classes, label, C)
    keep(state, label, valid, t.to(tl.int64) * N + rows, scores)


def class_scores(logits: Tensor, labels: Tensor, bins: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `reference.class_scores` returns, in one pass over logits (T, N, C) with any strides.

    bfloat16 logits are scored in float32; the loss of a label that is no class is NaN.
    """
    (points, images, classes), logits = logits.shape, logits.detach()
    width = min(128, triton.next_power_of_2(classes))
    rows = max(16, min(128, _NUMBERS // width))
    blocks, acc = triton.cdiv(images, rows), torch.float64 if logits.dtype == torch.float64 else torch.float32
    found = Rows(points, images, logits, acc)
    _class_scores[(points * blocks,)]((logits, labels.contiguous()), found.parts,
                                      (images, classes, blocks, *logits.stride()), BN=rows, CT=width, num_warps=4,
                                      enable_fp_fusion=True)
    return found.sums(bins)


@triton.jit
def _swaps(tensors: tl.tuple, scores: tl.tuple, sizes: tl.tuple, BN: tl.constexpr, CT: tl.constexpr) -> None:
    logits, features, heads, pairs, places, labels = tensors
    T, N, C, groups, swaps = sizes
    program = tl.program_id(0)
    block, start = program // groups, (program % groups) * swaps
    rows = block * BN + tl.arange(0, BN)
    valid = rows < N
    label = tl.load(labels + rows, mask=valid, other=0).to(tl.int32)
    like: tl.constexpr = logits.dtype.element_ty
    line = start.to(tl.int64) * N
    for t in range(start, tl.minimum(start + swaps, T)):
        p, q, done = tl.load(pairs + 2 * t), tl.load(pairs + 2 * t + 1), tl.load(places + t)
        left = 1 - done
        x = tl.load(features + p * N + rows, mask=valid, other=0.0)
        y = tl.load(features + q * N + rows, mask=valid, other=0.0)
        first, second = activated(left * x + done * y, "relu"), activated(left * y + done * x, "relu")
        of_p = left * first + done * second - activated(x, "relu")
        of_q = done * first + left * second - activated(y, "relu")
        state = fresh(label, C, like)
        for c0 in range(0, C, CT):
            classes = c0 + tl.arange(0, CT)
            known = classes < C
            at = classes[None, :].to(tl.int64) * N + rows[:, None]
            tile = tl.load(logits + at, mask=known[None, :] & valid[:, None], other=0.0)
            head_p = tl.load(heads + p * C + classes, mask=known, other=0.0)
            head_q = tl.load(heads + q * C + classes, mask=known, other=0.0)
            tile += of_p[:, None] * head_p[None, :] + of_q[:, None] * head_q[None, :]
            state = look(state, tile, classes, label, C)
        keep(state, label, valid, line + rows, scores)
        line += N


def swap_scores(logits: Tensor, features: Tensor, head: Tensor, moves: tuple[Tensor, Tensor], labels: Tensor, *,
                bins: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `reference.swap_scores` returns: class scores of T networks with two units each half exchanged.

    Args:
        logits: (C, N) of the network at rest, float32 or float64, as all others.
        features: (n, N) pre-activations, biases included.
        head: (C, n) outgoing weights.
        moves: (T, 2) int64 units p and q, and u (T,) in [0, 1].
        labels: (N,) int64.
        bins: of the histogram.
    """
    (classes, images), (pairs, u), points = logits.shape, moves, len(moves[1])
    at_rest = logits.detach().contiguous(), features.detach().contiguous(), head.detach().T.contiguous()
    width = min(64, triton.next_power_of_2(classes))
    rows = max(16, min(128, _NUMBERS // width))
    blocks, groups = triton.cdiv(images, rows), triton.cdiv(points, _TOGETHER)
    moves = pairs.to(logits.device).contiguous(), u.detach().to(logits.device, logits.dtype).contiguous()
    found = Rows(points, images, logits, logits.dtype)
    _swaps[(blocks * groups,)]((*at_rest, *moves, labels.contiguous()), found.parts,
                               (points, images, classes, groups, _TOGETHER), BN=rows, CT=width, num_warps=4,
                               enable_fp_fusion=True)
    return found.sums(bins)


@triton.jit
def _mix(tensors: tl.tuple, sizes: tl.tuple, K: tl.constexpr, PLACES: tl.constexpr) -> None:
    points, coefficients, out = tensors
    T, P, groups, together = sizes
    program = tl.program_id(0)
    start = (program % groups) * together
    places = (program // groups).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    inside = places < P
    xs = ()
    for j in tl.static_range(K):
        x = tl.load(points + j * tl.cast(P, tl.int64) + places, mask=inside, other=0.0)
        xs = xs + (x.to(coefficients.dtype.element_ty),)
    line = out + start.to(tl.int64) * P + places
    for t in range(start, tl.minimum(start + together, T)):
        mixed = tl.load(coefficients + t * K) * xs[0]
        for j in tl.static_range(1, K):
            mixed += tl.load(coefficients + t * K + j) * xs[j]
        tl.store(line, mixed.to(out.dtype.element_ty), mask=inside)
        line += P


def mix(points: Tensor, coefficients: Tensor) -> Tensor:
    """Return the mixtures (T, P) of points (k, P) with coefficients (T, k); points are read once per 16 mixtures.

    bfloat16 is mixed in float32 and rounded once.
    """
    (k, size), count = points.shape, len(coefficients)
    points = points.detach().contiguous()
    acc = torch.float64 if points.dtype == torch.float64 else torch.float32
    c = coefficients.detach().to(points.device, acc).contiguous()
    out = points.new_empty(count, size)
    groups = triton.cdiv(count, _TOGETHER)
    _mix[(triton.cdiv(size, _PLACES) * groups,)]((points, c, out), (count, size, groups, _TOGETHER), K=k,
                                                 PLACES=_PLACES, num_warps=4, enable_fp_fusion=True)
    return out
