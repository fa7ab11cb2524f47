"""What the GPU kernels share: activations, and the scores of a block of images from tiles of their logits.

The state of a row (an image) while its classes go by, tile by tile: its largest logit, the sum of exponentials relative
to that, the label's logit, the first class that has the largest logit, and whether any logit was NaN. All of it stays
in registers; what is stored is the loss, the confidence and the hit of each image, 9 bytes, which a second kernel adds
up in float64 while they are in cache. Sums are always taken in the same order: no atomics.

Arguments come in tuples, as far as they belong together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 256  # that a program adds up at a time
_TIMES = 4  # how often; not by the number of networks, so that sums are the same with others beside them


@triton.jit
def activated(x: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Return the activation of x. NaN stays NaN, as torch has it."""
    if KIND == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == "tanh":
        y = 1 - 2 / (tl.exp(2 * x) + 1)
    elif KIND == "sigmoid":
        y = 1 / (1 + tl.exp(-x))
    elif KIND == "silu":
        y = x / (1 + tl.exp(-x))
    else:
        tl.static_assert(KIND == "gelu", "no such activation")
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    return y


@triton.jit
def fresh(label: tl.tensor, C: tl.tensor, LIKE: tl.constexpr) -> tl.tuple:
    """Return the state of rows with labels (b,) before their first class; labels that are no class spoil the loss."""
    none = tl.zeros(label.shape, LIKE)
    known = (label >= 0) & (label < C)
    return none - float("inf"), none, tl.where(known, none, float("nan")), none.to(tl.int32), none.to(tl.int32)


@triton.jit
def look(state: tl.tuple, logits: tl.tensor, classes: tl.tensor, label: tl.tensor, C: tl.tensor) -> tl.tuple:
    """Return the state after a tile of logits (b, c) of classes (c,)."""
    top, norm, chosen, guess, broken = state
    x = tl.where((classes < C)[None, :], logits, float("-inf"))
    broken = tl.maximum(broken, tl.max((x != x).to(tl.int32), 1))
    best = tl.max(x, 1)
    first = tl.min(tl.where(x == best[:, None], classes[None, :], C), 1)
    guess = tl.where(best > top, first, guess)  # of equal ones the first
    most = tl.maximum(top, best)
    shift = tl.where(tl.abs(most) < float("inf"), most, 0.0)
    norm = norm * tl.exp(top - shift) + tl.sum(tl.exp(x - shift[:, None]), 1)
    chosen += tl.sum(tl.where(classes[None, :] == label[:, None], x, 0.0), 1)
    return most, norm, chosen, guess, broken


@triton.jit
def keep(state: tl.tuple, label: tl.tensor, valid: tl.tensor, at: tl.tensor, scores: tl.tuple) -> None:
    """Store the scores of valid rows at offsets (b,): loss, confidence, and whether the label's logit is largest."""
    top, norm, chosen, guess, broken = state
    nll, confidence, hit = scores
    nan = tl.where(broken != 0, float("nan"), 0.0).to(top.dtype)
    log_norm = tl.where(tl.abs(top) < float("inf"), top + tl.log(norm), top) + nan
    tl.store(nll + at, log_norm - chosen, mask=valid)
    tl.store(confidence + at, tl.exp(top - log_norm), mask=valid)
    tl.store(hit + at, ((guess == label) & (broken == 0)).to(tl.int8), mask=valid)


@triton.jit
def _tally(scores: tl.tuple, out: tl.tensor, sizes: tl.tuple, BINS: tl.constexpr, ROWS: tl.constexpr) -> None:
    """Add up a part of the rows of one network: nll, hits, and images, confidence and hits per bin."""
    nll, confidence, hit = scores
    N, parts = sizes
    t, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    PADDED: tl.constexpr = triton.next_power_of_2(BINS)
    bins = tl.arange(0, PADDED)
    loss, sure = tl.zeros((ROWS,), tl.float64), tl.zeros((PADDED,), tl.float64)
    images, right = tl.zeros((PADDED,), tl.int32), tl.zeros((PADDED,), tl.int32)
    line = t.to(tl.int64) * N
    for start in range(part * ROWS, N, parts * ROWS):
        rows = start + tl.arange(0, ROWS)
        valid = rows < N
        loss += tl.load(nll + line + rows, mask=valid, other=0.0).to(tl.float64)
        x = tl.load(confidence + line + rows, mask=valid, other=0.0).to(tl.float64)
        hits = tl.load(hit + line + rows, mask=valid, other=0).to(tl.int32)
        scaled = tl.where(x == x, x * BINS, 0.0)
        whole = scaled.to(tl.int32)
        which = whole + (scaled > whole.to(tl.float64)).to(tl.int32) - 1  # closed on the right
        which = tl.minimum(tl.maximum(which, 0), BINS - 1)
        here = (which[:, None] == bins[None, :]) & valid[:, None]
        images += tl.sum(here.to(tl.int32), 0)
        right += tl.sum(tl.where(here, hits[:, None], 0), 0)
        sure += tl.sum(tl.where(here, x[:, None], 0.0), 0)
    at = out + tl.program_id(0).to(tl.int64) * (2 + 3 * BINS)
    inside = bins < BINS
    tl.store(at, tl.sum(loss, 0))
    tl.store(at + 1, tl.sum(right, 0).to(tl.float64))
    tl.store(at + 2 + bins, images.to(tl.float64), mask=inside)
    tl.store(at + 2 + BINS + bins, sure, mask=inside)
    tl.store(at + 2 + 2 * BINS + bins, right.to(tl.float64), mask=inside)


class Rows:
    """Memory for the scores of N images under T networks, and their sums.

    Attributes:
        parts: loss and confidence (T, N), in the dtype of logits, and hit (T, N) int8.
    """

    def __init__(self, points: int, images: int, like: Tensor, dtype: torch.dtype) -> None:
        nll, confidence = (torch.empty(points, images, dtype=dtype, device=like.device) for _ in range(2))
        self.parts = nll, confidence, torch.empty(points, images, dtype=torch.int8, device=like.device)

    def sums(self, bins: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return nll (T,), hits (T,) and histogram (T, 3, bins), all float64."""
        points, images = self.parts[0].shape
        parts = triton.cdiv(images, _TIMES * _ROWS)
        out = self.parts[0].new_empty(points, parts, 2 + 3 * bins, dtype=torch.float64)
        _tally[(points * parts,)](self.parts, out, (images, parts), BINS=bins, ROWS=_ROWS, num_warps=4,
                                  enable_fp_fusion=True)
        total = out.sum(1)
        return total[:, 0], total[:, 1], total[:, 2:].unflatten(1, (3, bins))
