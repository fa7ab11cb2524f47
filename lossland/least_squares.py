"""Least squares from streamed second moments: solve W X = Y without ever holding X or Y.

X X^T and Y X^T are added up in float64 over blocks of samples; memory is O(D^2), whatever the number of samples.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lossland.products import packed, product

RIDGE = 1e-7  # relative; METHODS: the same residual as a pseudo-inverse, and it survives dead and duplicated units
# Units of a tile; only tiles on and above the diagonal are computed. 4096 x 2000 features on one core: 0.10 s in tiles
# of 256 by oneDNN (`products`), 0.18 in stripes of 128 by MKL, 0.27 in stripes of 512, 0.47 as one product.
_TILE, _TILE_CUDA = 256, 1024


@dataclass
class Moments:
    """Sums over samples of the products that a least-squares solution needs; memory is O(D^2).

    Attributes:
        xx: (D, D) float64 sum of x x^T; only the part on and above the diagonal is meant, see `gram`.
        yx: (C, D) float64 sum of y x^T.
        yy: () float64 sum of |y|^2.
        count: number of samples N (patches, for a convolution).
        products: dtype in which a block's products x x^T are computed before they are added up in float64.

    Source: AY20 Eq. (10): W = Y X^+ = (Y X^T) (X X^T)^+.
    """

    xx: Tensor
    yx: Tensor
    yy: Tensor
    count: int
    products: torch.dtype

    @staticmethod
    def zeros(features: int, targets: int, *, products: torch.dtype = torch.float32,
              device: torch.device | str = "cpu") -> Moments:
        """Return empty sums for D = `features` and C = `targets`."""
        shapes = ((features, features), (targets, features), ())
        return Moments(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes), 0, products)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a block of samples: features x (b, D) and targets y (b, C)."""
        x, y = x.to(self.products), y.to(self.products)
        size = _TILE_CUDA if x.is_cuda else _TILE
        parts = [packed(part) for part in x.T.split(size)]
        for i, left in enumerate(parts):
            for j, right in enumerate(parts[i:], i):
                self.xx[i * size : (i + 1) * size, j * size : (j + 1) * size] += product(left, right)
        # Few rows, so cheap in float64, and the residual, a difference of sums, needs its digits.
        self.yx += y.double().T @ x.double()
        self.yy += y.double().square().sum()
        self.count += len(x)

    @property
    def gram(self) -> Tensor:
        """Return X X^T (D, D), exactly symmetric."""
        full = self.xx.clone()
        for start in range(0, len(full), _TILE):  # mirrored tile by tile: ten times faster than as a whole
            stop = start + _TILE
            full[stop:, start:stop] = full[start:stop, stop:].T
            tile = full[start:stop, start:stop]
            tile.copy_(tile.triu() + tile.triu(1).T)
        return full


@dataclass(frozen=True)
class Solution:
    """A least-squares solution W of W X = Y.

    Attributes:
        weight: (C, D) float64.
        residual: |Y - W X| / |Y| over all samples, a fraction [0-1]. It comes from moments: with float32 products
            values below about 1e-4 are rounding.
        condition: largest over smallest eigenvalue of the matrix that was inverted: X X^T plus the ridge, or without a
            ridge X X^T on the directions that were kept. With a ridge the smallest is estimated (inverse iteration).
        rank: number of directions kept; D with a ridge.
    """

    weight: Tensor
    residual: float
    condition: float
    rank: int


def _residual(moments: Moments, weight: Tensor, gram: Tensor) -> float:
    """Return |Y - W X| / |Y| from the moments."""
    if not moments.yy:
        return 0.0
    square = moments.yy - 2 * (weight * moments.yx).sum() + ((weight @ gram) * weight).sum()
    return float((square / moments.yy).clamp(min=0).sqrt())


def _condition(matrix: Tensor, factor: Tensor) -> float:
    """Return an estimate of the condition number of a positive matrix from a few products and solves."""
    generator = torch.Generator().manual_seed(0)
    high = low = torch.randn(len(matrix), 1, generator=generator, dtype=matrix.dtype).to(matrix.device)
    for _ in range(8):
        high = normalize(matrix @ high, dim=0)
        low = normalize(torch.cholesky_solve(low, factor), dim=0)
    return float(high.T @ matrix @ high / torch.linalg.vector_norm(factor.T @ low).square())


def solve(moments: Moments, *, ridge: float = RIDGE) -> Solution:
    """Return the least-squares solution W of W X = Y with the smallest ridge penalty.

    With a ridge r, W = Y X^T (X X^T + r m I)^-1, m the mean eigenvalue of X X^T: dead and duplicated units, which make
    X X^T singular, do no harm. Without one, the pseudo-inverse by eigenvalues; those below D times the rounding of the
    products, relative to the largest, count as zero.

    Args:
        moments: sums over the samples.
        ridge: relative to the mean eigenvalue; 0: pseudo-inverse (use moments with float64 products).

    Raises:
        ValueError: if there are no samples, the moments are not finite, or ridge is negative.

    Warns:
        UserWarning: fewer samples than units without a ridge; the message has rank and condition number.

    Source: AY20 Eq. (10); the ridge is ours.
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be finite and >= 0, got {ridge}")
    if not moments.count:
        raise ValueError("moments must hold at least one sample, got none")
    gram, units = moments.gram, len(moments.xx)
    if not gram.isfinite().all() or not moments.yx.isfinite().all():
        raise ValueError("moments must be finite, got NaN or infinite sums: check weights and images")
    mean = float(gram.trace()) / units
    if mean == 0:  # every unit is dead: any W has the same residual
        return Solution(zero := torch.zeros_like(moments.yx), _residual(moments, zero, gram), math.inf, 0)
    weight, condition, rank = _ridged(moments, gram, ridge * mean) if ridge else _pseudo_inverse(moments, gram)
    if not ridge and moments.count < units:
        warnings.warn(f"fewer samples ({moments.count}) than units ({units}) and no ridge: rank {rank}, condition "
                      f"number {condition:.1e}; a ridge keeps the weights small", stacklevel=2)
    return Solution(weight, _residual(moments, weight, gram), condition, rank)


def _ridged(moments: Moments, gram: Tensor, shift: float) -> tuple[Tensor, float, int]:
    matrix = gram.clone()
    matrix.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return torch.cholesky_solve(moments.yx.T, factor).T, _condition(matrix, factor), len(gram)
    # Rounding of float32 products can push eigenvalues below minus the ridge; they are zeros of the exact matrix.
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0) + shift
    return (moments.yx @ vectors / values) @ vectors.T, float(values[-1] / values[0]), len(gram)


def _pseudo_inverse(moments: Moments, gram: Tensor) -> tuple[Tensor, float, int]:
    values, vectors = torch.linalg.eigh(gram)
    kept = values > len(values) * torch.finfo(moments.products).eps * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return (moments.yx @ vectors / values) @ vectors.T, float(values[-1] / values[0]), len(values)
