"""Figures, the slider and the tables: what they contain, the bytes they give, and the errors."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Ellipse
from PIL import Image

from lossland import figures, tables
from lossland.figures import pictures, planes
from lossland.figures.slider import Slider, slider
from lossland.paths import segment

T = np.linspace(0, 1, 21)


def _frame(depth: float = 0.1, legs: int = 1, pairs: int = 0) -> pd.DataFrame:
    parts = []
    for pair in range(max(pairs, 1)):
        for split, shift in (("train", 0.02), ("test", 0.0)):
            accuracy = 0.97 + shift - (depth + 0.01 * pair) * np.sin(np.pi * T) ** 2
            part = pd.DataFrame({"t": T, "leg": np.minimum((T * legs).astype(int), legs - 1), "split": split})
            part = part.assign(nll=0.05 + 3 * (1 - accuracy), accuracy=accuracy, ece=0.1 * accuracy, distance=4 * T)
            parts.append(part.assign(pair=pair) if pairs else part)
    return pd.concat(parts, ignore_index=True)


def _plane() -> pd.DataFrame:
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(-2, 12, 15), np.linspace(-1, 9, 11)))
    bowl = np.minimum(x**2 + y**2, (x - 10) ** 2 + y**2)
    frame = pd.DataFrame({"x": x, "y": y, "nll": 0.02 + 0.05 * bowl, "accuracy": 1 / (1 + 0.1 * bowl)})
    frame.attrs.update(points={"w1": (0.0, 0.0), "w2": (10.0, 0.0), "w3": (4.0, 8.0)}, split="train")
    return frame


def _lines(figure: pictures.Picture) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_stands_out_from_white() -> None:
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in pictures.COLOURS:
        assert _contrast(colour, "#ffffff") >= 3


def test_the_colours_of_the_slider_stand_out_from_both_backgrounds_of_the_dark_theme() -> None:
    for colour in pictures.COLOURS[:2]:
        assert min(_contrast(colour, "#121212"), _contrast(colour, "#ced6dd")) >= 3


def test_lines_differ_in_dash_and_marker_as_well_as_in_colour() -> None:
    figure = figures.plot_path({name: _frame(k / 20) for k, name in enumerate("abcde")}, ends=False)
    lines = figure.axes[0].lines
    assert len(lines) == 5
    for feature in ("get_color", "get_marker"):
        assert len({getattr(line, feature)() for line in lines}) == 5
    assert len({str(line._dash_pattern) for line in lines}) == 5


def test_accuracy_is_drawn_in_per_cent_with_its_unit() -> None:
    figure = figures.plot_path({"arc": _frame()})
    table = _frame().query("split == 'test'")
    np.testing.assert_allclose(_lines(figure)["arc"], 100 * table["accuracy"])
    assert figure.axes[0].get_ylabel() == "test accuracy (%)"
    assert figure.axes[0].get_xlabel() == "t (position on the path)"
    error = figures.plot_path({"arc": _frame()}, metric="error", split="train")
    np.testing.assert_allclose(_lines(error)["arc"], 100 - 100 * _frame().query("split == 'train'")["accuracy"])
    assert error.axes[0].get_ylabel() == "train error (%)"


def test_the_dotted_line_is_the_mean_of_the_end_points() -> None:
    lifted = _frame().assign(accuracy=lambda table: table["accuracy"] - 0.1 * (table["t"] == 1))
    lines = _lines(figures.plot_path({"a": _frame(), "b": lifted}))
    np.testing.assert_allclose(lines["end points' mean"], 100 * (0.97 * 3 + 0.87) / 4)
    assert "end points' mean" not in _lines(figures.plot_path({"a": _frame()}, ends=False))


def test_two_splits_give_a_solid_and_a_dashed_line_of_one_colour() -> None:
    figure = figures.plot_path({"arc": _frame()}, split=("train", "test"), ends=False)
    train, test = figure.axes[0].lines
    assert (train.get_label(), test.get_label()) == ("arc, train", "arc, test")
    assert train.get_color() == test.get_color() and train.get_linestyle() != test.get_linestyle()


@pytest.mark.parametrize(("band", "note"), [("range", "minimum to maximum"), ("deviation", "one deviation each way")])
def test_repeats_become_a_mean_line_and_a_band_that_the_legend_names(band: str, note: str) -> None:
    frame = _frame(pairs=3)
    figure = figures.plot_path({"arc": frame}, band=band)
    values = frame.query("split == 'test'").groupby("t")["accuracy"]
    np.testing.assert_allclose(_lines(figure)["arc"], 100 * values.mean())
    area = figure.axes[0].collections[0].get_paths()[0].vertices
    half = 100 * (values.max() - values.mean() if band == "range" else values.std()).max()
    assert np.ptp(area[np.isclose(area[:, 0], 0.5), 1]) == pytest.approx(2 * half)
    assert note in [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.axes[0].get_ylabel().endswith(", mean of 3")


def test_without_a_band_only_lines_remain() -> None:
    assert not figures.plot_path({"arc": _frame(pairs=3)}, band="none").axes[0].collections


def test_boundaries_of_legs_are_marked_and_a_crowd_of_them_is_not() -> None:
    def marks(legs: int) -> list[float]:
        figure = figures.plot_path(_frame(legs=legs), ends=False)
        return [line.get_xdata()[0] for line in figure.axes[0].lines[1:]]

    assert marks(1) == []
    np.testing.assert_allclose(marks(4), [0.25, 0.5, 0.75])
    assert marks(20) == []


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    figure = figures.plot_path({"arc": _frame(0.3)}, metric="nll", log=True)
    assert figure.axes[0].get_yscale() == "log"
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels(which="both")]
    assert "0.5" in labels and not any("10^" in label or "times" in label for label in labels)


def test_the_legend_stays_inside_the_figure() -> None:
    figure = figures.plot_path({f"a rather long name of a path, {k}": _frame(k / 20) for k in range(3)})
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width
    assert figure.legends[0]._ncols == 1


def test_levels_are_logarithmic_above_the_minimum_and_the_colour_bar_shows_them() -> None:
    figure = figures.plot_plane(_plane(), levels=6)
    ticks = figure.axes[1].get_yticks()
    steps = np.diff(np.log(ticks - 0.02))
    assert len(ticks) == 6
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == [f"{t:#.3g}".rstrip(".") for t in ticks]
    assert figure.axes[1].get_ylabel() == "train loss (nats)"


def test_levels_of_accuracy_close_up_to_the_best_value_and_are_per_cent() -> None:
    ticks = figures.plot_plane(_plane(), metric="accuracy").axes[1].get_yticks()
    steps = np.diff(np.log(100 - ticks))
    assert (np.diff(ticks) > 0).all() and ticks[-1] > 90
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_given_levels_are_kept() -> None:
    np.testing.assert_allclose(figures.plot_plane(_plane(), levels=[0.1, 1, 3]).axes[1].get_yticks(), [0.1, 1, 3])


def test_rows_of_a_plane_may_come_in_any_order() -> None:
    shuffled = _plane().sample(frac=1, random_state=3)
    assert figures.plot_plane(shuffled).png() == figures.plot_plane(_plane()).png()


def test_a_missing_cell_is_masked_and_so_is_nan_and_infinity() -> None:
    frame = _plane()
    _, _, whole = planes._cells(frame, "nll")
    assert not whole.mask.any()
    frame.loc[5, "nll"], frame.loc[7, "nll"] = np.nan, np.inf
    _, _, holes = planes._cells(frame.drop(index=20), "nll")
    assert [tuple(place) for place in np.argwhere(holes.mask)] == [(0, 5), (0, 7), (1, 5)]
    assert figures.plot_plane(frame.drop(index=20)).png() != figures.plot_plane(_plane()).png()


def test_points_and_curves_are_marked_at_equal_scales() -> None:
    curve = torch.tensor([[0.0, 0.0], [5.0, 6.0], [10.0, 0.0]])
    axes = figures.plot_plane(_plane(), path_xy={"Bezier": curve}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["w1", "w2", "w3"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), curve)
    assert axes.get_aspect() == 1


@pytest.mark.parametrize("curve", ["bezier", "chain"])
@pytest.mark.parametrize("height", [5.0, 12.0, -5.0])
def test_labels_of_marks_stay_off_the_curve_and_in_the_panel(curve: str, height: float) -> None:
    t = np.linspace(0, 1, 121)[:, None]
    ends, bend = (np.array([0.0, 0.0]), np.array([20.0, 0.0])), np.array([10.0, height])
    bezier = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * bend + t**2 * ends[1]
    way = bezier if curve == "bezier" else np.array([ends[0], bend, ends[1]])
    x, y = np.meshgrid(np.linspace(-8, 28, 9), np.linspace(min(0, height) - 3, max(0, height) + 3, 9))
    frame = pd.DataFrame({"x": x.ravel(), "y": y.ravel(), "nll": 0.1 + (x.ravel() - 10) ** 2 + y.ravel() ** 2})
    frame.attrs["points"] = {"A": ends[0], "B": ends[1], "bend": bend}
    figure = figures.plot_plane(frame, path_xy={"way": way})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    dense = np.concatenate([np.linspace(a, b, 20) for a, b in zip(way[:-1], way[1:], strict=True)])
    for text in axes.texts:
        box = text.get_window_extent()
        assert not box.count_contains(axes.transData.transform(dense)), text.get_text()
        assert axes.bbox.x0 <= box.x0 and axes.bbox.y0 <= box.y0 and box.x1 <= axes.bbox.x1 and box.y1 <= axes.bbox.y1


def test_a_plane_that_is_hardly_higher_than_a_line_is_stretched_and_says_so() -> None:
    frame = _plane()
    frame["y"] /= 20
    axes = figures.plot_plane(frame).axes[0]
    assert axes.get_aspect() == "auto" and axes.get_ylabel() == "y, stretched (l2 distance)"


def test_one_of_several_splits_is_drawn_and_the_loss_has_its_l2_term() -> None:
    parts = [_plane().assign(split=name, nll=lambda f, k=k: f["nll"] + k, norm=2.0) for k, name in enumerate(("train", "test"))]
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs["split"] = ("train", "test")
    figure = figures.plot_plane(frame, split="test", weight_decay=0.5)
    assert figure.axes[1].get_ylabel() == "test regularised loss (nats)"
    lowest = figure.axes[1].get_yticks()[0]
    assert 1.02 + 0.25 * 4 < lowest < 1.02 + 0.25 * 4 + 0.5
    assert figures.plot_plane(frame, split="train", metric="error").axes[1].get_ylabel() == "train error (%)"
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'test'\], .* got None"):
        figures.plot_plane(frame)
    with pytest.raises(ValueError, match="weight_decay must be 0 for metric 'error'"):
        figures.plot_plane(frame, split="test", metric="error", weight_decay=0.1)


def test_a_table_of_coordinates_is_a_curve() -> None:
    curve = pd.DataFrame({"t": [0.0, 0.5, 1.0], "x": [0.0, 5.0, 10.0], "y": [0.0, 6.0, 0.0], "away": 0.0})
    axes = figures.plot_plane(_plane(), path_xy={"Bezier": curve}).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), curve[["x", "y"]])


def test_a_flat_plane_can_be_drawn() -> None:
    assert figures.plot_plane(_plane().assign(nll=0.3)).png()


def test_ellipses_are_the_covariance_of_the_sample_and_of_the_start() -> None:
    xy = np.random.default_rng(0).standard_normal((500, 2)) @ np.array([[2.0, 0.0], [0.0, 0.5]])
    figure = figures.plot_clouds({"linear": [xy, xy / 2], "arc": [torch.tensor(xy), xy]}, [0, 0.5])
    assert [axes.get_title() for axes in figure.axes] == ["t = 0", "t = 0.5", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["linear", "", "arc", ""]
    now, start = (patch for patch in figure.axes[1].patches if isinstance(patch, Ellipse))
    sizes = np.sort([start.width, start.height])
    np.testing.assert_allclose(sizes, 2 * np.sqrt(np.linalg.eigvalsh(np.cov(xy.T))))
    np.testing.assert_allclose(np.sort([now.width, now.height]), sizes / 2)
    corners = now.get_transform().transform_path(now.get_path()).vertices
    across, up = np.ptp(figure.axes[1].transData.inverted().transform(corners), axis=0)
    assert across > 3 * up  # the long side lies along x


def test_clouds_share_their_scales() -> None:
    xy = np.random.default_rng(1).standard_normal((50, 2))
    figure = figures.plot_clouds({"a": [xy, 3 * xy], "b": [xy, xy + 1]}, [0, 1])
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1


FIGURES = {
    "path": lambda: figures.plot_path({"arc": _frame(pairs=3), "linear": _frame(0.3, pairs=3)}),
    "plane": lambda: figures.plot_plane(_plane()),
    "clouds": lambda: figures.plot_clouds({"arc": [np.eye(2), np.eye(2)]}, [0, 1]),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_give_the_same_small_png_and_svg_every_time(draw) -> None:
    first, second = draw(), draw()
    bundle = first._repr_mimebundle_()
    assert bundle == first._repr_mimebundle_() == second._repr_mimebundle_()
    png = base64.b64decode(bundle["image/png"])
    assert len(png) < 60_000 and Image.open(io.BytesIO(png)).width < 800
    texts = []
    for figure in (first, second, first):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        texts.append(buffer.getvalue())
    assert texts[0] == texts[1] == texts[2] and b"<dc:date>" not in texts[0]


def test_pyplot_never_learns_of_a_figure() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figures.plot_path(_frame())
    assert pyplot.get_fignums() == before


class _Page(HTMLParser):
    VOID = {"input", "br", "path", "line", "polyline", "circle"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def _slider(**changes) -> Slider:
    settings = {"frame": _frame(), "title": "Segment", "alt": "The accuracy dips.", **changes}
    return slider(settings.pop("frame"), **settings)


def test_a_slider_has_one_point_one_row_and_one_step_for_each_t() -> None:
    page = _Page(_slider().html)
    (control,) = page.all("input")
    assert (control["type"], control["min"], control["max"], control["value"]) == ("range", "0", "20", "0")
    lines = page.all("polyline")
    assert [len(line["points"].split()) for line in lines] == [21, 21]
    rows = [row.split() for row in page.all("div")[0]["data-rows"].split("|")]
    table = _frame().query("split == 'test'")
    assert [float(row[0]) for row in rows] == pytest.approx(list(T))
    assert [float(row[1]) for row in rows] == pytest.approx(list(100 * table["accuracy"]), abs=0.051)
    assert [float(row[2]) for row in rows] == pytest.approx(list(table["nll"]), abs=0.00051)


def test_a_slider_says_the_start_without_a_script_and_the_same_to_a_screen_reader() -> None:
    page = _Page(_slider().html)
    said = "t = 0.00: accuracy 97.0 %, loss 0.140 nats"
    assert said in "".join(page.words)
    assert page.all("input")[0]["aria-valuetext"] == said
    assert len(page.all("b")) == len(page.all("div")[0]["data-rows"].split("|")[0].split()) == 3
    assert len(page.all("circle")) == len(page.all("polyline"))
    first = page.all("polyline")[0]["points"].split()[0]
    assert f"{page.all('circle')[0]['cx']},{page.all('circle')[0]['cy']}" == first


def test_a_slider_is_labelled_drawn_as_an_image_and_visible_in_focus() -> None:
    text = _slider().html
    page = _Page(text)
    assert re.search(r"<label>[^<]+<input ", text) and ":focus-visible" in text
    assert page.all("svg")[0]["role"] == "img"
    assert "<title>Segment</title><desc>The accuracy dips.</desc>" in text
    assert "currentColor" in text


def test_a_slider_asks_nothing_of_the_network_and_leaves_nothing_global() -> None:
    page = _Page(_slider().html)
    assert not page.all("script") and not page.all("link") and not page.all("img")
    assert not any({"id", "src", "href"} & set(attributes) for _, attributes in page.tags)
    (rules,) = re.findall(r"<style>(.*?)</style>", _slider().html)
    name = page.all("div")[0]["class"]
    selectors = [part for rule in rules.split("}") if rule for part in rule.partition("{")[0].split(",")]
    assert len(selectors) >= 5 and all(selector.startswith("." + name) for selector in selectors)
    assert "url(" not in rules and "http" not in _slider().html


def test_sliders_differ_in_their_class_and_repeat_to_the_byte() -> None:
    assert _slider() == _slider()
    changes = ({}, {"title": "Arc"}, {"split": "train"})
    assert len({_Page(_slider(**change).html).all("div")[0]["class"] for change in changes}) == 3


def test_markup_in_words_is_escaped() -> None:
    nasty = "<script>alert('1')</script> & \"x\""
    text = _slider(frame={nasty: _frame(), "b": _frame(0.2)}, title=nasty, alt=nasty).html
    page = _Page(text)
    assert not page.all("script") and "<script" not in text
    assert page.all("div")[0]["aria-label"] == nasty
    assert "".join(page.words).count(nasty) == 4  # heading, title, description, name of the path


def test_two_paths_differ_in_dash_and_are_named() -> None:
    page = _Page(_slider(frame={"segment": _frame(), "arc": _frame(0.02)}).html)
    assert ["stroke-dasharray" in line for line in page.all("polyline")] == [False, True] * 2
    assert page.all("input")[0]["aria-valuetext"].count("accuracy 97.0 %") == 2
    assert {"segment", "arc"} <= set(re.findall(r"\w+", page.all("input")[0]["aria-valuetext"]))


def test_a_slider_of_sixty_one_points_is_about_five_kilobytes() -> None:
    t = np.linspace(0, 1, 61)
    frame = pd.DataFrame({"t": t, "split": "test", "accuracy": 0.9 + 0.05 * np.cos(9 * t), "nll": 0.3 + t})
    assert len(_slider(frame=frame).html) < 6500


def test_a_slider_shows_itself_as_html_with_a_png_behind_it() -> None:
    bundle = _slider()._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).format == "PNG"
    assert len(base64.b64decode(bundle["image/png"])) < 60_000
    assert "Segment" in bundle["text/plain"] and "The accuracy dips." in bundle["text/plain"]


def test_mean_and_deviation_by_hand() -> None:
    assert tables.mean_sd([0.968, 0.971, 0.974]) == "97.1 ± 0.3"
    assert tables.mean_sd(torch.tensor([1.0, 3.0]), percent=False) == "2.000 ± 1.414"
    assert tables.mean_sd([0.5], digits=2) == "50.00 (one run)"
    assert tables.mean_sd([0.5], alone="one pair") == "50.0 (one pair)" and tables.mean_sd([0.5], alone="") == "50.0"
    assert tables.mean_sd([]) == tables.mean_sd(None) == "not run"


ROWS = [
    {"quantity": "AY20 Table 3, Linear <1>", "paper": "<82 | 1", "run": 81.25, "comparable": "shape only: other data"},
    {"quantity": "Arc", "paper": None, "recorded": float("nan"), "run": "", "comparable": "no"},
]


def test_a_results_table_has_caption_and_headers_and_no_empty_cell() -> None:
    page = _Page(tables.results_table(ROWS, caption="Worst & best")._repr_html_())
    heads = page.all("th")
    assert [head["scope"] for head in heads] == ["col"] * 5 + ["row"] * 2
    assert len(page.all("td")) == 8 and len(page.all("caption")) == 1
    assert page.words == [
        "Worst & best", "quantity (paper, table, cell)", "paper", "recorded run", "this run", "comparable?",
        "AY20 Table 3, Linear <1>", "<82 | 1", "not run", "81.25", "shape only: other data",
        "Arc", "not given", "not run", "not run", "no",
    ]


def test_no_line_ends_between_a_mean_and_its_deviation() -> None:
    shown = tables.table(pd.DataFrame({"of": ["a ± b"], "worst": ["97.1 ± 0.3"]}), caption="c")
    assert _Page(shown._repr_html_()).words[-1] == "97.1\u00a0±\u00a0" + "0.3"
    assert "97.1 ± 0.3" in repr(shown) and "97.1 ± 0.3" in shown._repr_markdown_()


def test_a_results_table_reads_well_in_a_terminal_and_in_markdown() -> None:
    table = tables.results_table(ROWS, caption="Worst")
    lines = repr(table).splitlines()
    assert lines[0] == "Worst" and len(lines) == 6
    assert len({line.index(word) for line, word in zip(lines[4:], ("not run", "not run"), strict=True)}) == 1
    assert "<82 \\| 1" in table._repr_markdown_() and table._repr_markdown_().startswith("**Worst**\n\n| quantity")


def test_any_frame_becomes_a_table_whose_index_heads_the_rows() -> None:
    frame = pd.DataFrame({"t": [0.0, 0.5], "accuracy": [1 / 3, np.nan]})
    plain = tables.table(frame, caption="c")
    assert plain.columns == ("t", "accuracy") and plain.rows == (("0", "0.3333"), ("0.5", "not run"))
    several = tables.table(frame.assign(n=[1, 2]).set_index(["n", "t"]), caption="c", missing="none", digits=2)
    assert several.headers == 2 and several.rows == (("1", "0", "0.33"), ("2", "0.5", "none"))
    page = _Page(several._repr_html_())
    assert len(page.all("th")) == 3 + 2 * 2 and len(page.all("td")) == 2
    both = tables.table(frame.groupby("t").agg(["mean", "min"]), caption="c")
    assert both.columns == ("t", "accuracy, mean", "accuracy, min")


def test_a_sortable_table_has_a_button_in_every_heading_and_no_script_element() -> None:
    frame = pd.DataFrame({"method": ["Arc"], "worst <%>": ["97.1"]})
    html = tables.table(frame, caption="c", sortable=True)._repr_html_()
    page = _Page(html)
    assert len(page.all("button")) == 2 and [head.get("aria-sort") for head in page.all("th")] == ["none", "none", None]
    assert "closest('table')" in page.all("thead")[0]["onclick"] and "<script" not in html
    assert "<button" not in tables.table(frame, caption="c")._repr_html_()
    assert repr(tables.table(frame, caption="c", sortable=True)) == repr(tables.table(frame, caption="c"))


def test_folded_tables_name_themselves_and_keep_their_captions() -> None:
    one = tables.table(pd.DataFrame({"a": [1]}), caption="inside")
    folds = tables.Folds({"Table 1 <half>": one, "Table 2": one})
    page = _Page(folds._repr_html_())
    assert len(page.all("details")) == len(page.all("summary")) == len(page.all("caption")) == 2
    assert page.words[:2] == ["Table 1 <half>", "inside"] and repr(folds) == "Table 1 <half>\nTable 2"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: figures.plot_path(_frame(), metric="acuracy"),
            r"metric must be one of 'accuracy', 'error', .*'distance'; got 'acuracy' \(did you mean 'accuracy'",
        ),
        (lambda: figures.plot_path(_frame(), band="sd"), "band must be one of 'range', 'deviation', 'none'; got 'sd'"),
        (lambda: figures.plot_path(_frame(), split="val"), "split must be one of 'train', 'test'; got 'val'"),
        (lambda: figures.plot_path({}), "frames and split must not be empty, got 0 tables"),
        (
            lambda: figures.plot_path({"arc": _frame().drop(columns=["nll", "t"])}, metric="nll"),
            r"frames\['arc'\] must have columns t, nll, got leg, split, accuracy",
        ),
        (
            lambda: figures.plot_path({"arc": _frame(pairs=2).drop(columns="pair")}),
            r"frames\['arc'\] must have one row per t, split and repeat .*pair, seed\): 1 for each t, got 2 at t = 0",
        ),
        (lambda: figures.plot_path(_frame(pairs=2).drop(index=0), split="train"), "2 for each t, got 1 at t = 0"),
        (lambda: figures.plot_path(_frame().replace({"t": {0.5: 0.75}})), "1 for each t, got 2 at t = 0.75"),
        (lambda: figures.plot_path({"a": _frame().assign(accuracy=np.nan)}), "got NaN accuracy at t = 0"),
        (
            lambda: figures.plot_path({"a": _frame()}, metric="distance", log=True),
            r"log must be False where distance is not positive, got 0 in frames\['a'\]",
        ),
        (lambda: figures.plot_plane(_plane(), metric="distance"), "metric must be one of .*'ece'; got 'distance'"),
        (lambda: figures.plot_plane(_plane().drop(columns="y")), "frame must have columns y, got x, nll, accuracy"),
        (lambda: figures.plot_plane(_plane(), levels=1), "levels must be >= 2, got 1"),
        (lambda: figures.plot_plane(_plane(), levels=[2, 1]), r"at least two increasing values, got \[2, 1\]"),
        (lambda: figures.plot_plane(_plane().query("x == 0")), "frame must hold at least 2 x 2 cells, got 1 x 11"),
        (lambda: figures.plot_plane(_plane().assign(nll=np.nan)), "frame must hold a finite nll, got none"),
        (
            lambda: figures.plot_plane(pd.concat([_plane(), _plane()[3:4]])),
            "frame must give every cell once, got x = 1, y = -1 twice",
        ),
        (
            lambda: figures.plot_plane(_plane(), path_xy={"Bezier": np.zeros((3, 3))}),
            r"path_xy\['Bezier'\] must be finite with shape \(n, 2\), n >= 2, got shape \(3, 3\)",
        ),
        (lambda: figures.plot_clouds({}, [0]), "clouds and times must not be empty, got 0 methods and 1 times"),
        (lambda: figures.plot_clouds({"a": [np.eye(2)]}, [0, 1]), r"clouds\['a'\] must hold one .* per time, 2, got 1"),
        (lambda: figures.plot_clouds({"a": [np.eye(2) * np.nan]}, [0.5]), r"clouds\['a'\] at t = 0.5 must be finite"),
        (lambda: _slider(title=" "), "title must be a text that is not empty, got ' '"),
        (lambda: _slider(alt=""), "alt must be a text that is not empty, got ''"),
        (lambda: _slider(metrics="nll"), "metrics must be a sequence of names"),
        (lambda: _slider(metrics=["loss"]), "metrics must be one of 'accuracy', .*; got 'loss'"),
        (lambda: _slider(split="val"), "split must be one of 'train', 'test'; got 'val'"),
        (lambda: _slider(frame={}), r"frame must be one table, or one or two by name, got 0: \[\]"),
        (lambda: _slider(frame=_frame().drop(columns="nll")), r"frame\[''\] must have columns nll, got t, leg, split"),
        (lambda: _slider(frame=_frame(pairs=2)), "must have one row for each of at least two t, got 42 rows on 21 t"),
        (lambda: _slider(frame=_frame().assign(nll=np.inf)), "must be finite, got NaN or infinite values of nll$"),
        (
            lambda: _slider(frame={"a": _frame(), "b": _frame().query("t < 0.9")}),
            "frame must hold tables on the same t, got 21 and 18 different t",
        ),
        (lambda: tables.mean_sd([0.1, np.nan]), "values must be finite, got nan among 2"),
        (lambda: tables.mean_sd([0.1], digits=-1), "digits must be >= 0, got -1"),
        (
            lambda: tables.results_table([{"quantity": "a", "recoded": 1, "comparable": "no"}], caption="c"),
            r"rows\[0\] must have keys among quantity, .*, got 'recoded' \(did you mean 'recorded'",
        ),
        (lambda: tables.results_table([{"comparable": "no"}], caption="c"), r"rows\[0\] must name its quantity"),
        (
            lambda: tables.results_table([{"quantity": "a", "comparable": "maybe"}], caption="c"),
            r"rows\[0\]\['comparable'\] must be one of 'yes', 'shape only', 'no'; got 'maybe'",
        ),
        (
            lambda: tables.results_table([{"quantity": "a", "run": [1, 2], "comparable": "no"}], caption="c"),
            "cells must be text or single numbers .*got list",
        ),
        (lambda: tables.results_table([], caption="c"), "a table must have rows and columns, got 0 x 5"),
        (lambda: tables.results_table(ROWS, caption=""), "caption must be a text that is not empty, got ''"),
        (lambda: tables.table(_frame(), caption="c", missing=" "), "missing must be a text that is not empty, got ' '"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_path_in_place_of_its_table_is_refused():
    weights = {"w": torch.zeros(2)}
    with pytest.raises(TypeError, match=r"frames must be a table, as evaluate\(net, path, task\) returns, .* got Path"):
        figures.plot_path({"segment": segment(weights, weights)})
    with pytest.raises(TypeError, match="got Path"):
        figures.plot_path(segment(weights, weights))
