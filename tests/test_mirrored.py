"""Opposite networks of a line or curve, and how far its ends are apart: identities, and pairs counted by hand."""

from dataclasses import replace

import pytest
import torch
from conftest import blobs, make_task
from torch import nn
from torch.testing import assert_close

from lossland import families, models
from lossland.ensembles import end_statistics, member_scores, mirrored
from lossland.ensembles.mirrored_pairs import member_at
from lossland.evaluation import evaluate, predict, scoring
from lossland.metrics import total_variation
from lossland.paths import Mix, Path, arc, chain, chain_basis, segment
from lossland.tasks import Split, load_task
from lossland.weights import mix

SHAPE = (1, 8, 8)
TASK = replace(make_task(SHAPE), validation=blobs(37, 5, SHAPE), fingerprint="")
MLP, RESNET = models.MLP(SHAPE, 3, widths=(9, 8)), models.ResNet(SHAPE, 3, blocks=1, channels=3)
COLUMNS = ["nll", "accuracy", "ece"]
PAIR = [f"pair_{name}" for name in COLUMNS]


def drawn(net: nn.Module, count: int = 2) -> list[dict]:
    return [models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(1, count + 1)]


def curves(net: nn.Module) -> dict:
    a, b = drawn(net)
    return {"line": families.line(a, b), "bezier": families.bezier(a, b, ends="free").with_points([a, drawn(net, 3)[2], b]),
            "segment": segment(a, b), "chain": chain([a, drawn(net, 3)[2], b])}


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("net", [MLP, RESNET], ids=["mlp", "batch norm"])
def test_pairs_are_symmetric_and_one_network_in_the_middle(net, average):
    table = mirrored(net, curves(net)["line"], TASK, points=7, average=average, splits=("train", "test"))
    assert table.t.tolist() == [i / 6 for i in range(7) for _ in range(2)] and table.split.tolist() == ["train", "test"] * 7
    for _, rows in table.groupby("split"):
        for column in (*PAIR, "pair_tv"):
            assert rows[column].tolist() == rows[column].tolist()[::-1], column
        middle = rows[rows.t == 0.5].iloc[0]
        assert middle[PAIR].tolist() == middle[COLUMNS].tolist() and middle.pair_tv == 0
        assert (rows[rows.t != 0.5].pair_tv > 0).all() and (rows[rows.t != 0.5].pair_nll != rows[rows.t != 0.5].nll).all()


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("kind", ["line", "bezier", "segment", "chain"])
def test_rows_are_those_of_member_scores_of_two(kind, average):
    path = curves(RESNET)[kind]
    table = mirrored(RESNET, path, TASK, points=[0.0, 1.0, 0.3], average=average)
    assert table.t.tolist() == [0, 1, 0.3]
    make = path.path() if isinstance(path, families.Family) else path
    for row in table.itertuples():
        two = [make.point(row.t), make.point(1 - row.t)]
        scores = member_scores(RESNET, two, TASK, splits=("test",), average=average)
        assert [getattr(row, name) for name in COLUMNS] == scores[[f"single_{n}" for n in COLUMNS]].iloc[0].tolist()
        assert [getattr(row, name) for name in PAIR] == pytest.approx(scores[COLUMNS].iloc[1].tolist(), abs=1e-14)
        p, q = (predict(RESNET, weights, TASK).softmax(-1) for weights in two)
        assert row.pair_tv == pytest.approx(float(total_variation(p, q)), abs=1e-12)


def test_single_columns_are_those_of_evaluate():
    line = curves(RESNET)["bezier"]
    table = mirrored(RESNET, line, TASK, points=5)
    expected = evaluate(RESNET, line, TASK, points=table.t.tolist(), splits=("test",))
    for name in COLUMNS:
        assert table[name].tolist() == pytest.approx(expected[name].tolist())


def test_a_segment_between_checkpoints_is_the_line_between_them():
    line, path = curves(MLP)["line"], curves(MLP)["segment"]
    assert mirrored(MLP, line, TASK, points=4).equals(mirrored(MLP, path, TASK, points=4))


@pytest.mark.parametrize("points, networks", [(11, 11), (2, 2), ([0.0, 0.1, 0.9, 1.0], 4), ([0.2, 0.4], 4), ([0.5], 1), ([0.5 + 1e-12], 1), ([0.5 - 1e-12, 0.6], 3),
                                              ([0.7], 2), ([-0.05, 1.05], 2), ([0.1, 0.2, 0.3, 0.7], 6)])
def test_each_network_passes_once_through_the_data(points, networks, monkeypatch):
    calls, seen = [], []
    buffers, call = scoring.Stateless.buffers, scoring.Stateless.__call__
    monkeypatch.setattr(scoring.Stateless, "buffers", lambda self, w: calls.append(1) or buffers(self, w))
    monkeypatch.setattr(scoring.Stateless, "__call__", lambda self, w, b, x: seen.append(len(x)) or call(self, w, b, x))
    table = mirrored(RESNET, curves(RESNET)["line"], TASK, points=points, splits=("test", "train"))
    assert len(calls) == networks and sum(seen) == networks * (len(TASK.test) + len(TASK.train))
    assert len(table) == 2 * (points if isinstance(points, int) else len(points))


@pytest.mark.parametrize("kind", ["line", "bezier", "segment"])
def test_a_little_outside_its_ends_a_curve_goes_on(kind):
    path, t = curves(MLP)[kind], torch.tensor([-0.05, 1.05], dtype=torch.float64)
    table = mirrored(MLP, path, TASK, points=t)
    points = path.points if isinstance(path, families.Family) else path.legs[0].points
    basis = path.coefficients(t) if isinstance(path, families.Family) else torch.stack([1 - t, t], -1)
    two = [mix(points, c) for c in basis]
    scores = member_scores(MLP, two, TASK, splits=("test",), average="logits")
    assert table.nll.tolist() == pytest.approx(scores.single_nll.tolist())
    assert table.pair_nll.tolist() == pytest.approx([scores.nll.iloc[1]] * 2)


def test_ways_that_no_formula_continues_end_where_they_end():
    a, b = drawn(MLP)
    hat = Path((Mix((a, b, a), lambda s: chain_basis(s, 1)),))
    for path in (chain([a, b, a]), families.chain(a, b, bends=1), hat):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\] on a path that no formula continues.*got t = -0.1 on"):
            mirrored(MLP, path, TASK, points=[-0.1, 0.5])
    assert_close(member_at(arc(a, b, mix((a, b), torch.tensor([0.5, 0.5]))))(1.0), b)


def test_statistics_come_from_training_images_alone():
    other = replace(TASK, test=Split(255 - TASK.test.images, TASK.test.labels), fingerprint="")
    first, second = (mirrored(RESNET, curves(RESNET)["line"], task, points=3, splits=("validation",)) for task in (TASK, other))
    assert first.equals(second)
    dark = replace(TASK, train=Split(TASK.train.images // 2, TASK.train.labels), fingerprint="")
    assert not first.equals(mirrored(RESNET, curves(RESNET)["line"], dark, points=3, splits=("validation",)))


@pytest.mark.parametrize("points, error, message", [
    (1, ValueError, "points must be >= 2, both ends among them, got 1"),
    ([], ValueError, r"points must hold at least one t, all finite, got \[\]"),
    ([0.1, float("nan")], ValueError, "at least one t, all finite"),
    ([0.1, 0.2, 0.1], ValueError, r"points must be different t, got \[0.1, 0.2, 0.1\]"),
    ("11", TypeError, "points must be a number or the t themselves, got '11'"),
])
def test_bad_points_are_refused(points, error, message):
    with pytest.raises(error, match=message):
        mirrored(MLP, curves(MLP)["line"], TASK, points=points)


def test_what_is_no_curve_of_the_network_is_refused():
    a, b = drawn(MLP)
    with pytest.raises(ValueError, match=r"path\(\) needs a family over an interval, got a simplex"):
        mirrored(MLP, families.simplex([a, b]), TASK)
    with pytest.raises(TypeError, match=r"path must be a Path, or a Family over an interval such as subspace\(...\).family, got tuple"):
        mirrored(MLP, (a, b), TASK)
    with pytest.raises(ValueError, match="path at t = 0.0 must hold the parameters of ResNet"):
        mirrored(RESNET, segment(a, b), TASK)
    with pytest.raises(ValueError, match="average must be one of 'probabilities', 'logits'; got 'votes'"):
        mirrored(MLP, segment(a, b), TASK, average="votes")
    with pytest.raises(TypeError, match="task must be the data"):
        mirrored(RESNET, segment(*drawn(RESNET)), None)
    huge = {name: 1e200 * x for name, x in a.items()}
    with pytest.raises(FloatingPointError, match="the loss on 'test' is NaN or infinite at .* first at 0.0"):
        mirrored(MLP, segment(huge, huge), TASK, points=2)


def test_words_are_scored_one_by_one():
    task = load_task("pydoc", vocabulary=50, window=5, device="cpu").subset(40, 30)
    net = models.build("lstm", task.input_shape, task.classes, hidden=6)
    a, b = drawn(net)
    table = mirrored(net, segment(a, b), task, points=3)
    scores = member_scores(net, [a, b], task, splits=("test",), average="logits")
    assert table.nll.tolist()[::2] == pytest.approx(scores.single_nll.tolist()) and table.pair_nll[0] == pytest.approx(scores.nll[1])
    assert end_statistics(net, a, b, task)["tv"] == pytest.approx(table.pair_tv[0])


# How far two networks are apart


@pytest.mark.parametrize("net", [MLP, RESNET], ids=["mlp", "batch norm"])
def test_a_network_is_not_apart_from_itself(net):
    a, b = drawn(net)
    assert end_statistics(net, a, a, TASK) == {"tv": 0, "l2": 0, "cosine": 0}
    assert min(end_statistics(net, a, b, TASK).values()) > 0
    assert end_statistics(net, a, b, TASK) == pytest.approx(end_statistics(net, b, a, TASK))


def test_statistics_of_ends_are_their_formulas_without_normalisation_layers():
    a, b = drawn(RESNET)
    norms = [name for name in a if "norm" in name or "bn" in name]
    moved = {name: x + 7 if name in norms else x for name, x in b.items()}
    found = end_statistics(RESNET, a, moved, TASK, split="train")
    x, y = (torch.cat([w[name].flatten() for name in w if name not in norms]) for w in (a, moved))
    p, q = (predict(RESNET, w, TASK, "train").softmax(-1) for w in (a, moved))
    assert norms and len(x) < sum(w.numel() for w in a.values())
    assert found["l2"] == pytest.approx(float((x - y).norm()))
    assert found["cosine"] == pytest.approx(1 - float(torch.nn.functional.cosine_similarity(x, y, dim=0)))
    assert found["tv"] == pytest.approx(float((p - q).abs().sum(-1).mean() / 2))


def test_cosine_distance_is_one_minus_the_cosine():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)).double()
    task = make_task()
    a = {"1.weight": torch.eye(3, 16, dtype=torch.float64)}
    for other, expected in ((2 * a["1.weight"], 0), (a["1.weight"].roll(1, 1), 1), (-a["1.weight"], 2)):
        assert end_statistics(net, a, {"1.weight": other}, task)["cosine"] == pytest.approx(expected, abs=1e-15)
    near = {"1.weight": a["1.weight"] + 1e-9 * a["1.weight"].roll(1, 1)}
    assert end_statistics(net, a, near, task)["cosine"] == pytest.approx(0.5e-18, rel=1e-3)


def test_ends_without_a_direction_or_of_another_network_are_refused():
    a, b = drawn(MLP)
    with pytest.raises(ValueError, match=r"weights that are not zero besides those of normalisation layers, got norms \[0.0, "):
        end_statistics(MLP, {name: 0 * x for name, x in a.items()}, b, TASK)
    with pytest.raises(ValueError, match=r"members\[1\] must hold the parameters of MLP"):
        end_statistics(MLP, a, drawn(RESNET)[0], TASK)
    with pytest.raises(ValueError, match="no 'dev'|split"):
        end_statistics(MLP, a, b, TASK, split="dev")
