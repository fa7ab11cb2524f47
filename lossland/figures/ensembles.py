"""Figures of ensembles: as they grow, along a run and along a curve, and how different their members are."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lossland.errors import choose
from lossland.figures.pictures import (COLOURS, DASHES, MARKERS, METRICS, STYLE, WIDTH, Picture, canvas, legend, read,
                                       settle)

SCORES = ("error", "accuracy", "nll", "ece")
GROWTH = {"members": "members", "epoch": "training time (epochs)"}
WAYS = {"t": "t (position on the way)", "distance": "l2 distance from the start"}
MATRICES = {"disagreement": (100, "images classified differently (%)"), "distance": (1, "l2 distance")}
_LETTERS = 10  # columns of a matrix whose numbers can be read


def _values(frame: pd.DataFrame, metric: str, name: str, *, single: bool, needs: tuple[str, ...] = ()) -> pd.Series:
    """Return a score of the ensemble, or of members alone, as it is printed."""
    column = METRICS[metric].column
    known = f"single_{column}" if single else column
    if known not in frame.columns:
        raise ValueError(f"{name} must have columns {known}, got {', '.join(map(str, frame.columns))}")
    frame = frame.assign(**{column: frame[known]})
    values = read(frame, metric, name, needs)
    if values.isna().any():
        raise ValueError(f"{name} must hold numbers, got NaN in {known}")
    return values


def _rows(frame: pd.DataFrame, split: str, name: str, keys: tuple[str, ...]) -> pd.DataFrame:
    """Return the rows of one split, of which there is one for each value of the keys."""
    missing = [key for key in ("split", *keys) if key not in frame.columns]
    if missing:
        raise ValueError(f"{name} must have columns {', '.join(missing)}, got {', '.join(map(str, frame.columns))}")
    choose("split", split, frame["split"].unique().tolist())
    rows = frame[frame["split"] == split]
    twice = rows.duplicated(list(keys))
    if twice.any():
        came = ", ".join(f"{key} = {rows[twice][key].iloc[0]}" for key in keys)
        raise ValueError(f"{name} must have one row for each {', '.join(keys)} on a split, got several for {came}")
    return rows


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "ls": DASHES[number % len(DASHES)], "lw": 2,
            "marker": MARKERS[number % len(MARKERS)], "ms": 5.5}


@matplotlib.rc_context(STYLE)
def plot_members(tables: Mapping[str, pd.DataFrame] | pd.DataFrame, *, metric: str = "error", split: str = "test",
                 against: str = "members") -> Picture:
    """Draw ensembles as they grow: filled marks on a line; and each of their members alone: open marks.

    Args:
        tables: Name -> table of `member_scores`, or one table.
        metric: "error", "accuracy", "ece" (drawn in per cent) or "nll" (nats).
        split: Which split.
        against: "members", or "epoch": a column of the tables, the epochs it took to get so many members.

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: No tables, an unknown metric, split or axis, a missing column, NaN, several rows for one number of
            members.

    Source: G18 Figure 6 (crosses for members, diamonds for ensembles).
    """
    choose("metric", metric, SCORES)
    choose("against", against, GROWTH)
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    if not tables:
        raise ValueError("tables must not be empty, got none")
    figure, [[axes]] = canvas(WIDTH, 3.7)
    for number, (name, frame) in enumerate(tables.items()):
        said = f"tables[{name!r}]"
        rows, look = _rows(frame, split, said, ("members",)), _look(number)
        together = _values(rows, metric, said, single=False, needs=(against,))
        alone = _values(rows, metric, said, single=True)
        before = f"{name}, " if name else ""
        axes.plot(rows[against], together, label=f"{before}members so far together", zorder=3, **look)
        axes.plot(rows[against], alone, label=f"{before}each alone", zorder=2, **{**look, "ls": "none", "mfc": "white"})
    axes.set(xlabel=GROWTH[against], ylabel=f"{split} {METRICS[metric].label}")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.margins(x=0.04)
    legend(figure)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_run(frame: pd.DataFrame, *, split: str = "test") -> Picture:
    """Draw learning rate, error and distance from the start along a run, one above the other.

    Circles are the networks that are taken into the ensemble.

    Args:
        frame: Table of `trace_cycle`: columns iteration, lr, error [fraction], distance [l2], and member (whether the
            network is taken).
        split: What the errors were measured on, for the label.

    Returns:
        The figure, 5.2 inches wide. At iteration 0, the start, there is no learning rate.

    Raises:
        ValueError: A missing column, fewer than two rows, NaN or infinite numbers.

    Source: G18 Figure 5.
    """
    panels = {"lr": (1, "learning rate"), "error": (100, f"{split} error (%)"), "distance": (1, "l2 distance")}
    missing = [name for name in ("iteration", *panels, "member") if name not in frame.columns]
    if missing:
        raise ValueError(f"frame must have columns {', '.join(missing)}, got {', '.join(map(str, frame.columns))}")
    if len(frame) < 2 or not np.isfinite(frame[["iteration", *panels]].to_numpy(dtype=float)).all():
        raise ValueError(f"frame must hold at least two rows of finite numbers, got {len(frame)} rows")
    rows = frame.sort_values("iteration")
    figure, grid = canvas(WIDTH, 5.4, len(panels))
    for number, (axes, (name, (factor, label))) in enumerate(zip(grid[:, 0], panels.items(), strict=True)):
        shown = rows[rows["iteration"] > 0] if name == "lr" else rows
        taken = shown[shown["member"].astype(bool)]
        axes.plot(shown["iteration"], factor * shown[name], color=COLOURS[number], lw=1.8)
        axes.plot(taken["iteration"], factor * taken[name], "o", ms=7, mfc="white", mec="black", mew=1.4, zorder=4,
                  label=None if number else "taken into the ensemble")
        axes.set_ylabel(label)
        axes.margins(x=0.02, y=0.12)
    grid[-1, 0].set_xlabel("iteration (mini-batches)")
    if rows["member"].any():
        legend(figure)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_pairs(frame: pd.DataFrame, *, metric: str = "error", split: str = "test", against: str = "t",
               levels: Mapping[str, float] | None = None) -> Picture:
    """Draw what the start of a way and a point on it are worth as an ensemble of two, one line per way.

    The dotted line is the start alone.

    Args:
        frame: Table of `pair_ensembles`.
        metric: "error", "accuracy", "ece" (drawn in per cent) or "nll" (nats).
        split: Which split.
        against: "t" or "distance".
        levels: Name -> value to draw as a horizontal line, in the units drawn: two independent networks, say.

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: An unknown metric, split or axis, a missing column, NaN, several rows for one way and t.

    Source: G18 Figure 4.
    """
    choose("metric", metric, SCORES)
    choose("against", against, WAYS)
    rows = _rows(frame, split, "frame", ("way", "t"))
    together = _values(rows, metric, "frame", single=False, needs=(against,))
    figure, [[axes]] = canvas(WIDTH, 3.7)
    for number, (way, some) in enumerate(rows.groupby("way", sort=False)):
        axes.plot(some[against], together[some.index], label=str(way), markevery=(0.03 * (1 + number % 5), 0.16),
                  zorder=3, **_look(number))
    alone = _values(rows[rows["t"] == rows["t"].min()], metric, "frame", single=True)
    _level(axes, "the start alone", float(alone.iloc[0]), 0)
    for number, (name, value) in enumerate((levels or {}).items(), 1):
        _level(axes, name, value, number)
    axes.set(xlabel=WAYS[against], ylabel=f"{split} {METRICS[metric].label} of two")
    axes.margins(x=0.02)
    legend(figure)
    return settle(figure)


def _level(axes: Axes, name: str, value: float, number: int) -> None:
    axes.axhline(value, color=("black", "0.35", "0.5")[number % 3], lw=1.4, ls=(0, (1, 2 + 2 * number)), label=name,
                 zorder=1)


@matplotlib.rc_context(STYLE)
def plot_rescaling(frame: pd.DataFrame, *, metric: str = "nll", split: str = "test", together: bool = True,
                   levels: Mapping[str, float] | None = None) -> Picture:
    """Draw the points of a curve, each alone, before and after their logits are rescaled, and all of them together.

    An error does not change by rescaling a single network: it is one line then.

    Args:
        frame: Table of `curve_ensemble`.
        metric: "nll" (nats), "error", "accuracy" or "ece" (drawn in per cent).
        split: Which split.
        together: Draw the ensembles of all points as horizontal lines.
        levels: Name -> value to draw as a further horizontal line, in the units drawn: three independent networks, say.

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: An unknown metric or split, a missing column, NaN, several rows for one t before or after.

    Source: G18 Figure 2, bottom right (loss) and bottom left (errors; dashed: ensembles).
    """
    choose("metric", metric, SCORES)
    rows = _rows(frame, split, "frame", ("rescaled", "t"))
    figure, [[axes]] = canvas(WIDTH, 3.7)
    words = {False: "before", True: "after"} if rows["rescaled"].any() else {False: ""}
    for number, (way, word) in enumerate(words.items()):
        some, look = rows[rows["rescaled"] == way], _look(number)
        some = some.sort_values("t")
        alone = _values(some, metric, "frame", single=True)
        same = metric in ("error", "accuracy") and len(words) > 1
        if not (same and way):
            label = "each alone" + (f", {word} rescaling" if word and not same else "")
            axes.plot(some["t"], alone, label=label, markevery=(0.03 * (1 + number), 0.16), zorder=3, **look)
        if together:
            all_of_them = _values(some, metric, "frame", single=False).loc[some["members"].idxmax()]
            axes.axhline(all_of_them, color=look["color"], lw=1.8, ls=(0, (4, 2 + 3 * number)), zorder=2,
                         label=f"all {some['members'].max()} together" + (f", {word}" if word else ""))
    for number, (name, value) in enumerate((levels or {}).items()):
        _level(axes, name, value, number)
    axes.set(xlabel="t (position on the curve)", ylabel=f"{split} {METRICS[metric].label}")
    axes.margins(x=0.02)
    legend(figure)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_matrix(table: pd.DataFrame, *, what: str = "disagreement") -> Picture:
    """Draw how different members are, pair by pair; up to ten of them with the numbers in the cells.

    Args:
        table: (m, m) of `disagreement` [fractions, drawn in per cent] or of `distances` [l2].
        what: "disagreement" or "distance".

    Returns:
        The figure; a member and itself, on the diagonal, stay empty.

    Raises:
        ValueError: An unknown kind, a table that is not square, of fewer than two members, or not finite.
    """
    factor, label = MATRICES[choose("what", what, MATRICES)]
    values = factor * table.to_numpy(dtype=float)
    if values.shape[0] != values.shape[1] or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"table must be finite and square, of at least two members, got shape {values.shape}")
    shown = np.ma.masked_array(values, np.eye(len(values), dtype=bool))
    figure, [[axes]] = canvas(WIDTH, 4.2)
    image = axes.imshow(shown, cmap="viridis", vmin=0)
    names = [str(name) for name in table.index]
    ticks = np.arange(len(names))[:: -(-len(names) // 12)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [names[i] for i in ticks])
        axis.set_tick_params(length=0)
    if len(names) <= _LETTERS:
        bright, decimals = shown.max() * 0.6, int(np.clip(2 - np.ceil(np.log10(max(shown.max(), 1e-9))), 0, 6))
        for (row, column), value in np.ndenumerate(shown.filled(np.nan)):
            if row != column:
                axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=10 - len(names) // 4,
                          color="black" if value > bright else "white")
    axes.spines[:].set_visible(False)
    axes.set(xlabel="member", ylabel="member")
    figure.colorbar(image, ax=axes, shrink=0.9).set_label(label)
    return settle(figure)
