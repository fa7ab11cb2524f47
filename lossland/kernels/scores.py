"""Scores of many networks from their logits, and of all swaps of a permutation stage, in compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lossland.kernels.sweep import compiled

_LANES = 16
_MOST = 60_000  # classes: the norms of eight images are multiplied in single precision
_TILE = 128 * 1024  # bytes of the logits of images that meet one swap after another
_WORTH = 2**16  # logits: fewer are scored before a thread has started
_DTYPES = (torch.float32, torch.float64)

Scores = tuple[Tensor, Tensor, Tensor, Tensor]


def serves(logits: Tensor, classes: int) -> bool:
    """Say whether logits of so many classes can be scored here."""
    return logits.device.type == "cpu" and logits.dtype in _DTYPES and classes <= _MOST


def score(logits: Tensor, labels: Tensor, bins: int) -> Scores:
    """Return the sums of `reference.class_scores` of T networks, and which of them (T,) bool have logits not finite.

    The sums of those that have are of no use.

    Args:
        logits: (T, N, C).
        labels: (N,) int64 classes.
        bins: of the histogram.
    """
    points, images, classes = logits.shape
    kernel, classed = compiled("_tally").scores, _classed(labels, logits.dtype)
    flat = logits.contiguous().numpy().reshape(-1)  # of evenly spaced numbers numpy makes a view with gaps

    def part(first: int, last: int, memory: tuple[Any, ...], sums: tuple[np.ndarray, ...]) -> None:
        kernel(flat, classed, (first, last, images, classes), memory, sums)

    return _in_parts(part, points, (classes, bins, classed.dtype), most=logits.numel() // _WORTH)


def exchange(logits: Tensor, features: Tensor, head: Tensor, swaps: tuple[Tensor, Tensor], labels: Tensor, *,
             bins: int) -> Scores:
    """Return the sums of `reference.swap_scores`, and which of the T networks (T,) bool have logits not finite.

    Args:
        logits: (C, N).
        features: (n, N).
        head: (C, n).
        swaps: pairs (T, 2) int64, and u (T,).
        labels: (N,) int64 classes.
        bins: of the histogram.
    """
    (classes, images), more = logits.shape, -logits.shape[1] % _LANES
    arrays = *(pad(one, (0, more)) if more else one for one in (features, logits)), head.T
    data = tuple(one.contiguous().numpy().reshape(-1) for one in arrays), _classed(labels, logits.dtype)
    pairs, u = swaps[0].contiguous().numpy(), swaps[1].to(logits.dtype).contiguous().numpy()
    kernel, tile = compiled("_tally").swaps, max(1, _TILE // (classes * logits.itemsize * 128)) * 128

    def part(first: int, last: int, memory: tuple[Any, ...], sums: tuple[np.ndarray, ...]) -> None:
        for start in range(0, images, tile):
            kernel(data, (pairs, u), (first, last, start, min(start + tile, images), images + more), memory, sums)

    return _in_parts(part, len(pairs), (classes, bins, u.dtype), most=len(pairs) * logits.numel() // _WORTH)


def _classed(labels: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Return the classes as floats, up to a whole group of images."""
    return pad(labels.to(dtype), (0, -len(labels) % _LANES)).numpy()


def _in_parts(part: Callable[..., None], points: int, sizes: tuple[int, int, np.dtype], *, most: int) -> Scores:
    """Return sums over the networks, to which each thread adds those of its part; so many threads at most."""
    every = np.zeros(points), np.zeros(points), np.zeros((points, 3, sizes[1])), np.zeros(points, bool)
    edges = np.linspace(0, points, min(torch.get_num_threads(), points, max(1, most)) + 1).astype(int).tolist()
    ranges = list(zip(edges[:-1], edges[1:], strict=True))
    if len(ranges) == 1:
        part(*ranges[0], _memory(*sizes), every)
    else:
        with ThreadPoolExecutor(len(ranges)) as threads:
            list(threads.map(lambda ends: part(*ends, _memory(*sizes), every), ranges))
    nll, hits, histogram, bad = (torch.from_numpy(one) for one in every)
    return nll, hits, histogram, bad


def _memory(classes: int, bins: int, kind: np.dtype) -> tuple[np.ndarray, ...]:
    """Return memory for one thread: logits, rows of them, places, cells, confidences, histograms, losses."""
    from lossland.kernels._tally import COPIES

    number = 2 * COPIES * (bins + 1)
    return (np.zeros(-(-classes // _LANES) * _LANES**2, kind), np.zeros(_LANES**2, kind), np.arange(_LANES, dtype=kind),
            np.empty(_LANES, np.int32), np.empty(_LANES, kind), np.zeros(number), np.zeros(number),
            np.zeros(_LANES, kind), np.ones(_LANES, kind), np.zeros(_LANES, kind))
