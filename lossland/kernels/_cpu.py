"""The path sweep, compiled: all points of a leg of one-hidden-layer ReLU networks in one pass over the features.

Axes: units n, groups of 16 classes, points T. Pre-activations z: k flat arrays (N n). Heads (n, groups, k, 16), buckets
(T, groups, k (k + 1) / 2, 16) and biases (T, groups, 16) are flat. `plan.py` makes them.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from lossland.kernels._lanes import add, exp, fma, larger, load, splat, store, sub, transpose, zero

Arrays = tuple[Any, ...]

_TILE = 256  # units at a time: their rows of the heads stay in the first-level cache
_EXACT = {"contract", "nsz"}  # NaN and infinity keep their meaning
_part = numba.njit(nogil=True, error_model="numpy", fastmath=_EXACT)
_whole = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_EXACT)


@_part
def _one_root(z: Arrays, at: int, m: int, grid: Arrays, work: Arrays) -> None:
    """Find where the units of a tile change on a segment: those that are on at one end only."""
    ends, (root, on, sign, flips) = grid[3], work[:4]
    za, zb = z
    for u in range(m):
        x, y = za[at + u], zb[at + u]
        first, last = ends[0, 0] * x + ends[0, 1] * y > 0, ends[1, 0] * x + ends[1, 1] * y > 0
        root[u] = x / (x - y)
        on[u] = 1 if first else 0
        sign[u] = -1 if first else 1
        flips[u] = 1 if first != last else 0


@_part
def _two_roots(z: Arrays, at: int, m: int, grid: Arrays, work: Arrays) -> None:
    """Find where the units of a tile change on a curve: they are q0 + 2 q1 tau + q2 tau^2 times something positive."""
    tau, conic, (root, on, sign, flips) = grid[0], grid[3], work[:4]
    za, zb, zc = z
    start, end, none, one = tau[0], tau[-1], root.dtype.type(0), root.dtype.type(1)
    for u in range(m):
        x, y, w = za[at + u], zb[at + u], zc[at + u]
        q0 = conic[0, 0] * x + conic[0, 1] * y + conic[0, 2] * w
        q1 = conic[1, 0] * x + conic[1, 1] * y + conic[1, 2] * w
        q2 = conic[2, 0] * x + conic[2, 1] * y + conic[2, 2] * w
        square = q1 * q1 - q0 * q2
        real = square > none
        width = np.sqrt(square if real else none)
        half = -q1 - width if q1 > none else width - q1  # the sum that does not cancel
        far, near = half / q2, q0 / half
        low, high = far if far < near else near, near if far < near else far
        # Outside of its roots the unit has the sign of q2, also where that is a signed zero and `far` is infinite.
        outside = (q2 > none or (q2 == none and far * q1 < none)) if real else q0 + q2 > none
        before, behind = real and low <= start, real and high <= start
        root[2 * u], root[2 * u + 1] = low, high
        sign[2 * u], sign[2 * u + 1] = -one if outside else one, one if outside else -one
        flips[2 * u] = 1 if real and not before and low <= end else 0
        flips[2 * u + 1] = 1 if real and not behind and high <= end else 0
        # Where the square overflows, NaN leaves the image to the reference.
        on[u] = (one if outside != (before != behind) else none) + (square - square)


@_part
def _places(many: int, grid: Arrays, work: Arrays) -> int:
    """List the changes of a tile with the numbers of points that lie in front of them: 1, ..., T - 1."""
    (tau, first, last, _, scale), (root, _, _, flips, which, places) = grid, work
    none, most = root.dtype.type(0), root.dtype.type(len(first) - 1)
    count = 0
    for e in range(many):
        which[count] = e
        count += flips[e]
    for e in range(count):
        here = root[which[e]]
        cell = (here - tau[0]) * scale
        cell = min(cell if cell > none else none, most)
        low, high = first[int(cell)], last[int(cell)]
        while low < high:
            middle = (low + high) >> 1
            if tau[middle] < here:
                low = middle + 1
            else:
                high = middle
        places[e] = min(max(low, 1), len(tau) - 1)
    return count


@_part
def _fill_two(z: Arrays, at: int, tile: tuple[int, int, int], leg: Arrays, memory: Arrays) -> None:
    """Add the units of a tile to the buckets of a segment: what is on at the first point to the first one."""
    (start, m, count), (buckets, (_, on, sign, _, which, places), _, _), (za, zb) = tile, memory, z
    heads, groups = leg[0], -(-leg[3] // 16)
    step = groups * 32
    for g in range(groups):
        aa, ab, ba, bb = zero(za), zero(za), zero(za), zero(za)
        cc, cd, dc, dd = zero(za), zero(za), zero(za), zero(za)  # of every other unit: sums need not wait
        h = start * step + g * 32
        for u in range(0, m - 1, 2):
            x, y, h0, h1 = splat(za[at + u] * on[u]), splat(zb[at + u] * on[u]), load(heads, h), load(heads, h + 16)
            aa, ab, ba, bb = fma(x, h0, aa), fma(x, h1, ab), fma(y, h0, ba), fma(y, h1, bb)
            x, y = splat(za[at + u + 1] * on[u + 1]), splat(zb[at + u + 1] * on[u + 1])
            h0, h1 = load(heads, h + step), load(heads, h + step + 16)
            cc, cd, dc, dd = fma(x, h0, cc), fma(x, h1, cd), fma(y, h0, dc), fma(y, h1, dd)
            h += 2 * step
        for u in range(m - m % 2, m):
            x, y, h0, h1 = splat(za[at + u] * on[u]), splat(zb[at + u] * on[u]), load(heads, h), load(heads, h + 16)
            aa, ab, ba, bb = fma(x, h0, aa), fma(x, h1, ab), fma(y, h0, ba), fma(y, h1, bb)
        s = g * 48
        store(buckets, s, add(load(buckets, s), add(aa, cc)))
        store(buckets, s + 16, add(load(buckets, s + 16), add(add(ab, cd), add(ba, dc))))
        store(buckets, s + 32, add(load(buckets, s + 32), add(bb, dd)))
        for e in range(count):
            u, s = which[e], (places[e] * groups + g) * 48
            h = (start + u) * step + g * 32
            x, y, h0, h1 = splat(za[at + u] * sign[u]), splat(zb[at + u] * sign[u]), load(heads, h), load(heads, h + 16)
            store(buckets, s, fma(x, h0, load(buckets, s)))
            store(buckets, s + 16, fma(x, h1, fma(y, h0, load(buckets, s + 16))))
            store(buckets, s + 32, fma(y, h1, load(buckets, s + 32)))


@_part
def _fill_three(z: Arrays, at: int, tile: tuple[int, int, int], leg: Arrays, memory: Arrays) -> None:
    """Add the units of a tile to the buckets of a leg through three points."""
    (start, m, count), (buckets, (_, on, sign, _, which, places), _, _), (za, zb, zc) = tile, memory, z
    heads, groups = leg[0], -(-leg[3] // 16)
    step = groups * 48
    for g in range(groups):
        aa, bb, cc = zero(za), zero(za), zero(za)
        ab, ac, bc = zero(za), zero(za), zero(za)
        ba, ca, cb = zero(za), zero(za), zero(za)
        h = start * step + g * 48
        for u in range(m):
            x, y, w = splat(za[at + u] * on[u]), splat(zb[at + u] * on[u]), splat(zc[at + u] * on[u])
            h0, h1, h2 = load(heads, h), load(heads, h + 16), load(heads, h + 32)
            aa, ab, ac = fma(x, h0, aa), fma(x, h1, ab), fma(x, h2, ac)
            ba, bb, bc = fma(y, h0, ba), fma(y, h1, bb), fma(y, h2, bc)
            ca, cb, cc = fma(w, h0, ca), fma(w, h1, cb), fma(w, h2, cc)
            h += step
        s = g * 96
        store(buckets, s, add(load(buckets, s), aa))
        store(buckets, s + 16, add(load(buckets, s + 16), add(ab, ba)))
        store(buckets, s + 32, add(load(buckets, s + 32), add(ac, ca)))
        store(buckets, s + 48, add(load(buckets, s + 48), bb))
        store(buckets, s + 64, add(load(buckets, s + 64), add(bc, cb)))
        store(buckets, s + 80, add(load(buckets, s + 80), cc))
        for e in range(count):
            u, f, s = which[e] >> 1, sign[which[e]], (places[e] * groups + g) * 96
            h = (start + u) * step + g * 48
            x, y, w = splat(za[at + u] * f), splat(zb[at + u] * f), splat(zc[at + u] * f)
            h0, h1, h2 = load(heads, h), load(heads, h + 16), load(heads, h + 32)
            store(buckets, s, fma(x, h0, load(buckets, s)))
            store(buckets, s + 16, fma(x, h1, fma(y, h0, load(buckets, s + 16))))
            store(buckets, s + 32, fma(x, h2, fma(w, h0, load(buckets, s + 32))))
            store(buckets, s + 48, fma(y, h1, load(buckets, s + 48)))
            store(buckets, s + 64, fma(y, h2, fma(w, h1, load(buckets, s + 64))))
            store(buckets, s + 80, fma(w, h2, load(buckets, s + 80)))


@_part
def _score(leg: Arrays, label: int, memory: Arrays) -> bool:
    """Turn the buckets of one image into scores at every point, and empty them; say whether all scores are finite."""
    (_, powers, bias, classes, _), (buckets, _, (rows, logits, sums, gap, lead, total), _) = leg, memory
    points, terms = powers.shape
    groups = len(logits) // 256
    none = zero(sums)
    for i in range(0, len(sums), 16):
        store(sums, i, none)
    wrong = none
    for start in range(0, points, 16):
        for g in range(groups):
            for t in range(start, start + 16):
                found = load(bias, (t * groups + g) * 16)
                for m in range(terms):
                    s, r = ((t * groups + g) * terms + m) * 16, (g * terms + m) * 16
                    now = add(load(sums, r), load(buckets, s))
                    store(sums, r, now)
                    store(buckets, s, none)
                    found = fma(splat(powers[t, m]), now, found)
                store(rows, (t - start) * 16, found)
            transpose(rows, 0, logits, g * 256)
        before = splat(sums.dtype.type(-np.inf))
        for c in range(label):
            before = larger(before, load(logits, c * 16))
        chosen = load(logits, label * 16)
        top = chosen
        for c in range(label + 1, classes):
            top = larger(top, load(logits, c * 16))
        top = larger(top, before)
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


@_part
def _add(memory: Arrays, sums: Arrays) -> None:
    """Add the scores of one image to the sums of every point; the logarithms of `product` are still to come."""
    (_, _, (_, _, _, gap, lead, total), product), (nll, hits, histogram, _) = memory, sums
    bins = histogram.shape[2]
    for t in range(len(nll)):
        confidence = 1 / total[t]
        which = min(max(int(math.ceil(np.float64(confidence) * bins)) - 1, 0), bins - 1)
        nll[t] += gap[t]
        product[t] *= total[t]
        histogram[t, 0, which] += 1
        histogram[t, 1, which] += confidence
        if gap[t] == 0 and lead[t] < 0:  # of equal logits the first one counts
            hits[t] += 1
            histogram[t, 2, which] += 1


@_part
def _logarithms(nll: np.ndarray, product: np.ndarray) -> None:
    """Add the logarithms of the products of a few images."""
    for t in range(len(nll)):
        nll[t] += math.log(product[t])
        product[t] = 1


@_part
def _memory(like: np.ndarray, leg: Arrays) -> Arrays:
    """Return empty buckets, and what a tile and the scores of an image need."""
    (points, terms), groups = leg[1].shape, -(-leg[3] // 16)
    kind = like.dtype
    tile = (np.empty(2 * _TILE, kind), np.empty(_TILE, kind), np.empty(2 * _TILE, kind), np.empty(2 * _TILE, np.int32),
            np.empty(2 * _TILE + 1, np.int32), np.empty(2 * _TILE, np.int32))
    score = (np.empty(256, kind), np.empty(groups * 256, kind), np.empty(groups * terms * 16, kind),
             np.empty(points, kind), np.empty(points, kind), np.empty(points, kind))
    return np.zeros(points * groups * terms * 16, kind), tile, score, np.ones(points)


@_whole
def sweep_two(z: Arrays, leg: Arrays, labels: np.ndarray, images: tuple[int, int], sums: Arrays) -> None:
    """Add the scores of the images [first, last) at all points of a segment; mark those that are not finite."""
    grid, groups = leg[4], -(-leg[3] // 16)
    units = len(leg[0]) // (32 * groups)
    memory = _memory(z[0], leg)
    for i in range(images[0], images[1]):
        for start in range(0, units, _TILE):
            m, at = min(_TILE, units - start), i * units + start
            _one_root(z, at, m, grid, memory[1])
            count = _places(m, grid, memory[1])
            _fill_two(z, at, (start, m, count), leg, memory)
        if _score(leg, labels[i], memory):
            _add(memory, sums)
        else:
            sums[3][i] = True
        if i % 32 == 0:
            _logarithms(sums[0], memory[3])
    _logarithms(sums[0], memory[3])


@_whole
def sweep_three(z: Arrays, leg: Arrays, labels: np.ndarray, images: tuple[int, int], sums: Arrays) -> None:
    """Add the scores of the images [first, last) at all points of a curve; mark those that are not finite."""
    grid, groups = leg[4], -(-leg[3] // 16)
    units = len(leg[0]) // (48 * groups)
    memory = _memory(z[0], leg)
    for i in range(images[0], images[1]):
        for start in range(0, units, _TILE):
            m, at = min(_TILE, units - start), i * units + start
            _two_roots(z, at, m, grid, memory[1])
            count = _places(2 * m, grid, memory[1])
            _fill_three(z, at, (start, m, count), leg, memory)
        if _score(leg, labels[i], memory):
            _add(memory, sums)
        else:
            sums[3][i] = True
        if i % 32 == 0:
            _logarithms(sums[0], memory[3])
    _logarithms(sums[0], memory[3])
