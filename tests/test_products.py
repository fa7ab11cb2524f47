import pytest
import torch
from torch.testing import assert_close

from lossland.products import packed, product


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
