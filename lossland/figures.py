"""Figures of the book: metrics along paths, planes through weight space, clouds of units.

Every function returns a `lossland.pictures.Picture`, a Matplotlib figure that needs neither pyplot nor a display.
Lines differ in dash and marker as well as in colour, so that no figure needs colour vision.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike
from torch import Tensor

from lossland.errors import choose
from lossland.pictures import COLOURS, DASHES, MARKERS, METRICS, STYLE, WIDTH, Picture, canvas, legend, read, settle

BANDS = ("range", "deviation", "none")
_REPEATS = ("pair", "seed")
_MOST_LEGS = 12  # more boundaries than that are a grey wall, not information


@matplotlib.rc_context(STYLE)
def plot_path(frames: Mapping[str, pd.DataFrame] | pd.DataFrame, *, metric: str = "accuracy", band: str = "range",
              split: str | Sequence[str] = "test", ends: bool = True, log: bool = False) -> Picture:
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

    Returns:
        The figure, 5.2 inches wide.

    Raises:
        ValueError: No tables, an unknown metric, band or split, a missing column, NaN, repeats on different t,
            several rows for one t without a column of repeats, values <= 0 on a logarithmic axis.
    """
    choose("metric", metric, METRICS)
    choose("band", band, BANDS)
    tables = {"": frames} if isinstance(frames, pd.DataFrame) else dict(frames)
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
    for place in _boundaries(tables.values()):
        axes.axvline(place, color="0.72", lw=0.8, zorder=0)
    if log:
        _log_axis(axes)
    mean = f", mean of {' or '.join(map(str, sorted(counts)))}" if max(counts) > 1 else ""
    which = f"{splits[0]} " if len(splits) == 1 else ""
    axes.set(xlabel="t (position on the path)", ylabel=which + METRICS[metric].label + mean)
    axes.margins(x=0.02)
    legend(figure)
    return settle(figure)


@matplotlib.rc_context(STYLE)
def plot_plane(frame: pd.DataFrame, *, metric: str = "nll", levels: int | Sequence[float] = 8,
               path_xy: Mapping[str, ArrayLike | Tensor] | None = None) -> Picture:
    """Draw filled contours of a metric over a plane of weight space, with logarithmic levels.

    The levels lie at m + d, d in geometric progression, m the best value on the plane: steps are fine near the optima
    and coarse far away. Dark is good. Cells that are missing, NaN or infinite stay hatched.

    Args:
        frame: Columns x, y [l2 distance in weight space] of a regular grid, rows in any order, and the metric;
            `frame.attrs["points"]`, name -> (x, y), are marked where given.
        metric: "nll" (nats), "perplexity" (of texts), "accuracy", "error" or "ece" (drawn in per cent).
        path_xy: Name -> (n, 2) in-plane coordinates of a curve to draw.
        levels: Number of levels, or their increasing values in the units drawn.

    Returns:
        The figure, with equal scales along x and y.

    Raises:
        ValueError: An unknown metric, a missing column, fewer than 2 x 2 cells, a cell given twice, no finite cell,
            levels < 2 or not increasing, a curve that is not (n, 2).

    Source: G18 Figure 1 and appendix A.4.
    """
    choose("metric", metric, [name for name in METRICS if name != "distance"])
    x, y, values = _cells(frame, metric)
    edges = _levels(values, levels, falling=metric == "accuracy")
    panel = (WIDTH - 1.8) * float((y[-1] - y[0]) / (x[-1] - x[0]))  # inches: equal scales, no white strips
    figure, [[axes]] = canvas(WIDTH, min(max(panel, 1.5), 6) + (1.1 if path_xy else 0.75))
    axes.set_facecolor("0.85")
    axes.patch.set(hatch="//", edgecolor="0.6")
    filled = axes.contourf(x, y, values, edges, cmap="viridis_r" if metric == "accuracy" else "viridis", extend="both",
                           norm=BoundaryNorm(edges, 256, extend="both"))
    axes.contour(x, y, values, edges, colors="white", linewidths=0.4, alpha=0.6)
    bar = figure.colorbar(filled, ax=axes, ticks=edges, spacing="uniform")
    bar.ax.set_yticks(edges, [f"{edge:#.3g}".rstrip(".") for edge in edges])
    bar.set_label(" ".join(filter(None, [str(frame.attrs.get("split", "")), METRICS[metric].label])))
    for number, (name, curve) in enumerate((path_xy or {}).items()):
        way = _pairs(curve, f"path_xy[{name!r}]")
        axes.plot(way[:, 0], way[:, 1], color="white", lw=2, ls=DASHES[number % len(DASHES)], label=name,
                  path_effects=[withStroke(linewidth=3.6, foreground="black")])
    _mark(axes, frame.attrs.get("points", {}), x, y)
    axes.set(aspect="equal", xlabel="x in the plane (l2 distance)", ylabel="y in the plane (l2 distance)")
    axes.locator_params(nbins=6)
    if path_xy:
        legend(figure, columns=3)
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
            xy = _pairs(sample, f"clouds[{name!r}] at t = {time:g}")
            start = xy if start is None else start
            axes.plot(xy[:, 0], xy[:, 1], ".", ms=3, color=COLOURS[0], alpha=0.5, mew=0, zorder=1)
            axes.add_patch(_ellipse(xy, COLOURS[1], "-", "one deviation at t"))
            axes.add_patch(_ellipse(start, "black", (0, (2, 2)), "at the start"))
            axes.set(aspect="equal", xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=size)
    for axes, time in zip(grid[0], times, strict=True):
        axes.set_title(f"t = {time:g}", fontsize=size)
    every = np.concatenate([_pairs(sample, "clouds") for samples in clouds.values() for sample in samples])
    middle = every.mean(0)
    reach = np.quantile(np.abs(every - middle), 0.995)
    for row in grid:
        row[0].set(xlim=middle[0] + np.array([-reach, reach]), ylim=middle[1] + np.array([-reach, reach]))
    legend(figure, handles=grid[0, 0].patches, fontsize=size)
    return settle(figure)


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


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Plain numbers: "0.2" reads better than "2 x 10^-1", and the default labels only powers of ten.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _cells(frame: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray, np.ma.MaskedArray]:
    values = read(frame, metric, "frame", ("x", "y"))
    # Coordinates that differ by rounding only are one column of the grid.
    x, y = (frame[key].astype(float) for key in ("x", "y"))
    x, y = (axis.round(int(9 - np.ceil(np.log10(max(axis.abs().max(), 1e-9))))) for axis in (x, y))
    twice = pd.DataFrame({"x": x, "y": y}).duplicated()
    if twice.any():
        came = f"x = {x[twice].iloc[0]:g}, y = {y[twice].iloc[0]:g}"
        raise ValueError(f"frame must give every cell once, got {came} twice")
    grid = pd.DataFrame({"x": x, "y": y, "value": values}).pivot(index="y", columns="x", values="value")
    if min(grid.shape) < 2:
        raise ValueError(f"frame must hold at least 2 x 2 cells, got {grid.shape[1]} x {grid.shape[0]}")
    table = np.ma.masked_invalid(grid.to_numpy())
    if table.mask.all():
        raise ValueError(f"frame must hold a finite {METRICS[metric].column}, got none")
    return grid.columns.to_numpy(), grid.index.to_numpy(), table


def _levels(values: np.ma.MaskedArray, levels: int | Sequence[float], *, falling: bool) -> np.ndarray:
    if not isinstance(levels, int):
        given = np.asarray(levels, dtype=float)
        if given.size < 2 or (np.diff(given) <= 0).any():
            raise ValueError(f"levels must be at least two increasing values, got {list(levels)}")
        return given
    if levels < 2:
        raise ValueError(f"levels must be >= 2, got {levels}")
    known = values.compressed()
    away = known.max() - known if falling else known - known.min()
    far = float(np.quantile(away, 0.95)) or float(away.max())
    if far == 0:
        far = 1e-3 * max(1.0, abs(float(known[0])))
    near = max(float(np.quantile(away, 0.01)), far * 1e-3)
    steps = np.geomspace(min(near, far / 10), far, levels)
    return known.max() - steps[::-1] if falling else known.min() + steps


def _mark(axes: Axes, points: Mapping[str, Sequence[float]], x: np.ndarray, y: np.ndarray) -> None:
    outline = [withStroke(linewidth=3, foreground="black")]
    for name, (across, up) in points.items():
        axes.plot(across, up, "o", ms=7, mfc="white", mec="black", mew=1.2, zorder=5)
        # Away from the nearer edge, so that no label leaves the panel.
        right, top = across > (x[0] + x[-1]) / 2, up > (y[0] + y[-1]) / 2
        axes.annotate(name, (across, up), xytext=(-7 if right else 7, -8 if top else 8), textcoords="offset points",
                      ha="right" if right else "left", va="top" if top else "bottom", color="white", zorder=6,
                      path_effects=outline)


def _pairs(value: ArrayLike | Tensor, name: str) -> np.ndarray:
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=float)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite with shape (n, 2), n >= 2, got shape {array.shape}")
    return array


def _ellipse(xy: np.ndarray, colour: str, dash: Any, label: str) -> Ellipse:
    spread, axes = np.linalg.eigh(np.cov(xy.T))  # ascending; columns of axes are directions
    width, height = 2 * np.sqrt(np.maximum(spread, 0))
    angle = float(np.degrees(np.arctan2(axes[1, 0], axes[0, 0])))
    return Ellipse(tuple(xy.mean(0)), width, height, angle=angle, fill=False, ec=colour, ls=dash, lw=1.8, label=label)
