"""Ensembles member by member, temperatures and diversity, against exact cases and counting by hand."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import blobs, make_task
from torch import nn
from torch.testing import assert_close

from lossland import metrics, models
from lossland.ensembles import (AVERAGES, averaged, best_temperature, global_temperature, independent, member_scores,
                                point_temperatures, predict_members, wa_ensemble)
from lossland.ensembles.averaging import Average
from lossland.ensembles.temperature import RANGE
from lossland.evaluation import evaluate, predict, scoring
from lossland.paths import segment
from lossland.planes import plane
from lossland.tasks import Task, load_task

SHAPE = (1, 8, 8)
TASK = replace(make_task(SHAPE), validation=blobs(37, 5, SHAPE), fingerprint="")
NETS = {
    "mlp": lambda: models.MLP(SHAPE, 3, widths=(9, 8)),
    "batch norm": lambda: models.ResNet(SHAPE, 3, blocks=1, channels=3),
}


def drawn(net: nn.Module, count: int = 4, dtype: torch.dtype = torch.float64) -> list[dict]:
    return [models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=dtype) for seed in range(1, count + 1)]


def skilled(count: int = 3) -> tuple[nn.Module, list[dict]]:
    """One-hidden-layer networks that know something: output weights fitted to some of the labels, too large."""
    net, images = models.MLP(SHAPE, 3, widths=(9,)), TASK.prepare(TASK.train.images, torch.float64).flatten(1)
    members = drawn(net, count)
    for number, weights in enumerate(members, 2):
        hidden = (images @ weights["linear.0.weight"].T + weights["linear.0.bias"]).relu()[::number]
        targets = nn.functional.one_hot(TASK.train.labels[::number], 3).double() - 1 / 3
        weights["linear.1.weight"] = 12 * torch.linalg.lstsq(hidden, targets).solution.T
        weights["linear.1.bias"] = weights["linear.1.bias"] * 0
    return net, members


def scored(scores: torch.Tensor, labels: torch.Tensor) -> list[float]:
    return [float(metrics.nll(scores, labels)), float(metrics.accuracy(scores, labels)),
            float(metrics.ece(scores.softmax(-1), labels))]


COLUMNS = ["nll", "accuracy", "ece"]
SINGLE = ["single_" + name for name in COLUMNS]


# Member by member


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", NETS)
def test_every_row_is_what_averaging_predictions_by_hand_gives(name, average):
    net = NETS[name]()
    members = drawn(net)
    table = member_scores(net, members, TASK, average=average)
    assert table.members.tolist() == [1, 1, 2, 2, 3, 3, 4, 4] and table.split.tolist() == ["train", "test"] * 4
    for split in ("train", "test"):
        logits = [predict(net, weights, TASK, split) for weights in members]
        labels = TASK.split(split).labels
        rows = table[table.split == split]
        for count, row in enumerate(rows.itertuples(), 1):
            expected = scored(averaged(logits[:count], average), labels)
            assert [getattr(row, column) for column in COLUMNS] == pytest.approx(expected, abs=1e-12)
            alone = scored(logits[count - 1], labels)
            assert [getattr(row, column) for column in SINGLE] == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
def test_the_average_of_one_member_is_that_member(average):
    net = NETS["batch norm"]()
    row = member_scores(net, drawn(net, 1), TASK, splits=("test",), average=average).iloc[0]
    assert row[COLUMNS].tolist() == pytest.approx(row[SINGLE].tolist(), abs=1e-14)


@pytest.mark.parametrize("average", AVERAGES)
def test_the_order_of_members_does_not_matter_in_the_end(average):
    net = NETS["mlp"]()
    members = drawn(net, 6, torch.float32)
    ends = [member_scores(net, [members[i] for i in order], TASK, splits=("test",), average=average).iloc[-1]
            for order in (range(6), (3, 5, 0, 4, 2, 1))]
    assert ends[0][COLUMNS].tolist() == pytest.approx(ends[1][COLUMNS].tolist(), abs=1e-12)
    assert ends[0].single_nll != ends[1].single_nll


def test_batches_of_images_change_nothing(monkeypatch):
    net = NETS["mlp"]()
    whole = member_scores(net, drawn(net), TASK)
    monkeypatch.setattr(scoring, "BATCH", 7)
    parts = member_scores(net, drawn(net), TASK)
    assert_close(torch.tensor(parts[COLUMNS + SINGLE].to_numpy()), torch.tensor(whole[COLUMNS + SINGLE].to_numpy()))


def test_members_may_come_from_a_generator_and_are_asked_for_one_after_the_other(monkeypatch):
    net, events = NETS["mlp"](), []
    members = drawn(net, 3)

    def lazily():
        for number, weights in enumerate(members):
            events.append(f"member {number}")
            yield weights

    add = Average.add
    monkeypatch.setattr(Average, "add", lambda self, logits: events.append("added") or add(self, logits))
    table = member_scores(net, lazily(), TASK, splits=("test",))
    assert events == ["member 0", "added", "member 1", "added", "member 2", "added"]
    columns = COLUMNS + SINGLE
    assert table[columns].equals(member_scores(net, members, TASK, splits=("test",))[columns])


def test_statistics_are_estimated_once_per_member_however_many_splits(monkeypatch):
    net, calls = NETS["batch norm"](), []
    buffers = scoring.Stateless.buffers
    monkeypatch.setattr(scoring.Stateless, "buffers", lambda self, w: calls.append(1) or buffers(self, w))
    member_scores(net, drawn(net, 3), TASK, splits=("train", "test", "validation"))
    assert len(calls) == 3


def test_a_member_costs_one_pass_over_the_splits(monkeypatch):
    net, seen = NETS["mlp"](), []
    call = scoring.Stateless.__call__
    monkeypatch.setattr(scoring.Stateless, "__call__", lambda self, w, b, x: seen.append(len(x)) or call(self, w, b, x))
    for count in (1, 4):
        seen.clear()
        member_scores(net, drawn(net, count), TASK)
        assert sum(seen) == count * (len(TASK.train) + len(TASK.test))


def test_the_prediction_of_all_members_is_the_last_row():
    net = NETS["mlp"]()
    members = drawn(net)
    scores = predict_members(net, members, TASK, average="logits", temperatures=2.0)
    last = member_scores(net, members, TASK, splits=("test",), average="logits", temperatures=2.0).iloc[-1]
    assert scored(scores, TASK.test.labels) == pytest.approx(last[COLUMNS].tolist())


def test_words_are_averaged_over_classes_not_over_places():
    task = load_task("pydoc", vocabulary=50, window=5, device="cpu").subset(40, 30)
    net = models.build("lstm", task.input_shape, task.classes, hidden=6)
    members = drawn(net, 2, torch.float32)
    table = member_scores(net, members, task, splits=("test",))
    logits = [predict(net, weights, task).movedim(1, -1).flatten(0, 1) for weights in members]
    expected = scored(averaged(logits), task.test.labels.flatten())
    assert table.iloc[-1][COLUMNS].tolist() == pytest.approx(expected, abs=1e-6)


# Temperatures


def test_temperatures_divide_the_logits_before_they_are_averaged():
    net = NETS["mlp"]()
    members, heats = drawn(net, 3), (0.5, 1.0, 3.0)
    table = member_scores(net, members, TASK, splits=("test",), temperatures=heats)
    logits = [predict(net, weights, TASK) / heat for weights, heat in zip(members, heats, strict=True)]
    assert table.iloc[-1][COLUMNS].tolist() == pytest.approx(scored(averaged(logits), TASK.test.labels))
    assert table.iloc[-1][SINGLE].tolist() == pytest.approx(scored(logits[-1], TASK.test.labels))
    one = member_scores(net, members, TASK, splits=("test",), temperatures=2.0)
    many = member_scores(net, members, TASK, splits=("test",), temperatures=[2.0] * 3)
    assert one[COLUMNS].equals(many[COLUMNS])


def planted(temperature: float, n: int = 60000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax at a temperature."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return logits, (logits / temperature).softmax(-1).multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 6.0])
def test_a_planted_temperature_is_found(temperature):
    logits, labels = planted(temperature)
    assert best_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("scale", [0.05, 0.3, 7.0])
def test_scaled_logits_have_a_scaled_temperature(scale):
    logits, labels = planted(1.5, 500)
    assert best_temperature(scale * logits, labels) == pytest.approx(scale * best_temperature(logits, labels), rel=1e-10)


def test_the_temperature_is_a_minimum_of_the_loss():
    logits, labels = planted(2.0, 300)
    best = best_temperature(logits, labels)
    loss = metrics.nll(logits / best, labels)
    assert all(metrics.nll(logits / (best * factor), labels) > loss for factor in (0.999, 1.001))


def test_temperatures_without_a_minimum_end_at_the_bounds():
    labels = torch.tensor([0, 1, 2])
    assert best_temperature(torch.eye(3), labels) == RANGE[0]
    assert best_temperature(-torch.eye(3), labels) == RANGE[1]


def test_the_temperature_of_words_is_that_of_their_rows():
    logits, labels = planted(2.0, 300)
    words = logits.reshape(60, 5, 5).movedim(-1, 1)  # (n, C, L)
    assert best_temperature(words, labels.reshape(60, 5)) == best_temperature(logits, labels)


def test_a_temperature_never_changes_the_accuracy_of_a_single_network():
    net = NETS["batch norm"]()
    members = drawn(net, 3)
    plain = member_scores(net, members, TASK, splits=("test",))
    for temperatures in (0.2, 9.0, point_temperatures(net, members, TASK)):
        warm = member_scores(net, members, TASK, splits=("test",), temperatures=temperatures)
        assert warm.single_accuracy.equals(plain.single_accuracy)
        assert not warm.single_nll.equals(plain.single_nll)


def test_one_temperature_for_all_minimises_their_mean_loss():
    net, members = skilled()
    best = global_temperature(net, members, TASK)
    assert RANGE[0] < best < RANGE[1]

    def loss(temperature: float) -> float:
        return member_scores(net, members, TASK, splits=("validation",), temperatures=temperature).single_nll.mean()

    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best))


def test_temperatures_of_points_are_one_factor_times_their_losses():
    net, members = skilled()
    losses = torch.tensor(member_scores(net, members, TASK, splits=("validation",)).single_nll)
    found = torch.tensor(point_temperatures(net, members, TASK))
    assert_close(found / losses, (found / losses)[:1].expand(3).to(torch.float64))

    def loss(factor: float) -> float:
        heats = (factor * found).tolist()
        return member_scores(net, members, TASK, splits=("validation",), temperatures=heats).single_nll.mean()

    assert loss(1.0) < min(loss(0.99), loss(1.01))
    assert point_temperatures(net, members, TASK, losses=(1e4 * losses).tolist()) == pytest.approx(found.tolist())


def test_planted_temperatures_of_points_are_found():
    """Copies of one network whose logits are scaled: with losses in proportion to the scales all get the same."""
    net, (weights,) = skilled(1)
    scales = (1.0, 2.0, 5.0)
    members = [{**weights, "linear.1.weight": s * weights["linear.1.weight"]} for s in scales]
    found = point_temperatures(net, members, TASK, losses=scales)
    alone = global_temperature(net, members[:1], TASK)
    assert RANGE[0] < alone < RANGE[1]
    assert found == pytest.approx([alone * s for s in scales])


# Validation splits


def test_a_task_holds_out_what_loading_it_so_would_hold_out():
    whole = load_task("digits", device="cpu")
    held = whole.hold_out(0.1)
    assert held.fingerprint == load_task("digits", device="cpu", validation=0.1).fingerprint != whole.fingerprint
    assert (len(held.train), len(held.validation), len(held.test)) == (1167, 130, 500)
    assert whole.validation is None
    assert whole.hold_out(100, seed=1).fingerprint != whole.hold_out(100, seed=2).fingerprint


def test_a_text_holds_out_windows():
    task = load_task("pydoc", vocabulary=50, window=5, device="cpu")
    held = replace(task, validation=None).hold_out(0.25)
    assert len(held.train) + len(held.validation) == len(task.train) and held.validation.is_text


@pytest.mark.parametrize("call, message", [
    (lambda task: task.hold_out(0), "validation must be a number of images >= 1 or a fraction > 0, got 0"),
    (lambda task: task.hold_out(0.001), "a fraction in \\[0, 1\\) that leaves images on both sides, got 0.001"),
    (lambda task: task.hold_out(96), "validation must be a number of images in 0..95.*got 96"),
    (lambda task: task.hold_out(0.2).hold_out(0.2), "task 'blobs' has a validation split, Split\\(19 images"),
])
def test_sizes_that_cannot_be_held_out_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_task())


@pytest.mark.parametrize("fit", [global_temperature, point_temperatures])
def test_temperatures_are_fitted_on_a_validation_split_only(fit):
    net = NETS["mlp"]()
    members = drawn(net, 2)
    with pytest.raises(ValueError, match="split must be 'validation', got 'test': .*has seen the labels.*hold_out"):
        fit(net, members, TASK, split="test")
    with pytest.raises(ValueError, match="split must be 'validation', got 'train': networks know.*hold_out"):
        fit(net, members, TASK, split="train")
    with pytest.raises(ValueError, match="no 'validation': ask for one with load_task.*or task.hold_out"):
        fit(net, members, make_task(SHAPE))
    with pytest.raises(ValueError, match="split must be one of .*'validation'.*did you mean 'validation'"):
        fit(net, members, TASK, split="valid")


# Errors


def test_bad_members_are_named():
    net = NETS["mlp"]()
    members = drawn(net, 2)
    for call in (member_scores, predict_members, global_temperature, point_temperatures):
        with pytest.raises(ValueError, match="members must hold at least one network, got none"):
            call(net, [], TASK)
        with pytest.raises(TypeError, match="members must be several weights, \\[weights\\] for a single network, got dict"):
            call(net, members[0], TASK)
        with pytest.raises(ValueError, match="members\\[1\\] must hold the parameters of MLP"):
            call(net, [members[0], {}], TASK)
        broken = {name: tensor * torch.nan for name, tensor in members[1].items()}
        with pytest.raises(ValueError, match="members\\[1\\] must be finite"):
            call(net, [members[0], broken], TASK)


def test_losses_that_overflow_name_the_member():
    net = NETS["mlp"]()
    members = drawn(net, 2)
    huge = {name: tensor * 1e200 for name, tensor in members[1].items()}
    with pytest.raises(FloatingPointError, match=r"the loss on 'test' is NaN or infinite for members\[1\]"):
        member_scores(net, [members[0], huge], TASK, splits=("test",))


@pytest.mark.parametrize("temperatures, message", [
    (0.0, "temperatures must be positive and finite, got 0.0"), ([1.0, -2.0], r"temperatures\[1\] must be positive"),
    ([1.0, math.inf], r"temperatures\[1\] must be positive and finite, got inf"),
    ([1.0], "temperatures must be one for each of the 2 members, got 1"),
    ([1.0] * 3, "temperatures must be one for each of the 2 members, got 3"),
])
def test_bad_temperatures_are_named(temperatures, message):
    net = NETS["mlp"]()
    for call in (member_scores, predict_members):
        with pytest.raises(ValueError, match=message):
            call(net, drawn(net, 2), TASK, temperatures=temperatures)


@pytest.mark.parametrize("count, message", [(1, "got 1 for at least 2 members"), (3, "of the 2 members, got more")])
def test_temperatures_that_do_not_fit_a_generator_are_named(count, message):
    net = NETS["mlp"]()
    for call in (member_scores, predict_members):
        with pytest.raises(ValueError, match=message):
            call(net, iter(drawn(net, 2)), TASK, temperatures=[1.0] * count)


@pytest.mark.parametrize("scores, labels, message", [
    (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "n, C >= 1"),
    (torch.full((2, 3), torch.inf), torch.tensor([0, 1]), "scores must be finite"),
    (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels must lie in \[0, 3\)"),
])
def test_scores_without_a_temperature_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        best_temperature(scores, labels)


@pytest.mark.parametrize("losses", [[1.0], [1.0, 0.0], [1.0, math.nan]])
def test_losses_that_give_no_temperatures_are_named(losses):
    net = NETS["mlp"]()
    with pytest.raises(ValueError, match="losses must be positive, one for each of the 2 members"):
        point_temperatures(net, drawn(net, 2), TASK, losses=losses)


def test_a_network_with_batch_norm_is_not_evaluated_without_data():
    net = NETS["batch norm"]()
    a, b = drawn(net, 2)
    calls = [lambda: evaluate(net, segment(a, b), None), lambda: predict(net, a, None), lambda: member_scores(net, [a], None),
             lambda: predict_members(net, [a], None), lambda: global_temperature(net, [a], None),
             lambda: plane(net, {"a": a, "b": b, "c": b}, None), lambda: wa_ensemble(net, [a, b], None),
             lambda: independent(net, [a, b], None), lambda: independent(net, [a, b], TASK).predict(None),
             lambda: independent(net, [a, b], TASK).scores(None)]
    for call in calls:
        with pytest.raises(TypeError, match="task must be the data, a Task such as load_task.'digits'.: the batch-norm "
                           "statistics of '.*' and . more, which no weights hold, are re-estimated .*; got NoneType"):
            call()
    dense = NETS["mlp"]()
    with pytest.raises(TypeError, match="task must be the data.*its splits are scored; got Tensor"):
        predict(dense, drawn(dense, 1)[0], TASK.test.images)
