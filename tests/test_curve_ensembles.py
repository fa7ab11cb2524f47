"""Ensembles of points of curves, and how different members are, against counting by hand and curves that gain nothing."""

from dataclasses import replace

import pytest
import torch
from conftest import blobs, make_task
from torch import nn
from torch.testing import assert_close

from lossland import families, models
from lossland.ensembles import member_scores, point_temperatures
from lossland.ensembles.curve_ensembles import (CurvePoints, curve_ensemble, curve_points, pair_ensembles,
                                                random_direction)
from lossland.ensembles.diversity import disagreement, disagreements, distances
from lossland.evaluation import evaluate, predict, scoring
from lossland.layers import depths
from lossland.legs import through_origin
from lossland.paths import Path, segment
from lossland.weights import distance

SHAPE = (1, 8, 8)
TASK = replace(make_task(SHAPE), validation=blobs(37, 5, SHAPE), fingerprint="")
MLP, RESNET = models.MLP(SHAPE, 3, widths=(9, 8)), models.ResNet(SHAPE, 3, blocks=1, channels=3)
COLUMNS = ["nll", "accuracy", "ece"]


def drawn(net: nn.Module, count: int = 3) -> list[dict]:
    """Networks drawn at random; dense ones have output weights fitted to some of the labels, so that they know some."""
    members = [models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64)
               for seed in range(1, count + 1)]
    targets = nn.functional.one_hot(TASK.train.labels, 3).double() - 1 / 3
    for step, weights in enumerate(members, 4):
        if net is MLP:
            x = TASK.prepare(TASK.train.images, torch.float64).flatten(1)
            for layer in ("linear.0", "linear.1"):
                x = (x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]).relu()
            weights["linear.2.weight"] = 5 * torch.linalg.lstsq(x[::step], targets[::step], driver="gelsd").solution.T
    return members


def trivial() -> Path:
    powers = {name: depths(MLP.layers())[module] if part == "bias" else 1 for name in drawn(MLP, 1)[0]
              for module, _, part in [name.rpartition(".")]}
    return through_origin(*drawn(MLP, 2), powers)


# Diversity


def test_disagreement_is_what_counting_by_hand_gives():
    members = drawn(RESNET, 4)
    table = disagreement(RESNET, members, TASK)
    named = [predict(RESNET, weights, TASK).argmax(-1).tolist() for weights in members]
    for i, one in enumerate(named, 1):
        for j, other in enumerate(named, 1):
            count = 0
            for a, b in zip(one, other, strict=True):
                count += a != b
            assert table.loc[i, j] == count / len(TASK.test)
    assert table.to_numpy().max() > 0
    assert disagreement(RESNET, iter(members), TASK, split="train").shape == (4, 4)


def test_disagreement_is_symmetric_with_a_zero_diagonal():
    classes = torch.randint(3, (40, 57), generator=torch.Generator().manual_seed(0))  # more than one block
    found = disagreements(classes)
    assert torch.equal(found, found.T) and not found.diagonal().any()
    assert_close(found[35], torch.stack([(classes[35] != row).double().mean() for row in classes]))


def test_distances_are_those_between_pairs_and_keep_small_differences():
    members = drawn(MLP, 3)
    members.append({name: tensor + 1e-9 for name, tensor in members[0].items()})
    table = distances(iter(members))
    for i, one in enumerate(members, 1):
        for j, other in enumerate(members, 1):
            assert table.loc[i, j] == distance(one, other)
    assert 0 < table.loc[1, 4] < 1e-6


def test_distances_keep_two_members_at_a_time():
    asked = []

    class Lazy(CurvePoints):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    distances(Lazy(segment(*drawn(MLP, 2)), 4))
    assert asked == [0, 1, 2, 3, 1, 2, 3, 2, 3]


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="members must hold at least one network"):
        distances([])
    with pytest.raises(TypeError, match="members must be several weights, got dict"):
        distances(drawn(MLP, 1)[0])
    with pytest.raises(ValueError, match=r"classes must have shape \(m, n\) with m, n >= 1, got \(3,\)"):
        disagreements(torch.zeros(3))
    with pytest.raises(ValueError, match="members must hold at least one network"):
        disagreement(MLP, [], TASK)


# Points of a curve


def test_points_of_a_curve_are_made_when_asked_for():
    path = segment(*drawn(MLP, 2))
    members = curve_points(path, 5)
    assert len(members) == 5 and members.t.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert_close(members[3], path.point(0.75))
    assert_close(members[-1], path.point(1.0))
    assert_close(members[1:3], [path.point(0.25), path.point(0.5)])
    assert len(list(members)) == 5
    assert_close(curve_points(families.bezier(*drawn(MLP, 2), bends=1), 3)[1], path.point(0.5))
    assert len(curve_points(path)) == 50


@pytest.mark.parametrize("points", [1, 0, 2.0, None])
def test_too_few_points_are_refused(points):
    with pytest.raises(ValueError, match="points must be a number >= 2, both ends of the curve among them, got"):
        curve_points(segment(*drawn(MLP, 2)), points)


@pytest.mark.parametrize("net", [MLP, RESNET], ids=["mlp", "batch norm"])
def test_an_ensemble_on_a_curve_is_that_of_its_points_before_and_after_rescaling(net):
    path = segment(*drawn(net, 2))
    table = curve_ensemble(net, path, TASK, points=5, splits=("test", "train"), average="logits")
    members = curve_points(path, 5)
    heats = point_temperatures(net, members, TASK)
    assert table.rescaled.tolist() == [False] * 10 + [True] * 10
    for rescaled, temperatures in ((False, None), (True, heats)):
        rows = table[table.rescaled == rescaled].reset_index(drop=True)
        expected = member_scores(net, members, TASK, splits=("test", "train"), average="logits", temperatures=temperatures)
        for column in expected.columns.drop("seconds"):
            assert rows[column].tolist() == expected[column].tolist(), column
        assert rows.temperature[::2].tolist() == (temperatures or [1.0] * 5)
        assert rows.t[::2].tolist() == members.t.tolist()
    alone = curve_ensemble(net, path, make_task(SHAPE), points=5, rescale=False)
    assert alone.nll.tolist() != [] and not alone.rescaled.any()


def test_single_rows_are_those_of_evaluate():
    path = segment(*drawn(RESNET, 2))
    table = curve_ensemble(RESNET, path, TASK, points=4, rescale=False)
    expected = evaluate(RESNET, path, TASK, points=table.t.tolist(), splits=("test",))
    assert table.single_nll.tolist() == pytest.approx(expected.nll.tolist())
    assert table.single_accuracy.tolist() == expected.accuracy.tolist()


def test_statistics_of_a_point_are_estimated_once_with_rescaling_too(monkeypatch):
    calls, buffers = [], scoring.Stateless.buffers
    monkeypatch.setattr(scoring.Stateless, "buffers", lambda self, w: calls.append(1) or buffers(self, w))
    curve_ensemble(RESNET, segment(*drawn(RESNET, 2)), TASK, points=6)
    assert len(calls) == 6


def test_rescaling_needs_a_validation_split():
    with pytest.raises(ValueError, match="no 'validation': ask for one"):
        curve_ensemble(MLP, segment(*drawn(MLP, 2)), make_task(SHAPE), points=3)


# The trivial curve gains nothing


def test_half_of_a_trivial_curve_predicts_what_its_end_does_alone_or_together():
    members = [trivial().point(t) for t in (0.0, 0.1, 0.25, 0.4)]
    for average in ("probabilities", "logits"):
        table = member_scores(MLP, members, TASK, splits=("train", "test"), average=average)
        for _, rows in table.groupby("split"):
            assert rows.accuracy.nunique() == rows.single_accuracy.nunique() == 1
            assert rows.accuracy.iloc[0] == rows.single_accuracy.iloc[0]
            assert rows.single_nll.nunique() == 4


def test_all_of_a_trivial_curve_predicts_what_its_two_ends_do_together():
    path = trivial()
    whole = curve_ensemble(MLP, path, TASK, points=20, average="logits", rescale=False).iloc[-1]
    ends = member_scores(MLP, [path.point(0.0), path.point(1.0)], TASK, splits=("test",), average="logits").iloc[-1]
    assert whole.accuracy == ends.accuracy != whole.single_accuracy


def test_the_start_and_a_point_of_a_trivial_curve_are_as_good_as_the_start():
    rows = pair_ensembles(MLP, {"trivial": trivial()}, TASK, points=6)
    first = rows[rows.t < 0.5]
    assert len(first) == 3 and first.accuracy.nunique() == 1 and not first.disagreement.any()
    assert rows.disagreement.iloc[-1] > 0


# The start and one point


def test_pairs_are_ensembles_of_two():
    a, b = drawn(RESNET, 2)
    ways = {"segment": segment(a, b), "random": random_direction(a, distance(a, b), torch.Generator().manual_seed(0))}
    table = pair_ensembles(RESNET, ways, TASK, points=4, splits=("train", "test"))
    assert table.way.tolist() == ["segment"] * 8 + ["random"] * 8
    for row in table.itertuples():
        point = ways[row.way].point(row.t)
        two = member_scores(RESNET, [a, point], TASK, splits=(row.split,)).iloc[-1]
        assert [row.nll, row.accuracy, row.ece] == two[COLUMNS].tolist()
        assert row.single_nll == two.single_nll
        assert row.distance == pytest.approx(distance(a, point))
        assert row.disagreement == disagreement(RESNET, [a, point], TASK, split=row.split).loc[1, 2]
    start = table[table.t == 0]
    assert start.nll.tolist() == pytest.approx(start.single_nll.tolist()) and not start.disagreement.any()


def test_a_random_direction_has_its_length_and_its_draw():
    a = {name: tensor.float() for name, tensor in drawn(MLP, 1)[0].items()}
    way = random_direction(a, 3.0, torch.Generator().manual_seed(1))
    assert distance(way.point(0.0), a) == 0
    assert [distance(way.point(t), a) for t in (0.5, 1.0)] == pytest.approx([1.5, 3.0], rel=1e-5)
    assert way.point(1.0)["linear.0.weight"].dtype == torch.float32
    again = random_direction(a, 3.0, torch.Generator().manual_seed(1))
    assert_close(again.point(1.0), way.point(1.0), rtol=0, atol=0)
    other = random_direction(a, 3.0, torch.Generator().manual_seed(2))
    assert distance(other.point(1.0), way.point(1.0)) > 3
    with pytest.raises(ValueError, match="length must be positive and finite, got 0"):
        random_direction(a, 0.0, torch.Generator())
    with pytest.raises(ValueError, match="start must be finite"):
        random_direction({"w": torch.tensor([torch.nan])}, 1.0, torch.Generator())


def test_pairs_without_a_way_are_refused():
    with pytest.raises(ValueError, match="ways must name at least one path, got none"):
        pair_ensembles(MLP, {}, TASK)
    with pytest.raises(TypeError, match="task must be the data"):
        pair_ensembles(MLP, {"a": trivial()}, None)
    with pytest.raises(TypeError, match="task must be the data"):
        curve_ensemble(MLP, trivial(), None)
    with pytest.raises(TypeError, match="task must be the data"):
        disagreement(MLP, drawn(MLP), None)


def test_points_of_another_network_are_named():
    with pytest.raises(ValueError, match=r"members\[0\] must hold the parameters of ResNet"):
        curve_ensemble(RESNET, trivial(), TASK, rescale=False)
