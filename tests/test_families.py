import pytest
import torch
from torch.testing import assert_close

from lossland import families
from lossland.weights import Weights


def point(seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 3, generator=g, dtype=torch.float64)}


A, B, C = (point(i) for i in range(3))


@pytest.mark.parametrize("bends", [1, 2, 3])
@pytest.mark.parametrize("make", [families.chain, families.bezier])
def test_an_untrained_curve_is_the_segment(make, bends):
    family = make(A, B, bends=bends)
    path = family.path()
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert_close(path.point(t)["w"], (1 - t) * A["w"] + t * B["w"])
    assert family.free == (False, *[True] * bends, False) and family.bends == bends


def test_the_path_of_a_family_is_its_basis():
    for make in (families.chain, families.bezier):
        family = make(A, B, bends=2).with_points([A, C, point(5), B])
        t = torch.linspace(0, 1, 13, dtype=torch.float64)
        for value, c in zip(t.tolist(), family.coefficients(t), strict=True):
            assert_close(family.path().point(value), family.member(c))


def test_samples_are_uniform():
    g = torch.Generator().manual_seed(0)
    line = torch.stack([families.line(A, B).sample(g) for _ in range(4000)])
    assert_close(line.sum(1), torch.ones(4000, dtype=torch.float64))
    assert abs(float(line[:, 1].mean()) - 1 / 2) < 0.02 and abs(float(line[:, 1].var()) - 1 / 12) < 0.01
    triangle = torch.stack([families.simplex([A, B, C]).sample(g) for _ in range(4000)])
    assert_close(triangle.sum(1), torch.ones(4000, dtype=torch.float64))
    # Uniform on a simplex is Dirichlet(1, 1, 1): variance (1/3)(2/3)/4, covariance -(1/9)/4
    assert_close(triangle.T.cov(), (torch.eye(3, dtype=torch.float64) - 1 / 3) / 12, atol=0.005, rtol=0)


def test_plain_training_is_the_family_of_one_point():
    family = families.point(A)
    assert family.sample(torch.Generator()).tolist() == [1.0]
    assert_close(family.midpoint(), A, rtol=0, atol=0)
    with pytest.raises(ValueError, match="got a point"):
        family.path()


def test_midpoints():
    assert_close(families.line(A, B).midpoint()["w"], (A["w"] + B["w"]) / 2)
    assert_close(families.simplex([A, B, C]).midpoint()["w"], (A["w"] + B["w"] + C["w"]) / 3)
    bent = families.bezier(A, B).with_points([A, C, B])
    assert_close(bent.midpoint()["w"], (A["w"] + 2 * C["w"] + B["w"]) / 4)


def test_bends_are_whole_numbers():
    with pytest.raises(TypeError, match="bends must be a whole number, got 1.5"):
        families.bezier(A, B, bends=1.5)


@pytest.mark.parametrize("call, message", [
    (lambda: families.bezier(A, B, bends=0), "bends must be >= 1 .*, got 0"),
    (lambda: families.chain(A, {"w": A["w"] / 0}), "b must be finite"),
    (lambda: families.chain(A, B, ends="lose"), "ends must be one of 'fixed', 'free'; got 'lose'"),
    (lambda: families.chain(A, {"w": torch.zeros(2, 3)}), "same shapes"),
    (lambda: families.line(A, {"v": A["w"]}), "same parameter names"),
    (lambda: families.line(A, {"w": A["w"] / 0}), "points\\[1\\] must be finite"),
    (lambda: families.simplex([A]), "at least 2 control points, got 1"),
    (lambda: families.Family("line", (A, B), (False, False), "interval"), "at least one of them True"),
])
def test_bad_families_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
