"""What the book's drawings share: quantities with their units, colours and dashes, figures that show themselves."""

import base64
import io
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

# Each has a contrast of at least 3 : 1 against white; the first two also against both backgrounds of the dark theme.
COLOURS = ("#0072b2", "#c24c00", "#00785a", "#9a4d86", "#4d4d4d")
DASHES = ("-", (0, (6, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1.5, 1.5)), (0, (8, 2, 1, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v")
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.fontsize": 10.5,
         "axes.prop_cycle": cycler(color=COLOURS)}
WIDTH = 5.2  # inches
DOTS = 110  # per inch: 572 pixels in all, so that 11 pt type stays above 10 pixels on a phone


class Quantity(NamedTuple):
    """A column of a table as it is printed: `value * factor + offset`, with so many decimals and this unit.

    With `exponential`, exp of that.
    """

    column: str
    factor: float
    offset: float
    word: str
    unit: str
    decimals: int
    exponential: bool = False

    @property
    def label(self) -> str:
        """Word and unit, as axes carry them."""
        return f"{self.word} ({self.unit})" if self.unit else self.word


METRICS = {
    "accuracy": Quantity("accuracy", 100, 0, "accuracy", "%", 1),
    "error": Quantity("accuracy", -100, 100, "error", "%", 1),
    "nll": Quantity("nll", 1, 0, "loss", "nats", 3),
    "perplexity": Quantity("nll", 1, 0, "perplexity", "", 1, exponential=True),
    "ece": Quantity("ece", 100, 0, "calibration error", "%", 1),
    "distance": Quantity("distance", 1, 0, "l2 distance from the start", "", 2),
}


def read(frame: pd.DataFrame, metric: str, name: str, needs: Iterable[str]) -> pd.Series:
    """Return a metric of a table in the units in which it is printed.

    Args:
        frame: A table of `evaluate` or `plane`.
        metric: A key of `METRICS`.
        name: What the caller calls the table, for the message.
        needs: Further columns that must be there.

    Returns:
        One value per row; accuracy, error and calibration error in per cent, perplexity as exp of the loss.

    Raises:
        ValueError: Columns that are missing, named beside those that are there.
    """
    quantity = METRICS[metric]
    missing = [need for need in (*needs, quantity.column) if need not in frame.columns]
    if missing:
        raise ValueError(f"{name} must have columns {', '.join(missing)}, got {', '.join(map(str, frame.columns))}")
    values = frame[quantity.column].astype(float) * quantity.factor + quantity.offset
    return np.exp(values) if quantity.exponential else values


class Picture(Figure):
    """A Matplotlib figure that shows itself once in a notebook, as a PNG, and writes the same bytes every time.

    pyplot never learns of it, so no second copy is displayed at the end of a cell and nothing has to be closed. In a
    notebook that imports pyplot itself, pyplot's printer for figures goes first: still one PNG, about twice as large.
    """

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"image/png": base64.b64encode(self.png()).decode(), "text/plain": repr(self)}

    def png(self) -> bytes:
        """Return the figure as a small PNG: 128 colours, a third of the usual bytes in every committed notebook."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png")
        Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
        return small.getvalue()

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write the figure as `matplotlib.figure.Figure.savefig` does, without dates and random identifiers.

        Args:
            fname: Path or file object; the suffix gives the format.
            **kwargs: As Matplotlib's.
        """
        kind = kwargs.get("format") or str(fname).rpartition(".")[2].lower()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        metadata = {**dates.get(kind, {}), **(kwargs.pop("metadata", None) or {})}
        # Ticks are chosen anew at every draw, by the size of type that is set then: by another one than the layout's,
        # wider labels would push an axis's name out of the figure.
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": "lossland"}):
            super().savefig(fname, metadata=metadata, **kwargs)


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, *,
           share: bool = True) -> tuple[Picture, np.ndarray]:
    """Return an empty figure and its panels, which share x, and y within a row, unless each is for itself.

    Args:
        width: Inches.
        height: Inches.
        rows: Number of panels downwards.
        columns: Number of panels across.
        share: Whether panels share axes.

    Returns:
        The figure, and the (rows, columns) array of its axes.
    """
    figure = Picture(figsize=(width, height), dpi=DOTS, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.07)
    return figure, figure.subplots(rows, columns, sharex=share, sharey="row" if share else False, squeeze=False)


def legend(figure: Picture, *, columns: int = 2, **kwargs: Any) -> None:
    """Put a legend below the panels, in as many columns as fit.

    Args:
        figure: Where its labelled lines are.
        columns: Most columns.
        **kwargs: As `matplotlib.figure.Figure.legend` takes them (handles, fontsize).
    """
    for count in range(columns, 0, -1):
        box = figure.legend(loc="outside lower center", ncols=count, frameon=False, handlelength=3.2, **kwargs)
        if count == 1 or box.get_window_extent().width <= figure.bbox.width:
            return
        box.remove()


def settle(figure: Picture) -> Picture:
    """Return the figure with its layout fixed.

    The constrained layout moves on with every draw; stopped where it has converged, all copies have the same bytes.
    """
    for _ in range(3):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def pairs(value: ArrayLike | Tensor, name: str) -> np.ndarray:
    """Return points in the plane as an array (n, 2).

    Args:
        value: (n, 2), or a table with columns x and y.
        name: What the caller calls it, for the message.

    Raises:
        ValueError: Another shape, fewer than two points, NaN or infinite coordinates.
    """
    if isinstance(value, pd.DataFrame):
        value = value[["x", "y"]]
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=float)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite with shape (n, 2), n >= 2, got shape {array.shape}")
    return array
