"""Products of large matrices on a CPU, by oneDNN where torch has it: in single precision, and of bytes with weights.

torch's own float32 products go to MKL, which does not use the widest instructions of every processor. Measured on one
core of an AMD EPYC with AVX-512 (torch 2.15, 2000 x 2000 x 784): 95 to 105 GFLOP/s by MKL, 205 by oneDNN, and 850 where
one side are bytes and the other one 8-bit integers, so that three such products, `ByteProduct`, cost 0.75 of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

_SLICES = 3  # bytes of a weight
_MOST = 127 * 2**16  # times the step of its row is the largest weight
_LOST = 2.0**-20  # of the length of a row that may be lost: what a float32 sum of hundreds of numbers rounds away
_LEAST = 1e-30  # the largest weight of a row: far below, steps are no ordinary float32 any more


def packed(matrix: Tensor) -> Tensor:
    """Return a matrix as `product` wants it: in oneDNN's layout if it is float32 on a CPU, else as it is.

    Nothing flows back through it: for use without gradients.
    """
    fits = matrix.dtype == torch.float32 and matrix.device.type == "cpu" and matrix.numel() > 0
    return matrix.detach().contiguous().to_mkldnn() if fits and torch.backends.mkldnn.is_available() else matrix


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ right.T + bias as an ordinary tensor: (n, D) and (m, D), both packed, and (m,) give (n, m)."""
    # oneDNN would read the numbers of a bias with gaps as if it had none.
    found = linear(left, right, None if bias is None else bias.contiguous())
    return found.to_dense() if found.is_mkldnn else found


@cache
def bytes_pay() -> bool:
    """Say whether this processor multiplies bytes with 8-bit integers fast (AVX-512 VNNI, AVX-VNNI or AMX) and exactly.

    Without such instructions sums of two products are cut off at 16 bits, so that it is tried out.
    """
    able = torch.cpu.get_capabilities()
    if not any(able.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return False
    try:
        left = torch.full((3, 70), 255, dtype=torch.uint8)
        right = torch.tensor([[127], [-128], [0], [1], [-1]], dtype=torch.int8).repeat(1, 70)
        found = _multiply(left, 0, _slice(right, torch.ones(5)), None)
    except (AttributeError, RuntimeError):  # torch without oneDNN, or oneDNN without such products
        return False
    return torch.equal(found.double(), left.double() @ right.double().T)


@dataclass(frozen=True)
class ByteProduct:
    """What multiplies bytes with a matrix of weights, as exactly as float32 does.

    A weight is an integer of 24 bits times the step of its row. The products of the data with the three bytes of the
    integers are exact; they are rounded when they are scaled and added up.

    Attributes:
        slices: the bytes of all weights, packed, and what they count (n,), the highest ones first.
        zero: the byte of the data that counts as zero: one in their middle keeps sums, and what is rounded, small.
        bias: (n,), with what the shift of the data and the zero add.
    """

    slices: tuple[tuple[Tensor, Tensor], ...]
    zero: int
    bias: Tensor

    name = f"int8 x {_SLICES}"

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None, factor: Tensor, shift: Tensor) -> ByteProduct | None:
        """Return what multiplies bytes p to (p * factor + shift) @ weight.T + bias, or None where float32 must do that.

        It must if the weights are not float32 on a CPU that has the instructions, or are not finite; if rows are so
        long that integers overflow, or of such a range that 24 bits lose what float32 keeps.

        Args:
            weight: (n, D).
            bias: (n,), or None.
            factor, shift: (D,) float64.
        """
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.numel() or not bytes_pay():
            return None
        if weight.shape[1] * 255 * 128 >= 2**31:
            return None
        zero = int((-shift / factor).mean().round().clamp(0, 255))
        added = weight.double() @ (shift + zero * factor) + (0 if bias is None else bias.double())
        slices = _sliced(weight.detach() * factor.float())
        return None if slices is None or not added.isfinite().all() else ByteProduct(slices, zero, added.float())

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the products (N, n) float32 of uint8 pixels (N, D)."""
        pixels, found = pixels.contiguous(), self.bias
        for one in self.slices:
            found = _multiply(pixels, self.zero, one, found)
        return found


def _sliced(weight: Tensor) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """Return the slices of a matrix (n, D) float32, or None if they lose too much of a row."""
    most = weight.abs().amax(1)
    if not most.isfinite().all() or (most[most > 0] < _LEAST).any():
        return None
    step = torch.where(most > 0, most / _MOST, 1.0)
    if (step / 2 * weight.count_nonzero(1).sqrt() > _LOST * weight.norm(dim=1)).any():
        return None
    whole, slices = (weight / step[:, None]).round_().to(torch.int32), []
    for place in range(_SLICES):
        low = whole.to(torch.int8)  # the lowest byte, -128..127
        whole = whole.sub_(low) >> 8
        slices.append(_slice(low, step * 2.0 ** (8 * place)))
    return tuple(reversed(slices))


def _slice(whole: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.onednn.qlinear_prepack(whole, None), step


def _multiply(pixels: Tensor, zero: int, one: tuple[Tensor, Tensor], more: Tensor | None) -> Tensor:
    """Return (pixels - zero) @ (integers * steps).T + more, a bias (n,); or added to (N, n), in place."""
    (whole, step), none = one, torch.zeros(len(one[1]), dtype=torch.int32)
    if more is None or more.ndim == 1:
        return torch.ops.onednn.qlinear_pointwise(
            pixels, 1.0, zero, whole, step, none, more, 1.0, 0, torch.float32, "none", [], "")
    return torch.ops.onednn.qlinear_pointwise.binary(
        pixels, 1.0, zero, whole, step, none, more, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
