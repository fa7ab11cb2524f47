"""Figures of ensembles: what is drawn where, in which units, and the errors."""

import numpy as np
import pandas as pd
import pytest

from lossland.figures import ensembles as figures
from lossland.figures.pictures import Picture


def _members(count: int = 4) -> pd.DataFrame:
    parts = []
    for split, shift in (("train", 0.02), ("test", 0.0)):
        number = np.arange(1, count + 1)
        parts.append(pd.DataFrame({"members": number, "split": split, "nll": 0.3 / number, "ece": 0.01 * number,
                                   "accuracy": 0.9 + shift + 0.01 * number, "single_nll": 0.3 + 0.01 * number,
                                   "single_accuracy": 0.9 + shift - 0.01 * number, "single_ece": 0.02 * number,
                                   "epoch": 10 + 2 * number}))
    return pd.concat(parts, ignore_index=True)


def _run(count: int = 21) -> pd.DataFrame:
    iteration = np.arange(count) * 5
    return pd.DataFrame({"iteration": iteration, "lr": np.where(iteration, 0.1 / (1 + iteration), 0),
                         "error": 0.02 + 0.001 * iteration, "distance": 0.5 * iteration, "member": iteration % 20 == 10})


def _pairs() -> pd.DataFrame:
    t = np.linspace(0, 1, 11)
    parts = [pd.DataFrame({"way": way, "t": t, "split": "test", "distance": 7 * t, "nll": 0.1 + k * t,
                           "accuracy": 0.9 + 0.02 * k * t, "ece": 0.01, "single_nll": 0.1 + t, "single_ece": 0.02,
                           "single_accuracy": 0.9 - 0.1 * t}) for k, way in enumerate(("curve", "segment", "random"))]
    return pd.concat(parts, ignore_index=True)


def _curve(rescale: bool = True) -> pd.DataFrame:
    t = np.linspace(0, 1, 6)
    parts = []
    for way in (False, True) if rescale else (False,):
        parts.append(pd.DataFrame({"t": t, "rescaled": way, "members": np.arange(1, 7), "split": "test",
                                   "temperature": 1 + way, "nll": 0.2 - 0.1 * way + t[::-1], "accuracy": 0.95 + 0.01 * way - t[::-1],
                                   "ece": 0.01, "single_nll": (0.3 - 0.1 * way) + t, "single_accuracy": 0.9 - 0.1 * t,
                                   "single_ece": 0.02}))
    return pd.concat(parts, ignore_index=True)


MATRIX = pd.DataFrame([[0, 0.25, 0.1], [0.25, 0, 0.3], [0.1, 0.3, 0]], index=[1, 2, 3], columns=[1, 2, 3])
DRAWN = {
    "members": lambda: figures.plot_members({"FGE": _members(), "SSE": _members(2)}),
    "run": lambda: figures.plot_run(_run()), "pairs": lambda: figures.plot_pairs(_pairs()),
    "rescaling": lambda: figures.plot_rescaling(_curve()), "matrix": lambda: figures.plot_matrix(MATRIX),
}


def _lines(figure: Picture, panel: int = 0) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[panel].lines}


def _named(figure: Picture) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_as_wide_as_the_page_and_the_same_every_time(name):
    figure = DRAWN[name]()
    assert isinstance(figure, Picture) and figure.get_figwidth() == pytest.approx(5.2)
    assert figure.png() == DRAWN[name]().png()
    for text in [*figure.axes[0].texts, *(legend for legend in figure.legends)]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_ensembles_are_lines_and_members_alone_are_open_marks():
    figure = DRAWN["members"]()
    lines = _lines(figure)
    test = _members().query("split == 'test'")
    np.testing.assert_allclose(lines["FGE, members so far together"], 100 - 100 * test["accuracy"])
    np.testing.assert_allclose(lines["FGE, each alone"], 100 - 100 * test["single_accuracy"])
    assert len(lines["SSE, each alone"]) == 2 and list(lines) == _named(figure)
    together, alone, other, _ = figure.axes[0].lines
    assert alone.get_linestyle() == "None" and alone.get_markerfacecolor() == "white" != together.get_markerfacecolor()
    assert alone.get_marker() == together.get_marker() != other.get_marker()
    assert figure.axes[0].get_ylabel() == "test error (%)" and figure.axes[0].get_xlabel() == "members"


def test_ensembles_may_be_drawn_against_training_time():
    figure = figures.plot_members(_members(), metric="nll", split="train", against="epoch")
    assert figure.axes[0].lines[0].get_xdata().tolist() == [12, 14, 16, 18]
    np.testing.assert_allclose(_lines(figure)["each alone"], 0.3 + 0.01 * np.arange(1, 5))
    assert figure.axes[0].get_xlabel() == "training time (epochs)"
    assert figure.axes[0].get_ylabel() == "train loss (nats)"


def test_a_run_has_three_panels_and_circles_where_members_are_taken():
    figure = figures.plot_run(_run().sample(frac=1, random_state=0), split="train")
    rate, error, away = figure.axes
    np.testing.assert_allclose(error.lines[0].get_ydata(), 100 * _run()["error"])
    np.testing.assert_allclose(away.lines[0].get_ydata(), _run()["distance"])
    assert rate.lines[0].get_xdata().tolist() == list(range(5, 101, 5))  # no learning rate at the start
    for axes in figure.axes:
        assert axes.lines[1].get_xdata().tolist() == [10, 30, 50, 70, 90]
    assert [axes.get_ylabel() for axes in figure.axes] == ["learning rate", "train error (%)", "l2 distance"]
    assert _named(figure) == ["taken into the ensemble"]
    assert not figures.plot_run(_run().assign(member=False)).legends


def test_pairs_are_one_line_per_way_and_the_start_alone():
    figure = figures.plot_pairs(_pairs(), levels={"two independent": 7.5})
    lines = _lines(figure)
    assert list(lines) == ["curve", "segment", "random", "the start alone", "two independent"]
    np.testing.assert_allclose(lines["segment"], 10 - 2 * np.linspace(0, 1, 11))
    np.testing.assert_allclose(lines["the start alone"], 10)
    np.testing.assert_allclose(lines["two independent"], 7.5)
    far = figures.plot_pairs(_pairs(), against="distance", metric="nll")
    assert far.axes[0].lines[0].get_xdata()[-1] == 7 and far.axes[0].get_ylabel() == "test loss (nats) of two"


def test_losses_are_drawn_before_and_after_rescaling_and_errors_once():
    lines = _lines(figures.plot_rescaling(_curve(), levels={"three nets": 0.15}))
    t = np.linspace(0, 1, 6)
    np.testing.assert_allclose(lines["each alone, before rescaling"], 0.3 + t)
    np.testing.assert_allclose(lines["each alone, after rescaling"], 0.2 + t)
    np.testing.assert_allclose([lines["all 6 together, before"][0], lines["all 6 together, after"][0]], [0.2, 0.1])
    assert len(lines) == 5
    figure = figures.plot_rescaling(_curve(), metric="error")
    errors = _lines(figure)
    assert len(figure.axes[0].lines) == 3
    assert list(errors) == ["each alone", "all 6 together, before", "all 6 together, after"]
    np.testing.assert_allclose(errors["all 6 together, after"], 4)
    assert list(_lines(figures.plot_rescaling(_curve(False)))) == ["each alone", "all 6 together"]
    assert list(_lines(figures.plot_rescaling(_curve(), together=False, metric="accuracy"))) == ["each alone"]


def test_a_matrix_shows_its_numbers_and_leaves_the_diagonal_empty():
    figure = DRAWN["matrix"]()
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(0, 1): "25", (1, 0): "25", (0, 2): "10", (2, 0): "10", (1, 2): "30", (2, 1): "30"}
    assert figure.axes[1].get_ylabel() == "images classified differently (%)"
    far = figures.plot_matrix(MATRIX, what="distance")
    assert {text.get_text() for text in far.axes[0].texts} == {"0.25", "0.10", "0.30"}
    assert far.axes[1].get_ylabel() == "l2 distance"


def test_a_large_matrix_has_no_numbers_and_few_ticks():
    values = 1 - np.eye(30)
    figure = figures.plot_matrix(pd.DataFrame(values, index=range(1, 31), columns=range(1, 31)))
    assert not figure.axes[0].texts and len(figure.axes[0].get_xticks()) == 10


@pytest.mark.parametrize("call, message", [
    (lambda: figures.plot_members({}), "tables must not be empty, got none"),
    (lambda: figures.plot_members(_members(), metric="loss"), "metric must be one of 'error', 'accuracy', 'nll', 'ece'; got"),
    (lambda: figures.plot_members(_members(), split="validation"), "split must be one of 'train', 'test'; got 'validation'"),
    (lambda: figures.plot_members(_members(), against="time"), "against must be one of 'members', 'epoch'"),
    (lambda: figures.plot_members(_members().drop(columns="epoch"), against="epoch"), r"tables\[''\] must have columns epoch"),
    (lambda: figures.plot_members({"a": _members().drop(columns="single_accuracy")}), r"tables\['a'\] must have columns single_accuracy"),
    (lambda: figures.plot_members({"a": _members().drop(columns="members")}), r"tables\['a'\] must have columns members, got"),
    (lambda: figures.plot_members(pd.concat([_members()] * 2)), "one row for each members on a split, got several for members = 1"),
    (lambda: figures.plot_members(_members().assign(nll=np.nan), metric="nll"), "must hold numbers, got NaN in nll"),
    (lambda: figures.plot_members(_members().assign(single_nll=np.nan), metric="nll"), "got NaN in single_nll"),
    (lambda: figures.plot_run(_run().drop(columns=["lr", "member"])), "frame must have columns lr, member, got iteration"),
    (lambda: figures.plot_run(_run(1)), "frame must hold at least two rows of finite numbers, got 1 rows"),
    (lambda: figures.plot_run(_run().assign(error=np.nan)), "at least two rows of finite numbers"),
    (lambda: figures.plot_pairs(_pairs().drop(columns="way")), "frame must have columns way"),
    (lambda: figures.plot_pairs(pd.concat([_pairs()] * 2)), "got several for way = curve, t = 0.0"),
    (lambda: figures.plot_pairs(_pairs(), against="epoch"), "against must be one of 't', 'distance'"),
    (lambda: figures.plot_rescaling(_curve().drop(columns="rescaled")), "frame must have columns rescaled"),
    (lambda: figures.plot_rescaling(_curve(), metric="distance"), "metric must be one of"),
    (lambda: figures.plot_matrix(MATRIX.iloc[:2]), r"table must be finite and square, of at least two members, got shape \(2, 3\)"),
    (lambda: figures.plot_matrix(MATRIX.iloc[:1, :1]), "at least two members"),
    (lambda: figures.plot_matrix(MATRIX * np.nan), "table must be finite and square"),
    (lambda: figures.plot_matrix(MATRIX, what="angle"), "what must be one of 'disagreement', 'distance'; got 'angle'"),
])
def test_bad_tables_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
