"""Table 2 of G18: numbers of a path whose losses are formulas."""

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import make_task
from lossland import families, models
from lossland.connect import connect
from lossland.evaluation import default_points, evaluate
from lossland.paths import chain, segment
from lossland.summaries import summaries, summary
from lossland.weights import distance

A, B, C = ({"w": torch.tensor(point, dtype=torch.float64)} for point in ([0.0, 0.0], [4.0, 0.0], [0.0, 3.0]))


def table(t, nll, accuracy, norm=0.0) -> pd.DataFrame:
    parts = [pd.DataFrame({"t": t, "leg": 0, "split": split, "nll": nll, "accuracy": accuracy, "norm": norm}) for split in ("test", "train")]
    return pd.concat(parts, ignore_index=True)


def test_int_weighs_by_length_and_mean_by_t():
    # Legs of 3 and 5: a loss of 1 on the first, rising to 3 on the second
    row = summary(table([0.0, 0.5, 1.0], [1.0, 1.0, 3.0], [0.9, 0.8, 1.0]), chain([A, C, B]))
    assert row["length"] == pytest.approx(8) and row["length ratio"] == pytest.approx(2) and row["points"] == 3
    assert [row[f"loss {part}"] for part in ("min", "int", "max", "mean")] == pytest.approx([1, (3 * 1 + 5 * 2) / 8, 3, 1.5])
    assert [row[f"test error {part}"] for part in ("min", "max")] == pytest.approx([0, 0.2])


def test_the_loss_has_its_l2_term_and_the_test_loss_has_not():
    frame = table([0.0, 1.0], [1.0, 2.0], [0.5, 0.5], norm=[2.0, 4.0])
    row = summary(frame, segment(A, B), weight_decay=0.1)
    assert row["loss min"] == pytest.approx(1 + 0.05 * 4) and row["loss max"] == pytest.approx(2 + 0.05 * 16)
    assert row["test loss max"] == 2.0


def test_single_networks_come_first_with_the_ends_of_all_paths():
    t = np.linspace(0, 1, 5)
    frames = {"segment": table(t, [0.1, 2.0, 3.0, 2.0, 0.2], [0.9] * 5), "chain": table(t, [0.1, 0.15, 0.1, 0.1, 0.2], [0.9, 0.8, 0.9, 0.9, 0.7])}
    found = summaries(frames, {"segment": segment(A, B), "chain": chain([A, C, B])})
    assert found.index.tolist() == ["single", "segment", "chain"]
    single = found.loc["single"]
    assert (single["loss min"], single["loss max"]) == pytest.approx((0.1, 0.2)) and np.isnan(single["loss int"])
    assert (single["test error min"], single["test error max"]) == pytest.approx((0.1, 0.3)) and np.isnan(single["length ratio"])
    assert found["length ratio"].tolist()[1:] == pytest.approx([1, 2])


def test_a_table_of_one_split_gives_what_it_has():
    frame = table([0.0, 1.0], [1.0, 2.0], [0.5, 0.5]).query("split == 'test'")
    assert "loss max" not in summary(frame, segment(A, B)) and "test error max" in summary(frame, segment(A, B))


def test_curves_are_evaluated_at_121_points_and_other_paths_at_61():
    task = make_task()
    net = models.build("mlp", task.input_shape, 3, width=4)
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    curves = [families.bezier(a, b), families.chain(a, b), families.line(a, b), segment(a, b)]
    assert [default_points(path) for path in curves] == [121, 121, 61, 61]
    frame = evaluate(net, curves[0], task)
    assert frame.attrs["grid"] == 121
    row = summary(frame, curves[0])
    assert row["length"] == pytest.approx(distance(a, b), rel=1e-5) and row["points"] == 121
    assert evaluate(net, curves[3], task, splits=("test",)).attrs["grid"] == 61


@pytest.mark.parametrize("call, message", [
    (lambda: summary(pd.concat([table([0.0, 1.0], 1.0, 0.5)] * 2), segment(A, B)), "one row for each t and split"),
    (lambda: summaries({"a": table([0.0, 1.0], 1.0, 0.5)}, {"b": segment(A, B)}), "the same names, at least one, got \\['a'\\] and \\['b'\\]"),
    (lambda: summaries({}, {}), "at least one"),
    (lambda: summary(table([0.5], 1.0, 0.5), segment(A, B)), "at least two"),
])
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_length_of_a_path_with_swaps_has_every_swap_in_it():
    task, net = make_task(), models.build("mlp", (1, 4, 4), 3, width=17)
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2))
    path = connect(net, a, b, matching="ot")
    swaps = path.legs[1].count
    corners = [path.point(0.0), *(path.point(0.5 + k / swaps / 2) for k in range(swaps + 1))]
    exact = sum(distance(x, y) for x, y in zip(corners, corners[1:], strict=False))
    found = summary(evaluate(net, path, task, points=5), path)
    assert swaps > 10 and found["length"] == pytest.approx(exact)
