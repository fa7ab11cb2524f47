"""Figures of paths: a metric along them, clouds of units at several points."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike
from torch import Tensor

from lossland.errors import choose
from lossland.figures.pictures import (COLOURS, DASHES, MARKERS, METRICS, STYLE, WIDTH, Picture, canvas, legend, pairs,
                                       read, settle)

__all__ = ["BANDS", "plot_clouds", "plot_path"]

BANDS = ("range", "deviation", "none")
_REPEATS = ("pair", "seed")
_MOST_LEGS = 12  # more boundaries than that are a grey wall, not information


@matplotlib.rc_context(STYLE)
def plot_path(frames: Mapping[str, pd.DataFrame] | pd.DataFrame, *, metric: str = "accuracy", band: str = "range",
              split: str | Sequence[str] = "test", ends: bool = True, log: bool = False,
              stages: pd.DataFrame | None = None) -> Picture:
    """Draw a metric along t for one or several paths.

    A table with a column `pair` or `seed` holds repeats: the line is their mean over the same t, the band their
    minimum to maximum or one standard deviation (n - 1) to either side; the legend says which. Thin vertical lines are
    the boundaries of legs, drawn for paths of 2 to 12 legs.

    Args:
        frames: Name -> table of `evaluate`, or one table: columns t, split, the metric; leg, pair, seed if there.
        metric: "accuracy", "error", "ece" (drawn in per cent), "nll" (nats), "perplexity" (of texts: exp of the loss)
            or "distance" (l2).
        split: Which split, or several: the first is solid, the others dashed.
        ends: Draw the mean of the end points of all paths as a dotted line, per split.
        band: "range", "deviation" or "none".
        log: Logarithmic vertical axis.
        stages: `Staged.stages` of a path, or of paths with equal stages: stages are marked instead of legs, and the
            layer that moves is written above each.

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        TypeError: What is no table, such as a path.
        ValueError: No tables, an unknown metric, band or split, a missing column, NaN, repeats on different t,
            several rows for one t without a column of repeats, values <= 0 on a logarithmic axis.
    """
    choose("metric", metric, METRICS)
    choose("band", band, BANDS)
    tables = _tables(frames)
    splits = (split,) if isinstance(split, str) else tuple(split)
    if not tables or not splits:
        raise ValueError(f"frames and split must not be empty, got {len(tables)} tables and {len(splits)} splits")
    figure, [[axes]] = canvas(WIDTH, 3.7)
    counts: set[int] = set()
    for order, part in enumerate(splits):
        spreads = {name: _spread(frame, metric, part, f"frames[{name!r}]", log) for name, frame in tables.items()}
        for number, (name, spread) in enumerate(spreads.items()):
            words = [name, part if len(splits) > 1 or not name else ""]
            label = ", ".join(filter(None, words))
            _draw_spread(axes, spread, label, band=band, number=number, which=order, splits=len(splits))
        counts |= {spread.attrs["repeats"] for spread in spreads.values()}
        if ends:
            level = np.mean([spread["mean"].iloc[[0, -1]].mean() for spread in spreads.values()])
            note = "end points' mean" + (f", {part}" if len(splits) > 1 else "")
            axes.axhline(level, color="black", lw=1.4, ls=(0, (1, 2 + 2 * order)), label=note, zorder=1)
    if max(counts) > 1 and band != "none":
        note = {"range": "minimum to maximum", "deviation": "one deviation each way"}[band]
        axes.fill_between([], [], color="0.5", alpha=0.3, lw=0, label=note)
    for place in _boundaries(tables.values()) if stages is None else stages["t0"].iloc[1:]:
        axes.axvline(place, color="0.72", lw=0.8, zorder=0)
    if stages is not None:
        _name_stages(axes, stages)
    if log:
        _log_axis(axes)
    mean = f", mean of {' or '.join(map(str, sorted(counts)))}" if max(counts) > 1 else ""
    which = f"{splits[0]} " if len(splits) == 1 else ""
    axes.set(xlabel="t (position on the path)", ylabel=which + METRICS[metric].label + mean)
    axes.margins(x=0.02)
    legend(figure)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_clouds(clouds: Mapping[str, Sequence[ArrayLike | Tensor]], times: Sequence[float]) -> Picture:
    """Draw two-dimensional samples as they move: one row per method, one column per time.

    The solid ellipse is one standard deviation of the empirical covariance about the mean, the dashed one that of the
    first column: where they agree the move preserves the distribution.

    Args:
        clouds: Method -> one (n, 2) array per time.
        times: Position t of each column.

    Returns:
        The figure; all panels share their scales, and one point in two hundred may lie outside.

    Raises:
        ValueError: No methods or times, a number of arrays that is not the number of times, arrays that are not
            finite (n, 2) with n >= 2.

    Source: AY20 Figure 2.
    """
    if not clouds or not len(times):
        raise ValueError(f"clouds and times must not be empty, got {len(clouds)} methods and {len(times)} times")
    width = 0.55 + 1.3 * len(times)
    figure, grid = canvas(width, 0.9 + 1.3 * len(clouds), len(clouds), len(times))
    size = 11 * max(1, width / 6.2)  # wide figures are shrunk more on a phone
    for row, (name, samples) in zip(grid, clouds.items(), strict=True):
        if len(samples) != len(times):
            raise ValueError(f"clouds[{name!r}] must hold one array per time, {len(times)}, got {len(samples)}")
        start = None
        for axes, sample, time in zip(row, samples, times, strict=True):
            xy = pairs(sample, f"clouds[{name!r}] at t = {time:g}")
            start = xy if start is None else start
            axes.plot(xy[:, 0], xy[:, 1], ".", ms=3, color=COLOURS[0], alpha=0.5, mew=0, zorder=1)
            axes.add_patch(_ellipse(xy, COLOURS[1], "-", "one deviation at t"))
            axes.add_patch(_ellipse(start, "black", (0, (2, 2)), "at the start"))
            axes.set(aspect="equal", xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=size)
    for axes, time in zip(grid[0], times, strict=True):
        axes.set_title(f"t = {time:g}", fontsize=size)
    every = np.concatenate([pairs(sample, "clouds") for samples in clouds.values() for sample in samples])
    middle = every.mean(0)
    reach = np.quantile(np.abs(every - middle), 0.995)
    for row in grid:
        row[0].set(xlim=middle[0] + np.array([-reach, reach]), ylim=middle[1] + np.array([-reach, reach]))
    legend(figure, handles=grid[0, 0].patches, fontsize=size)
    return settle(figure)


def _tables(frames: Mapping[str, pd.DataFrame] | pd.DataFrame) -> dict[str, pd.DataFrame]:
    tables = {"": frames} if not isinstance(frames, Mapping) else dict(frames)
    for table in tables.values():
        if not isinstance(table, pd.DataFrame):
            raise TypeError("frames must be a table, as evaluate(net, path, task) returns, or name -> table, got "
                            f"{type(table).__name__}")
    return tables


def _spread(frame: pd.DataFrame, metric: str, split: str, name: str, log: bool) -> pd.DataFrame:
    values = read(frame, metric, name, ("t", "split"))
    choose("split", split, frame["split"].unique().tolist())
    rows = frame["split"] == split
    t, values = frame.loc[rows, "t"].astype(float), values[rows]
    if values.isna().any():
        column, place = METRICS[metric].column, t[values.isna()].iloc[0]
        raise ValueError(f"{name} must hold numbers, got NaN {column} at t = {place:g}")
    if log and values.min() <= 0:
        raise ValueError(f"log must be False where {metric} is not positive, got {values.min():g} in {name}")
    repeats = [key for key in _REPEATS if key in frame.columns]
    count = len(frame.loc[rows, repeats].drop_duplicates()) if repeats else 1
    groups = values.groupby(t)
    uneven = groups.size()[groups.size() != count]
    if len(uneven):
        came = f"{count} for each t, got {uneven.iloc[0]} at t = {uneven.index[0]:g}"
        raise ValueError(f"{name} must have one row per t, split and repeat (columns pair, seed): {came}")
    spread = pd.DataFrame({"mean": groups.mean(), "low": groups.min(), "high": groups.max(), "sd": groups.std()})
    spread.attrs["repeats"] = count
    return spread


def _draw_spread(axes: Axes, spread: pd.DataFrame, label: str, *, band: str, number: int, which: int,
                 splits: int) -> None:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[(number if splits == 1 else which) % len(DASHES)]
    axes.plot(spread.index, spread["mean"], color=colour, ls=dash, lw=2, marker=MARKERS[number % len(MARKERS)], ms=5.5,
              markevery=(0.03 * (1 + number % 5), 0.16), mfc="white" if which else colour, label=label, zorder=3)
    if spread.attrs["repeats"] > 1 and band != "none":
        low, high = spread["low"], spread["high"]
        if band == "deviation":
            low, high = spread["mean"] - spread["sd"], spread["mean"] + spread["sd"]
        axes.fill_between(spread.index, low, high, color=colour, alpha=0.2, lw=0, zorder=2)


def _boundaries(frames: Iterable[pd.DataFrame]) -> list[float]:
    counts = {int(frame["leg"].max()) + 1 for frame in frames if "leg" in frame.columns}
    return sorted({leg / count for count in counts if count <= _MOST_LEGS for leg in range(1, count)})


def _name_stages(axes: Axes, stages: pd.DataFrame) -> None:
    words = {"permutation": "order", "output": "output"}
    names = [words.get(kind, module) for kind, module in zip(stages["kind"], stages["module"], strict=True)]
    above = axes.secondary_xaxis("top")
    crowd = len(names) > 4 or max(map(len, names)) > 12
    turn, size = (90, 8) if crowd else (0, 9.5)
    above.set_xticks((stages["t0"] + stages["t1"]) / 2, names, rotation=turn, fontsize=size)
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Plain numbers: "0.2" reads better than "2 x 10^-1", and the default labels only powers of ten.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _ellipse(xy: np.ndarray, colour: str, dash: Any, label: str) -> Ellipse:
    spread, axes = np.linalg.eigh(np.cov(xy.T))  # ascending; columns of axes are directions
    width, height = 2 * np.sqrt(np.maximum(spread, 0))
    angle = float(np.degrees(np.arctan2(axes[1, 0], axes[0, 0])))
    return Ellipse(tuple(xy.mean(0)), width, height, angle=angle, fill=False, ec=colour, ls=dash, lw=1.8, label=label)
