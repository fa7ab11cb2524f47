"""The table of a path: points are scored, round by round, and put into rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import Tensor, nn
from tqdm import tqdm

from lossland.evaluation.rounds import Scored
from lossland.evaluation.scoring import Manner, Sums
from lossland.evaluation.subsets import Each, drawn
from lossland.evaluation.walks import Walk
from lossland.paths import Path
from lossland.tasks import Split, Task
from lossland.weights import Weights

_TRIED = 1000  # images of each split on which two precisions are compared


def check_sums(sums: Sums, t: Tensor, split: str) -> None:
    """Raise unless all losses are finite.

    Raises:
        FloatingPointError: naming the split, how many points are broken, and where the first one lies (a row of `t`).
    """
    bad = (~sums.nll.isfinite()).nonzero()[:, 0]
    if len(bad):
        raise FloatingPointError(f"the loss on {split!r} is NaN or infinite at {len(bad)} of {len(t)} points, first at "
                                 f"{t[bad[0]].tolist()}")


class Scorer:
    """A path and the data as a function of t.

    Attributes:
        ways: how the points were scored so far.
        products: what first layers were multiplied in.
    """

    def __init__(self, net: nn.Module, path: Path, task: Task, splits: Mapping[str, Split], *, start: Weights,
                 manner: Manner, bar: tqdm) -> None:
        self.net, self.path, self.task, self.splits = net, path, task, splits
        self.start, self.manner, self.bar = start, manner, bar
        self.ways, self.products = set[str](), set[str]()

    def __call__(self, t: Tensor) -> Scored:
        """Return the scores at t (T,), increasing.

        Raises:
            FloatingPointError: as `check_sums`.
        """
        self.bar.total = (self.bar.total or 0) + len(t) * len(self.splits)
        walk = Walk(self.net, self.task, self.splits, self.start, len(t), manner=self.manner)
        walk.along(self.path, t, self.bar.update)
        for name, sums in walk.totals.items():
            check_sums(sums, t, name)
        self.ways |= walk.ways
        self.products |= walk.products
        return Scored.of(t, walk.totals, walk.away, walk.norm)


def framed(scored: Scored, path: Path, splits: Mapping[str, Split], *, whole: Task | None, nodes: bool) -> pd.DataFrame:
    """Return scores as the table that `evaluate` describes.

    Args:
        scored: the scores.
        path: where they belong.
        splits: what was scored.
        whole: the task whose splits they were drawn from; None: nothing was drawn.
        nodes: whether points may have been interpolated.
    """
    leg, _ = path.locate(scored.t)
    tables = []
    for name, split in splits.items():
        sums = scored.totals[name]
        columns: dict[str, Any] = sums.columns(split.labels.numel())
        if whole is not None:
            assert isinstance(sums, Each)
            columns |= sums.errors(scored.t, len(whole.split(name)))
        columns |= {"distance": scored.away.numpy(), "norm": scored.norm.numpy()}
        if nodes:
            columns |= {"evaluated": scored.evaluated.numpy(), "nll_error": scored.errors[name].numpy()}
        tables.append(pd.DataFrame({"t": scored.t.numpy(), "leg": leg.numpy(), "split": name, **columns}))
    return pd.concat(tables).sort_values("t", kind="stable", ignore_index=True)


def bfloat16_error(score: Scorer, t: Tensor, seed: int) -> float:
    """Return the largest change of nll against float32 [nats] at t (T,), on up to 1000 images of each split.

    Batch-norm statistics are estimated on as many in both precisions.
    """
    few = {name: drawn(split, _TRIED, seed) for name, split in score.splits.items()}
    statistics = drawn(score.manner.statistics or score.task.train, _TRIED, seed)
    manner = replace(score.manner, each=False, statistics=statistics)
    found = []
    for precision in ("bfloat16", None):
        one = Scorer(score.net, score.path, replace(score.task, **few), few, start=score.start,
                     manner=replace(manner, precision=precision), bar=tqdm(disable=True))
        found.append(one(t).totals)
    low, full = found
    return max(float((low[name].nll - full[name].nll).abs().max()) / split.labels.numel()
               for name, split in few.items())
