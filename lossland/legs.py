"""Legs that are no mixtures of fixed points: units that a `Move` carries, swaps of a permutation, scaled weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lossland.errors import choose
from lossland.layers import Layer, axes, gather, permute, scatter, unit_count
from lossland.neurons import Groups, Move, group_centre, swaps
from lossland.paths import Leg, Mix, Path, arc_basis, linear_basis, segment
from lossland.weights import Weights, at, mix, stack

_SLACK = 1e-3  # relative error of a move at its ends that counts as rounding


@dataclass(frozen=True, eq=False)
class Moved:
    """A leg on which a `Move` carries the units of `a` to those of `b`; parameters outside of them move straight.

    Attributes:
        a, b: the ends, reached to the last bit whatever rounding the move has.
        groups: (writers, readers) of each set of units, as `layers.gather` takes them.
        move: x (n, D), y (n, D), s (T,) -> (T, n, D).
    """

    a: Weights
    b: Weights
    groups: Groups
    move: Move

    def __call__(self, s: Tensor) -> Weights:
        """Return stacked weights with leading axis T at the positions s (T,).

        Raises:
            ValueError: if the move returns another shape than (T, n, D).
        """
        straight = mix((self.a, self.b), linear_basis(s))
        points = [at(straight, i) for i in range(len(s))]
        for writers, readers in self.groups:
            x, y = gather(self.a, writers, readers), gather(self.b, writers, readers)
            units = self.move(x, y, s.to(device=x.device, dtype=x.dtype))
            if units.shape != (len(s), *x.shape):
                raise ValueError(f"move must return (T, n, D) = {(len(s), *x.shape)}, got {tuple(units.shape)}")
            for i, one in enumerate(s.tolist()):
                exact = {0.0: x, 1.0: y}.get(one, units[i])
                points[i] = scatter(points[i], exact.to(x.dtype), writers, readers)
        return stack(points)


def carried(a: Weights, b: Weights, groups: Groups, move: str | Move) -> Leg:
    """Return the leg on which units move from `a` to `b`.

    Args:
        a, b: the ends; tensors that do not move are best the same objects in both: evaluation saves work there.
        groups: (writers, readers) of each set of units; parameters outside of them move straight, or, on an arc, about
            the mean of their ends.
        move: "linear", "arc" (about the mean of the pooled units of a group), or any `Move`.

    Raises:
        ValueError: for an unknown name, or a `Move` that is not finite or does not start and end at the units.
        TypeError: if `move` is neither a name nor a function.

    Source: AY20 Eqs. (5) and (6).
    """
    if isinstance(move, str):
        choose("move", move, ("linear", "arc"))
        if move == "linear":
            return Mix((a, b), linear_basis)
        return Mix((a, b, group_centre(a, b, groups)), arc_basis)
    if not callable(move):
        raise TypeError(f"move must be 'linear', 'arc' or a function of (x, y, s), got {type(move).__name__}")
    for writers, readers in groups:
        _check_move(move, gather(a, writers, readers), gather(b, writers, readers))
    return Moved(a, b, groups, move)


def _check_move(move: Move, x: Tensor, y: Tensor) -> None:
    units = move(x, y, torch.tensor([0.0, 0.5, 1.0], dtype=x.dtype, device=x.device))
    if units.shape != (3, *x.shape):
        raise ValueError(f"move must return (T, n, D) = {(3, *x.shape)}, got {tuple(units.shape)}")
    if not torch.isfinite(units).all():
        bad = int((~torch.isfinite(units)).sum())
        raise ValueError(f"move must return finite units, got {bad} NaN or infinite entries")
    for s, found, end in ((0, units[0], x), (1, units[-1], y)):
        gap = float((found - end).norm() / end.norm().clamp(min=1e-30))
        if gap > _SLACK:
            raise ValueError(f"move must give {'xy'[s]} at s={s}, got units that differ by {gap:.2g} of their norm")


@dataclass(frozen=True, eq=False)
class Swaps:
    """The permutation stage: from permuted `weights` to `weights` itself, one swap of two units after the other.

    Every swap is one straight segment on which two units exchange their places (rows, biases, normalisations and
    columns), and all swaps have equal shares of s. After every completed swap the function is that of `weights`. Points
    are built when they are asked for: all of them at once would be thousands of networks.

    Attributes:
        weights: the network at the end of the leg.
        layers: its layers.
        permutations: unit axis -> (n,) permutation; the leg starts at `layers.permute(weights, layers, permutations)`,
            and the axes are put in order one after another.

    Source: AY20 section 3.4, the second stage.
    """

    weights: Weights
    layers: tuple[Layer, ...]
    permutations: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for axis, permutation in self.permutations.items():
            choose("axis of permutations", axis, axes(self.layers))
            n = unit_count(self.weights, self.layers, axis)
            if len(permutation) != n:
                raise ValueError(f"permutation of {axis!r} must have {n} entries, got {len(permutation)}")
        assert self.places.shape[1] == 2  # computed here, so that what is no permutation is refused at once

    @cached_property
    def _stages(self) -> dict[str, Tensor]:
        return {axis: swaps(permutation) for axis, permutation in self.permutations.items()}

    @cached_property
    def places(self) -> Tensor:
        """The places (m, 2) int64 that swap k exchanges, axis after axis; it brings unit places[k, 1] home."""
        return torch.cat([*self._stages.values(), torch.empty(0, 2, dtype=torch.int64)])

    @cached_property
    def units(self) -> Tensor:
        """The units (m, 2) int64 of `weights` that swap k exchanges: what places[k] hold before it."""
        held = [self.permutations[axis].cpu()[pairs[:, 1]] for axis, pairs in self._stages.items()]
        return torch.stack([self.places[:, 1], torch.cat([*held, self.places[:0, 1]])], 1)

    @property
    def count(self) -> int:
        """The number m of swaps: units less cycles, over all axes."""
        return len(self.places)

    def locate(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the swap k (T,) int64 under way at s (T,) and how much of it is done, u in [0, 1] (T,) float64."""
        done = s.double().cpu() * self.count
        halves = (2 * done).round() / 2
        # Ends and middles of swaps are where exact statements hold; t -> s has moved them by an ulp.
        done = torch.where((done - halves).abs() < 1e-9, halves, done)
        k = done.floor().long().clamp(max=max(self.count - 1, 0))
        return k, done - k

    def knots(self, most: int | None = None) -> Tensor:
        """Return the s (T,) float64 of the leg's ends and of the middles and ends of swaps.

        Args:
            most: how many swaps at most, evenly spread; None: all of them.

        Raises:
            ValueError: if most < 1.
        """
        if most is not None and most < 1:
            raise ValueError(f"swaps must be >= 1 or None for all of them, got {most}")
        m = self.count
        chosen = torch.linspace(0, m - 1, min(most or m, m), dtype=torch.float64).round()
        s = torch.cat([chosen + 0.5, chosen + 1, torch.tensor([0.0, m], dtype=torch.float64)]) / max(m, 1)
        return torch.cat([s, torch.ones(1, dtype=torch.float64)]).unique()

    def arrangement(self, k: int) -> dict[str, Tensor]:
        """Return axis -> (n,) int64: the unit that every place holds after k completed swaps.

        Raises:
            ValueError: if k lies outside 0..m.
        """
        if not 0 <= k <= self.count:
            raise ValueError(f"k must lie in 0..{self.count}, got {k}")
        held = {}
        for axis, pairs in self._stages.items():
            done, k = max(0, min(k, len(pairs))), k - len(pairs)
            now = self.permutations[axis].cpu().clone()
            now[pairs[:done].reshape(-1)] = pairs[:done].reshape(-1)
            if done:  # in a cycle under way its first place holds what the last swap took out of the other place
                now[pairs[done - 1, 0]] = self.permutations[axis].cpu()[pairs[done - 1, 1]]
            held[axis] = now
        return held

    def __call__(self, s: Tensor) -> Weights:
        """Return stacked weights with leading axis T at the positions s (T,)."""
        return stack([self._point(k, u) for k, u in zip(*(x.tolist() for x in self.locate(s)), strict=True)])

    def _point(self, k: int, u: float) -> Weights:
        before = permute(self.weights, self.layers, self.arrangement(k))
        if not u:
            return before
        after = permute(self.weights, self.layers, self.arrangement(k + 1))
        # lerp leaves entries that do not change as they are, to the last bit.
        return {name: torch.lerp(tensor, after[name], u) for name, tensor in before.items()}


@dataclass(frozen=True)
class Powers:
    """A leg on which each tensor is scaled by its own power of a shared factor: weights(s) = factor(s)^power * tensor.

    Attributes:
        weights: the point that is scaled.
        powers: parameter name -> exponent.
        factor: s (T,) -> (T,) in [0, 1].
    """

    weights: Weights
    powers: Mapping[str, int]
    factor: Callable[[Tensor], Tensor]

    def __call__(self, s: Tensor) -> Weights:
        """Return stacked weights with leading axis T at the positions s (T,)."""
        scale, scaled = self.factor(s), {}
        for name, tensor in self.weights.items():
            power = (scale ** self.powers[name]).to(device=tensor.device, dtype=tensor.dtype)
            scaled[name] = power.reshape(-1, *[1] * tensor.ndim) * tensor
        return scaled


def through_origin(a: Weights, b: Weights, powers: Mapping[str, int]) -> Path:
    """Return the trivial curve from `a` to `b` through the origin: two legs, factor 1 -> 0 on `a`, then 0 -> 1 on `b`.

    A ReLU network without normalisation computes factor^n times its logits on it, so that its predicted classes do not
    change (but at the origin itself): connection for free, and nothing gained.

    Args:
        a, b: the ends.
        powers: parameter name -> exponent: 1 for weights, the layer's depth i for biases (`layers.depths`).

    Raises:
        ValueError: if the ends do not match or a parameter has no power.

    Source: G18 A.6: W_i(t) = t W_i, b_i(t) = t^i b_i.
    """
    segment(a, b)  # checks that the ends match
    if missing := sorted(a.keys() - powers.keys()):
        raise ValueError(f"powers must give an exponent for every parameter, got none for {missing}")
    return Path((Powers(a, powers, lambda s: 1 - s), Powers(b, powers, lambda s: s)))
