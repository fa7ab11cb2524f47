"""Two networks that lie opposite each other on a line or curve, P(t) and P(1 - t): each alone and both together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.ensembles.averaging import AVERAGES, averaged
from lossland.ensembles.scores import outputs
from lossland.errors import choose
from lossland.evaluation import check_split, check_sums
from lossland.evaluation.arguments import as_path
from lossland.evaluation.scoring import Stateless, Sums, check_task
from lossland.families import Family
from lossland.metrics import total_variation
from lossland.paths import Mix, Path, adds_up
from lossland.tasks import Task
from lossland.weights import Weights, check_belongs, check_finite

POINTS = 11  # of W21's appendix G: t = 0, 0.1, ..., 1
_SAME = 1e-9  # two t that differ by rounding alone are one network


def _positions(points: int | Sequence[float] | Tensor) -> list[float]:
    """Return the t that are asked for.

    Raises:
        TypeError: for text.
        ValueError: for fewer than two points, no t, one that is NaN or infinite, or the same twice.
    """
    if isinstance(points, str):
        raise TypeError(f"points must be a number or the t themselves, got {points!r}")
    if isinstance(points, int):
        if points < 2:
            raise ValueError(f"points must be >= 2, both ends among them, got {points}")
        return [i / (points - 1) for i in range(points)]
    found = torch.as_tensor(points, dtype=torch.float64).flatten().tolist()
    if not found or not all(math.isfinite(t) for t in found):
        raise ValueError(f"points must hold at least one t, all finite, got {found}")
    if any(abs(t - s) < _SAME for i, t in enumerate(found) for s in found[:i]):
        raise ValueError(f"points must be different t, got {found}")
    return [0.5 if abs(t - 0.5) < _SAME else t for t in found]  # where a network is its own partner


def _pairs(positions: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield (t, its mirror image) for every pair that the positions belong to, t <= 1/2."""
    rest = sorted(positions)
    while rest:
        t = rest.pop(0) if rest[0] <= 0.5 else 1 - rest[-1]
        mirror = next((s for s in rest if abs(s - (1 - t)) < _SAME), 1 - t)
        rest = [s for s in rest if abs(s - mirror) >= _SAME]
        yield t, mirror


def member_at(path: Path | Family) -> Callable[[float], Weights]:
    """Return the function t -> weights of a path, or of a family over an interval; lines and Bezier curves go on
    outside [0, 1], as their formulas do.

    Raises:
        TypeError: for neither.
        ValueError: for a family that is no interval; from the function, for a t outside [0, 1] of a path that has
            several legs, or one that no formula continues.

    Source: W21 section 4.6, alpha = -0.05 and 1.05 (Fig. 12, right).
    """
    path = as_path(path)

    def at(t: float) -> Weights:
        if 0 <= t <= 1:
            return path.point(t)
        leg = path.legs[0]
        if len(path.legs) == 1 and isinstance(leg, Mix):
            coefficients = leg.basis(torch.tensor(t, dtype=torch.float64))
            if adds_up(coefficients):
                return leg.mixed(coefficients)
        raise ValueError("t must lie in [0, 1] on a path that no formula continues, as one does a segment or a Bezier "
                         f"curve of one leg, got t = {t} on {len(path.legs)} leg(s)")
    return at


@torch.no_grad()
def mirrored(net: nn.Module, path: Path | Family, task: Task, *, points: int | Sequence[float] | Tensor = POINTS,
             average: str = "logits", splits: Sequence[str] = ("test",), progress: bool = False) -> pd.DataFrame:
    """Return a table of a line or curve: P(t), and the ensemble of P(t) and P(1 - t); one row per (t, split).

    Every network is made once, passes once through each split and is let go; of a pair only the scores (images x
    classes, float64) are kept until both are there. Batch-norm statistics are re-estimated for each network on the
    training split.

    Args:
        net: the network.
        path: a family over an interval (`line`, `bezier`), or a path: the segment between two checkpoints, say.
        task: the data.
        points: how many equidistant t, both ends included, or the t themselves. On lines and Bezier curves they may lie
            outside [0, 1]. A partner 1 - t that is not among them is made, but has no row.
        average: "logits" (W21) or "probabilities".
        splits: of the task.
        progress: show a line.

    Returns:
        Columns t, split; nll [nats], accuracy, ece [fractions; 20 bins] of P(t); pair_nll, pair_accuracy, pair_ece of
        the two together; pair_tv: total variation distance of their predictions [fraction]. In the order of `points`.
        Pairs are symmetric about t = 1/2, where the pair is one network. `attrs`: task, average.

    Raises:
        TypeError: for what is neither a path nor a family.
        ValueError: for fewer than two points, a family that is no interval, t outside [0, 1] where a path ends there,
            an unknown split or average.
        FloatingPointError: if a loss is NaN or infinite, naming split and t.

    Source: W21 section 4.2; Figs. 4, 5, 6, 9, 12 (right), 13 and 18.

    Examples:
        >>> from lossland import families, models, tasks
        >>> task = tasks.load_task("digits", device="cpu").subset(100, 50)
        >>> net = models.build("mlp", task.input_shape, task.classes, width=8)
        >>> ends = [models.initial_weights(net, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
        >>> table = mirrored(net, families.line(*ends), task, points=5)
        >>> table.t.tolist(), bool((table.pair_accuracy == table.pair_accuracy[::-1].to_numpy()).all())
        ([0.0, 0.25, 0.5, 0.75, 1.0], True)
    """
    check_task(net, task)
    choose("average", average, AVERAGES)
    wanted, chosen, make = _positions(points), check_split(task, splits), member_at(path)
    function, found = Stateless(net, task), {}
    pairs = list(_pairs(wanted))
    for pair in tqdm(pairs, "pairs", disable=not progress):
        several = []
        for t in dict.fromkeys(pair):
            weights = make(t)
            check_belongs(net, weights, f"path at t = {t}")
            check_finite(weights, f"path at t = {t}")
            buffers = function.buffers(weights)
            several.append({name: outputs(function, weights, part, buffers) for name, part in chosen.items()})
        for name, part in chosen.items():
            rows = _scored([logits[name] for logits in several], pair, name, part.labels.flatten(), average)
            found |= {(t, name): row for t, row in zip(pair, rows, strict=False)}
    table = pd.DataFrame([{"t": t, "split": name, **found[t, name]} for t in wanted for name in chosen])
    table.attrs.update(task=task.name, average=average)
    return table


def _scored(logits: Sequence[Tensor], pair: tuple[float, float], split: str, labels: Tensor,
            average: str) -> list[dict[str, float]]:
    """Return a row for each of the one or two networks with these logits (N, C)."""
    # A network with itself is that network, to the last bit.
    together = averaged(logits, average) if len(logits) > 1 else logits[0]
    sums = Sums.zeros(3)
    for row, scores in enumerate((logits[0], logits[-1], together)):
        sums.add(torch.tensor([row]), scores[None], labels)
    check_sums(sums, torch.tensor([*pair, pair[0]]), split)
    columns = sums.columns(len(labels))
    apart = float(total_variation(logits[0].softmax(-1), logits[-1].softmax(-1)))
    shared = {f"pair_{name}": float(x[2]) for name, x in columns.items()} | {"pair_tv": apart}
    return [{name: float(x[row]) for name, x in columns.items()} | shared for row in range(len(logits))]
