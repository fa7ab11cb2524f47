"""Figures of learned lines and of midpoints: what is drawn where, in which units, and the errors."""

import numpy as np
import pandas as pd
import pytest
import torch

from lossland import families
from lossland.figures import midpoints
from lossland.figures import subspaces as lines
from lossland.figures.pictures import Picture
from lossland.training import Fit

T = np.linspace(0, 1, 11)


def _mirrored(shift: float = 0.0) -> pd.DataFrame:
    parts = []
    for split, more in (("train", 0.02), ("test", 0.0)):
        alone, pair = 0.9 + shift + more - 0.1 * abs(T - 0.5), 0.9 + shift + more + 0.1 * abs(T - 0.5)
        parts.append(pd.DataFrame({"t": T, "split": split, "accuracy": alone, "nll": 1 - alone, "ece": 0.01,
                                   "pair_accuracy": pair, "pair_nll": 1 - pair, "pair_ece": 0.02}))
    return pd.concat(parts, ignore_index=True)


def _history(shift: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame({"epoch": range(5), "distance": 10 + shift, "cos2": np.linspace(0, 0.5, 5)})


def _scores(shift: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame({"points": [2, 2, 3, 3, 6], "noise": [0.0, 0.0, 0.2, 0.2, 0.4], "accuracy": np.linspace(0.9, 0.94, 5) + shift,
                         "ece": 0.05, "nll": 0.3})


def _changes(names=("standard", "line", "simplex"), shift: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame([{"name": name, "corruption": kind, "change": -0.3 + 0.1 * i + 0.01 * i * j + i * shift}
                         for i, name in enumerate(names) for j, kind in enumerate(("noise", "blur", "jpeg"))])


def _mixtures() -> pd.DataFrame:
    counts = {"alone": 2, "ensemble": 1, "average": 1, "global": 3, "layerwise": 3, "per-weight": 3}
    return pd.DataFrame([{"epoch": k, "what": what, "number": number + 1, "accuracy": 0.5 + 0.02 * k + 0.01 * number, "nll": 0.1, "ece": 0.1}
                         for k in (0, 5, 20) for what, count in counts.items() for number in range(count)])


ENDS = {"line": [{"tv": 0.1, "l2": 10.0, "cosine": 0.5}, {"tv": 0.2, "l2": 12.0, "cosine": 0.6}], "two": {"tv": 0.3, "l2": 15.0, "cosine": 1.0}}
DRAWN = {
    "mirrored": lambda: lines.plot_mirrored({"a": [_mirrored(), _mirrored(0.01)], "b": _mirrored(-0.02)}, baselines={"standard": [0.9, 0.91]}),
    "spread": lambda: lines.plot_spread({"a": [_history(), _history(1)]}, baselines={"cos2": {"two": 0.001}}),
    "against": lambda: midpoints.plot_against({"a": _scores(), "b": _scores(0.01)}, metrics=("accuracy", "ece")),
    "changes": lambda: midpoints.plot_changes([_changes(), _changes(shift=0.02)]),
    "mixtures": lambda: midpoints.plot_mixtures(_mixtures()), "ends": lambda: midpoints.plot_ends(ENDS),
}


def _named(figure: Picture) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _y(line) -> np.ndarray:
    return np.asarray(line.get_ydata(), dtype=float)


@pytest.mark.parametrize("name", DRAWN)
def test_figures_show_themselves_fit_a_phone_and_are_always_the_same(name):
    figure = DRAWN[name]()
    assert figure.get_size_inches()[0] == pytest.approx(5.2)
    assert figure._repr_mimebundle_()["image/png"] == DRAWN[name]()._repr_mimebundle_()["image/png"]
    for axes in figure.axes:
        box = figure.bbox
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            inside = text.get_window_extent()
            assert inside.x0 >= box.x0 - 1 and inside.x1 <= box.x1 + 1, text.get_text()


# Along lines


def test_a_line_is_dashed_alone_and_solid_in_pairs_with_the_mean_of_its_seeds():
    axes, = DRAWN["mirrored"]().axes
    alone, pair, *_ = axes.lines
    assert np.allclose(_y(alone), 100 * (0.905 - 0.1 * abs(T - 0.5))) and np.allclose(_y(pair), 100 * (0.905 + 0.1 * abs(T - 0.5)))
    assert alone.get_linestyle() != "-" and pair.get_linestyle() == "-" and alone.get_color() == pair.get_color()
    assert alone.get_markerfacecolor() == "white" and axes.lines[2].get_color() != alone.get_color()
    assert axes.get_ylabel() == "test accuracy (%)"
    assert _named(DRAWN["mirrored"]()) == ["a", "b", "standard", "P(t) alone", "P(t) and P(1 - t) together"]


def test_bands_and_baselines_are_one_deviation_wide():
    axes, = DRAWN["mirrored"]().axes
    bands = [patch.get_paths()[0].get_extents() for patch in axes.collections]
    assert len(bands) == 2  # alone and in pairs of "a"; "b" has one seed
    sd = np.std([0, 1], ddof=1)
    assert bands[0].y1 == pytest.approx(90.5 + sd) and bands[0].y0 == pytest.approx(85.5 - sd)
    level = next(line for line in axes.lines if line.get_label() == "standard")
    assert _y(level)[0] == pytest.approx(90.5)
    box = axes.patches[0].get_path().transformed(axes.patches[0].get_patch_transform()).get_extents()
    assert (box.y0, box.y1) == (pytest.approx(90.5 - sd), pytest.approx(90.5 + sd))


@pytest.mark.parametrize("metric, factor, offset, label", [("error", -100, 100, "train error (%)"), ("ece", 100, 0, "train calibration error (%)"),
                                                           ("nll", 1, 0, "train loss (nats)")])
def test_metrics_and_baselines_are_drawn_in_their_units(metric, factor, offset, label):
    axes, = lines.plot_mirrored(_mirrored(), metric=metric, split="train", baselines={"one": 0.25}).axes
    column = "accuracy" if metric == "error" else metric
    rows = _mirrored()[:11]
    assert np.allclose(_y(axes.lines[0]), rows[column] * factor + offset)
    assert np.allclose(_y(axes.lines[1]), rows[f"pair_{column}"] * factor + offset)
    assert _y(axes.lines[2])[0] == 0.25 * factor + offset and axes.get_ylabel() == label


def test_a_table_with_all_seeds_and_a_table_for_each_are_the_same():
    both = pd.concat([_mirrored().assign(seed=1), _mirrored(0.01).assign(seed=2)])
    assert lines.plot_mirrored({"a": both}).png() == lines.plot_mirrored({"a": [_mirrored(), _mirrored(0.01)]}).png()


def test_positions_outside_a_line_are_drawn_where_they_are():
    table = _mirrored().assign(t=np.tile(np.linspace(-0.1, 1.1, 11), 2))
    axes, = lines.plot_mirrored(table).axes
    assert np.allclose(axes.lines[0].get_xdata(), np.linspace(-0.1, 1.1, 11))


# Distance and angle over time


def _fit(count: int = 2) -> Fit:
    points = [{"w": torch.full((2,), float(i))} for i in range(count)]
    history = pd.DataFrame({"epoch": [0, 1], "lr": 0.1, "loss": 1.0, "distance": [3.0, 2.0], "cos2": [0.2, 0.3]})
    return Fit(families.simplex(points), history, (), {"distance": 4.0, "cos2": 0.1})


def test_the_course_of_a_run_starts_before_training():
    table = lines.course(_fit())
    assert table.to_dict("list") == {"epoch": [0, 1, 2], "distance": [4.0, 3.0, 2.0], "cos2": [0.1, 0.2, 0.3]}
    above, below = lines.plot_spread({"run": [_fit(), _fit()]}).axes
    assert _y(above.lines[0]).tolist() == [4, 3, 2] and np.allclose(_y(below.lines[0]), [0.1, 0.2, 0.3])


def test_a_single_network_has_no_course():
    fit = Fit(families.point({"w": torch.ones(2)}), pd.DataFrame({"epoch": [0], "loss": [1.0]}))
    with pytest.raises(ValueError, match="fit must be of a family of two or more free control points, got one of a point whose history has epoch, loss"):
        lines.plot_spread(fit)


def test_distance_is_above_and_the_cosine_below():
    above, below = DRAWN["spread"]().axes
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == ("l2 distance", "squared cosine", "epoch")
    assert _y(above.lines[0]).tolist() == [10.5] * 5 and above.get_ylim()[0] == 0
    assert np.allclose(_y(below.lines[0]), np.linspace(0, 0.5, 5)) and _y(below.lines[1])[0] == 0.001
    assert _named(DRAWN["spread"]()) == ["a", "two"] and len(above.lines) == 1


# Midpoints


def test_scores_stand_against_the_number_of_control_points():
    above, below = DRAWN["against"]().axes
    assert above.lines[0].get_xdata().tolist() == [2, 3, 6] and np.allclose(_y(above.lines[0]), [90.5, 92.5, 94])
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["2", "3", "6"]
    sd = np.std([90, 91], ddof=1)
    low, high = above.collections[0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(90.5 - sd), pytest.approx(90.5 + sd))
    assert below.get_ylabel() == "test calibration error (%)" and below.get_xlabel() == "m (number of control points)"


def test_label_noise_is_drawn_in_per_cent_and_baselines_at_their_metric():
    above, below = midpoints.plot_against(_scores(), x="noise", metrics=("error", "nll"), baselines={"error": {"standard": [0.9, 0.92]}}).axes
    assert np.allclose(above.lines[0].get_xdata(), [0, 20, 40]) and np.allclose(_y(above.lines[0]), [9.5, 7.5, 6])
    assert _y(above.lines[1])[0] == pytest.approx(9) and len(below.lines) == 1
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["0", "20", "40"]


def test_bars_are_differences_of_relative_changes_in_points():
    axes, = DRAWN["changes"]().axes
    line, simplex = axes.containers
    # shift 0 and 0.02 for "line": 10 + j and 12 + j points above standard
    assert [bar.get_width() for bar in line] == pytest.approx([13, 12, 11])
    assert [bar.get_width() for bar in simplex] == pytest.approx([26, 24, 22])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["jpeg", "blur", "noise"] and axes.yaxis_inverted()
    sd = np.std([12, 14], ddof=1)
    assert axes.collections[0].get_segments()[0][:, 0] == pytest.approx([13 - sd, 13 + sd])
    assert _named(DRAWN["changes"]()) == ["line", "simplex"]


def test_mixtures_stand_side_by_side_at_the_epochs_that_are_shared():
    axes, = DRAWN["mixtures"]().axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "5", "20"]
    drawn = {line.get_label(): _y(line) for line in axes.lines}
    assert np.allclose(drawn["ensemble"], [50, 60, 90]) and np.allclose(drawn["mixture, by layer"], [51, 61, 91])
    assert np.allclose(drawn["each alone"], [50.5, 60.5, 90.5])
    assert list(drawn) == ["ensemble", "average of weights", "mixture, global", "mixture, by layer", "mixture, by weight", "each alone"]
    some = _mixtures()[lambda table: table.what.isin(["alone", "average", "global"])]
    assert _named(midpoints.plot_mixtures([some, some])) == ["average of weights", "mixture, global", "each alone"]


def test_ends_have_a_panel_for_each_statistic_and_a_dot_for_each_repeat():
    figure = DRAWN["ends"]()
    assert [axes.get_title() for axes in figure.axes] == ["TV distance of outputs (%)", "l2 distance", "1 - cosine"]
    for axes, heights in zip(figure.axes, ([15, 30], [11, 15], [0.55, 1]), strict=True):
        assert [bar[0].get_height() for bar in axes.containers] == pytest.approx(heights)
    dots, = figure.axes[0].lines
    assert _y(dots).tolist() == [10, 20] and _named(figure) == ["line", "two"]


# Errors


@pytest.mark.parametrize("call, message", [
    (lambda: lines.plot_mirrored({}), "tables must not be empty, got none"),
    (lambda: lines.plot_mirrored({"a": []}), r"tables\['a'\] must hold at least one table, got none"),
    (lambda: lines.plot_mirrored({"a": _mirrored().drop(columns="pair_accuracy")}), r"tables\['a'\] must have columns pair_accuracy, got t, split"),
    (lambda: lines.plot_mirrored(_mirrored().assign(accuracy=np.nan)), r"tables\[''\] must hold finite numbers, got NaN or infinity in accuracy"),
    (lambda: lines.plot_mirrored(_mirrored(), metric="tv"), "metric must be one of 'accuracy', 'error', 'nll', 'ece'; got 'tv'"),
    (lambda: lines.plot_mirrored(_mirrored(), split="dev"), "split must be one of 'train', 'test'; got 'dev'"),
    (lambda: lines.plot_mirrored([_mirrored(), _mirrored()[:15]]), r"tables\[''\] must have equally many repeats everywhere, got 2 at 0 and 1 at 0.4"),
    (lambda: lines.plot_mirrored(_mirrored(), baselines={"x": []}), r"baselines\['x'\] must hold at least one value, all finite, got \[\]"),
    (lambda: lines.plot_mirrored(_mirrored(), baselines={"x": [0.1, np.nan]}), r"baselines\['x'\] must hold at least one value"),
    (lambda: lines.plot_spread(_history().drop(columns="cos2")), r"tables\[''\] must have columns cos2"),
    (lambda: lines.plot_spread(_history(), baselines={"l2": {"a": 1}}), "key of baselines must be one of 'distance', 'cos2'; got 'l2'"),
    (lambda: midpoints.plot_against(_scores(), x="m"), "x must be one of 'points', 'noise', 'epochs', 'severity'; got 'm'"),
    (lambda: midpoints.plot_against(_scores(), metrics="ece"), "metrics must be a sequence of one or more names, got 'ece'"),
    (lambda: midpoints.plot_against(_scores(), metrics=()), r"metrics must be a sequence of one or more names, got \(\)"),
    (lambda: midpoints.plot_against(_scores(), metrics=("loss",)), "metrics must be one of"),
    (lambda: midpoints.plot_against(_scores(), x="epochs"), r"tables\[''\] must have columns epochs"),
    (lambda: midpoints.plot_against(_scores(), baselines={"nll": {"a": 1}}), "key of baselines must be one of 'accuracy'; got 'nll'"),
    (lambda: midpoints.plot_changes(_changes(), against="plain"), "against must be one of 'standard', 'line', 'simplex'; got 'plain'"),
    (lambda: midpoints.plot_changes(_changes(("standard",))), "tables must hold a network besides 'standard', got none"),
    (lambda: midpoints.plot_changes(_changes()[:-1]), "tables must have every corruption for every name, got none for 'simplex', 'jpeg'"),
    (lambda: midpoints.plot_changes(_changes().assign(change=np.inf)), "got NaN or infinity in change"),
    (lambda: midpoints.plot_changes([]), "tables must hold a network besides 'standard', got none"),
    (lambda: midpoints.plot_mixtures(_mixtures().drop(columns="what")), "tables must have columns what"),
    (lambda: midpoints.plot_mixtures(_mixtures(), metric="distance"), "metric must be one of"),
    (lambda: midpoints.plot_ends({"line": {"tv": 0.1, "l2": 1.0}}), r"tables\['line'\] must have columns cosine"),
    (lambda: midpoints.plot_ends({}), "tables must not be empty"),
])
def test_bad_tables_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ticks_are_those_that_the_layout_has_room_for():
    table = _mixtures().assign(accuracy=lambda rows: 0.96 + 0.0185 * (rows.epoch == 20))  # ticks every 0.25 or 0.5
    figure = midpoints.plot_mixtures(table)
    figure.png()
    assert figure.axes[0].yaxis.label.get_window_extent().x0 >= 0


def test_what_keeps_no_history_is_refused():
    family = families.point({"w": torch.ones(2)})
    with pytest.raises(TypeError, match=r"tables must be a table or what training returned \(a Fit: its family alone has no history\)"):
        lines.plot_spread(family)
    with pytest.raises(TypeError, match=r"tables\['line'\] must be a table .* got Family"):
        lines.plot_spread({"line": [family]})
