"""The stages of a layer-by-layer path as a diagram: which layer is A's, refit or B's at every intermediate point."""

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.patches import Patch, Rectangle

from lossland.errors import choose
from lossland.figures.pictures import STYLE, WIDTH, Picture, canvas, legend, settle
from lossland.stages import Staged

STATES = {  # state -> (letters in the cell, colour, colour of the letters, what the legend says)
    "A": ("A", "#0072b2", "white", "A's weights"),
    "adjusted": ("AB", "#f0e442", "black", "refit to A's outputs"),
    "matched": ("B'", "#e89a5b", "black", "B's weights, in the order of A's units"),
    "B": ("B", "#c24c00", "white", "B's weights"),
}


def stage_states(path: Staged) -> pd.DataFrame:
    """Return what every layer is at the intermediate points of a staged path, read off the path itself.

    A layer's tensors at each point are compared with those at the start, at the end, and in front of the permutation,
    where units have B's weights in A's order.

    Args:
        path: a path from `connect` for several hidden layers.

    Returns:
        One row per layer, in the order in which they move; one column per point: "A", then "1", "2", ... after each
        stage, the last one "B". Values: "A", "adjusted", "matched" or "B".

    Raises:
        TypeError: if the path has no stages.

    Source: AY20 Fig. 4 and section 4.1.
    """
    if not isinstance(path, Staged):
        raise TypeError("path must be a staged path, from connect() with scheme 'adjust' or 'butterfly' for a network "
                        f"of several hidden layers, got {type(path).__name__}")
    stages = path.stages
    moved = stages[stages["kind"] != "permutation"]
    start, goal, end = (path.point(float(t)) for t in (0.0, moved["t1"].iloc[-1], 1.0))
    # A layer that moves together with another one is no stage of its own: butterflies end with the output layer.
    weights = [name.rpartition(".")[0] or name for name, tensor in start.items() if tensor.ndim > 1]
    named = [*moved["module"].str.split(" + ", regex=False), *moved["readers"], weights]
    modules = list(dict.fromkeys(name for names in named for name in names))
    columns = {"A": ["A"] * len(modules)}
    for number, t in enumerate(stages["t1"], 1):
        point = path.point(float(t))
        known = {"B": end, "matched": goal, "A": start}  # a layer that is the same in A and B counts as moved
        columns["B" if number == len(stages) else str(number)] = [
            next((state for state, other in known.items() if _same(point, other, module)), "adjusted")
            for module in modules]
    return pd.DataFrame(columns, index=pd.Index(modules, name="layer"))


def _same(point: dict[str, torch.Tensor], other: dict[str, torch.Tensor], module: str) -> bool:
    names = [name for name in point if name == module or name.rpartition(".")[0] == module]
    return all(torch.equal(point[name], other[name]) for name in names)


@matplotlib.rc_context(STYLE)
def plot_stages(path: Staged | pd.DataFrame) -> Picture:
    """Draw the intermediate points of a staged path: one row per layer, one column per point.

    Args:
        path: a staged path, or the table of `stage_states`.

    Returns:
        The figure; every cell has letters as well as a colour.

    Raises:
        TypeError: if the path has no stages.
        ValueError: for an unknown state in a table.

    Source: AY20 Fig. 4.
    """
    states = path if isinstance(path, pd.DataFrame) else stage_states(path)
    for state in np.unique(states.to_numpy()):
        choose("states of path", state, STATES)
    rows, columns = states.shape
    used = [state for state in STATES if (states == state).to_numpy().any()]
    figure, [[axes]] = canvas(WIDTH, 1.0 + 0.22 * len(used) + 0.25 * rows)
    size = float(np.clip(64 / columns, 6.5, 11))  # two letters fit into a cell
    for (i, j), state in np.ndenumerate(states.to_numpy()):
        letters, colour, ink, _ = STATES[state]
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor="white", lw=1.5))
        axes.text(j + 0.5, i + 0.52, letters, ha="center", va="center", color=ink, fontsize=size)
    axes.set(xlim=(0, columns), ylim=(rows, 0), xlabel="intermediate point (after so many stages)")
    axes.set_xticks(np.arange(columns) + 0.5, states.columns, fontsize=max(size, 7.5))
    axes.set_yticks(np.arange(rows) + 0.5, states.index, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    boxes = [Patch(facecolor=STATES[state][1], label=f"{STATES[state][0]}: {STATES[state][3]}") for state in used]
    legend(figure, columns=1, handles=boxes)
    return settle(figure)
