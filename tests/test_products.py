import pytest
import torch
from torch.testing import assert_close

from lossland.products import ByteProduct, bytes_pay, packed, product


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n, m, size", [(37, 10, 5), (1, 1, 1), (130, 257, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_left_times_right_transposed(n, m, size, dtype):
    left, right = draws(n, size).to(dtype), draws(m, size, seed=1).to(dtype)
    found = product(packed(left), packed(right))
    assert found.layout == torch.strided and found.dtype == dtype
    assert_close(found, left @ right.T, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_views_are_packed_as_the_matrices_that_they_show():
    whole = draws(40, 30).float()
    found = product(packed(whole.T[3:20]), packed(whole.T[::2]))
    assert_close(found, whole.T[3:20] @ whole[:, ::2], rtol=0, atol=1e-4)


def test_what_onednn_cannot_do_is_left_as_it_is():
    for matrix in (draws(3, 4), draws(3, 4).half(), draws(0, 4).float()):
        assert packed(matrix) is matrix
    assert packed(draws(3, 4).float()).is_mkldnn == torch.backends.mkldnn.is_available()
    assert product(draws(0, 4).float(), draws(3, 4).float()).shape == (0, 3)


def test_bad_numbers_stay_bad():
    left = draws(3, 4).float()
    left[1, 2] = torch.nan
    assert product(packed(left), packed(left)).isnan().tolist() == [[False, True, False], [True] * 3, [False, True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_is_added_as_it_is_shown(dtype):
    left, right, bias = draws(7, 5).to(dtype), draws(9, 5, seed=1).to(dtype), draws(30, seed=2).to(dtype)
    for view in (bias[:9], bias[4:13], bias[1:28:3]):
        assert_close(product(packed(left), packed(right), view), left @ right.T + view, rtol=0, atol=1e-5)


@pytest.fixture
def quick():
    """Skip where bytes are not multiplied fast."""
    if not bytes_pay():
        pytest.skip("no instructions for products of bytes")


def layer(units: int, pixels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights, bias, and the factor and shift of pixels around 0.4 with a deviation of 0.3."""
    one = torch.ones(pixels, dtype=torch.float64)
    return draws(units, pixels).float(), draws(units, seed=1).float(), one / (255 * 0.3), -one * 0.4 / 0.3


def assert_as_exact_as_float32(pixels: torch.Tensor, parts: tuple[torch.Tensor, ...], times: float = 1.0) -> None:
    weight, bias, factor, shift = parts
    data, full = pixels.double() * factor + shift, weight.double()
    wanted = data @ full.T + bias.double()
    size = data.norm(dim=1)[:, None] * full.norm(dim=1) + bias.abs()
    assert ((ByteProduct.of(*parts)(pixels).double() - wanted).abs() <= times * 2.0**-20 * size).all()


@pytest.mark.parametrize("units, pixels", [(1, 1), (5, 3), (37, 70), (130, 784)])
def test_bytes_are_multiplied_as_exactly_as_float32_rounds(quick, units, pixels):
    values = torch.arange(256, dtype=torch.uint8)
    every = torch.cat([values[:, None].expand(-1, pixels), values[:, None] * torch.arange(pixels, dtype=torch.uint8)])
    parts = layer(units, pixels)
    assert_as_exact_as_float32(every, parts)
    parts[0][::2] = parts[0][::2].abs() * 1e6  # all of one sign, and large: sums that would overflow, or be cut off
    assert_as_exact_as_float32(every, parts)
    parts[0][::3] = 0
    assert_as_exact_as_float32(every, parts)


def test_bytes_of_weights_of_every_size_are_right(quick):
    """Integers from -127 * 2^16 to 127 * 2^16, at which lower bytes borrow from higher ones."""
    weight = torch.cat([torch.tensor([127 * 2**16, 128, -128, 127, -129, 2**15, -(2**15), 2**15 - 1, -127 * 2**16, 0]),
                        torch.arange(-70_000, 70_000, 777)]).float()[None] / 2**23
    one = torch.ones(weight.shape[1], dtype=torch.float64)
    found = ByteProduct.of(weight, None, one, 0 * one)(torch.eye(weight.shape[1]).to(torch.uint8))
    assert torch.equal(found, weight.T)


def test_pixels_with_gaps_are_multiplied_as_they_are_shown(quick):
    pixels = torch.arange(256 * 6, dtype=torch.int64).to(torch.uint8).view(16, 96)
    one = ByteProduct.of(*layer(4, 16))
    assert torch.equal(one(pixels.T[::2]), one(pixels.T[::2].contiguous()))


def wide_range(weight: torch.Tensor) -> None:
    weight[1] *= 1e-6
    weight[1, 0] = 1.0


def test_float32_keeps_what_bytes_would_lose(quick):
    changes = {"NaN": lambda w: w[0].fill_(torch.nan), "infinite": lambda w: w[2].fill_(torch.inf),
               "one weight above all": wide_range, "tiny": lambda w: w[1].mul_(1e-36), "no ordinary numbers": lambda w: w[1].mul_(1e-40)}
    for what, change in changes.items():
        weight, *rest = layer(3, 784)
        change(weight)
        assert ByteProduct.of(weight, *rest) is None, what
    weight, bias, *rest = layer(3, 70_000)
    assert ByteProduct.of(weight, bias, *rest) is None, "sums beyond 32 bits"
    weight, bias, *rest = layer(3, 7)
    assert ByteProduct.of(weight, bias * torch.nan, *rest) is None, "a bias that is NaN"
    assert ByteProduct.of(weight + 3e38, bias, 1000 * rest[0], rest[1]) is None, "weights that overflow with their factors"
    assert ByteProduct.of(weight.double(), bias, *rest) is None
    assert ByteProduct.of(weight[:0], bias[:0], *rest) is None


def test_without_the_instructions_there_is_no_product_of_bytes(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    bytes_pay.cache_clear()
    assert not bytes_pay() and ByteProduct.of(*layer(3, 7)) is None
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr("lossland.products._multiply", lambda pixels, *rest: torch.full((len(pixels), 5), 32767.0))
    bytes_pay.cache_clear()
    assert not bytes_pay()  # where sums are cut off at 16 bits
    monkeypatch.undo()
    bytes_pay.cache_clear()
