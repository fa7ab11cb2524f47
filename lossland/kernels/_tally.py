"""Scores from logits, compiled: sixteen images at a time, and the kernels that are made of it.

Loss, hit and confidence of an image come from one look at its logits. What the arguments hold: `scores.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from lossland.kernels import _lanes
from lossland.kernels._lanes import (OPTIONS, add, ceil, choose, choose_equal, div, exp, fma, larger, load, mul, part,
                                     splat, store, store_whole, sub, transpose, zero)

Arrays = tuple[Any, ...]

COPIES = 4  # of a histogram: additions to one number wait for each other
GROUPS = 8  # groups of images whose norms are multiplied before a logarithm is taken


@part
def _judged(classes: int, label: Any, logits: np.ndarray) -> Any:
    """Return what sixteen images lack to the largest logit, the norms, the hits, and NaN where one is not finite."""
    none, one = zero(logits), splat(logits.dtype.type(1))
    number, guess, wrong = none, none, none
    top = load(logits, 0)
    chosen = top
    for c in range(classes):
        x = load(logits, c * 16)
        guess = choose(x, top, number, guess)  # of equal logits the first one counts
        top, chosen = larger(x, top), choose_equal(number, label, x, chosen)
        number, wrong = add(number, one), fma(x, none, wrong)
    norm = none
    for c in range(classes):
        norm = add(norm, exp(sub(load(logits, c * 16), top)))
    return sub(top, chosen), norm, choose_equal(guess, label, one, none), wrong


@part
def _tally(m: int, judged: Any, bins: int, memory: Arrays) -> None:
    """Add the confidences of the first m of sixteen images to the histograms of misses and of hits."""
    (_, norm, hit, _), (_, _, index, cells, confidences, counts, sums) = judged, memory[:7]
    kind = index.dtype.type
    none, one, width = zero(index), splat(kind(1)), splat(kind(bins))
    confidence = div(one, norm)
    cell = sub(ceil(mul(confidence, width)), one)
    last = sub(width, one)
    cell = choose(cell, last, last, choose(cell, none, cell, none))
    cell = fma(hit, add(width, one), cell)
    store_whole(cells, 0, choose(splat(kind(m)), load(index, 0), cell, width))  # a cell for what is no image
    store(confidences, 0, confidence)
    row = 2 * (bins + 1)
    for i in range(16):
        at = cells[i] + (i % COPIES) * row
        counts[at] += 1
        sums[at] += np.float64(confidences[i])


@part
def _emptied(bins: int, memory: Arrays, histogram: np.ndarray) -> float:
    """Add the histograms of misses and hits to one (3, bins), empty them, and return the number of hits."""
    counts, sums = memory[5], memory[6]
    hits = 0.0
    for copy in range(COPIES):
        miss = copy * 2 * (bins + 1)
        hit = miss + bins + 1
        for b in range(bins):
            histogram[0, b] += counts[miss + b] + counts[hit + b]
            histogram[1, b] += sums[miss + b] + sums[hit + b]
            histogram[2, b] += counts[hit + b]
            hits += counts[hit + b]
        counts[miss : hit + bins + 1] = 0
        sums[miss : hit + bins + 1] = 0
    return hits


@part
def _summed(m: int, judged: Any, memory: Arrays) -> None:
    """Add the losses of the first m of sixteen images to those of each place, without the logarithms of `products`."""
    (gap, norm, _, wrong), index, (gaps, products, wrongs) = judged, memory[2], memory[7:]
    here = splat(index.dtype.type(m))
    none, one = zero(index), splat(index.dtype.type(1))
    store(gaps, 0, add(load(gaps, 0), choose(here, load(index, 0), gap, none)))
    store(products, 0, mul(load(products, 0), choose(here, load(index, 0), norm, one)))
    store(wrongs, 0, add(load(wrongs, 0), choose(here, load(index, 0), wrong, none)))


@part
def _loss(memory: Arrays) -> float:
    """Return the losses of a few groups of images, and empty them."""
    gaps, products, _ = memory[7:]
    loss = 0.0
    for i in range(16):
        loss += np.float64(gaps[i]) + math.log(np.float64(products[i]))
        gaps[i], products[i] = 0, 1
    return loss


@part
def _finite(memory: Arrays) -> bool:
    """Say whether all logits were finite so far, and forget it."""
    wrongs = memory[9]
    good = True
    for i in range(16):
        good = good and wrongs[i] == 0
        wrongs[i] = 0
    return good


@part
def _group(i: int, end: int, sizes: tuple[int, int], labels: np.ndarray, memory: Arrays) -> float:
    """Score the images [i, i + 16), as far as they lie in front of the end; return the loss when it is time to."""
    classes, bins = sizes
    judged = _judged(classes, load(labels, i), memory[0])
    _summed(end - i, judged, memory)
    _tally(end - i, judged, bins, memory)
    return _loss(memory) if i % (16 * GROUPS) == 0 or i + 16 >= end else 0.0


@part
def _changes(i: int, swap: Arrays, z: np.ndarray, images: int) -> Any:
    """Return by how much the outputs of the two units of a swap differ from those of the units in place."""
    p, q, done, left = swap
    x, y, none = load(z, p * images + i), load(z, q * images + i), zero(z)
    first, second = fma(left, x, mul(done, y)), fma(left, y, mul(done, x))
    first, second = choose(none, first, none, first), choose(none, second, none, second)  # NaN is kept
    of_p = sub(fma(left, first, mul(done, second)), choose(none, x, none, x))
    return of_p, sub(fma(left, second, mul(done, first)), choose(none, y, none, y))


@part
def _exchanged(i: int, swap: Arrays, net: Arrays, images: int, memory: Arrays) -> None:
    """Write the logits of sixteen images after a rank-two update."""
    (z, base, head), logits, (p, q, _, _) = net, memory[0], swap
    of_p, of_q = _changes(i, swap, z, images)
    classes = len(base) // images
    for c in range(classes):
        found = fma(of_p, splat(head[p * classes + c]), load(base, c * images + i))
        store(logits, c * 16, fma(of_q, splat(head[q * classes + c]), found))


@part
def _gathered(row: int, m: int, classes: int, source: np.ndarray, memory: Arrays) -> None:
    """Copy the logits of m images, classes side by side, to where the images lie side by side."""
    logits, rows = memory[:2]
    for g in range(0, classes, 16):
        start = row * classes + g
        if start + 15 * classes + 16 <= len(source):
            for i in range(16):  # what lies behind the last class is not used
                store(rows, i * 16, load(source, start + i * classes))
        else:
            for i in range(min(m, 16)):
                for c in range(min(16, classes - g)):
                    rows[i * 16 + c] = source[start + i * classes + c]
            for i in range(min(m, 16), 16):
                rows[i * 16 : i * 16 + 16] = 0
        transpose(rows, 0, logits, g * 16)


def _compiled(sources: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the kernels; `sources` as in `_cpu.py`."""
    @numba.njit(cache=True, **OPTIONS)
    def swaps(data: Arrays, moves: Arrays, ranges: Arrays, memory: Arrays, sums: Arrays) -> None:
        """Add the scores of the networks [first, last) over the images [start, end); mark what is not finite."""
        _ = sources
        (net, labels), (pairs, done), (first, last, start, end, images) = data, moves, ranges
        nll, hits, histogram, bad = sums
        sizes = len(net[1]) // images, histogram.shape[2]
        for t in range(first, last):
            swap = pairs[t, 0], pairs[t, 1], splat(done[t]), splat(done.dtype.type(1) - done[t])
            for i in range(start, end, 16):
                _exchanged(i, swap, net, images, memory)
                nll[t] += _group(i, end, sizes, labels, memory)
            hits[t] += _emptied(sizes[1], memory, histogram[t])
            bad[t] = bad[t] or not _finite(memory)

    @numba.njit(cache=True, **OPTIONS)
    def scores(logits: np.ndarray, labels: np.ndarray, ranges: Arrays, memory: Arrays, sums: Arrays) -> None:
        """Write the scores of the networks [first, last); mark those whose logits are not all finite."""
        _ = sources
        (first, last, images, classes), (nll, hits, histogram, bad) = ranges, sums
        bins = histogram.shape[2]
        for t in range(first, last):
            for i in range(0, images, 16):
                _gathered(t * images + i, images - i, classes, logits, memory)
                nll[t] += _group(i, images, (classes, bins), labels, memory)
            hits[t] += _emptied(bins, memory, histogram[t])
            bad[t] = not _finite(memory)

    return swaps, scores


swaps, scores = _compiled(hashlib.sha256(b"".join(Path(path).read_bytes() for path in
                                                  (_lanes.__file__, __file__))).hexdigest())
