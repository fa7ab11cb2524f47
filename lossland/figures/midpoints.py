"""Figures of midpoints: against their number of ends or label noise, under corruption, and of random mixtures."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike
from torch import Tensor

from lossland.errors import choose
from lossland.figures.pictures import COLOURS, DASHES, METRICS, STYLE, WIDTH, Picture, canvas, legend, settle
from lossland.figures.subspaces import SCORES, Repeats, joined, levels, look, over_repeats

AGAINST = {"points": "m (number of control points)", "noise": "training labels drawn at random (%)", "epochs": "epochs",
           "severity": "severity of the corruption"}
MIXED = {"ensemble": "ensemble", "average": "average of weights", "global": "mixture, global",
         "layerwise": "mixture, by layer", "per-weight": "mixture, by weight"}
STATISTICS = {"tv": ("TV distance of outputs", "%", 100), "l2": ("l2 distance", "", 1), "cosine": ("1 - cosine", "", 1)}


@matplotlib.rc_context(STYLE)
def plot_against(tables: Mapping[str, Repeats] | Repeats, *, x: str = "points",
                 metrics: Sequence[str] = ("accuracy",),
                 baselines: Mapping[str, Mapping[str, ArrayLike | Tensor]] | None = None) -> Picture:
    """Draw scores of methods against the number of control points, label noise or epochs: one panel per metric.

    Repeats (rows with the same x) are drawn as their mean and one standard deviation (n - 1) to either side.

    Args:
        tables: Name of the method -> table with columns x and the metrics' (accuracy, nll, ece), as fractions.
        x: "points" (m), "noise" (fraction of random labels), "epochs" or "severity": a column of the tables.
        metrics: Of "accuracy", "error", "ece" (drawn in per cent) and "nll" (nats), from above.
        baselines: Metric -> name -> value, or one for each seed, drawn as a horizontal line, in the units of tables.

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: No tables or metrics, an unknown metric or axis, a missing column, NaN.

    Source: W21 Figs. 7 (m), 8 and 12, left (label noise), 10 (epochs).
    """
    choose("x", x, AGAINST)
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics must be a sequence of one or more names, got {metrics!r}")
    quantities = [METRICS[choose("metrics", metric, SCORES)] for metric in metrics]
    for key in baselines or {}:
        choose("key of baselines", key, metrics)
    figure, grid = canvas(WIDTH, 1.6 + 2.1 * len(metrics), len(metrics))
    shown: dict[str, Line2D] = {}
    named = joined(tables, (x, *(quantity.column for quantity in quantities)))
    places = {name: table[x] * (100 if x == "noise" else 1) for name, table in named.items()}
    for number, (name, table) in enumerate(named.items()):
        for axes, quantity in zip(grid[:, 0], quantities, strict=True):
            values, style = table[quantity.column] * quantity.factor + quantity.offset, look(number)
            # Some places may have more seeds than others.
            parts = [over_repeats(some, values[some.index], name) for _, some in places[name].groupby(places[name])]
            found, dash = pd.concat(parts), DASHES[number % len(DASHES)]
            line, = axes.plot(found.index, found["mean"], ls=dash, label=name, zorder=3, **style)
            axes.vlines(found.index, found["low"], found["high"], color=style["color"], lw=1.4, zorder=2)
        shown |= {name: line} if name else {}
    for axes, metric, quantity in zip(grid[:, 0], metrics, quantities, strict=True):
        drawn = levels(axes, (baselines or {}).get(metric, {}), quantity.factor, quantity.offset)
        shown |= {line.get_label(): line for line in drawn}
        axes.set_ylabel(f"test {quantity.label}")
        axes.margins(x=0.04)
    ticks = sorted({round(place, 9) for some in places.values() for place in some})
    grid[-1, 0].set_xlabel(AGAINST[x])
    if len(ticks) <= 12:
        grid[-1, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if shown:
        legend(figure, handles=list(shown.values()))
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_changes(tables: Repeats, *, against: str = "standard") -> Picture:
    """Draw how much less accuracy falls under corruption than that of a reference network: bars, one for each damage.

    A bar is the difference of the relative changes (b - a) / a, a of clean and b of corrupted images. To the right of
    zero a network loses less of its accuracy than the reference does. Thin lines are one standard deviation (n - 1) of
    repeats to either side.

    Args:
        tables: Table of `relative_changes`, or several, one for each seed.
        against: Name of the reference in the tables.

    Returns:
        The figure, 5.2 inches wide; corruptions in the order of the first network's bars.

    Raises:
        ValueError: A missing column, NaN, a reference that is not there, or nothing else there; a network that lacks a
            corruption.

    Source: W21 Figs. 19 (midpoints) and 20 (the best network on the line, chosen on what it is reported on).
    """
    parts = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    wide = []
    for part in parts:
        joined(part, ("change",))
        choose("against", against, part["name"].unique().tolist())
        change = part.pivot(index="corruption", columns="name", values="change")[part["name"].unique()]
        if change.isna().any(axis=None):
            raise ValueError(f"tables must have every corruption for every name, got none for "
                             f"{change.isna().any().idxmax()!r}, {change.isna().any(axis=1).idxmax()!r}")
        wide.append(100 * change.drop(columns=against).sub(change[against], axis=0))
    if not wide or not wide[0].shape[1]:
        raise ValueError(f"tables must hold a network besides {against!r}, got none")
    every = pd.concat(wide).groupby(level=0)
    mean, sd = every.mean(), every.std()
    mean = mean.sort_values(mean.columns[0], ascending=False)
    rows, names = np.arange(len(mean)), list(mean.columns)
    figure, [[axes]] = canvas(WIDTH, 1.3 + (0.16 + 0.17 * len(names)) * len(mean))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        place = rows + (number - (len(names) - 1) / 2) * height
        axes.barh(place, mean[name], height=0.9 * height, color=COLOURS[number % len(COLOURS)], label=name, zorder=2,
                  hatch=("", "//", "..", "xx", "\\\\")[number % 5], edgecolor="white", lw=0)
        error = sd.loc[mean.index, name]
        axes.hlines(place, mean[name] - error, mean[name] + error, color="black", lw=1.2, zorder=3)
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(rows, mean.index)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"relative change of accuracy,\nminus that of {against} (percentage points)")
    if len(names) > 1 or names[0] not in ("", against):
        legend(figure)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_mixtures(tables: Repeats, *, metric: str = "accuracy", split: str = "test") -> Picture:
    """Draw what lies between networks that share k epochs: their ensemble, their average, random mixtures; each alone.

    Values of k stand side by side at equal distances. Thin lines are one standard deviation (n - 1) over mixtures and
    repeats to either side.

    Args:
        tables: Table of `instability`, or several, one for each seed.
        metric: "accuracy", "error", "ece" (drawn in per cent) or "nll" (nats).
        split: What they were scored on, for the label.

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: An unknown metric, a missing column, NaN.

    Source: W21 Fig. 21.
    """
    quantity = METRICS[choose("metric", metric, SCORES)]
    table = joined(tables, ("epoch", quantity.column))[""]
    if "what" not in table.columns:
        raise ValueError(f"tables must have columns what, got {', '.join(map(str, table.columns))}")
    epochs = sorted(table["epoch"].unique().tolist())
    place = table["epoch"].map({epoch: number for number, epoch in enumerate(epochs)})
    values = table[quantity.column] * quantity.factor + quantity.offset
    figure, [[axes]] = canvas(WIDTH, 4.1)
    for number, (what, label) in enumerate({**MIXED, "alone": "each alone"}.items()):
        rows = table["what"] == what
        if rows.any():
            found = over_repeats(place[rows], values[rows], f"tables, {what}")
            style = look(number) if what != "alone" else {"color": "0.45", "lw": 2}
            beside = found.index + 0.06 * (number - 2.5)  # thin lines do not hide each other
            axes.plot(beside, found["mean"], ls=DASHES[number % len(DASHES)], label=label, zorder=3, **style)
            axes.vlines(beside, found["low"], found["high"], color=style["color"], lw=1.2, zorder=2)
    axes.set_xticks(range(len(epochs)), [f"{epoch:g}" for epoch in epochs])
    axes.set(xlabel="k (epochs that they share)", ylabel=f"{split} {quantity.label}")
    axes.margins(x=0.04)
    legend(figure)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_ends(statistics: Mapping[str, Mapping[str, float] | Sequence[Mapping[str, float]]]) -> Picture:
    """Draw how far pairs of networks are apart: total variation, l2 and cosine distance; a bar each, dots for repeats.

    Args:
        statistics: Name -> what `end_statistics` returns, or several, one for each seed: ends of lines, pairs of
            independently trained networks.

    Returns:
        The figure, 5.2 inches wide; bars are means.

    Raises:
        ValueError: Nothing to draw, a missing number, NaN.

    Source: W21 Fig. 17.
    """
    tables = {name: pd.DataFrame([several] if isinstance(several, Mapping) else list(several))
              for name, several in statistics.items()}
    tables = joined(tables, tuple(STATISTICS))
    figure, grid = canvas(WIDTH, 2.5 + 0.16 * len(tables), 1, len(STATISTICS), share=False)
    for axes, (column, (word, unit, factor)) in zip(grid[0], STATISTICS.items(), strict=True):
        for number, (name, table) in enumerate(tables.items()):
            axes.bar(number, factor * table[column].mean(), color=COLOURS[number % len(COLOURS)], width=0.8, label=name,
                     hatch=("", "//", "..", "xx", "\\\\")[number % 5], edgecolor="white", lw=0)
            if len(table) > 1:
                axes.plot([number] * len(table), factor * table[column], "o", ms=4.5, mfc="white", mec="black", mew=1)
        axes.set_title(f"{word} ({unit})" if unit else word, fontsize=10)
        axes.set_xticks([])
    legend(figure, handles=grid[0, 0].containers)
    return settle(figure)
