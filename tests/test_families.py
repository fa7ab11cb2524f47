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


def test_members_are_the_networks_at_their_positions_one_at_a_time():
    line = families.line(A, B)
    found = line.members([-0.05, 0.0, 0.5, 1.05])
    assert iter(found) is found
    for member, t in zip(found, (-0.05, 0.0, 0.5, 1.05), strict=True):
        assert_close(member["w"], (1 - t) * A["w"] + t * B["w"])
    bent = families.bezier(A, B).with_points([A, C, B])
    for member, t in zip(bent.members(torch.tensor([0.3, 1.1])), (0.3, 1.1), strict=True):
        assert_close(member["w"], (1 - t) ** 2 * A["w"] + 2 * t * (1 - t) * C["w"] + t**2 * B["w"], rtol=1e-6, atol=1e-6)
    triangle = families.simplex([A, B, C])
    first, second = triangle.members([[1, 0, 0], [0.2, 0.3, 0.5]])
    assert_close(first, A, rtol=0, atol=0)
    assert_close(second["w"], 0.2 * A["w"] + 0.3 * B["w"] + 0.5 * C["w"])


def test_random_members_are_independent_and_follow_their_seed():
    scale = families.line({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    first, again, other = ([float(m["w"]) for m in scale.random_members(2000, seed)] for seed in (1, 1, 2))
    assert first == again != other
    drawn = torch.tensor(first)
    assert abs(float(drawn.mean()) - 1 / 2) < 0.02 and abs(float(drawn.var()) - 1 / 12) < 0.006
    assert abs(float(torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1])) < 0.06  # no strata
    assert len(list(families.simplex([A, B, C]).random_members(6, seed=3))) == 6


@pytest.mark.parametrize("family, positions, message", [
    (families.line(A, B), [[0.5, 0.5]], "positions must be t \\(T,\\) in a line, got shape \\(1, 2\\)"),
    (families.line(A, B), [0.1, float("nan")], "positions must be finite"),
    (families.simplex([A, B, C]), [0.5], "positions must be barycentric coordinates \\(T, 3\\) in a simplex, got shape \\(1,\\)"),
    (families.simplex([A, B, C]), [[0.5, 0.5, 0.5]], "add up to 1, got rows that add up to \\[1.5\\]"),
    (families.chain(A, B), [0.5, 1.5], "positions on a chain must lie in \\[0, 1\\]"),
])
def test_positions_that_a_family_does_not_have_are_refused(family, positions, message):
    with pytest.raises(ValueError, match=message):
        family.members(positions)
    with pytest.raises(ValueError, match="count must be a whole number >= 1, got 0"):
        family.random_members(0, 1)


def test_a_position_is_no_coefficient():
    line = families.line(A, B)
    with pytest.raises(TypeError, match=r"tensor \(k,\), one for each of the 2 control points, got 0.3; members\(\[0.3\]\) takes"):
        line.member(0.3)
    with pytest.raises(ValueError, match=r"got the single number 0.3; members\(\[0.3\]\) takes positions"):
        line.member(torch.tensor(0.3))


def test_random_members_have_a_seed_by_default():
    line = families.line(A, B)
    assert_close(list(line.random_members(2)), list(line.random_members(2, 0)))
    with pytest.raises(ValueError, match="seed must be a whole number >= 0, got -1"):
        line.random_members(2, -1)


@pytest.mark.parametrize("make", [families.chain, families.bezier])
def test_a_family_over_an_interval_gives_its_networks_as_its_path_does(make):
    family = make(A, B).with_points([A, C, B])
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert_close(family(t), family.path()(t), rtol=0, atol=0)
    assert_close(family.point(0.3), family.path().point(0.3), rtol=0, atol=0)
    with pytest.raises(ValueError, match="got a simplex"):
        families.simplex([A, B, C]).point(0.5)


def test_a_family_shows_its_size_and_no_numbers():
    assert repr(families.bezier(A, B, bends=1)) == "Family('bezier', 3 points of 12 weights, free=(False, True, False))"
