"""Early stopping: plain training looked at after every epoch, and where one would have stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lossland.devices import device_name
from lossland.errors import choose
from lossland.evaluation import check_split
from lossland.evaluation.arguments import check_task, single
from lossland.evaluation.scoring import Stateless, Sums, logits_of
from lossland.families import Family, point
from lossland.identity import described, fingerprint
from lossland.schedules import batches_per_epoch
from lossland.store import Checkpoint, Store
from lossland.tasks import Task
from lossland.training import VERSION, Recipe, fit
from lossland.weights import Weights, to_vector

BEST = {"accuracy": max, "nll": min, "ece": min}


class _Watch:
    """A collector that scores the network at the end of every epoch and keeps the scores alone."""

    def __init__(self, net: nn.Module, task: Task, splits: Sequence[str], per_epoch: int) -> None:
        self.function, self.splits, self.per_epoch = Stateless(net, task), check_split(task, splits), per_epoch
        self.rows: list[dict[str, Any]] = []

    def wants(self, iteration: int) -> bool:
        return iteration % self.per_epoch == 0

    @torch.no_grad()
    def take(self, weights: Weights, row: dict[str, float]) -> None:
        buffers, epoch = self.function.buffers(weights), row["iteration"] // self.per_epoch
        for name, split in self.splits.items():
            sums = Sums.zeros(1)
            for logits, labels in logits_of(self.function, weights, split, buffers):
                sums.add(torch.tensor([0]), logits[None], labels)
            scores = {key: float(values[0]) for key, values in sums.columns(split.labels.numel()).items()}
            self.rows.append({"epoch": epoch, "split": name, **scores})

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"rows": self.rows}

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        self.rows = list(info["rows"])


def epoch_scores(net: nn.Module, start: Weights | Family, task: Task, recipe: Recipe, *,
                 splits: Sequence[str] = ("validation", "test"), seed: int = 0, name: Mapping[str, Any] | None = None,
                 store: Store | None = None, progress: bool = False) -> pd.DataFrame:
    """Return the scores of a network after every epoch of its training: trained once, then read from the store.

    Training is that of `recipes.trained`; looking at it changes nothing. Batch-norm statistics are re-estimated on the
    training split after every epoch.

    Args:
        net: the network.
        start: initial weights, or a family of that one point.
        task: the data; `task.hold_out()` gives it a validation split.
        recipe: how to train.
        splits: that are scored.
        seed: of batches and augmentation.
        name: JSON values that determine network and initial weights, as for `recipes.trained`.
        store: where to look and keep; None: the default store.
        progress: show a line.

    Returns:
        One row per (epoch, split), epochs from 1: epoch, split, nll [nats], accuracy, ece [fractions; 20 bins]. The
        weights after epoch k are those of `recipes.stopped_at(..., epochs=[k])`.

    Raises:
        TypeError: without a task, for a start that is no network, or if splits is one name.
        ValueError: for no splits, or one that the task does not have.
        FloatingPointError: if training diverges.
    """
    check_task(net, task)
    start = single(net, start, "start")
    check_split(task, splits)
    device, per_epoch = task.train.images.device, batches_per_epoch(recipe, len(task.train))
    if name is None:
        name = {"net": described(net), "start": fingerprint(start, recipe.dtype)}
    facts = {"name": dict(name), "kind": "epochs", "splits": list(splits), "task": task.fingerprint,
             "recipe": recipe.facts(), "seed": seed, "training": VERSION, "device": device.type}

    def make(checkpoint: Checkpoint) -> Weights:
        watch = _Watch(net, task, splits, per_epoch)
        done = fit(net, point(start), task, recipe, seed=seed, progress=progress, checkpoint=checkpoint, collect=watch)
        checkpoint.record.update(task=task.name, scores=watch.rows, device=device_name(device))
        return {"point0": to_vector(done.family.points[0]).cpu()}

    table = pd.DataFrame((store or Store()).fetch(facts, make).record["scores"])
    table.attrs.update(task=task.name)
    return table


@dataclass(frozen=True)
class Stop:
    """Where training would have been stopped, and how good the network was there.

    Attributes:
        epoch: after which, from 1.
        by: split on which the epoch was chosen.
        metric: that was best there.
        report: split of the scores.
        nll: [nats].
        accuracy, ece: [fractions].
        last: scores on the same split after the last epoch.
    """

    epoch: int
    by: str
    metric: str
    report: str
    nll: float
    accuracy: float
    ece: float
    last: Mapping[str, float]

    @property
    def is_oracle(self) -> bool:
        """Return whether the epoch was chosen on the very images it is reported on: nobody can do that in earnest."""
        return self.by == self.report

    def __str__(self) -> str:
        """Return one sentence, with a warning where the choice was an oracle's."""
        what = "loss" if self.metric == "nll" else self.metric
        warning = (f"; an ORACLE: the epoch was chosen on the {self.report} images that it is reported on, which no "
                   "method may do" if self.is_oracle else "")
        return (f"best {what} on {self.by} after epoch {self.epoch}: {self.accuracy:.2%} on {self.report}, against "
                f"{self.last['accuracy']:.2%} after the last{warning}")


def best_epoch(table: pd.DataFrame, *, by: str = "validation", metric: str = "accuracy", report: str = "test") -> Stop:
    """Return where training would have been stopped: after the epoch that is best on a split, the first of equals.

    With `by="validation"` this is early stopping as anyone can do it. W21's baseline is "optimal early stopping", with
    the words "the best training accuracy for standard training, before over-fitting"; that it is the best *test*
    accuracy of all epochs is how we read them. `by="test"` gives it: an upper bound on early stopping, chosen by what
    it is reported on, and not a method.

    Args:
        table: of `epoch_scores`.
        by: split that chooses.
        metric: "accuracy", "nll" or "ece".
        report: split that is reported.

    Raises:
        ValueError: for an unknown metric, a split that is not in the table, missing columns, an epoch that is there
            twice.

    Source: W21 section 4.3; Figs. 8 and 12 (left).

    Examples:
        >>> scores = pd.DataFrame({"epoch": [1, 2, 3] * 2, "split": ["validation"] * 3 + ["test"] * 3, "ece": 0.1,
        ...                        "nll": 0.5, "accuracy": [0.7, 0.9, 0.8, 0.6, 0.7, 0.8]})
        >>> best_epoch(scores).epoch, best_epoch(scores).accuracy, best_epoch(scores, by="test").accuracy
        (2, 0.7, 0.8)
        >>> str(best_epoch(scores))
        'best accuracy on validation after epoch 2: 70.00% on test, against 80.00% after the last'
        >>> str(best_epoch(scores, by="test")).partition("; ")[2]
        'an ORACLE: the epoch was chosen on the test images that it is reported on, which no method may do'
    """
    choose("metric", metric, BEST)
    missing = [column for column in ("epoch", "split", *BEST) if column not in table.columns]
    if missing:
        raise ValueError(f"table must have columns {', '.join(missing)}, got {', '.join(map(str, table.columns))}")
    parts = {}
    for argument, name in (("by", by), ("report", report)):
        rows = table[table["split"] == choose(argument, name, table["split"].unique().tolist())]
        if rows["epoch"].duplicated().any():
            raise ValueError(f"table must have one row for each epoch of a split, got several on {name!r}")
        parts[argument] = rows.set_index("epoch").sort_index()
    chosen = parts["by"][metric]
    epoch = int((chosen == BEST[metric](chosen)).idxmax())
    scores, last = ({key: float(parts["report"].loc[at, key]) for key in BEST}
                    for at in (epoch, parts["report"].index[-1]))
    return Stop(epoch, by, metric, report, last=last, **scores)
