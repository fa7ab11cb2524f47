"""Planes: cut off and resumed, several splits, batch norm per cell, and curves that lie in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from conftest import make_task
from lossland import families, models, paths
from lossland.batchnorm import refresh
from lossland.evaluation import predict
from lossland.evaluation.dense import one_hidden
from lossland.evaluation.mixtures import Mixtures
from lossland.evaluation.scoring import Manner, Sums
from lossland.planes import in_plane, plane, plane_seconds
from lossland.store import Store
from lossland.tasks import Split
from lossland.weights import from_vector, mix, skeleton, to_vector

TASK = make_task(shape=(1, 8, 8), train=40, test=17)
NETS = {"mlp": {"width": 5}, "conv2fc1": {"channels": (2, 3)}, "cresnet20": {"channels": 2, "blocks": 1}}


class Memory:
    """A checkpoint that stops the work after so many saves."""

    def __init__(self, saves: int = 10**9) -> None:
        self.saves, self.kept = saves, None

    def load(self):
        return self.kept

    def save(self, tensors, info) -> None:
        self.kept = {name: tensor.clone() for name, tensor in tensors.items()}, dict(info)
        self.saves -= 1
        if not self.saves:
            raise KeyboardInterrupt


def three(name: str):
    net = models.build(name, TASK.input_shape, 3, **NETS[name])
    return net, {key: models.initial_weights(net, torch.Generator().manual_seed(seed)) for seed, key in enumerate("abc")}


@pytest.mark.parametrize("name", NETS)
def test_a_plane_that_is_cut_off_goes_on_and_gives_the_same_numbers(name):
    net, points = three(name)
    cells, done = ((18, 9), 144) if name == "mlp" else ((4, 5), 10)  # eight columns at a time, or one
    whole = plane(net, points, TASK, cells=cells, split="test")
    memory = Memory(saves=2)
    with pytest.raises(KeyboardInterrupt):
        plane(net, points, TASK, cells=cells, split="test", checkpoint=memory)
    assert memory.kept[1]["done"] == done
    memory.kept[0]["test.nll"][0] += 17  # the sign that stored cells are not computed again
    resumed = plane(net, points, TASK, cells=cells, split="test", checkpoint=memory)
    assert resumed.nll[0] == pytest.approx(whole.nll[0] + 1)
    resumed.loc[0, "nll"] = whole.nll[0]
    assert_frame_equal(resumed, whole, check_exact=True)


@pytest.mark.parametrize("cells, way", [((3, 12), "sweep"), ((12, 3), "fused")])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_rows_of_cells_are_segments_whose_scores_are_those_of_the_reference(cells, way, dtype, close):
    net, points = three("mlp")
    points = {key: {name: 5 * tensor.to(dtype) for name, tensor in point.items()} for key, point in points.items()}
    table = plane(net, points, TASK, cells=cells, split=("train", "test"))
    assert table.attrs["way"] == way
    corners, spots = np.array(list(table.attrs["points"].values())), table[table["split"] == "test"][["x", "y"]].to_numpy()
    third = spots[:, 1] / corners[2, 1]
    second = (spots[:, 0] - third * corners[2, 0]) / corners[1, 0]
    c = torch.from_numpy(np.stack([1 - second - third, second, third], 1))
    sums = {split: Sums.zeros(len(c)) for split in ("train", "test")}
    Mixtures(net, TASK, list(points.values()), dense=one_hidden(net), manner=Manner(exact=True)).score(sums, torch.arange(len(c)), c, lambda n: None)
    for split in sums:
        found, wanted = table[table["split"] == split], sums[split].columns(len(TASK.split(split)))
        for column in ("nll", "accuracy", "ece"):
            np.testing.assert_allclose(found[column], wanted[column], rtol=close, atol=close)


def test_the_stores_checkpoints_serve(tmp_path):
    net, points = three("mlp")
    whole = plane(net, points, TASK, cells=3)

    def make(checkpoint):
        table = plane(net, points, TASK, cells=3, checkpoint=checkpoint)
        return {"nll": torch.tensor(table.nll.to_numpy())}

    assert Store(tmp_path).fetch({"plane": 1}, make).tensors["nll"].tolist() == whole.nll.tolist()


@pytest.mark.parametrize("changes, what", [({"cells": (4, 4)}, "cells, column"), ({"split": "train"}, "splits"),
                                           ({"margin": 0.3}, "first, last")])
def test_the_checkpoint_of_another_plane_is_refused(changes, what):
    net, points = three("mlp")
    memory = Memory()
    plane(net, points, TASK, cells=3, split="test", checkpoint=memory)
    with pytest.raises(ValueError, match=f"checkpoint must hold cells of this plane, got one that differs in .*{what}"):
        plane(net, points, TASK, **{"cells": 3, "split": "test", **changes}, checkpoint=memory)


def test_several_splits_share_a_table():
    net, points = three("cresnet20")
    both = plane(net, points, TASK, cells=3, split=("train", "test"))
    for split in ("train", "test"):
        alone = plane(net, points, TASK, cells=3, split=split)
        part = both[both["split"] == split].drop(columns="split").reset_index(drop=True)
        assert_frame_equal(part, alone, check_exact=True, check_like=True)


def test_batch_norm_is_re_estimated_in_every_cell():
    net, points = three("cresnet20")
    table = plane(net, points, TASK, cells=3, margin=0.0, split="test")
    middle = mix(list(points.values()), torch.tensor([0.5, 0.5, 0.0]))
    row = table[(table.y == 0)].iloc[1]
    logits = predict(net, middle, TASK)
    assert row.nll == pytest.approx(float(cross_entropy(logits, TASK.test.labels)), rel=1e-4)
    stale = refresh(net, points["a"], TASK.prepare(TASK.train.images))
    with torch.no_grad():
        wrong = functional_call(skeleton(net), (middle, stale), (TASK.prepare(TASK.test.images),))
    assert abs(float(cross_entropy(wrong, TASK.test.labels)) - row.nll) > 1e-2


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_a_curve_lies_in_the_plane_of_its_ends_and_its_bend(kind):
    _, points = three("mlp")
    a, bend, b = points.values()
    curve = getattr(families, kind)(a, b).with_points([a, bend, b])
    where = in_plane({"a": a, "b": b, "bend": bend}, curve, count=11)
    assert where.away.max() < 1e-3 and where.t.iloc[-1] == 1.0 and len(where) == 11
    corners = in_plane({"a": a, "b": b, "bend": bend}, paths.chain([a, bend, b]), count=3)[["x", "y"]].to_numpy()
    np.testing.assert_allclose(where[["x", "y"]].to_numpy()[[0, -1]], corners[[0, -1]], atol=1e-6)
    middle = corners[1] if kind == "chain" else corners.T @ [0.25, 0.5, 0.25]
    np.testing.assert_allclose(where[where.t == 0.5][["x", "y"]].to_numpy()[0], middle, rtol=1e-6)


def test_points_off_the_plane_say_how_far():
    _, points = three("mlp")
    a, b, c = points.values()
    lifted = {key: value + 0 for key, value in a.items()}
    up = models.initial_weights(models.build("mlp", TASK.input_shape, 3, width=5), torch.Generator().manual_seed(9))
    where = in_plane(points, paths.segment(lifted, up), count=3)
    assert where.away.iloc[0] == pytest.approx(0, abs=1e-5) and where.away.iloc[1] == pytest.approx(where.away.iloc[2] / 2, rel=1e-4)
    assert where.away.iloc[2] > 0.1
    moved = paths.Path((lambda s: {key: (1 - s.reshape(-1, *[1] * a[key].ndim)) * a[key] + s.reshape(-1, *[1] * a[key].ndim) * up[key] for key in a},))
    np.testing.assert_allclose(in_plane(points, moved, count=3), where, rtol=1e-4, atol=1e-4)


def test_the_margin_may_differ_along_x_and_y():
    net, points = three("mlp")
    table = plane(net, points, TASK, cells=2, margin=(0.0, 1.0))
    corners = np.array(list(table.attrs["points"].values()))
    assert table.x.min() == corners[:, 0].min() and np.ptp(table.y) == pytest.approx(3 * np.ptp(corners[:, 1]))


def test_the_estimate_of_the_time_is_for_all_cells_and_images(monkeypatch):
    net, points = three("mlp")
    assert 0 < plane_seconds(net, points, TASK, cells=(30, 20)) < 600
    clock = iter(range(100))
    monkeypatch.setattr("lossland.planes.time.perf_counter", lambda: next(clock))  # eight columns take a second
    assert plane_seconds(net, points, TASK, cells=(30, 20)) == 30 / 8
    net, points = three("conv2fc1")  # four cells do
    assert plane_seconds(net, points, TASK, cells=(30, 20)) == 600 / 4
    images, labels = (x.repeat(100, *[1] * (x.ndim - 1)) for x in (TASK.train.images, TASK.train.labels))
    many = replace(TASK, train=Split(images, labels), fingerprint="")
    assert plane_seconds(net, points, many, cells=(30, 20)) == 4 * 600 / 4  # measured on 1000 of 4000 images


def test_a_broken_cell_is_named_and_not_stored():
    net, points = three("mlp")
    points["c"] = {key: value * 1e30 for key, value in points["c"].items()}
    memory = Memory()
    with pytest.raises(FloatingPointError, match="NaN or infinite at"):
        plane(net, points, TASK, cells=3, checkpoint=memory)
    assert memory.kept is None or memory.kept[1]["done"] < 9


def test_cells_are_the_networks_that_gram_schmidt_gives():
    net, points = three("conv2fc1")
    a, b, c = (to_vector(point).double() for point in points.values())
    x = (b - a) / (b - a).norm()
    y = (c - a) - ((c - a) @ x) * x
    y /= y.norm()
    for row in plane(net, points, TASK, cells=(2, 3), split="test").itertuples():
        there = from_vector((a + row.x * x + row.y * y).float(), points["a"])
        assert row.norm == pytest.approx(float(to_vector(there).norm()), rel=1e-5)
        assert row.nll == pytest.approx(float(cross_entropy(predict(net, there, TASK), TASK.test.labels)), rel=1e-4)
