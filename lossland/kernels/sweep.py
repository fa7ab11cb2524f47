"""The path sweep: all points of a leg of one-hidden-layer ReLU networks for about the price of a few of them.

On a leg that mixes k fixed points a unit's pre-activation is a fixed combination of k numbers with coefficients c(t).
Along a segment it changes sign at most once, along an arc about a centre or a quadratic Bezier piece at most twice, and
between the changes what the unit adds to the logits is a polynomial in c(t): sum_ij c_i c_j (z_i W_j). So every unit
that is on at the first point is added once to the sums z_i W_j, it is added to the bucket of each point at which it
changes (or taken away there), and a running sum over the T buckets gives the sums, and the logits, of every point.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

_FEWEST = 8  # points: below, the loop over t is as fast
_BUCKETS = 64 * 2**20  # bytes of the buckets of one image: beyond, they leave the cache
_LANES = 16  # numbers at a time
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-6}  # coefficients and those of a curve that has a closed form

_folders: list[tempfile.TemporaryDirectory] = []  # removed at the end of the process

_BEZIER = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
_ARC = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 2.0]], dtype=torch.float64)
"""Rows q0, q1, q2 with c(tau) z ~ q0 z + 2 q1 z tau + q2 z tau^2, z the pre-activations of the three points."""


@dataclass(frozen=True)
class Leg:
    """What the compiled sweep wants to know of a leg, with its points in the order of tau.

    Attributes:
        order: (T,) the rows of the coefficients, in order.
        tau: (T,) what the pre-activations are polynomials of, times something positive.
        curve: (2, 2) coefficients of the first and the last point of a segment; (3, 3) the rows q0, q1, q2 of a curve.
    """

    order: Tensor
    tau: Tensor
    curve: Tensor


def leg_of(coefficients: Tensor) -> Leg | None:
    """Return the leg that coefficients (T, k) belong to, or None for one that the sweep does not know.

    It knows segments (k = 2, sums > 0) and, for k = 3, arcs about a centre (cos, sin, 1 - cos - sin, a quarter turn at
    most) and quadratic Bezier curves. The points may come in any order, and more than once.
    """
    c, close = coefficients.double().cpu(), _CLOSE.get(coefficients.dtype, 0.0)
    if c.shape[-1] == 2 and bool((c.sum(1) > 0).all()):
        tau = c[:, 1] / c.sum(1)
        order = tau.argsort(stable=True)
        return Leg(order, tau[order], c[order[[0, -1]]])
    if c.shape[-1] != 3:
        return None
    start, second, third = c.unbind(1)
    s = third + second / 2
    if _equal(c, torch.stack([(1 - s) ** 2, 2 * s * (1 - s), s**2], 1), close):
        tau, curve = s, _BEZIER
    elif _equal(c, torch.stack([(1 - second**2).clamp(min=0).sqrt(), second, 1 - start - second], 1), close):
        tau, curve = second / (1 + start), _ARC  # the tangent of half the angle
    else:
        return None
    order = tau.argsort(stable=True)
    return Leg(order, tau[order], curve)


def _equal(c: Tensor, other: Tensor, close: float) -> bool:
    return bool(((c - other).abs() <= close).all())


def pays(coefficients: Tensor, heads: Sequence[Tensor]) -> bool:
    """Say whether the sweep is the way to evaluate the points with coefficients (T, k) between heads k x (C, n)."""
    points, k = coefficients.shape
    head = heads[0]
    size = points * head.shape[0] * k * (k + 1) // 2 * head.itemsize
    fits = head.device.type == "cpu" and head.dtype in (torch.float32, torch.float64) and size <= _BUCKETS
    return fits and points > _FEWEST and leg_of(coefficients) is not None


def path_sweep(features: Sequence[Tensor], coefficients: Tensor, heads: Sequence[Tensor], biases: Sequence[Tensor],
               labels: Tensor, *, bins: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sums of `reference.path_scores` over the images with finite logits, and which images have others.

    The sums do not depend on the number of threads, `torch.get_num_threads()`, but for the rounding of float64.

    Args:
        features: k tensors (N, n).
        coefficients: (T, k) of a leg that `leg_of` knows.
        heads: k tensors (C, n).
        biases: k tensors (C,).
        labels: (N,) int64.
        bins: of the histogram.

    Returns:
        nll (T,), hits (T,), histogram (T, 3, bins), and left (N,) bool: images whose logits are NaN or infinite
        somewhere, which are not in the sums.
    """
    leg = leg_of(coefficients)
    kernels = compiled("_cpu")
    sweep = kernels.sweep_two if len(features) == 2 else kernels.sweep_three
    arguments = _arguments(leg, coefficients, heads, biases)
    # Numbers with gaps would be read as if they had none, or have numba compile anew.
    data = tuple(one.contiguous().numpy().reshape(-1) for one in features), labels.contiguous().numpy()
    points, images = len(coefficients), len(labels)
    left = np.zeros(images, bool)
    edges = np.linspace(0, images, min(torch.get_num_threads(), images) + 1).astype(int).tolist()
    sums = [(np.zeros(points), np.zeros(points), np.zeros((points, 3, bins)), left) for _ in edges[1:]]

    def part(number: int) -> None:
        sweep(data, arguments, (edges[number], edges[number + 1]), _memory(arguments), sums[number])

    if len(sums) == 1:
        part(0)
    else:
        with ThreadPoolExecutor(len(sums)) as threads:
            list(threads.map(part, range(len(sums))))
    back = leg.order.argsort()
    nll, hits, histogram = (torch.from_numpy(np.sum([s[i] for s in sums], axis=0))[back] for i in range(3))
    return nll, hits, histogram, torch.from_numpy(left)


def _arguments(leg: Leg, coefficients: Tensor, heads: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what the compiled sweep calls a leg; classes and points are rounded up to whole groups of 16.

    heads (n, groups, k, 16) flat, powers (T, k (k + 1) / 2): products of coefficients, bias (T, groups, 16) flat, the
    numbers of classes and of units, and the grid: tau (T,); first and last (cells,), between which the number of points
    in front of a root lies that falls into a cell of the range of tau; the leg's curve; cells per tau; and how many
    halvings find that number.
    """
    dtype, (classes, units) = heads[0].dtype, heads[0].shape
    c = coefficients.double().cpu()[leg.order]
    k, more, rows = c.shape[1], -classes % _LANES, -len(c) % _LANES
    products = torch.stack([c[:, i] * c[:, j] for i in range(k) for j in range(i, k)], 1)
    lanes = [pad(head.T, (0, more)).reshape(units, -1, _LANES) for head in heads]  # (n, groups, 16)
    bias = pad(c @ torch.stack(list(biases)).double(), (0, more, 0, rows))
    powers = pad(products, (0, 0, 0, rows)).to(dtype).numpy()
    kind, tau = powers.dtype.type, leg.tau.numpy()
    first, last, scale = _cells(tau)
    halvings = int((last - first).max()).bit_length()
    grid = tau.astype(kind), first, last, leg.curve.to(dtype).numpy(), kind(scale), halvings
    return torch.stack(lanes, 2).numpy().reshape(-1), powers, bias.to(dtype).numpy().reshape(-1), classes, units, grid


def _cells(tau: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the cells of a grid (see `_arguments`): an even one has an interval in each, any other at least four."""
    width, most = max(tau[-1] - tau[0], 1e-30), max(1, len(tau) - 1)
    even = np.abs(np.diff(tau) * most / width - 1).max(initial=0) < 1e-6
    edges, slack = np.linspace(tau[0], tau[0] + width, most * (1 if even else 4) + 1), 1e-6 * width / most
    first = np.searchsorted(tau, edges[:-1] + slack, "right").clip(1, most)
    last = np.searchsorted(tau, edges[1:] - slack, "left").clip(first, most)
    return first.astype(np.int32), last.astype(np.int32), (len(edges) - 1) / width


def _memory(leg: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return memory for one thread: for a tile of units, the buckets of an image, its scores, and products of them."""
    from lossland.kernels._buckets import TILE

    powers, (points, terms), groups, curve = leg[1], leg[1].shape, -(-leg[3] // _LANES), leg[-1][3]
    kind, k, number = powers.dtype, len(curve), 2 * TILE + 1
    tile = [tuple(np.empty((k, number - 1), kind)) for _ in range(3)]  # as they are, on at the start, at their changes
    changes = np.empty(number, kind), *np.empty((4, number), np.int32)  # roots, cells, flips, and the list of changes
    sizes = _LANES**2, groups * _LANES**2, groups * terms * _LANES, points, points, points
    score = tuple(np.empty(size, kind) for size in sizes)
    return (*tile, *changes), np.zeros(points * groups * terms * _LANES, kind), score, np.ones(points)


def compiled(name: str) -> ModuleType:
    """Return a module of compiled kernels. numba is imported here, when needed, and keeps what it compiles on disk.

    Where: the folder that ``NUMBA_CACHE_DIR`` names, or ``__pycache__`` beside the source, or the user's cache folder;
    where none of them can be written, a folder of this process.
    """
    try:
        return import_module(f"lossland.kernels.{name}")
    except RuntimeError:  # from numba, which looks for a folder when it is told to keep what it compiles
        import numba

        _folders.append(tempfile.TemporaryDirectory(prefix="lossland-"))
        numba.config.CACHE_DIR = _folders[0].name
        return import_module(f"lossland.kernels.{name}")
