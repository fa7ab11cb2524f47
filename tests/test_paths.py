import math

import pytest
import torch
from torch.testing import assert_close

from lossland import legs, paths
from lossland.weights import Weights, distance


def point(seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 3, generator=g), "b": torch.randn(4, generator=g)}


A, B, C, D = (point(i) for i in range(4))
POWERS = {"w": 1, "b": 2}
PATHS = {
    "segment": paths.segment(A, B),
    "arc": paths.arc(A, B, C),
    "chain": paths.chain([A, C, D, B]),
    "bezier": paths.bezier([A, C, D, B]),
    "trivial": legs.through_origin(A, B, POWERS),
    "joined": paths.join(paths.arc(A, C, D), paths.segment(C, B)),
}


@pytest.mark.parametrize("name", PATHS)
def test_ends_are_exact_to_the_last_bit(name):
    path = PATHS[name]
    assert_close(path.point(0.0), A, rtol=0, atol=0)
    assert_close(path.point(1.0), B, rtol=0, atol=0)


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_continuous_across_legs(name):
    path = PATHS[name]
    for boundary in torch.arange(len(path.legs) + 1, dtype=torch.float64) / len(path.legs):
        near = [min(1.0, max(0.0, float(boundary) + e)) for e in (-1e-7, 1e-7)]
        assert distance(path.point(near[0]), path.point(near[1])) < 1e-4


@pytest.mark.parametrize("name", PATHS)
def test_batched_points_equal_single_ones_in_any_order(name):
    path, t = PATHS[name], torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0, 1 / 3, 0.77], dtype=torch.float64)
    stacked = path(t)
    for i, value in enumerate(t.tolist()):
        single = path.point(value)
        for key in single:
            assert_close(stacked[key][i], single[key], rtol=0, atol=0)


@pytest.mark.parametrize("per_leg", [2, 3, 7, 61])
def test_a_grid_contains_every_leg_boundary(per_leg):
    for path in PATHS.values():
        t, legs = path.grid(per_leg), len(path.legs)
        assert len(t) == legs * (per_leg - 1) + 1
        leg, s = path.locate(t)
        assert int((s == 0).sum()) == legs and s[-1] == 1 and leg[-1] == legs - 1


@pytest.mark.parametrize("bends", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("basis", [paths.bezier_basis, paths.chain_basis])
def test_bases_add_up_to_one_and_start_and_end_at_the_ends(basis, bends):
    s = torch.linspace(0, 1, 23, dtype=torch.float64)
    c = basis(s, bends)
    assert c.shape == (23, bends + 2) and bool((c >= 0).all())
    assert_close(c.sum(-1), torch.ones(23, dtype=torch.float64))
    assert torch.equal(c[0], torch.eye(bends + 2, dtype=torch.float64)[0])
    assert torch.equal(c[-1], torch.eye(bends + 2, dtype=torch.float64)[-1])


def test_bezier_is_de_casteljaus_construction():
    points, t = [A, C, D, B], 0.3
    level = [p["w"].double() for p in points]
    while len(level) > 1:
        level = [(1 - t) * p + t * q for p, q in zip(level[:-1], level[1:])]
    assert_close(paths.bezier(points).point(t)["w"].double(), level[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bends", [1, 2, 3])
def test_a_chain_of_legs_equals_the_chain_basis(bends):
    points, t = [point(i) for i in range(bends + 2)], torch.linspace(0, 1, 25, dtype=torch.float64)
    legs = paths.chain(points)(t)
    whole = paths.Mix(tuple(points), lambda s: paths.chain_basis(s, bends))(t)
    assert_close(legs, whole)


def test_arc_keeps_the_covariance_that_a_segment_squeezes():
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    cos, sin, _ = paths.arc_basis(s).unbind(-1)
    assert_close(cos**2 + sin**2, torch.ones_like(s))  # Prop. 1
    first, second = paths.linear_basis(s).unbind(-1)
    assert_close(first**2 + second**2, (1 - s) ** 2 + s**2)
    assert float((first**2 + second**2).min()) == 0.5


def test_the_arc_of_a_lone_bias_is_a_time_warped_segment():
    mean = {key: (A[key] + B[key]) / 2 for key in A}
    s = torch.linspace(0, 1, 9, dtype=torch.float64)
    warped = (1 - torch.cos(s * math.pi / 2) + torch.sin(s * math.pi / 2)) / 2
    assert_close(paths.arc(A, B, mean)(s), paths.segment(A, B)(warped), rtol=1e-5, atol=1e-6)


def test_the_trivial_curve_passes_the_origin_with_the_stated_powers():
    path = PATHS["trivial"]
    assert all(value.abs().max() == 0 for value in path.point(0.5).values())
    quarter = path.point(0.25)
    assert_close(quarter["w"], A["w"] / 2)
    assert_close(quarter["b"], A["b"] / 4)


def test_length_of_a_segment_is_its_chord_and_of_a_chain_the_sum():
    assert paths.segment(A, B).length() == pytest.approx(distance(A, B), rel=1e-5)
    assert paths.chain([A, C, B]).length(5) == pytest.approx(distance(A, C) + distance(C, B), rel=1e-5)


def test_length_of_a_quarter_circle():
    x, y, zero = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}, {"w": torch.zeros(2)}
    assert paths.arc(x, y, zero).length(400) == pytest.approx(math.pi / 2, rel=1e-5)


def test_steps_and_length_add_up_over_all_tensors():
    # Two steps: (3, 4) in "a" alone, then 12 in "b" alone; the chord is the diagonal 13 of 5 and 12.
    points = [{"a": torch.tensor(a), "b": torch.tensor([[b]])} for a, b in (([0.0, 0.0], 0.0), ([3.0, 4.0], 0.0), ([3.0, 4.0], 12.0))]
    path = paths.chain(points)
    assert_close(path.steps(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([5.0, 12.0]).double())
    assert path.length() == pytest.approx(17.0, rel=1e-12)
    assert_close(path.steps(torch.tensor([0.25, 0.75])), torch.tensor([(2.5**2 + 6**2) ** 0.5]).double())


@pytest.mark.parametrize("name", PATHS)
def test_steps_are_distances_of_points(name):
    path, t = PATHS[name], torch.tensor([0.0, 0.1, 0.25, 0.5, 0.5, 0.8, 1.0], dtype=torch.float64)
    far = [distance(path.point(float(a)), path.point(float(b))) for a, b in zip(t[:-1], t[1:], strict=True)]
    assert_close(path.steps(t), torch.tensor(far).double(), rtol=1e-5, atol=1e-6)


def test_steps_of_a_leg_that_scales_its_points():
    leg = paths.Mix((A, A), lambda s: torch.stack([s, s**2], -1))
    path = paths.Path((leg,))
    assert path.steps(torch.tensor([0.5, 1.0]))[0] == pytest.approx(1.25 * distance(A, {k: 0 * v for k, v in A.items()}))


def test_small_steps_keep_their_digits():
    x = {"w": torch.full((100_000,), 1.0, dtype=torch.float64)}
    y = {"w": x["w"] + 1e-9}
    assert paths.segment(x, y).length(5) == pytest.approx(distance(x, y), rel=1e-9)


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_t_outside_the_unit_interval_is_refused(t):
    with pytest.raises(ValueError, match="t must lie in \\[0, 1\\], got"):
        PATHS["segment"].point(t)


def test_bad_paths_are_refused_by_name():
    with pytest.raises(ValueError, match="'w' is \\(4, 3\\) in a and \\(2, 3\\) in b"):
        paths.segment(A, {**B, "w": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="centre must be finite"):
        paths.arc(A, B, {**C, "b": torch.full((4,), float("nan"))})
    with pytest.raises(ValueError, match="at least the two ends, got 1"):
        paths.chain([A])
    with pytest.raises(ValueError, match="paths\\[1\\] must start where paths\\[0\\] ends, got a jump"):
        paths.join(paths.segment(A, B), paths.segment(C, D))
    with pytest.raises(ValueError, match="got none for \\['b'\\]"):
        legs.through_origin(A, B, {"w": 1})
    with pytest.raises(ValueError, match="bends must be >= 0, got -1"):
        paths.bezier_basis(torch.tensor([0.5]), -1)
    with pytest.raises(ValueError, match="at least two increasing positions, got \\[0.5\\]"):
        PATHS["segment"].steps(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="per_leg must be >= 2"):
        PATHS["segment"].grid(1)


@pytest.mark.parametrize("wrong", [[paths.segment(A, B), paths.segment(B, C)], paths.segment(A, B).legs[0], A])
def test_join_takes_paths_one_by_one(wrong):
    with pytest.raises(TypeError, match=rf"as in join\(p, q\), .*family.path\(\), got a {type(wrong).__name__}"):
        paths.join(wrong)


@pytest.mark.parametrize("name, shown", [("segment", "Path(1 leg: Mix)"), ("chain", "Path(3 legs: Mix)"),
                                         ("trivial", "Path(2 legs: Powers)")])
def test_a_path_shows_its_legs_and_no_numbers(name, shown):
    assert repr(PATHS[name]) == shown
    assert repr(paths.Path((torch.sin, PATHS[name].legs[0]))).startswith("Path(2 legs: sin, ")
