"""Rows of G18's Table 2: what a loss or an error is at best, on average and at worst along a path."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from lossland.families import Family
from lossland.metrics import along
from lossland.paths import Path
from lossland.weights import distance

QUANTITIES = {  # name -> split, and what is summarised
    "loss": ("train", "loss"), "train error": ("train", "error"), "test error": ("test", "error"),
    "test loss": ("test", "nll"),
}
PARTS = {"min": "min", "int": "integral", "max": "max", "mean": "mean"}


def values_of(frame: pd.DataFrame, quantity: str, *, weight_decay: float = 0.0) -> pd.Series | None:
    """Return a quantity along a path, indexed by t, or None where its split was not evaluated.

    Args:
        frame: table of `evaluate`.
        quantity: "loss": training nll + 1/2 * weight_decay * norm^2 [nats]; "train error", "test error" [fractions];
            "test loss" [nats].
        weight_decay: of the loss.

    Source: G18 section 4.1 ("loss" is the L2-regularised cross-entropy).
    """
    split, what = QUANTITIES[quantity]
    rows = frame[frame["split"] == split].set_index("t").sort_index()
    if not len(rows):
        return None
    if what == "error":
        return 1 - rows["accuracy"]
    return rows["nll"] + weight_decay / 2 * rows["norm"] ** 2 if what == "loss" else rows["nll"]


def summary(frame: pd.DataFrame, path: Path | Family, *, weight_decay: float = 0.0) -> dict[str, float]:
    """Return one row of G18's Table 2 for a path: length, and Min, Int, Max and Mean of loss and errors.

    "int" is the trapezoid rule weighted by the distance in weight space (loss (1), the uniform distribution on the
    curve), "mean" the one in t (loss (3)).

    Args:
        frame: table of `evaluate` on this path, with the train split, the test split or both.
        path: the path; the distances between the points of the table follow from it.
        weight_decay: factor of the L2 term of the training loss.

    Returns:
        length [l2], length ratio [to the distance of its ends; NaN where they coincide], points [number of t], and
        "loss min", "loss int", "loss max", "loss mean" [nats], the same of "train error", "test error" [fractions] and
        "test loss" [nats], as far as the splits are there.

    Raises:
        ValueError: for tables of several paths or of fewer than two t.

    Source: G18 A.3 and Table 2.
    """
    path = path.path() if isinstance(path, Family) else path
    if frame.duplicated(["t", "split"]).any():
        raise ValueError("frame must hold one row for each t and split, got several: pass the table of one path")
    t = np.sort(frame["t"].unique())
    steps, chord = path.steps(torch.as_tensor(t)), distance(path.point(0.0), path.point(1.0))
    # Polygons with corners on the path: the longer one is nearer to its length. A leg of swaps has more points in the
    # table than its share of t.
    length = max(float(steps.sum()), path.length(math.ceil((len(t) - 1) / len(path.legs)) + 1))
    row = {"length": length, "length ratio": length / chord if chord else math.nan, "points": len(t)}
    for quantity in QUANTITIES:
        values = values_of(frame, quantity, weight_decay=weight_decay)
        if values is not None:
            found = along(t, values.to_numpy(), steps)
            row |= {f"{quantity} {part}": found[name] for part, name in PARTS.items()}
    return row


def summaries(frames: Mapping[str, pd.DataFrame], paths: Mapping[str, Path | Family], *,
              weight_decay: float = 0.0) -> pd.DataFrame:
    """Return G18's Table 2: single networks, then one row per path.

    Args:
        frames: name -> table of `evaluate`.
        paths: name -> the path that was evaluated, under the same names.
        weight_decay: factor of the L2 term of the training loss.

    Returns:
        Index: "single", then the names. Columns as `summary` gives them. Of the single networks, which are the ends of
        the paths, "min" and "max"; everything else is NaN there.

    Raises:
        ValueError: for names that differ, no paths, or as `summary`.

    Source: G18 Table 2.
    """
    if not frames or frames.keys() != paths.keys():
        raise ValueError(f"frames and paths must have the same names, at least one, got {list(frames)} and "
                         f"{list(paths)}")
    rows = {name: summary(frame, paths[name], weight_decay=weight_decay) for name, frame in frames.items()}
    single: dict[str, float] = {}
    for quantity in QUANTITIES:
        values = [values_of(frame, quantity, weight_decay=weight_decay) for frame in frames.values()]
        ends = [value.iloc[[0, -1]] for value in values if value is not None]
        if ends:
            single |= {f"{quantity} min": float(np.min(ends)), f"{quantity} max": float(np.max(ends))}
    table = pd.DataFrame({"single": single, **rows}).T
    return table[list(next(iter(rows.values())))].rename_axis("path")
