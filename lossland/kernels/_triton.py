"""Path scores on a GPU: mix, activation, second layer and class scores of T one-hidden-layer networks in one kernel.

A program takes 256 images (fewer in other types) and two points t. It walks over the units in tiles: the k features of
a tile are read once for its points, mixed and made active in registers, and multiplied with the second layers, which
`mix` has mixed before. Logits never leave the processor; k N n numbers are read from memory, once if the caches hold
them as long as their images are at work, and 9 bytes per image and t are written.

Why a loop over t and not the sweep that the CPU has (`sweep`): by counting, for an H200 (67 TFLOP/s in float32, 4.3
TB/s) on 70,000 images, k = 2, n = 2000, C = 10, in milliseconds (nothing of this is measured):

=============================================  ======  ========
what                                           T = 61  T = 1001
=============================================  ======  ========
first layers, 0.44 TFLOP in float32               6.6       6.6
... in tf32 or bfloat16                             1         1
features, 1.1 GB written and read                 0.5       0.5
fused loop, 24 T N n operations in float32        3.1        51
... by the instructions of its sm_90 code         5-6    80-100
... three tf32 products, by the same              4-5     65-80
... bfloat16, by the same                           2        30
sweep: 2 x 2 C n multiplications per image        0.2       0.2
... 3 C n / 2 additions into buckets               ~2        ~4
... running sums and scores, 3 C T per image      0.1       0.5
=============================================  ======  ========

At T = 61 the sweep saves less than the first layers cost; at T = 1001 it would be ten times as fast. It needs buckets
of 12 kB (T = 61) to 190 kB (T = 1001) per image in shared memory with additions at computed places, which triton does
not have, and additions in global memory come in no fixed order. So dense grids cost about a tenth of a second here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from lossland.errors import choose
from lossland.kernels._triton_rows import Rows, activated, fresh, keep, look
from lossland.kernels._triton_scores import class_scores, mix, swap_scores

__all__ = ["class_scores", "mix", "path_scores", "swap_scores"]

PRECISION = "ieee"
PRECISIONS = ("ieee", "tf32x3", "tf32")
HEADS = 256 * 2**20  # bytes of mixed second layers at a time
ACTIVATIONS = ("relu", "tanh", "sigmoid", "silu", "gelu")


class How(NamedTuple):
    """What is fixed when the kernel is compiled: control points, points t, images, units and classes of a tile, ..."""

    K: int
    TT: int
    BN: int
    BK: int
    CT: int
    CE: int  # classes beyond the tile that have one of their own, so that ten of them are 8 + 2, not 16; 0: none
    many: bool  # more classes than a tile, which then has one t
    activation: str
    precision: str
    wide: bool  # multiply in the dtype of the sums: triton's interpreter has no bfloat16


@triton.jit
def _points(at: tl.tensor, inside: tl.tensor, along_k: tl.tensor, K: tl.constexpr, acc: tl.constexpr) -> tl.tuple:
    points = ()
    for j in tl.static_range(K):
        x = tl.load(at + j * tl.cast(along_k, tl.int64), mask=inside, other=0.0)
        points = points + (x.to(acc),)
    return points


@triton.jit
def _mixed(points: tl.tuple, coefficients: tl.tensor, K: tl.constexpr) -> tl.tensor:
    mixed = tl.load(coefficients) * points[0]
    for j in tl.static_range(1, K):
        mixed += tl.load(coefficients + j) * points[j]
    return mixed


@triton.jit
def _logits(tensors: tl.tuple, sizes: tl.tuple, rows: tl.tensor, at: tl.tuple, how: tl.constexpr) -> tl.tuple:
    """Return tiles of logits without biases, of points t0, t0 + 1, ..., rows (b,): (b, CT) from class c0, (b, CE)."""
    features, coefficients, heads, biases, _ = tensors
    T, N, n, _, columns, _, along_k, along_n = sizes
    t0, c0 = at
    K: tl.constexpr = how.K
    TT: tl.constexpr = how.TT
    BK: tl.constexpr = how.BK
    CT: tl.constexpr = how.CT
    CE: tl.constexpr = how.CE
    KIND: tl.constexpr = how.activation
    PRODUCT: tl.constexpr = how.precision
    acc: tl.constexpr = biases.dtype.element_ty
    kind: tl.constexpr = features.dtype.element_ty
    sums, beyond = (), ()
    for _ in tl.static_range(TT):
        sums = sums + (tl.zeros((rows.shape[0], CT), acc),)
        if CE:
            beyond = beyond + (tl.zeros((rows.shape[0], CE), acc),)
    base, classes = features + rows[:, None].to(tl.int64) * along_n, c0 + tl.arange(0, CT)
    for start in range(0, n, BK):
        units = start + tl.arange(0, BK)
        inside = (rows[:, None] < N) & (units[None, :] < n)
        points = _points(base + units[None, :], inside, along_k, K, acc)
        more, extra = (), ()
        for i in tl.static_range(TT):
            t = tl.minimum(t0 + i, T - 1)
            hidden = activated(_mixed(points, coefficients + t * K, K), KIND).to(kind)
            place = t.to(tl.int64) * n * columns + units[:, None] * columns
            head = tl.load(heads + place + classes[None, :], mask=units[:, None] < n, other=0.0)
            if how.wide:
                hidden, head = hidden.to(acc), head.to(acc)
            more = more + (tl.dot(hidden, head, sums[i], input_precision=PRODUCT, out_dtype=acc),)
            if CE:
                head = tl.load(heads + place + CT + tl.arange(0, CE)[None, :], mask=units[:, None] < n, other=0.0)
                extra = extra + (tl.dot(hidden, head, beyond[i], input_precision=PRODUCT, out_dtype=acc),)
        sums, beyond = more, extra
    return sums, beyond


@triton.jit
def _path(tensors: tl.tuple, scores: tl.tuple, sizes: tl.tuple, how: tl.constexpr) -> None:
    """Score a few points on a block of images. Programs that follow each other read the same ones, from a cache."""
    _, _, _, biases, labels = tensors
    T, N, _, C, columns, groups, _, _ = sizes
    TT: tl.constexpr = how.TT
    BN: tl.constexpr = how.BN
    CT: tl.constexpr = how.CT
    CE: tl.constexpr = how.CE
    like: tl.constexpr = biases.dtype.element_ty
    program = tl.program_id(0)
    t0 = (program % groups) * TT
    rows = (program // groups) * BN + tl.arange(0, BN)
    valid = rows < N
    label = tl.load(labels + rows, mask=valid, other=0).to(tl.int32)
    if how.many:
        state = fresh(label, C, like)
        for c0 in range(0, C, CT):
            tiles = _logits(tensors, sizes, rows, (t0, c0), how)
            classes = c0 + tl.arange(0, CT)
            logits = tiles[0][0] + tl.load(biases + t0 * columns + classes)[None, :]
            state = look(state, logits, classes, label, C)
        keep(state, label, valid, t0.to(tl.int64) * N + rows, scores)
    else:
        tiles, beyond = _logits(tensors, sizes, rows, (t0, 0), how)
        classes = tl.arange(0, CT)
        for i in tl.static_range(TT):
            t = tl.minimum(t0 + i, T - 1)  # a point beyond the last is the last once more, with the same scores
            logits = tiles[i] + tl.load(biases + t * columns + classes)[None, :]
            state = look(fresh(label, C, like), logits, classes, label, C)
            if CE:
                last = CT + tl.arange(0, CE)
                state = look(state, beyond[i] + tl.load(biases + t * columns + last)[None, :], last, label, C)
            keep(state, label, valid, t.to(tl.int64) * N + rows, scores)


def path_scores(features: Sequence[Tensor], coefficients: Tensor, heads: Sequence[Tensor], biases: Sequence[Tensor],
                labels: Tensor, *, bins: int = 20, activation: str = "relu",
                precision: str = PRECISION) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `reference.path_scores` returns, the sums in float64 and on the device, without writing logits.

    Args:
        features: k tensors (N, n) of float32, bfloat16 or float64, k <= 4; evenly strided views of one tensor, such as
            one product with all first layers gives, are read where they are.
        coefficients: (T, k) mixing coefficients.
        heads: k second layers (C, n).
        biases: k second-layer biases (C,).
        labels: (N,) int64 classes; the loss of a label that is no class is NaN.
        bins: of the histogram.
        activation: one of `ACTIVATIONS`.
        precision: of the products of float32: "ieee", "tf32x3" (three tensor-core products, close to float32) or "tf32"
            (errors of 1e-3). bfloat16 features are mixed, and their products summed, in float32.
    """
    every, strides = strided(features)
    (images, units), classes = features[0].shape, heads[0].shape[0]
    acc = torch.float64 if every.dtype == torch.float64 else torch.float32
    c = coefficients.detach().to(device=every.device, dtype=torch.float64)
    how, columns = _how(every, len(heads), classes, len(c), activation=activation, precision=precision)
    lanes = torch.stack([pad(head.detach().T, (0, columns - classes)) for head in heads]).reshape(len(heads), -1)
    bias = pad(c @ torch.stack([one.detach().double() for one in biases]), (0, columns - classes)).to(acc)
    labels, blocks, found = labels.contiguous(), triton.cdiv(images, how.BN), []
    step = max(1, HEADS // lanes[0].nbytes)
    for rows, shift in zip(c.to(acc).split(step), bias.split(step), strict=True):
        scores, groups = Rows(len(rows), images, every, acc), triton.cdiv(len(rows), how.TT)
        tensors = every, rows.contiguous(), mix(lanes, rows), shift.contiguous(), labels
        sizes = len(rows), images, units, classes, columns, groups, *strides
        _path[(blocks * groups,)](tensors, scores.parts, sizes, how, num_warps=4, num_stages=2, enable_fp_fusion=True)
        found.append(scores.sums(bins))
    nll, hits, histogram = (torch.cat(parts) for parts in zip(*found, strict=True))
    return nll, hits, histogram


def _how(features: Tensor, k: int, classes: int, points: int, *, activation: str, precision: str) -> tuple[How, int]:
    """Return how the kernel is compiled, and the columns of its heads: classes, rounded up to whole tiles."""
    choose("activation", activation, ACTIVATIONS)
    choose("precision", precision, PRECISIONS)
    exact = features.dtype == torch.float32 and precision == "ieee"
    width = min(64, max(8 if exact else 16, triton.next_power_of_2(classes)))
    tiles, extra = triton.cdiv(classes, width), 0
    if exact and width // 2 < classes < width > 8:  # without tensor cores padding costs as much as classes
        extra = triton.next_power_of_2(classes - width // 2)
        width, extra = (width // 2, extra) if width // 2 + extra < width else (width, 0)
    at_once = 2 if tiles == 1 and width + extra <= 16 else 1  # their sums stay in registers
    images = 256 if exact and width + extra <= 16 else 64 if features.dtype == torch.float64 or width > 32 else 128
    units = 16 if exact or features.dtype == torch.float64 else 32
    how = How(k, min(at_once, triton.next_power_of_2(points)), images, units, width, extra, tiles > 1, activation,
              precision, wide=not features.is_cuda)
    return how, triton.cdiv(tiles * width + extra, 16) * 16


def strided(features: Sequence[Tensor]) -> tuple[Tensor, tuple[int, int]]:
    """Return a tensor at whose start k tensors (N, n) lie, and their strides along k and N; it copies if it must."""
    parts = [one.detach() for one in features]
    first = parts[0]
    apart = {(b.data_ptr() - a.data_ptr()) // first.itemsize for a, b in zip(parts, parts[1:], strict=False)}
    places = {(one.untyped_storage().data_ptr(), one.stride()) for one in parts}
    if len(places) == 1 and first.stride(1) == 1 and len(apart) <= 1:
        return first, (apart.pop() if apart else 0, first.stride(0))
    every = torch.stack(parts)
    return every, (every.stride(0), every.stride(1))
