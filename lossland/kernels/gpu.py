"""Which tensors the compiled GPU kernels of `_triton` take. triton itself is imported only when one of them runs."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
POINTS = 4  # control points at most


@cache
def there() -> bool:
    """Return whether triton is installed."""
    return find_spec("triton") is not None


def serves(tensor: Tensor, points: int = 1) -> bool:
    """Return whether the compiled kernels take a tensor, and mixtures of so many control points."""
    return tensor.device.type == "cuda" and tensor.dtype in DTYPES and points <= POINTS and there()
