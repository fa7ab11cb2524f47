"""The path sweep against the plain loop over t that specifies it."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import make_task
from lossland import evaluation as ev
from lossland import models, paths
from lossland.bases import arc_basis, bezier_basis, linear_basis
from lossland.kernels import _cpu, _tally, path_scores, path_way, reference
from lossland.kernels.sweep import leg_of, path_sweep

CURVES = {"segment": linear_basis, "arc": arc_basis, "bezier": lambda s: bezier_basis(s, 1)}
TASK = make_task(shape=(1, 8, 8))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def leg(curve: str, points: int | Tensor, images: int = 23, units: int = 19, classes: int = 5, *,
        dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return random arguments of `path_scores`; the points are evenly spread, or given."""
    s = torch.linspace(0, 1, points, dtype=torch.float64) if isinstance(points, int) else points
    c = CURVES[curve](s)
    k = c.shape[1]
    return [draw(k, images, units, dtype=dtype), c, draw(k, classes, units, seed=1, dtype=dtype),
            draw(k, classes, seed=2, dtype=dtype), torch.arange(images) * 7 % classes]


def assert_equal_scores(args: list[Tensor], rtol: float = 1e-10) -> None:
    features, c, heads, biases, labels = args
    nll, hits, histogram, left = path_sweep(list(features), c, list(heads), list(biases), labels)
    assert not left.any()
    wanted = reference.path_scores(*args)
    assert_close(nll, wanted[0], rtol=rtol, atol=rtol * len(labels))
    assert torch.equal(hits, wanted[1])
    assert torch.equal(histogram[:, [0, 2]], wanted[2][:, [0, 2]])
    assert_close(histogram[:, 1], wanted[2][:, 1], rtol=rtol, atol=rtol * len(labels))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("points, images, units, classes", [(61, 1, 10, 5), (61, 37, 1, 3), (17, 20, 30, 1), (61, 20, 300, 17),
                                                            (1, 9, 7, 4), (2, 9, 7, 4), (1001, 3, 513, 10), (16, 40, 256, 33)])
def test_the_sweep_equals_the_reference(curve, points, images, units, classes):
    assert_equal_scores(leg(curve, points, images, units, classes))


@pytest.mark.parametrize("curve", CURVES)
def test_in_single_precision_it_differs_by_rounding(curve):
    features, c, heads, biases, labels = leg(curve, 61, 40, 700, 10, dtype=torch.float32)
    heads /= 700**0.5
    found, wanted = path_scores(features, c, heads, biases, labels), reference.path_scores(features, c, heads, biases, labels)
    exact = reference.path_scores(features.double(), c, heads.double(), biases.double(), labels)
    assert_close(found[0] / 40, exact[0] / 40, rtol=0, atol=5e-7)
    assert_close(found[0] / 40, wanted[0] / 40, rtol=0, atol=5e-7)
    assert_close(found[1], wanted[1], rtol=0, atol=1)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("s", [[0.9, 0.1, 0.4, 0.1, 0.9, 1.0], [0.3], [0.3, 0.3], [0.2, 0.21, 0.7]])
def test_points_may_come_in_any_order_and_more_than_once(curve, s):
    assert_equal_scores(leg(curve, torch.tensor(s, dtype=torch.float64)))


@pytest.mark.parametrize("curve", CURVES)
def test_points_may_lie_close_together(curve):
    dense = torch.rand(90, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert_equal_scores(leg(curve, torch.cat([dense**9, 0.5 + 1e-7 * dense]), 40, 60))


@pytest.mark.parametrize("curve", CURVES)
def test_units_may_be_dead_or_zero_at_points_of_the_grid(curve):
    """Whole pre-activations put roots, double roots and zeros onto the points, on every side of them."""
    args = leg(curve, 9, 729, 3)
    values = torch.arange(-4.0, 5, dtype=torch.float64)
    args[0] = torch.cartesian_prod(values, values, values)[None].expand(3, -1, -1).clone()
    for i in range(len(args[0])):
        args[0][i] = args[0][i].roll(i, 1)
    args[0] = args[0][: args[1].shape[1]]
    assert_equal_scores(args)


@pytest.mark.parametrize("curve", CURVES)
def test_ends_may_be_one_point(curve):
    args = leg(curve, 31)
    for part in (args[0], args[2], args[3]):
        part[1:] = part[0].clone()
    assert_equal_scores(args)
    args[0].zero_()  # and all units dead
    assert_equal_scores(args)


def test_segments_may_reach_beyond_their_ends_and_need_not_add_up_to_one():
    s = torch.linspace(-0.7, 1.6, 33, dtype=torch.float64)
    args = leg("segment", s)
    assert_equal_scores(args)
    args[1] = args[1] * (1 + s**2)[:, None]
    assert_equal_scores(args)


@pytest.mark.parametrize("curve", CURVES)
def test_of_equal_logits_the_first_class_counts_as_in_the_reference(curve):
    args = leg(curve, 20)
    args[2], args[3] = args[2][:, :1].repeat(1, 5, 1), args[3][:, :1].repeat(1, 5)
    assert torch.equal(path_scores(*args)[1], reference.path_scores(*args)[1])


def test_a_thousand_undecided_images_do_not_overflow():
    """The logarithms of their norms are taken of products of a few."""
    args = leg("segment", 9, 1000, 3, 17)
    args[2].zero_(), args[3].zero_()
    assert_equal_scores(args)
    assert float(path_scores(*args)[0][0]) == pytest.approx(1000 * math.log(17))


def test_the_reference_does_what_is_asked_to_be_exact(monkeypatch):
    net = models.build("mlp", TASK.input_shape, 3, width=30)
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(s)) for s in range(2))
    monkeypatch.delattr("lossland.kernels.path_sweep")
    assert ev.evaluate(net, paths.segment(a, b), TASK, exact=True).attrs["way"] == "reference"
    with pytest.raises(NameError, match="path_sweep"):
        ev.evaluate(net, paths.segment(a, b), TASK)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("where", [(0, 4, 2), (1, 4, 0)])
def test_what_is_not_finite_is_so_in_the_scores_and_never_a_hit(curve, value, where):
    args = leg(curve, 20)
    args[0][where] = value
    found, wanted = path_scores(*args), reference.path_scores(*args)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10, equal_nan=True)
    if value != value:
        assert found[0].isnan().all()


def test_heads_that_are_not_finite_are_found():
    args = leg("segment", 20)
    args[2][1, 2, 3] = float("nan")
    assert path_scores(*args)[0].isnan().all() and not path_scores(*args)[1].any()


@pytest.mark.parametrize("curve", CURVES)
def test_the_number_of_threads_does_not_matter(curve, monkeypatch):
    args = leg(curve, 61, 29, 40)
    one = path_scores(*args)
    for threads in (2, 3, 64):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        for found, wanted in zip(path_scores(*args), one, strict=True):
            assert_close(found, wanted, rtol=1e-14, atol=1e-14)


def test_memory_may_have_gaps():
    args = leg("arc", 30)
    gaps = [args[0].repeat_interleave(2, 2)[:, :, ::2], args[1].T.contiguous().T,
            args[2].transpose(1, 2).contiguous().transpose(1, 2), args[3].repeat(2, 2)[:3, :5], args[4].repeat_interleave(2)[::2]]
    for found, wanted in zip(path_scores(*gaps), path_scores(*args), strict=True):
        assert torch.equal(found, wanted)


def test_ways():
    def way(c: Tensor, dtype: torch.dtype = torch.float32) -> str:
        return path_way(c, list(torch.zeros(c.shape[1], 10, 4, dtype=dtype)))

    s = torch.linspace(0, 1, 61, dtype=torch.float64)
    for basis in CURVES.values():
        assert way(basis(s)) == way(basis(s).float(), torch.float64) == way(basis(s * 0.5)) == "sweep"
        assert way(basis(s[::30])) == "fused" and way(basis(s), torch.bfloat16) == "fused"
    assert way(bezier_basis(s, 2)) == way(draw(61, 3)) == way(-linear_basis(s)) == "fused"
    assert way(torch.cat([arc_basis(s), bezier_basis(s, 1)])) == "fused"
    assert path_way(linear_basis(torch.linspace(0, 1, 100_000)), [torch.zeros(1000, 4)] * 2) == "fused"
    assert float(leg_of(arc_basis(s)).tau[-1]) == pytest.approx(1)
    assert_close(leg_of(bezier_basis(s, 1)).tau, s)


@pytest.mark.parametrize("spoil, message", [
    (lambda a: a[0].requires_grad_(), "path_scores gives no gradients"),
    (lambda a: a.__setitem__(2, a[2].float()), "of one dtype on one device, got .*float32"),
    (lambda a: a.__setitem__(0, a[0].to("meta")), "of one dtype on one device, got .*meta"),
    (lambda a: a.__setitem__(1, a[1][:0]), "at least one point and one t, got k=2, T=0"),
    (lambda a: (a.__setitem__(0, a[0][:, :0]), a.__setitem__(4, a[4][:0])), "at least one image, unit and class, got 0"),
    (lambda a: a.__setitem__(0, a[0][:1]), "with k features, heads and biases; got 1, 2 and 2"),
    (lambda a: a.__setitem__(0, a[0][:, :, 1:]), "must fit together"),
    (lambda a: a.__setitem__(4, a[4] + 1), "labels must be int64 classes 0..4, got torch.int64, 1..5"),
    (lambda a: a.__setitem__(4, a[4] - 1), "labels must be int64 classes 0..4, got torch.int64, -1..3"),
    (lambda a: a.__setitem__(4, a[4].double()), "labels must be int64 classes"),
])
@pytest.mark.parametrize("exact", [False, True])
def test_bad_input_is_refused(spoil, message, exact):
    args = leg("segment", 20)
    spoil(args)
    with pytest.raises(ValueError, match=message):
        path_scores(*args, exact=exact)


def test_weights_that_require_gradients_are_evaluated_without_them():
    args = leg("segment", 20)
    wanted = path_scores(*args)
    args[0].requires_grad_(), args[2].requires_grad_()
    with torch.no_grad():
        assert torch.equal(path_scores(*args)[0], wanted[0])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_evaluate_sweeps_without_being_asked(dtype, tolerance):
    net = models.build("mlp", TASK.input_shape, 3, width=30)
    a, b, c = (models.initial_weights(net, torch.Generator().manual_seed(s), dtype=dtype) for s in range(3))
    for path in (paths.segment(a, b), paths.arc(a, b, c), paths.bezier([a, c, b]), paths.chain([a, c, b])):
        found, wanted = (ev.evaluate(net, path, TASK, points=61, exact=exact) for exact in (False, True))
        assert found.attrs["way"] == "sweep" and wanted.attrs["way"] == "reference"
        for column in ("nll", "accuracy", "ece"):
            assert (found[column] - wanted[column]).abs().max() < tolerance
        assert ev.evaluate(net, path, TASK, points=3).attrs["way"] == "fused"
    assert ev.evaluate(net, paths.bezier([a, c, c, b]), TASK, points=61).attrs["way"] == "fused"


@pytest.mark.parametrize("exact", [False, True])
def test_tables_do_not_depend_on_the_number_of_threads(exact, monkeypatch):
    net = models.build("mlp", TASK.input_shape, 3, width=30)
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(2))
    one = ev.evaluate(net, paths.segment(a, b), TASK, exact=exact)
    monkeypatch.setattr("lossland.evaluation.sharing._FEATURES", 3 * 7 * 2 * 30 * 8)
    torch.set_num_threads(3)
    three = ev.evaluate(net, paths.segment({k: v.requires_grad_() for k, v in a.items()}, b), TASK, exact=exact)
    torch.set_num_threads(1)
    assert (one.nll - three.nll).abs().max() < 1e-13 and (one.accuracy == three.accuracy).all()


def test_what_was_compiled_from_other_sources_is_not_read():
    """numba looks at the file of a function only, and at what it encloses."""
    folder = Path(_cpu.__file__).parent
    for names, functions in ((("_lanes.py", "_buckets.py"), (_cpu.sweep_two, _cpu.sweep_three)),
                             (("_lanes.py", "_tally.py"), (_tally.swaps, _tally.scores))):
        parts = hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()
        assert all(parts in [cell.cell_contents for cell in one.py_func.__closure__] for one in functions)


_NOWHERE = """
import numba.core.caching
numba.core.caching.CacheImpl._locator_classes[1:] = []  # only NUMBA_CACHE_DIR is left, and it is not given
from lossland.kernels import sweep
print(callable(sweep.compiled("_cpu").sweep_three))
"""


def test_where_nothing_can_be_kept_the_sweep_runs_all_the_same():
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    run = subprocess.run([sys.executable, "-c", _NOWHERE], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
