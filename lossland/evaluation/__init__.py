"""Tables along a path, and predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.allocation import keep_memory
from lossland.evaluation.arguments import as_path, as_points, check_task, check_whole, single
from lossland.evaluation.first_layers import check_precision
from lossland.evaluation.frames import Scorer, bfloat16_error, framed
from lossland.evaluation.frames import check_sums as check_sums  # for planes, too
from lossland.evaluation.lengths import Lengths
from lossland.evaluation.nodes import check_nodes
from lossland.evaluation.rounds import interpolated
from lossland.evaluation.scoring import Manner, Stateless, logits_of
from lossland.evaluation.subsets import check_count, drawn
from lossland.families import Family
from lossland.legs import Swaps
from lossland.paths import Path
from lossland.scalars import flag
from lossland.tasks import Split, Task
from lossland.weights import Weights, check_belongs, check_finite


def check_split(task: Task, splits: Sequence[str], argument: str = "splits") -> dict[str, Split]:
    """Return name -> split of the task.

    Raises:
        TypeError: if `splits` is one name instead of several, or no names.
        ValueError: for no name, or one that the task does not have.
    """
    if isinstance(splits, str) or not isinstance(splits, Iterable):
        given = f"the string {splits!r}" if isinstance(splits, str) else repr(splits)
        raise TypeError(f"{argument} must be a sequence of names such as ('train', 'test'), got {given}")
    if not (found := {name: task.split(name) for name in splits}):
        raise ValueError(f"{argument} must name at least one split of the task, got none")
    return found


def default_points(path: Path | Family) -> int:
    """Return how many t of a path are evaluated unless the caller says: 121 for curves with bends, 61 for other paths.

    Source: G18 A.3 (121 points); AY20's released code has 61 on its longest paths.
    """
    return 121 if isinstance(path, Family) and path.bends else 61


def grid(path: Path, points: int | Sequence[float] | Tensor, *, swaps: int | None = None) -> Tensor:
    """Return the t (T,) float64 at which a path is evaluated.

    Args:
        path: the path.
        points: a number: equidistant t, rounded up so that every leg boundary is among them, and on a leg of `Swaps`
            the middles and ends of its swaps in their place; or the t themselves.
        swaps: how many swaps of such a leg, evenly spread; None: all of them.

    Raises:
        TypeError: for points that are neither a number nor several t.
        ValueError: if there are fewer than two points, or a t lies outside [0, 1].
    """
    points = as_points(points)
    if isinstance(points, int):
        if points < 2:
            raise ValueError(f"points must be >= 2, got {points}")
        t = path.grid(math.ceil((points - 1) / len(path.legs)) + 1)
        for number, leg in enumerate(path.legs):
            if isinstance(leg, Swaps):
                t = torch.cat([t[path.locate(t)[0] != number], (number + leg.knots(swaps)) / len(path.legs)]).unique()
        return t
    if not len(points):
        raise ValueError("points must hold at least one t, got none")
    path.locate(points)
    return points


@torch.no_grad()
def evaluate(net: nn.Module, path: Path | Family, task: Task, *,
             points: int | Sequence[float] | Tensor | None = None, swaps: int | None = None,
             splits: Sequence[str] = ("train", "test"), nodes: int | None = None, tolerance: float = 1e-3,
             images: int | None = None, statistics: int | None = None, seed: int = 0, exact: bool = False,
             precision: str | None = None, progress: bool = False) -> pd.DataFrame:
    """Return a table of losses and accuracies along a path: one row per (t, split).

    Images are used without augmentation. Batch-norm statistics are re-estimated on the training split at every t, the
    ends included.

    Args:
        net: the network.
        path: a path through its weight space, or a family over an interval.
        task: the data; evaluation happens on its device.
        points: how many equidistant t (leg boundaries always included), or the t themselves. None: 121 for a curve that
            is trained, a family with bends, as in G18; 61 for any other path.
        swaps: how many swaps of a permutation stage are evaluated, each at its middle and its end; None: all of them,
            which costs little for networks with one hidden layer and two passes per swap for all others.
        splits: of the task.
        nodes: evaluate every leg at so many Chebyshev nodes, its ends among them (13 and 17 are usual), and interpolate
            nll at all other points. Where the polynomial's coefficients say that it misses the tolerance, nodes are
            doubled (13, 25, 49, ...); a leg that is not smooth ends with all its points evaluated, and so do those of
            the permutation stage and legs with fewer points than nodes. None: every point is evaluated.
        tolerance: of interpolated losses [nats].
        images: score so many images of each split, drawn without replacement, the same at all points, with standard
            errors. None: all.
        statistics: estimate batch-norm statistics on so many training images. None: on all. Measured on PreResNet20 and
            CIFAR-10: 5,000 of 50,000 move nll by at most 0.0025 and accuracy by 0.16 points, 1,000 by 0.015 and 0.41.
        seed: which images are drawn.
        exact: evaluate networks with one hidden layer by the plain loop over t that `lossland.kernels.reference`
            specifies, not by the compiled sweep, which equals it up to rounding.
        precision: None: that of the weights; where they are float32 and 10,000 uint8 images and more are scored, all
            splits together, the products with first layers are made by bytes if the processor does that fast and it is
            as exact. "float32": that of the weights, float64 too, never by bytes. "bfloat16": products of numbers that
            are rounded to 8 bits, which costs half and changes nll by some 1e-4 to 1e-2.
        progress: show a line.

    Returns:
        Columns t, leg, split, nll [nats], accuracy, ece [fractions; 20 bins], distance [l2 from the start of the path],
        norm [l2 of all weights; nll + 1/2 * weight_decay * norm^2 is G18's loss].
        With `nodes`: rows for nodes, too, and the columns evaluated (bool; elsewhere nll is interpolated and accuracy
        and ece are NaN) and nll_error [nats], the estimated error of the interpolation.
        With `images`: the standard errors nll_se [nats] and accuracy_se [fractions], height [nats] of nll above the
        straight line between its values at the first and last t, whose largest is the barrier, and its standard error
        height_se, from the heights of every image. They say how far the values of the whole split may be.
        `attrs` says how: grid (number of t), task, product (what first layers were multiplied in: "int8 x 3", three
        bytes of each weight, "float32", "float64" or "bfloat16"), and way. Networks with one hidden layer: "sweep"
        (compiled), "fused" (a loop over t that shares products), "reference" (the same loop, asked for by `exact`),
        "swap sweep" (permutation stages, compiled), "rank two" (the same in plain torch: `exact`, or for units that are
        no ReLUs). Others: "shared prefix", "shared first layer" (where mixing costs less than its products), "one by
        one". A path whose legs are scored in several ways has all their names, such as "fused + swap sweep".
        Where asked for: nodes (t that were evaluated), refined (legs that needed more nodes than given), images,
        statistics, seed, and bfloat16_error, the largest change of nll against float32 at both ends and the worst
        point, on up to 1000 images of each split.

    Raises:
        TypeError: without a task (batch-norm statistics cannot be estimated without data), a path or a network; a
            `Fit` and the weights of one network are told what to be instead.
        ValueError: for a family over no interval; if t lies outside [0, 1], or a split is unknown or empty; for no
            split, fewer than three nodes, two images or one swap; for precision="bfloat16" and weights other than
            float32, unless the network has one hidden layer, whose weights may be of any type.
        FloatingPointError: if the loss is NaN or infinite somewhere, naming split and t.

    Source: worst accuracy along a path: AY20 section 5; Min, Int, Max: G18 A.3 (`metrics.along`); ECE: W21 section 4.3.
    """
    check_task(net, task)
    exact, progress = flag("exact", exact), flag("progress", progress)
    check_precision(precision)
    check_nodes(nodes, tolerance)
    check_count("images", images)
    check_count("statistics", statistics)
    check_whole("seed", seed)
    if swaps is not None:
        check_whole("swaps", swaps, 1)
    given, path = path, as_path(path)
    t = grid(path, default_points(given) if points is None else points, swaps=swaps).sort().values
    chosen = {name: drawn(split, images, seed) for name, split in check_split(task, splits).items()}
    start = path.point(0.0)
    check_belongs(net, start, "the start of path")
    manner = Manner(exact, precision, drawn(task.train, statistics, seed), images is not None)
    with tqdm(total=0, desc="path", unit="point", disable=not progress) as bar:
        score = Scorer(net, path, task if images is None else replace(task, **chosen), chosen, start=start,
                       manner=manner, bar=bar)
        scored, refined = (score(t), 0) if nodes is None else interpolated(
            path, t, score, count=nodes, tolerance=tolerance, lengths=Lengths(start))
    table = framed(scored, path, chosen, whole=None if images is None else task, nodes=nodes is not None)
    table.attrs.update(grid=len(scored.t), task=task.name, way=" + ".join(sorted(score.ways)),
                       product=" + ".join(sorted(score.products)))
    if nodes is not None:
        table.attrs.update(nodes=int(scored.evaluated.sum()), refined=refined)
    asked = {"images": images, "statistics": statistics, "seed": None if images is statistics is None else seed}
    table.attrs.update({name: value for name, value in asked.items() if value is not None})
    if precision == "bfloat16":
        some = sorted({table.t.iloc[0], table.t[table.nll.idxmax()], table.t.iloc[-1]})
        table.attrs["bfloat16_error"] = bfloat16_error(score, torch.tensor(some, dtype=torch.float64), seed)
    return table


@torch.no_grad()
@keep_memory()
def predict(net: nn.Module, weights: Weights, task: Task, split: str = "test") -> Tensor:
    """Return the logits (N, C) of one network on a split; batch-norm statistics are re-estimated on the training split.

    Raises:
        TypeError: without a task; batch-norm statistics cannot be estimated without data.
        ValueError: for an unknown split, or weights that are NaN or infinite.
    """
    check_task(net, task)
    weights = single(net, weights, "weights")
    check_finite(weights, "weights")
    return torch.cat([logits for logits, _ in logits_of(Stateless(net, task), weights, task.split(split))])
