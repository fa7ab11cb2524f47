"""Scores after every epoch, where training would have stopped, and accuracy under corruption."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import blobs, make_task
from torch import nn
from torch.testing import assert_close

from lossland import families, models
from lossland.corruptions import corrupted
from lossland.early_stopping import best_epoch, epoch_scores
from lossland.ensembles import member_scores
from lossland.evaluation import scoring
from lossland.families import point
from lossland.recipes import stopped_at
from lossland.robustness import best_changes, relative_changes
from lossland.store import Store
from lossland.training import Recipe, fit

SHAPE = (1, 8, 8)
TASK = replace(make_task(SHAPE), validation=blobs(37, 5, SHAPE), fingerprint="")
MLP, RESNET = models.MLP(SHAPE, 3, widths=(9, 8)), models.ResNet(SHAPE, 3, blocks=1, channels=3)
RECIPE = Recipe(epochs=4, lr=0.05, batch_size=40, schedule="cosine", warmup=1, precision="float64")
COLUMNS = ["nll", "accuracy", "ece"]


def start(net: nn.Module, seed: int = 1) -> dict:
    return models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64)


# After every epoch


@pytest.mark.parametrize("net", [MLP, RESNET], ids=["mlp", "batch norm"])
def test_scores_after_an_epoch_are_those_of_the_run_stopped_there(net, tmp_path):
    table = epoch_scores(net, start(net), TASK, RECIPE, seed=5, store=Store(tmp_path))
    assert table.epoch.tolist() == [1, 1, 2, 2, 3, 3, 4, 4] and table.split.tolist() == ["validation", "test"] * 4
    stops = stopped_at(net, start(net), TASK, RECIPE, epochs=[1, 2, 3, 4], seed=5, store=Store(tmp_path))
    expected = member_scores(net, [stop.weights for stop in stops], TASK, splits=("validation", "test"))
    assert table[COLUMNS].to_numpy().tolist() == expected[[f"single_{c}" for c in COLUMNS]].to_numpy().tolist()


def test_looking_changes_nothing_and_is_done_once(tmp_path, monkeypatch):
    first = epoch_scores(RESNET, start(RESNET), TASK, RECIPE, seed=5, store=Store(tmp_path))
    entry, = Store(tmp_path).entries()
    plain = fit(RESNET, point(start(RESNET)), TASK, RECIPE, seed=5).family.points[0]
    assert_close(entry.tensors["point0"], torch.cat([x.flatten() for x in plain.values()]), rtol=0, atol=0)
    monkeypatch.setattr("lossland.early_stopping.fit", lambda *args, **kwargs: pytest.fail("trained again"))
    assert first.equals(epoch_scores(RESNET, start(RESNET), TASK, RECIPE, seed=5, store=Store(tmp_path)))
    monkeypatch.undo()
    other = epoch_scores(RESNET, start(RESNET), TASK, RECIPE, splits=("test",), seed=5, store=Store(tmp_path))
    assert other.equals(first[first.split == "test"].reset_index(drop=True)) and len(Store(tmp_path).entries()) == 2


def test_statistics_are_estimated_once_an_epoch(tmp_path, monkeypatch):
    calls, buffers = [], scoring.Stateless.buffers
    monkeypatch.setattr(scoring.Stateless, "buffers", lambda self, w: calls.append(1) or buffers(self, w))
    epoch_scores(RESNET, start(RESNET), TASK, RECIPE, splits=("train", "validation", "test"), store=Store(tmp_path))
    assert len(calls) == RECIPE.epochs


def test_a_run_that_was_cut_off_keeps_its_scores(tmp_path, monkeypatch):
    from lossland import training
    whole = epoch_scores(MLP, start(MLP), TASK, RECIPE, store=Store(tmp_path / "whole"))
    epoch_of, started = training._epoch, []

    def cut(state, *args):
        if state.epoch == 2:
            raise KeyboardInterrupt
        return epoch_of(state, *args)

    monkeypatch.setattr(training, "_epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        epoch_scores(MLP, start(MLP), TASK, RECIPE, store=Store(tmp_path / "cut"))
    monkeypatch.setattr(training, "_epoch", lambda state, *args: started.append(state.epoch) or epoch_of(state, *args))
    assert whole.equals(epoch_scores(MLP, start(MLP), TASK, RECIPE, store=Store(tmp_path / "cut")))
    assert started == [2, 3]


def test_splits_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no 'validation'"):
        epoch_scores(MLP, start(MLP), make_task(SHAPE), RECIPE, store=Store(tmp_path))
    with pytest.raises(ValueError, match="splits must name at least one split of the task, got none"):
        epoch_scores(MLP, start(MLP), TASK, RECIPE, splits=(), store=Store(tmp_path))
    with pytest.raises(TypeError, match="task must be the data"):
        epoch_scores(RESNET, start(RESNET), None, RECIPE, store=Store(tmp_path))
    assert not Store(tmp_path).entries()


# Where one would have stopped


def scores() -> pd.DataFrame:
    parts = {"validation": ([0.6, 0.9, 0.8, 0.9], [0.9, 0.5, 0.4, 0.6]), "test": ([0.5, 0.7, 0.85, 0.8], [0.9, 0.6, 0.5, 0.3])}
    return pd.concat([pd.DataFrame({"epoch": [1, 2, 3, 4], "split": split, "accuracy": accuracy, "nll": nll, "ece": 0.1})
                      for split, (accuracy, nll) in parts.items()], ignore_index=True)


@pytest.mark.parametrize("given, epoch, accuracy, oracle", [
    ({}, 2, 0.7, False),  # the first of equals
    ({"metric": "nll"}, 3, 0.85, False),
    ({"by": "test"}, 3, 0.85, True),
    ({"by": "test", "metric": "nll"}, 4, 0.8, True),
    ({"report": "validation"}, 2, 0.9, True),
])
def test_the_best_epoch_is_chosen_on_one_split_and_reported_on_another(given, epoch, accuracy, oracle):
    stop = best_epoch(scores().sample(frac=1, random_state=0), **given)
    assert (stop.epoch, stop.accuracy, stop.is_oracle) == (epoch, accuracy, oracle)
    assert ("ORACLE" in str(stop)) == oracle
    assert stop.last == {"accuracy": 0.9 if "report" in given else 0.8, "nll": 0.6 if "report" in given else 0.3, "ece": 0.1}


def test_an_oracle_is_never_worse_than_early_stopping_nor_than_the_end(tmp_path):
    table = epoch_scores(MLP, start(MLP), TASK, RECIPE, store=Store(tmp_path))
    oracle, stop = best_epoch(table, by="test"), best_epoch(table)
    assert oracle.accuracy >= max(stop.accuracy, stop.last["accuracy"])


@pytest.mark.parametrize("table, given, message", [
    (scores(), {"metric": "error"}, "metric must be one of 'accuracy', 'nll', 'ece'; got 'error'"),
    (scores(), {"by": "train"}, "by must be one of 'validation', 'test'; got 'train'"),
    (scores(), {"report": "train"}, "report must be one of 'validation', 'test'; got 'train'"),
    (scores().drop(columns="ece"), {}, "table must have columns ece, got epoch, split"),
    (pd.concat([scores()] * 2), {}, "one row for each epoch of a split, got several on 'validation'"),
])
def test_bad_tables_are_refused(table, given, message):
    with pytest.raises(ValueError, match=message):
        best_epoch(table, **given)


# Corrupted images


def test_changes_are_relative_to_clean_accuracy(monkeypatch):
    networks = {"one": fit(RESNET, point(start(RESNET)), TASK, RECIPE).family.points[0], "two": start(RESNET, 2)}
    damage = {"noise": corrupted(TASK, "noise", 5), "contrast": corrupted(TASK, "contrast", 3)}
    calls, buffers = [], scoring.Stateless.buffers
    monkeypatch.setattr(scoring.Stateless, "buffers", lambda self, w: calls.append(1) or buffers(self, w))
    table = relative_changes(RESNET, networks, TASK, damage)
    assert len(calls) == 2
    assert table.name.tolist() == ["one"] * 2 + ["two"] * 2 and table.corruption.tolist() == ["noise", "contrast"] * 2
    for row in table.itertuples():
        clean, broken = (member_scores(RESNET, [networks[row.name]], task, splits=("test",)).single_accuracy[0]
                         for task in (TASK, damage[row.corruption]))
        assert (row.clean, row.accuracy) == (clean, broken) and row.change == pytest.approx(broken / clean - 1)
    assert table.change.nunique() > 1


def test_undamaged_images_change_nothing():
    table = relative_changes(RESNET, {"one": start(RESNET)}, TASK, {"nothing": TASK}, split="validation")
    assert table.change.tolist() == [0]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="corrupted must name at least one task, got none"):
        relative_changes(MLP, {"one": start(MLP)}, TASK, {})
    with pytest.raises(ValueError, match=r"corrupted\['other'\] must hold images of the shape \(1, 8, 8\) of the task, got \(1, 4, 4\)"):
        relative_changes(MLP, {"one": start(MLP)}, TASK, {"other": make_task()})
    with pytest.raises(ValueError, match="members must hold at least one network"):
        relative_changes(MLP, {}, TASK, {"nothing": TASK})
    with pytest.raises(ValueError, match=r"members\[0\] must hold the parameters"):
        relative_changes(MLP, {"one": start(RESNET)}, TASK, {"nothing": TASK})
    wrong = replace(TASK, test=replace(TASK.test, labels=torch.zeros_like(TASK.test.labels)), fingerprint="")
    never = {name: 0 * x for name, x in start(MLP).items()}
    never["linear.2.bias"] = torch.tensor([-1.0, 0, 0], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"networks\['never'\] must be right on some clean image .* got none of 41"):
        relative_changes(MLP, {"never": never}, wrong, {"nothing": wrong})


def test_the_best_on_a_line_is_another_one_for_every_corruption():
    rows = [("t = 0", "noise", -0.1), ("t = 0", "blur", -0.4), ("plain", "noise", -0.2), ("plain", "blur", -0.2),
            ("t = 1", "noise", -0.3), ("t = 1", "blur", -0.1)]
    table = best_changes(pd.DataFrame(rows, columns=["name", "corruption", "change"]), keep="plain", name="best")
    assert table.name.tolist() == ["plain", "plain", "best", "best"] and table.corruption.tolist() == ["noise", "blur"] * 2
    assert table.change.tolist() == [-0.2, -0.2, -0.1, -0.1]
    with pytest.raises(ValueError, match="keep must be one of 'plain', 'best'; got 'standard'"):
        best_changes(table)
    with pytest.raises(ValueError, match="table must hold networks besides 'plain', got none"):
        best_changes(table[:2], keep="plain")


def test_a_start_of_several_networks_and_names_that_are_missing_are_refused(tmp_path):
    with pytest.raises(TypeError, match="start must be the weights of one network, got Family"):
        epoch_scores(MLP, families.line(start(MLP), start(MLP)), TASK, RECIPE, store=Store(tmp_path))
    assert not Store(tmp_path).entries()
    with pytest.raises(TypeError, match="networks must be a dictionary name -> weights, .* got list"):
        relative_changes(MLP, [start(MLP)], TASK, {"nothing": TASK})
    with pytest.raises(TypeError, match="corrupted must be a dictionary name -> task, .* got Task"):
        relative_changes(MLP, {"one": start(MLP)}, TASK, TASK)
