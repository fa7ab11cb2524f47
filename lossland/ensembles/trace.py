"""What a cyclic learning rate does to a network on the way: error and distance, every few iterations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lossland.ensembles.runs import run_facts
from lossland.ensembles.starts import as_start
from lossland.evaluation.scoring import Stateless, Sums, add_point
from lossland.families import point
from lossland.schedules import Recipe, batches_per_epoch, member_iterations
from lossland.store import Checkpoint, Store
from lossland.tasks import Task
from lossland.training import Start, fit
from lossland.weights import Weights, to_vector


class _Watcher:
    """A collector that scores the network and keeps nothing else of it."""

    def __init__(self, net: nn.Module, task: Task, split: str, start: Tensor, iterations: set[int]) -> None:
        self.function, self.split, self.start = Stateless(net, task), task.split(split), start
        self.iterations = iterations
        self.rows: list[dict[str, float]] = []

    def wants(self, iteration: int) -> bool:
        return iteration in self.iterations

    @torch.no_grad()
    def take(self, weights: Weights, row: dict[str, float]) -> None:
        sums = Sums.zeros(1)
        add_point(sums, 0, self.function, weights, self.split)
        scores = {name: float(column[0]) for name, column in sums.columns(self.split.labels.numel()).items()}
        away = float((to_vector(weights).double() - self.start.double()).norm())
        self.rows.append({"iteration": row["iteration"], "epoch": row["epoch"], "lr": row["lr"],
                          "error": 1 - scores["accuracy"], "nll": scores["nll"], "distance": away})

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"rows": self.rows}

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        self.rows = list(info["rows"])


def trace_cycle(net: nn.Module, start: Mapping[str, Tensor] | Start, task: Task, recipe: Recipe, *, every: int = 10,
                until: int | None = None, split: str = "test", on: Task | None = None, seed: int = 0,
                name: Mapping[str, Any] | None = None, store: Store | Path | str | None = None,
                progress: bool = False) -> pd.DataFrame:
    """Return learning rate, error and distance from the start along the run that `fge` makes: G18 Figure 5.

    The same start, recipe and seed give the very weights of that run. The numbers are kept in the store.

    Args:
        net, start, task, recipe, seed, name, store, progress: as for `fge`, from one start; any schedule that has
            members.
        every: iterations between two rows; members have rows of their own besides.
        until: stop after so many epochs; a few cycles show it all. None: the whole run.
        split: which is scored.
        on: what is scored in the place of `task`: `task.subset(train=1000, test=1000)` saves time, batch-norm
            statistics coming from its training split. None: `task`.

    Returns:
        One row per scored network, the start first (iteration 0): iteration, epoch, lr (0 at the start), error
        [fraction], nll [nats], distance [l2], member (whether `fge` takes it).

    Raises:
        ValueError: for every < 1, and as for `fge`.
    """
    if every < 1:
        raise ValueError(f"every must be >= 1 iterations, got {every}")
    per_epoch = batches_per_epoch(recipe, len(task.train))
    members = member_iterations(recipe, per_epoch)
    begin, scored, last = as_start(net, start, "start"), on or task, per_epoch * (until or recipe.epochs)
    device = task.train.images.device
    first = {key: tensor.to(device, recipe.dtype) for key, tensor in begin.weights.items()}
    watched = {*range(every, last + 1, every), *(i for i in members if i <= last)}
    facts = run_facts(net, begin, task, recipe, seed=seed, name=name)
    facts |= {"kind": "trace", "every": every, "until": until, "split": split, "on": scored.fingerprint}

    def make(checkpoint: Checkpoint) -> Weights:
        watcher = _Watcher(net, scored, split, to_vector(first), watched)
        watcher.take(first, {"iteration": 0, "epoch": 0.0, "lr": 0.0})
        fit(net, point(first), task, recipe, seed=seed, progress=progress, checkpoint=checkpoint, collect=watcher,
            until=until, velocity=None if begin.velocity is None else [begin.velocity])
        return {column: torch.tensor([row[column] for row in watcher.rows], dtype=torch.float64)
                for column in watcher.rows[0]}

    place = store if isinstance(store, Store) else Store(store)
    table = pd.DataFrame({column: values.numpy() for column, values in place.fetch(facts, make).tensors.items()})
    table["iteration"] = table["iteration"].astype(int)
    return table.assign(member=table["iteration"].isin(list(members)))
