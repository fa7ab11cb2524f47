"""The compiled swaps and class scores against the plain torch that specifies them."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lossland import kernels
from lossland.kernels import reference


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def swaps(images: int = 37, units: int = 9, classes: int = 5, count: int = 6, *,
          dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return random arguments of `swap_scores`: at the start, on the way and at the end of swaps."""
    g = torch.Generator().manual_seed(7)
    z, head = 2 * draw(units, images, dtype=dtype), draw(classes, units, seed=1, dtype=dtype)
    pairs = torch.stack([torch.randperm(units, generator=g)[:2] for _ in range(count)])
    u = torch.rand(count, generator=g, dtype=torch.float64)
    u[0], u[-1] = 0, 1
    return [head @ z.relu(), z, head, (pairs, u), torch.arange(images) * 3 % classes]


def assert_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], rtol: float = 1e-10) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=rtol, atol=rtol * 100, equal_nan=True)


SIZES = [(1, 2, 1, 1), (16, 7, 2, 3), (37, 9, 5, 6), (129, 30, 10, 4), (50, 5, 16, 3), (33, 5, 17, 2), (20, 6, 33, 2), (19, 4, 1000, 2)]


@pytest.mark.parametrize("images, units, classes, count", SIZES)
def test_swaps_equal_the_reference(images, units, classes, count):
    args = swaps(images, units, classes, count)
    assert_same(kernels.swap_scores(*args), reference.swap_scores(*args))
    single = [one.float() for one in args[:3]]
    assert_same(kernels.swap_scores(*single, *args[3:]), reference.swap_scores(*args), rtol=1e-5)


@pytest.mark.parametrize("images, units, classes, count", SIZES)
def test_class_scores_equal_the_reference(images, units, classes, count):
    logits, labels = 3 * draw(count, images, classes), torch.arange(images) * 3 % classes
    assert_same(kernels.class_scores(logits, labels), reference.class_scores(logits, labels))
    assert_same(kernels.class_scores(logits.float(), labels, 7), reference.class_scores(logits, labels, 7), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_before_and_after_a_swap_the_scores_are_exactly_those_of_the_network(dtype):
    logits, z, head, (pairs, _), labels = swaps(300, 40, 10, 30, dtype=dtype)
    u = torch.tensor([0.0, 1.0] * 15, dtype=torch.float64)
    for way in (False, True):
        found = kernels.swap_scores(logits, z, head, (pairs, u), labels, exact=way)
        for one in found:
            assert (one == one[0]).all()
        assert_same(found, tuple(one.expand_as(other) for one, other in
                                 zip(kernels.class_scores(logits.T[None], labels), found, strict=True)), rtol=1e-6)


def test_swaps_do_not_depend_on_threads(monkeypatch):
    args = swaps(200, 20, 10, 9, dtype=torch.float32)
    one = kernels.swap_scores(*args)
    monkeypatch.setattr("lossland.kernels.scores._WORTH", 1)
    for threads in (2, 5, 64):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        assert all(map(torch.equal, kernels.swap_scores(*args), one))


def test_tiles_of_images_change_swaps_by_rounding(monkeypatch):
    args = swaps(700, 20, 10, 5)
    wanted = kernels.swap_scores(*args)
    monkeypatch.setattr("lossland.kernels.scores._TILE", 1)
    assert_same(kernels.swap_scores(*args), wanted)


def test_of_equal_logits_the_first_class_counts():
    logits, labels = torch.zeros(1, 40, 20), torch.arange(40) % 20
    assert kernels.class_scores(logits, labels)[1].tolist() == [2]


def test_confidences_on_the_border_of_two_bins_belong_to_the_lower_one():
    for classes in (1, 2, 4):
        logits, labels = torch.zeros(2, 5, classes, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
        found, wanted = kernels.class_scores(logits, labels), reference.class_scores(logits, labels)
        assert torch.equal(found[2][:, 0], wanted[2][:, 0]) and found[2][0, 0, 20 // classes - 1] == 5


@pytest.mark.parametrize("classes", [1, 3, 17])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_networks_with_logits_that_are_not_finite_are_scored_as_in_the_reference(classes, value):
    logits, labels = draw(3, 40, classes), torch.arange(40) % classes
    logits[1, 39, classes - 1] = value
    found = kernels.class_scores(logits, labels)
    assert_same(found, reference.class_scores(logits, labels))
    if value != value:
        assert found[0].isnan().tolist() == [False, True, False] and found[1][1] < 40


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_units_that_are_not_finite_spoil_the_swaps_that_they_are_part_of(value):
    logits, z, head, (_, u), labels = swaps()
    z[3, 7], pairs = value, torch.tensor([[0, 1], [3, 2], [4, 3], [5, 0], [1, 2], [3, 0]])
    found = kernels.swap_scores(logits, z, head, (pairs, u), labels)
    assert_same(found, reference.swap_scores(logits, z, head, (pairs, u), labels))
    assert (~found[0].isfinite()).tolist() == [0, 1, 1, 0, 0, 1]


def test_swaps_of_a_thousand_undecided_images_do_not_overflow():
    args = swaps(1000, 3, 17, 2)
    args[0].zero_(), args[2].zero_()
    assert_same(kernels.swap_scores(*args), reference.swap_scores(*args))
