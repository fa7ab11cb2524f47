"""The path sweep, compiled, second half: the buckets of an image into scores at all points of the leg.

Axes and layout: `_buckets.py`; what the arguments hold: `sweep.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from lossland.kernels import _buckets, _lanes
from lossland.kernels._buckets import TILE, Arrays, copied, fill_three, fill_two, one_root, places_of, two_roots
from lossland.kernels._lanes import OPTIONS, add, exp, fma, larger, load, part, splat, store, sub, transpose, zero


@part
def _emptied(place: int, buckets: np.ndarray, running: Any) -> Any:
    """Return a running sum with a bucket added, which is empty then."""
    found = add(running, load(buckets, place))
    store(buckets, place, zero(buckets))
    return found


@part
def _logits(start: int, g: int, leg: Arrays, memory: Arrays) -> None:
    """Write the logits of 16 points and 16 classes: running sums of the buckets times powers of the coefficients."""
    (_, powers, bias, classes, _, _), (_, buckets, (rows, logits, sums, _, _, _), _) = leg, memory
    terms, groups = powers.shape[1], -(-classes // 16)
    half = g * terms * 16
    for part in range(0, terms, 3):
        r = half + part * 16
        a, b, c = load(sums, r), load(sums, r + 16), load(sums, r + 32)
        for t in range(start, start + 16):
            s = ((t * groups + g) * terms + part) * 16
            a = _emptied(s, buckets, a)
            b = _emptied(s + 16, buckets, b)
            c = _emptied(s + 32, buckets, c)
            found = load(bias, (t * groups + g) * 16) if part == 0 else load(rows, (t - start) * 16)
            found = fma(splat(powers[t, part]), a, found)
            found = fma(splat(powers[t, part + 1]), b, fma(splat(powers[t, part + 2]), c, found))
            store(rows, (t - start) * 16, found)
        store(sums, r, a)
        store(sums, r + 16, b)
        store(sums, r + 32, c)
    transpose(rows, 0, logits, g * 256)


@part
def _score(leg: Arrays, label: int, memory: Arrays) -> bool:
    """Turn the buckets of one image into scores at every point, and empty them; say whether all scores are finite."""
    (_, powers, _, classes, _, _), (_, _, (rows, logits, sums, gap, lead, total), _) = leg, memory
    none = zero(sums)
    for i in range(0, len(sums), 16):
        store(sums, i, none)
    wrong = none
    for start in range(0, len(powers), 16):
        for g in range(-(-classes // 16)):
            _logits(start, g, leg, memory)
        before = splat(sums.dtype.type(-np.inf))
        for c in range(label):
            before = larger(before, load(logits, c * 16))
        chosen = load(logits, label * 16)
        top = larger(chosen, before)
        for c in range(label + 1, classes):
            top = larger(top, load(logits, c * 16))
        every = none
        for c in range(classes):
            one = load(logits, c * 16)
            every, wrong = add(every, exp(sub(one, top))), fma(one, none, wrong)
        store(gap, start, sub(top, chosen))
        store(lead, start, sub(before, chosen))
        store(total, start, every)
    store(rows, 0, wrong)
    good = True
    for i in range(16):
        good = good and rows[i] == 0
    return good


@part
def _add(memory: Arrays, sums: Arrays) -> None:
    """Add the scores of one image to the sums of every point; the logarithms of `product` are still to come."""
    (_, _, (_, _, _, gap, lead, total), product), (nll, hits, histogram, _) = memory, sums
    bins = histogram.shape[2]
    for t in range(len(nll)):
        confidence = 1 / np.float64(total[t])
        which = min(max(int(math.ceil(confidence * bins)) - 1, 0), bins - 1)
        nll[t] += gap[t]
        product[t] *= total[t]
        histogram[t, 0, which] += 1
        histogram[t, 1, which] += confidence
        if gap[t] == 0 and lead[t] < 0:  # of equal logits the first one counts
            hits[t] += 1
            histogram[t, 2, which] += 1


@part
def _logarithms(nll: np.ndarray, product: np.ndarray) -> None:
    """Add the logarithms of the products of a few images."""
    for t in range(len(nll)):
        nll[t] += math.log(product[t])
        product[t] = 1


@part
def _scores(leg: Arrays, which: tuple[int, int], memory: Arrays, sums: Arrays) -> None:
    label, image = which
    if _score(leg, label, memory):
        _add(memory, sums)
    else:
        sums[3][image] = True
    if image % 32 == 0:
        _logarithms(sums[0], memory[3])



def _compiled(sources: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the sweeps of segments and of curves.

    numba keeps what it compiles until the file of the function changes. The parts lie in other files: `sources`, in the
    closure and so in the key under which numba keeps a function, stands for them.
    """
    @numba.njit(cache=True, **OPTIONS)
    def sweep_two(data: Arrays, leg: Arrays, images: tuple[int, int], memory: Arrays, sums: Arrays) -> None:
        """Add the scores of the images [first, last) at all points of a segment; mark those that are not finite."""
        _ = sources
        (z, labels), (units, grid), work = data, leg[-2:], memory[0]
        for i in range(images[0], images[1]):
            for start in range(0, units, TILE):
                m = min(TILE, units - start)
                copied(z, i * units + start, m, work[0])
                one_root(m, grid, work)
                fill_two((start, m, places_of(m, 1, grid, work)), leg, memory)
            _scores(leg, (labels[i], i), memory, sums)
        _logarithms(sums[0], memory[3])

    @numba.njit(cache=True, **OPTIONS)
    def sweep_three(data: Arrays, leg: Arrays, images: tuple[int, int], memory: Arrays, sums: Arrays) -> None:
        """Add the scores of the images [first, last) at all points of a curve; mark those that are not finite."""
        _ = sources
        (z, labels), (units, grid), work = data, leg[-2:], memory[0]
        for i in range(images[0], images[1]):
            for start in range(0, units, TILE):
                m = min(TILE, units - start)
                copied(z, i * units + start, m, work[0])
                two_roots(m, grid, work)
                fill_three((start, m, places_of(m, 2, grid, work)), leg, memory)
            _scores(leg, (labels[i], i), memory, sums)
        _logarithms(sums[0], memory[3])

    return sweep_two, sweep_three


_PARTS = b"".join(Path(module.__file__).read_bytes() for module in (_lanes, _buckets))
sweep_two, sweep_three = _compiled(hashlib.sha256(_PARTS).hexdigest())
