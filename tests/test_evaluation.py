from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from conftest import make_task
from lossland import evaluation as ev
from lossland import families, legs, metrics, models, paths
from lossland.evaluation.lengths import Lengths
from lossland.layers import depths, permute
from lossland.pairwise import pairs
from lossland.planes import in_plane, plane, plane_coordinates
from lossland.search import worst
from lossland.weights import Weights, at, distance, mix, to_vector

KINDS = {  # network -> the way in which its legs are evaluated where first layers are mixed, however small they are
    "mlp": ({"width": 9}, "fused"),
    "fc3": ({"first": 7, "second": 5}, "shared first layer"),
    "conv2fc1": ({"channels": (2, 3)}, "shared first layer"),
    "cresnet20": ({"channels": 2, "blocks": 1}, "shared first layer"),
}
TASK = make_task(shape=(1, 8, 8))


def ends(name: str, count: int = 3) -> tuple[nn.Module, list[Weights]]:
    net = models.build(name, TASK.input_shape, 3, **KINDS[name][0])
    return net, [models.initial_weights(net, torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(count)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", ["segment", "arc", "chain", "bezier"])
@pytest.mark.parametrize("worth", [0, 40])
def test_shared_work_equals_one_network_at_a_time(name, shape, worth, monkeypatch):
    monkeypatch.setattr("lossland.evaluation.mixtures._WORTH", worth)
    net, (a, b, c) = ends(name)
    path = {"segment": paths.segment(a, b), "arc": paths.arc(a, b, c), "chain": paths.chain([a, c, b]),
            "bezier": paths.bezier([a, c, b])}[shape]
    table = ev.evaluate(net, path, TASK, points=7)
    way = KINDS[name][1] if name == "mlp" or not worth else "one by one"
    assert table.attrs == {"grid": 7, "task": "blobs", "way": way, "product": "float64"}
    for row in table.itertuples():
        weights, split = path.point(row.t), TASK.split(row.split)
        logits = ev.predict(net, weights, TASK, row.split)
        assert row.nll == pytest.approx(float(cross_entropy(logits, split.labels)), rel=1e-9)
        assert row.accuracy == pytest.approx(float(metrics.accuracy(logits, split.labels)))
        assert row.ece == pytest.approx(float(metrics.ece(logits.softmax(-1), split.labels, bins=20)))
        assert row.distance == pytest.approx(distance(weights, a), rel=1e-9, abs=1e-12)
        assert row.norm == pytest.approx(float(to_vector(weights).norm()), rel=1e-9)


def test_small_blocks_of_images_change_nothing(monkeypatch):
    for name in ("mlp", "fc3"):
        net, (a, b, _) = ends(name)
        whole = ev.evaluate(net, paths.segment(a, b), TASK, points=5)
        with monkeypatch.context() as patch:
            patch.setattr("lossland.evaluation.scoring.SHARED", 8 * 2 * 9 * 7)
            patch.setattr("lossland.evaluation.scoring.BATCH", 3)
            assert np.allclose(ev.evaluate(net, paths.segment(a, b), TASK, points=5).nll, whole.nll, rtol=1e-12)


def test_rows_columns_and_leg_boundaries():
    net, (a, b, c) = ends("mlp")
    table = ev.evaluate(net, paths.chain([a, c, b]), TASK, points=8, splits=("test",))
    assert list(table.columns) == ["t", "leg", "split", "nll", "accuracy", "ece", "distance", "norm"]
    assert 0.5 in table.t.values and len(table) == 9 and table.leg.tolist() == [0] * 4 + [1] * 5
    assert table.distance.iloc[0] == 0
    chosen = ev.evaluate(net, paths.segment(a, b), TASK, points=[0.3, 0.1])
    assert chosen.t.tolist() == [0.1, 0.1, 0.3, 0.3]


def test_permuting_the_whole_path_changes_nothing():
    for name in KINDS:
        net, (a, b, _) = ends(name)
        axis = net.layers()[0].writes
        n = a[f"{net.layers()[0].module}.weight"].shape[0]
        p = {axis: torch.arange(n).flip(0)}
        moved = paths.segment(permute(a, net.layers(), p), permute(b, net.layers(), p))
        first, second = (ev.evaluate(net, path, TASK, points=5) for path in (paths.segment(a, b), moved))
        assert np.allclose(first.nll, second.nll, rtol=1e-9)


def test_batch_norm_is_re_estimated_at_every_point_and_the_ends_are_the_ends():
    net, (a, b, c) = ends("cresnet20")
    table = ev.evaluate(net, families.bezier(a, b).with_points([a, c, b]), TASK, points=3, splits=("test",))
    for t, end in ((0.0, a), (1.0, b)):
        alone = ev.evaluate(net, paths.segment(end, c), TASK, points=[0.0], splits=("test",))
        assert table[table.t == t].nll.item() == alone.nll.item()


def test_the_trivial_curve_keeps_accuracy_and_changes_the_loss():
    net, (a, b, _) = ends("fc3")
    where = depths(net.layers())
    powers = {key: where[key.rsplit(".", 1)[0]] if key.endswith("bias") else 1 for key in a}
    table = ev.evaluate(net, legs.through_origin(a, b, powers), TASK, points=[0.0, 0.2, 0.4, 0.5, 0.6, 1.0], splits=("test",))
    first = table[table.t < 0.5].accuracy
    assert (first == first.iloc[0]).all()
    assert table[table.t == 0.5].nll.item() == pytest.approx(np.log(3))


def test_planes_hit_their_points_and_equal_single_evaluations():
    net, three = ends("mlp")
    named = dict(zip("abc", three, strict=True))
    table = plane(net, named, TASK, cells=(4, 5), margin=0.0, split="test")
    corner = table.attrs["points"]
    assert corner["a"] == pytest.approx((0, 0)) and corner["b"][1] == pytest.approx(0)
    assert corner["b"][0] == pytest.approx(distance(three[0], three[1]))
    assert np.hypot(*corner["c"]) == pytest.approx(distance(three[0], three[2]))
    assert len(table) == 20
    at_a = table[(table.x == 0) & (table.y == 0)]
    alone = ev.evaluate(net, paths.segment(three[0], three[1]), TASK, points=[0.0], splits=("test",))
    assert at_a.nll.item() == pytest.approx(alone.nll.item(), rel=1e-9)
    assert at_a.norm.item() == pytest.approx(float(to_vector(three[0]).norm()), rel=1e-9)


def test_plane_coordinates_keep_distances():
    _, three = ends("mlp")
    inside = mix(three, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
    xy = plane_coordinates(three, [*three, inside])
    for i in range(3):
        assert float((xy[3] - xy[i]).norm()) == pytest.approx(distance(inside, three[i]), rel=1e-9)


def test_distances_stay_small_near_the_start():
    net, (a, b, _) = ends("mlp")
    near = {key: a[key] + 1e-7 * b[key] for key in a}
    table = ev.evaluate(net, paths.segment(a, near), TASK, points=2, splits=("test",))
    assert table.distance.iloc[1] == pytest.approx(distance(a, near), rel=1e-6)


def test_a_users_network_without_a_layer_list_works_too():
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)).double()
    a, b = ({k: torch.randn(v.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
             for k, v in net.named_parameters()} for s in (1, 2))
    table = ev.evaluate(net, paths.segment(a, b), make_task(shape=(1, 10, 10)), points=3)
    assert table.attrs["way"] == "shared first layer" and table.nll.notna().all()


@pytest.mark.parametrize("call, error, message", [
    (lambda n, a, b: ev.evaluate(n, paths.segment(a, b), TASK, exact="no"), TypeError, "exact must be True or False, got 'no'"),
    (lambda n, a, b: ev.evaluate(n, paths.segment(a, b), TASK, progress=1), TypeError, "progress must be True or False, got 1"),
    (lambda n, a, b: worst(n, paths.segment(a, b), TASK, exact="no"), TypeError, "exact must be True or False, got 'no'"),
    (lambda n, a, b: pairs(n, [a, b], TASK, exact=0), TypeError, "exact must be True or False, got 0"),
    (lambda n, a, b: pairs(n, [a, b], TASK, progress="no"), TypeError, "progress must be True or False, got 'no'"),
    (lambda n, a, b: ev.evaluate(n, paths.segment(a, b), TASK, points=[0.5, 1.2]), ValueError, "t must lie in \\[0, 1\\], got 1.2"),
    (lambda n, a, b: ev.evaluate(n, paths.segment(a, b), TASK, points=1), ValueError, "points must be >= 2, got 1"),
    (lambda n, a, b: ev.evaluate(n, paths.segment(a, b), TASK, splits="test"), TypeError, "sequence of names"),
    (lambda n, a, b: ev.evaluate(n, paths.segment(a, b), TASK, splits=("tset",)), ValueError, "test"),
    (lambda n, a, b: ev.evaluate(n, paths.segment(a, b), TASK, points="many"), TypeError, "points must be a number"),
    (lambda n, a, b: ev.evaluate(models.build("fc3", (1, 8, 8), 3, first=3, second=2), paths.segment(a, b), TASK),
     ValueError, "the start of path must hold the parameters of MLP; missing"),
    (lambda n, a, b: plane(n, {"a": a, "b": b}, TASK), ValueError, "three points, got 2"),
    (lambda n, a, b: plane(n, [a, b, a], TASK), TypeError, "points must be a dictionary of three named points, .* got list"),
    (lambda n, a, b: in_plane([a, b, a], paths.segment(a, b)), TypeError, "points must be a dictionary of three named points"),
    (lambda n, a, b: in_plane({"a": a}, paths.segment(a, b)), ValueError, "three points, got 1"),
    (lambda n, a, b: plane(n, {"a": a, "b": b, "m": at(paths.segment(a, b)(torch.tensor([0.3])), 0)}, TASK), ValueError,
     "three on one line"),
    (lambda n, a, b: plane(n, {"a": a, "b": b, "c": a}, TASK, cells=1), ValueError, "cells must be >= 2"),
    (lambda n, a, b: ev.predict(n, {**a, "linear.0.bias": a["linear.0.bias"] / 0}, TASK), ValueError, "weights must be finite"),
])
def test_bad_input_is_refused_by_name(call, error, message):
    net, (a, b, _) = ends("mlp")
    with pytest.raises(error, match=message):
        call(net, a, b)


def test_a_loss_that_overflows_is_named_with_its_place():
    net, (a, b, _) = ends("mlp")
    huge = {key: value * 1e200 for key, value in b.items()}
    with pytest.raises(FloatingPointError, match="loss on 'test' is NaN or infinite at .* of 3 points, first at"):
        ev.evaluate(net, paths.segment(a, huge), TASK, points=3, splits=("test",))


def test_single_precision_agrees_with_double():
    net, (a, b, _) = ends("mlp")
    single = [{k: v.float() for k, v in p.items()} for p in (a, b)]
    first, second = (ev.evaluate(net, paths.segment(*p), replace(TASK), points=9) for p in ((a, b), single))
    assert np.abs(first.nll - second.nll).max() < 1e-6
    assert_close(torch.tensor(first.accuracy.values), torch.tensor(second.accuracy.values))


def test_lengths_of_what_all_points_share_count_in_distances_and_in_norms():
    """Tensors that are the same object in all points, others at the origin; coefficients that do not add up to one."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(9)]
    points = [{"stays": x[0], "moves": moves, "rests": x[1]} for moves in (x[2], x[3])]
    origin = {"stays": x[4], "moves": x[5], "rests": x[6]}
    lengths = Lengths(origin)
    coefficients = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.9], [-2.0, 0.5]], dtype=torch.float64)
    for some in (points, [{**point, "stays": x[7]} for point in points], points):  # measured, new, known
        away, norm = lengths.of(some, coefficients)
        for row, c in enumerate(coefficients):
            way = [sum(c[i] * (some[i][name] - origin[name]) for i in (0, 1)) for name in origin]
            member = [sum(c[i] * some[i][name] for i in (0, 1)) for name in origin]
            assert_close(away[row], torch.cat(way).norm())
            assert_close(norm[row], torch.cat(member).norm())
