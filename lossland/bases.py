"""Bases of paths: positions on a leg to coefficients of its control points, which add up to one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Basis = Callable[[Tensor], Tensor]


def linear_basis(s: Tensor) -> Tensor:
    """Return the coefficients (T, 2) of a straight segment: 1 - s and s.

    Source: AY20 Eq. (5).

    Examples:
        >>> linear_basis(torch.tensor([0.0, 0.25]))
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500]])
    """
    return torch.stack([1 - s, s], dim=-1)


def arc_basis(s: Tensor) -> Tensor:
    """Return the coefficients (T, 3) of start, end and centre on AY20's arc: cos, sin, 1 - cos - sin (of pi s / 2).

    Source: AY20 Eq. (6), written as a combination of X, Y and mu. The ends are exact: s = 1 gives 0, 1, 0.
    """
    angle = s * (math.pi / 2)
    # cos(pi/2) is 6e-17 in floating point; the sine of the complementary angle is 0.
    cos, sin = torch.sin((1 - s) * (math.pi / 2)), torch.sin(angle)
    cos, sin = torch.where(s == 0, 1.0, cos), torch.where(s == 1, 1.0, sin)
    return torch.stack([cos, sin, 1 - cos - sin], dim=-1)


def bezier_basis(s: Tensor, bends: int) -> Tensor:
    """Return the Bernstein coefficients (T, bends + 2) of a Bezier curve; the ends come first and last.

    Raises:
        ValueError: if bends < 0.

    Source: G18 A.1; bends count interior points.

    Examples:
        >>> bezier_basis(torch.tensor([0.5]), bends=1)
        tensor([[0.2500, 0.5000, 0.2500]])
    """
    if bends < 0:
        raise ValueError(f"bends must be >= 0, got {bends}")
    n = bends + 1
    return torch.stack([math.comb(n, i) * s**i * (1 - s) ** (n - i) for i in range(n + 1)], dim=-1)


def chain_basis(s: Tensor, bends: int) -> Tensor:
    """Return the hat-function coefficients (T, bends + 2) of a polygonal chain with equal shares of s per segment.

    Raises:
        ValueError: if bends < 0.

    Source: G18 A.1.
    """
    if bends < 0:
        raise ValueError(f"bends must be >= 0, got {bends}")
    knots = torch.arange(bends + 2, dtype=s.dtype, device=s.device)
    return (1 - (s[..., None] * (bends + 1) - knots).abs()).clamp(min=0)
