"""The path sweep, compiled, first half: the units of an image into the buckets of the points at which they change.

Axes: units n, groups of 16 classes, points T. Heads (n, groups, k, 16) and buckets (T, groups, k (k + 1) / 2, 16) are
flat. What the arguments hold: `sweep.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lossland.kernels._lanes import add, choose, div, fma, load, mul, part, root, splat, store, store_whole, sub, zero

Arrays = tuple[Any, ...]

TILE = 256  # units at a time: their rows of the heads stay in the first-level cache


@part
def copied(z: Arrays, at: int, m: int, tile: Arrays) -> None:
    """Copy the pre-activations of a tile to where sixteen can be read at a time; what lies behind them is not used."""
    for j in range(len(z)):
        one, row = z[j], tile[j]
        full = m - m % 16
        for u in range(0, full, 16):
            store(row, u, load(one, at + u))
        for u in range(full, m):
            row[u] = one[at + u]


@part
def one_root(m: int, grid: Arrays, work: Arrays) -> None:
    """Find where the units of a tile change on a segment: those that are on at one end only."""
    tau, first, _, ends, scale, _ = grid
    (za, zb), (xa, xb), (ya, yb), roots, cells, flips = work[:6]
    none, one, two = zero(za), splat(za.dtype.type(1)), splat(za.dtype.type(2))
    start, stretch, most = splat(tau[0]), splat(scale), splat(za.dtype.type(len(first) - 1))
    aa, ab, ba, bb = splat(ends[0, 0]), splat(ends[0, 1]), splat(ends[1, 0]), splat(ends[1, 1])
    for u in range(0, m, 16):
        x, y = load(za, u), load(zb, u)
        on = choose(fma(aa, x, mul(ab, y)), none, one, none)
        change = sub(on, choose(fma(ba, x, mul(bb, y)), none, one, none))
        sign = sub(one, mul(two, on))
        place = div(x, sub(x, y))
        cell = mul(sub(place, start), stretch)
        cell = choose(cell, none, cell, none)
        store(xa, u, mul(x, on))
        store(xb, u, mul(y, on))
        store(ya, u, mul(x, sign))
        store(yb, u, mul(y, sign))
        store(roots, u, place)
        store_whole(cells, u, choose(most, cell, cell, most))
        store_whole(flips, u, mul(change, change))


@part
def two_roots(m: int, grid: Arrays, work: Arrays) -> None:
    """Find where the units of a tile change on a curve: they are q0 + 2 q1 tau + q2 tau^2 times something positive."""
    tau, first, _, curve, scale, _ = grid
    (za, zb, zc), (xa, xb, xc), (ya, yb, yc), roots, cells, flips = work[:6]
    none, one, two = zero(za), splat(za.dtype.type(1)), splat(za.dtype.type(2))
    start, end, stretch, most = splat(tau[0]), splat(tau[-1]), splat(scale), splat(za.dtype.type(len(first) - 1))
    for u in range(0, m, 16):
        x, y, w = load(za, u), load(zb, u), load(zc, u)
        q0 = fma(splat(curve[0, 0]), x, fma(splat(curve[0, 1]), y, mul(splat(curve[0, 2]), w)))
        q1 = fma(splat(curve[1, 0]), x, fma(splat(curve[1, 1]), y, mul(splat(curve[1, 2]), w)))
        q2 = fma(splat(curve[2, 0]), x, fma(splat(curve[2, 1]), y, mul(splat(curve[2, 2]), w)))
        square = sub(mul(q1, q1), mul(q0, q2))
        real, width = choose(square, none, one, none), root(choose(square, none, square, none))
        half = choose(q1, none, sub(sub(none, q1), width), sub(width, q1))  # the sum that does not cancel
        far, near = div(half, q2), div(q0, half)
        low, high = choose(near, far, far, near), choose(near, far, near, far)
        # Outside of its roots the unit has the sign of q2, also where that is a signed zero and `far` is infinite.
        flat = choose(none, mul(far, q1), one, none)
        outside = choose(q2, none, one, choose(none, q2, none, flat))
        outside = choose(real, none, outside, choose(add(q0, q2), none, one, none))
        before, behind = choose(low, start, none, real), choose(high, start, none, real)
        between = sub(before, behind)
        on = sub(outside, mul(between, between))
        # Where the square overflows, NaN leaves the image to the reference.
        on = fma(on, on, sub(square, square))
        sign = sub(one, mul(two, outside))
        for side in range(2):
            at = side * TILE + u
            place, passed = (low, before) if side == 0 else (high, behind)
            cell = mul(sub(place, start), stretch)
            cell = choose(cell, none, cell, none)
            store(roots, at, place)
            store_whole(cells, at, choose(most, cell, cell, most))
            store_whole(flips, at, choose(place, end, none, sub(real, passed)))
            store(ya, at, mul(x, sign))
            store(yb, at, mul(y, sign))
            store(yc, at, mul(w, sign))
            sign = sub(none, sign)
        store(xa, u, mul(x, on))
        store(xb, u, mul(y, on))
        store(xc, u, mul(w, on))


@part
def places_of(m: int, sides: int, grid: Arrays, work: Arrays) -> int:
    """List the changes of a tile with the numbers of points that lie in front of them: 1, ..., T - 1."""
    (tau, first, last, _, _, steps), (roots, cells, flips, which, places) = grid, work[3:]
    count = 0
    for side in range(sides):
        for e in range(side * TILE, side * TILE + m):
            which[count], places[count] = e, first[cells[e]]
            count += flips[e]
    if steps:
        for e in range(count):
            here, low, high = roots[which[e]], first[cells[which[e]]], last[cells[which[e]]]
            for _ in range(steps):  # without a jump that depends on the data
                middle = (low + high) >> 1
                behind = low < high and tau[middle] < here
                low, high = middle + 1 if behind else low, high if behind else middle
            places[e] = low
    return count


@part
def fill_two(at: Arrays, leg: Arrays, memory: Arrays) -> None:
    """Add the units of a tile to the buckets of a segment: what is on at the first point to the first one."""
    (start, m, count), heads, groups = at, leg[0], -(-leg[3] // 16)
    (_, (xa, xb), (ya, yb), _, _, _, which, places), buckets, _, _ = memory
    step = groups * 32
    for g in range(groups):
        aa, ab, ba, bb = zero(xa), zero(xa), zero(xa), zero(xa)
        cc, cd, dc, dd = zero(xa), zero(xa), zero(xa), zero(xa)  # of every other unit: sums need not wait
        h = start * step + g * 32
        for u in range(0, m - 1, 2):
            x, y, h0, h1 = splat(xa[u]), splat(xb[u]), load(heads, h), load(heads, h + 16)
            aa, ab, ba, bb = fma(x, h0, aa), fma(x, h1, ab), fma(y, h0, ba), fma(y, h1, bb)
            x, y, h0, h1 = splat(xa[u + 1]), splat(xb[u + 1]), load(heads, h + step), load(heads, h + step + 16)
            cc, cd, dc, dd = fma(x, h0, cc), fma(x, h1, cd), fma(y, h0, dc), fma(y, h1, dd)
            h += 2 * step
        for u in range(m - m % 2, m):
            x, y, h0, h1 = splat(xa[u]), splat(xb[u]), load(heads, h), load(heads, h + 16)
            aa, ab, ba, bb = fma(x, h0, aa), fma(x, h1, ab), fma(y, h0, ba), fma(y, h1, bb)
        s = g * 48
        store(buckets, s, add(load(buckets, s), add(aa, cc)))
        store(buckets, s + 16, add(load(buckets, s + 16), add(add(ab, cd), add(ba, dc))))
        store(buckets, s + 32, add(load(buckets, s + 32), add(bb, dd)))
        for e in range(count):
            u, s = which[e], (places[e] * groups + g) * 48
            h = (start + u) * step + g * 32
            x, y, h0, h1 = splat(ya[u]), splat(yb[u]), load(heads, h), load(heads, h + 16)
            store(buckets, s, fma(x, h0, load(buckets, s)))
            store(buckets, s + 16, fma(x, h1, fma(y, h0, load(buckets, s + 16))))
            store(buckets, s + 32, fma(y, h1, load(buckets, s + 32)))


@part
def fill_three(at: Arrays, leg: Arrays, memory: Arrays) -> None:
    """Add the units of a tile to the buckets of a leg through three points."""
    (start, m, count), heads, groups = at, leg[0], -(-leg[3] // 16)
    (_, (xa, xb, xc), (ya, yb, yc), _, _, _, which, places), buckets, _, _ = memory
    step = groups * 48
    for g in range(groups):
        aa, bb, cc = zero(xa), zero(xa), zero(xa)
        ab, ac, bc = zero(xa), zero(xa), zero(xa)
        ba, ca, cb = zero(xa), zero(xa), zero(xa)
        h = start * step + g * 48
        for u in range(m):
            x, y, w = splat(xa[u]), splat(xb[u]), splat(xc[u])
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
            u, s = which[e], (places[e] * groups + g) * 96
            h = (start + u % TILE) * step + g * 48
            x, y, w = splat(ya[u]), splat(yb[u]), splat(yc[u])
            h0, h1, h2 = load(heads, h), load(heads, h + 16), load(heads, h + 32)
            store(buckets, s, fma(x, h0, load(buckets, s)))
            store(buckets, s + 16, fma(x, h1, fma(y, h0, load(buckets, s + 16))))
            store(buckets, s + 32, fma(x, h2, fma(w, h0, load(buckets, s + 32))))
            store(buckets, s + 48, fma(y, h1, load(buckets, s + 48)))
            store(buckets, s + 64, fma(y, h2, fma(w, h1, load(buckets, s + 64))))
            store(buckets, s + 80, fma(w, h2, load(buckets, s + 80)))
