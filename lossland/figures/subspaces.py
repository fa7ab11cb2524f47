"""Figures of learned lines and curves: accuracy along them, alone and in pairs, and how their ends move apart."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from lossland.errors import choose
from lossland.figures.pictures import COLOURS, DASHES, MARKERS, METRICS, STYLE, WIDTH, Picture, canvas, legend, settle
from lossland.training import Fit

SCORES = ("accuracy", "error", "nll", "ece")
SHAPE = {"distance": "l2 distance", "cos2": "squared cosine"}
GREYS = ("black", "0.4", "0.6")

Repeats = pd.DataFrame | Fit | Sequence[pd.DataFrame | Fit]


def course(fit: Fit) -> pd.DataFrame:
    """Return how far control points were apart: epoch (0: the start, k: after k epochs), distance (l2), cos2.

    Args:
        fit: of a family of two or more control points, from `subspaces.subspace`.

    Raises:
        ValueError: if it has none of them.
    """
    if not fit.start or not set(SHAPE) <= set(fit.history.columns):
        raise ValueError("fit must be of a family of two or more free control points, got one of a "
                         f"{fit.family.kind} whose history has {', '.join(map(str, fit.history.columns))}")
    columns = ["epoch", *SHAPE]
    later = fit.history[columns].assign(epoch=fit.history["epoch"] + 1)
    return pd.concat([pd.DataFrame([{"epoch": 0, **fit.start}]), later], ignore_index=True)[columns]


def joined(tables: Mapping[str, Repeats] | Repeats, needs: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return name -> one table of all repeats.

    Args:
        tables: Name -> table, or several, one for each seed; or one of these without a name.
        needs: Columns that must be there, all of them numbers but `split`.

    Raises:
        TypeError: What is neither a table nor what training returned, such as a family, which keeps no history.
        ValueError: No tables, a missing column, NaN.
    """
    named = dict(tables) if isinstance(tables, Mapping) else {"": tables}
    found = {}
    for name, several in named.items():
        alone = isinstance(several, (pd.DataFrame, Fit)) or not isinstance(several, Iterable)
        parts = [several] if alone else list(several)
        parts = [course(part) if isinstance(part, Fit) else part for part in parts]
        if not parts:
            raise ValueError(f"tables[{name!r}] must hold at least one table, got none")
        for part in parts:
            if not isinstance(part, pd.DataFrame):
                raise TypeError(f"{f'tables[{name!r}]' if name else 'tables'} must be a table or what training "
                                "returned (a Fit: its family alone has no history), or several of them; got "
                                f"{type(part).__name__}")
            missing = [need for need in needs if need not in part.columns]
            if missing:
                raise ValueError(f"tables[{name!r}] must have columns {', '.join(missing)}, "
                                 f"got {', '.join(map(str, part.columns))}")
        found[name] = pd.concat(parts, ignore_index=True)
        for need in set(needs) - {"split"}:
            if not np.isfinite(found[name][need].to_numpy(dtype=float)).all():
                raise ValueError(f"tables[{name!r}] must hold finite numbers, got NaN or infinity in {need}")
    if not found:
        raise ValueError("tables must not be empty, got none")
    return found


def over_repeats(places: pd.Series, values: pd.Series, name: str) -> pd.DataFrame:
    """Return mean, low and high (one standard deviation, n - 1, to either side) of the repeats at each place.

    Raises:
        ValueError: Another number of repeats at one place than at the first.
    """
    groups = values.groupby(places.astype(float).round(9))
    count = groups.size()
    if count.nunique() > 1:
        at = count.index[count != count.iloc[0]][0]
        raise ValueError(f"{name} must have equally many repeats everywhere, got {count.iloc[0]} at {count.index[0]:g} "
                         f"and {count.loc[at]} at {at:g}")
    mean, sd = groups.mean(), groups.std().fillna(0.0)
    return pd.DataFrame({"mean": mean, "low": mean - sd, "high": mean + sd, "repeats": count})


def look(number: int) -> dict[str, Any]:
    """Return colour and mark of line number `number`."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "ms": 5.5, "lw": 2}


def band(axes: Axes, found: pd.DataFrame, colour: str) -> None:
    """Shade one standard deviation to either side, where there are repeats."""
    if (found["repeats"] > 1).any():
        axes.fill_between(found.index, found["low"], found["high"], color=colour, alpha=0.14, lw=0, zorder=2)


def levels(axes: Axes, baselines: Mapping[str, ArrayLike | Tensor], factor: float = 1,
           offset: float = 0) -> list[Line2D]:
    """Draw baselines as horizontal dotted lines with the deviation of their repeats; return what a legend shows.

    Args:
        axes: Panel.
        baselines: Name -> one value, or one for each seed, as tables have them.
        factor, offset: What is drawn is value * factor + offset.

    Raises:
        ValueError: No values, NaN.
    """
    drawn = []
    for number, (name, values) in enumerate(baselines.items()):
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float).ravel()
        if not array.size or not np.isfinite(array).all():
            raise ValueError(f"baselines[{name!r}] must hold at least one value, all finite, got {array.tolist()}")
        array, grey = array * factor + offset, GREYS[number % len(GREYS)]
        drawn.append(axes.axhline(array.mean(), color=grey, lw=1.5, ls=(0, (1, 1 + 2 * number)), label=name, zorder=1))
        if array.size > 1:
            sd = array.std(ddof=1)
            axes.axhspan(array.mean() - sd, array.mean() + sd, color=grey, alpha=0.12, lw=0, zorder=0)
    return drawn


@matplotlib.rc_context(STYLE)
def plot_mirrored(tables: Mapping[str, Repeats] | Repeats, *, metric: str = "accuracy", split: str = "test",
                  baselines: Mapping[str, ArrayLike | Tensor] | None = None) -> Picture:
    """Draw networks along lines or curves: P(t) dashed with open marks, P(t) and P(1 - t) together solid.

    Repeats are drawn as their mean and one standard deviation (n - 1) to either side.

    Args:
        tables: Name -> table of `mirrored`, or several, one for each seed; or one of these.
        metric: "accuracy", "error", "ece" (drawn in per cent) or "nll" (nats).
        split: Which split.
        baselines: Name -> value, or one for each seed, drawn as a horizontal line: standard training, an ensemble of
            two. In the units of tables: accuracies as fractions, also for "error".

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: No tables, an unknown metric or split, a missing column, NaN, another number of repeats at one t
            than at another.

    Source: W21 Figs. 4, 5, 6, 9, 12 (right), 13 and 18.
    """
    quantity = METRICS[choose("metric", metric, SCORES)]
    single, pair = quantity.column, f"pair_{quantity.column}"
    figure, [[axes]] = canvas(WIDTH, 3.9)
    handles = []
    for number, (name, table) in enumerate(joined(tables, ("t", "split", single, pair)).items()):
        rows, style = table[table["split"] == choose("split", split, table["split"].unique().tolist())], look(number)
        for column, dash, fill in ((single, DASHES[1], "white"), (pair, "-", style["color"])):
            found = over_repeats(rows["t"], rows[column] * quantity.factor + quantity.offset, f"tables[{name!r}]")
            axes.plot(found.index, found["mean"], ls=dash, mfc=fill, zorder=3, **style,
                      markevery=(0.03 * (1 + number % 5), 0.16))
            band(axes, found, style["color"])
        handles += [Line2D([], [], label=name, **style)] if name else []
    keys = {"P(t) alone": {"ls": DASHES[1], "mfc": "white"}, "P(t) and P(1 - t) together": {"ls": "-"}}
    handles += levels(axes, baselines or {}, quantity.factor, quantity.offset)
    handles += [Line2D([], [], color="0.25", lw=2, label=label, **key) for label, key in keys.items()]
    axes.set(xlabel="t (position on the line or curve)", ylabel=f"{split} {quantity.label}")
    axes.margins(x=0.02)
    legend(figure, handles=handles)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_spread(histories: Mapping[str, Repeats] | Repeats, *,
                baselines: Mapping[str, Mapping[str, ArrayLike]] | None = None) -> Picture:
    """Draw how far control points are apart while they are trained: distance above, squared cosine below.

    Args:
        histories: Name -> what `subspaces.subspace` returns, or several, one for each seed; or one of these; or tables
            as `course` gives: epoch (0: the start, k: after k epochs), distance (l2), cos2.
        baselines: "distance" or "cos2" -> name -> value, or one for each seed: two independently trained networks.

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: No tables, a missing column, NaN, another number of repeats at one epoch than at another, a baseline
            of another quantity.

    Source: W21 Figs. 3, 15 and 16.
    """
    for key in baselines or {}:
        choose("key of baselines", key, SHAPE)
    figure, grid = canvas(WIDTH, 5.2, len(SHAPE))
    shown: dict[str, Line2D] = {}
    for number, (name, table) in enumerate(joined(histories, ("epoch", *SHAPE)).items()):
        style = look(number)
        for axes, column in zip(grid[:, 0], SHAPE, strict=True):
            found = over_repeats(table["epoch"], table[column], f"histories[{name!r}]")
            drawn, = axes.plot(found.index, found["mean"], ls=DASHES[number % len(DASHES)], zorder=3, label=name,
                               markevery=(0.03 * (1 + number % 5), 0.2), **style)
            band(axes, found, style["color"])
        shown |= {name: drawn} if name else {}
    for axes, (column, word) in zip(grid[:, 0], SHAPE.items(), strict=True):
        shown |= {line.get_label(): line for line in levels(axes, (baselines or {}).get(column, {}))}
        axes.set_ylabel(word)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.margins(x=0.02)
    grid[-1, 0].set_xlabel("epoch")
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if shown:
        legend(figure, handles=list(shown.values()))
    return settle(figure)
