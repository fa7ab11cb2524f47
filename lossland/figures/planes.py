"""Planes through weight space as filled contours."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike
from torch import Tensor

from lossland.errors import choose
from lossland.figures.pictures import DASHES, METRICS, STYLE, WIDTH, Picture, canvas, legend, pairs, read, settle

_FLATTEST = 1 / 7  # height over width that is drawn to scale


@matplotlib.rc_context(STYLE)
def plot_plane(frame: pd.DataFrame, *, metric: str = "nll", levels: int | Sequence[float] = 8,
               path_xy: Mapping[str, ArrayLike | Tensor | pd.DataFrame] | None = None, split: str | None = None,
               weight_decay: float = 0.0) -> Picture:
    """Draw filled contours of a metric over a plane of weight space, with logarithmic levels.

    The levels lie at m + d, d in geometric progression, m the best value on the plane: steps are fine near the optima
    and coarse far away. Dark is good. Cells that are missing, NaN or infinite stay hatched.

    Args:
        frame: Columns x, y [l2 distance in weight space] of a regular grid, rows in any order, and the metric;
            `frame.attrs["points"]`, name -> (x, y), are marked where given: optima, or a curve's ends and its bend.
        metric: "nll" (nats), "perplexity" (of texts), "accuracy", "error" or "ece" (drawn in per cent).
        path_xy: Name -> in-plane coordinates of a curve to draw: (n, 2), or a table of `planes.in_plane`.
        levels: Number of levels, or their increasing values in the units drawn.
        split: Which split, for a table of several.
        weight_decay: Draw nll + 1/2 * weight_decay * norm^2, the loss of G18's planes; for metric "nll".

    Returns:
        The figure, with equal scales along x and y; of a plane less than a seventh as high as wide, y is stretched, and
        says so.

    Raises:
        ValueError: An unknown metric, a missing column, fewer than 2 x 2 cells, a cell given twice, no finite cell,
            levels < 2 or not increasing, a curve that is not (n, 2), several splits and none chosen, a weight decay
            with another metric.

    Source: G18 Figures 1, 7 and 8, appendix A.4.
    """
    choose("metric", metric, [name for name in METRICS if name != "distance"])
    frame, label = _chosen(frame, metric, split, weight_decay)
    x, y, values = _cells(frame, metric)
    edges = _levels(values, levels, falling=metric == "accuracy")
    ratio = float((y[-1] - y[0]) / (x[-1] - x[0]))
    panel = (WIDTH - 1.8) * ratio  # inches: equal scales, no white strips
    figure, [[axes]] = canvas(WIDTH, min(max(panel, 1.5), 6) + (1.1 if path_xy else 0.75))
    axes.set_facecolor("0.85")
    axes.patch.set(hatch="//", edgecolor="0.6")
    filled = axes.contourf(x, y, values, edges, cmap="viridis_r" if metric == "accuracy" else "viridis", extend="both",
                           norm=BoundaryNorm(edges, 256, extend="both"))
    axes.contour(x, y, values, edges, colors="white", linewidths=0.4, alpha=0.6)
    bar = figure.colorbar(filled, ax=axes, ticks=edges, spacing="uniform")
    bar.ax.set_yticks(edges, [f"{edge:#.3g}".rstrip(".") for edge in edges])
    bar.set_label(label)
    ways = {name: pairs(curve, f"path_xy[{name!r}]") for name, curve in (path_xy or {}).items()}
    for number, (name, way) in enumerate(ways.items()):
        axes.plot(way[:, 0], way[:, 1], color="white", lw=2, ls=DASHES[number % len(DASHES)], label=name,
                  path_effects=[withStroke(linewidth=3.6, foreground="black")])
    flat = ratio < _FLATTEST
    size = 72 * np.array([WIDTH - 1.8, 1.5 if flat else panel])  # of the panel [points]
    corner, scale = np.array([x[0], y[0]]), size / (x[-1] - x[0], y[-1] - y[0])
    _mark(axes, frame.attrs.get("points", {}), corner, scale, size, ways=ways)
    axes.set(aspect="auto" if flat else "equal", xlabel="x in the plane (l2 distance)",
             ylabel="y, stretched (l2 distance)" if flat else "y in the plane (l2 distance)")
    axes.locator_params(nbins=6)
    if path_xy:
        legend(figure, columns=3)
    return settle(figure)


def _chosen(frame: pd.DataFrame, metric: str, split: str | None, weight_decay: float) -> tuple[pd.DataFrame, str]:
    """Return the rows of one split, with the L2 term where it is wanted, and what they are called."""
    if "split" in frame.columns:
        splits = frame["split"].unique().tolist()
        if split is None and len(splits) > 1:
            raise ValueError(f"split must be one of {splits}, the splits of this plane, got None")
        split = choose("split", split or splits[0], splits)
        frame = frame[frame["split"] == split]
    word = METRICS[metric].label
    if weight_decay:
        if metric != "nll":
            raise ValueError(f"weight_decay must be 0 for metric {metric!r}, it belongs to 'nll'; got {weight_decay}")
        frame = frame.assign(nll=frame["nll"] + weight_decay / 2 * frame["norm"] ** 2)
        word = "regularised " + word
    given = frame.attrs.get("split", "")
    return frame, " ".join(filter(None, [split or (given if isinstance(given, str) else ""), word]))


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


def _mark(axes: Axes, points: Mapping[str, Sequence[float]], corner: np.ndarray, scale: np.ndarray, size: np.ndarray,
          *, ways: Mapping[str, np.ndarray]) -> None:
    lines = [(way - corner) * scale for way in ways.values()]
    for name, (across, up) in points.items():
        axes.plot(across, up, "o", ms=7, mfc="white", mec="black", mew=1.2, zorder=5)
        right, above = _place(name, (np.array([across, up]) - corner) * scale, size, lines)
        axes.annotate(name, (across, up), xytext=(right, above), textcoords="offset points",
                      ha="right" if right < 0 else "left", va="top" if above < 0 else "bottom", color="white", zorder=6,
                      path_effects=[withStroke(linewidth=3, foreground="black")])


def _place(name: str, at: np.ndarray, size: np.ndarray, lines: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return where a label goes, relative to its mark [points]: into the panel first, then off the curves."""
    label = np.array([8.0 * len(name), 12.5])
    inwards = np.where(at > size / 2, -1, 1)  # away from the nearer edges
    turns = inwards * [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0)]
    dense = [np.linspace(a, b, 20) for line in lines for a, b in itertools.pairwise(line)]

    def faults(offset: np.ndarray) -> tuple[bool, int]:
        low = at + offset - np.where(offset < 0, label, 0)
        hits = sum(((piece > low - 2) & (piece < low + label + 2)).all(1).sum() for piece in dense)
        return bool((low < 0).any() or (low + label > size).any()), int(hits)

    best = min(7 * turns, key=faults)
    return float(best[0]), float(best[1])
