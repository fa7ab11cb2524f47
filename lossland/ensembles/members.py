"""Members of an ensemble that one training run gave: kept in the store, read one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import pandas as pd
import torch
from torch import Tensor

from lossland.store import RECORD, WEIGHTS, Store
from lossland.weights import Weights, check_match, from_vector, to_vector

COLUMNS = ("run", "iteration", "epoch", "lr", "distance", "seconds")


@dataclass(frozen=True, eq=False)
class Kept:
    """One member: where it lies, and how it came about.

    Attributes:
        store, facts: where it lies.
        like: name -> tensor of any kind with the shape of the parameter.
        device: where it is to be used.
        row: its row of `Members.facts`.
    """

    store: Store
    facts: Mapping[str, Any]
    like: Weights
    device: torch.device
    row: Mapping[str, float]

    def there(self) -> bool:
        """Return whether the store has it; its numbers are not read."""
        folder = self.store.root / self.store.key(self.facts)
        return (folder / RECORD).is_file() and (folder / WEIGHTS).is_file()

    def read(self) -> Weights:
        """Return its weights.

        Raises:
            ValueError: if the store has lost them.
        """
        entry = self.store.find(self.facts)
        if entry is None:
            raise ValueError(f"the member of iteration {self.row['iteration']} must be in the store {self.store.root}, "
                             "where it was lost or damaged: run what made it again (fge, snapshots, swa, ...)")
        return from_vector(entry.tensors["weights"].to(self.device), self.like)


def keep(store: Store, facts: Mapping[str, Any], weights: Weights, row: Mapping[str, float]) -> dict[str, float]:
    """Store one member; return its row as the store has it, which is that of the first run that made it."""
    def make(checkpoint: Any) -> Weights:
        checkpoint.record.update(member=dict(row))
        return {"weights": to_vector(weights)}

    return store.fetch(facts, make).record["member"]


class Keeper:
    """The collector of a training run (`training.Collector`): members go into the store as soon as they are taken.

    Args:
        store: where to keep them.
        facts: what determines the run, as JSON values; a member's have its iteration besides.
        start: (P,) the run's first weights, on its device.
        iterations: when members are taken.
    """

    def __init__(self, store: Store, facts: Mapping[str, Any], start: Tensor, iterations: range) -> None:
        self.store, self.facts, self.start, self.iterations = store, facts, start, iterations
        self.rows: list[dict[str, float]] = []

    def wants(self, iteration: int) -> bool:
        """Return whether a member is taken after this iteration."""
        return iteration in self.iterations

    def take(self, weights: Weights, row: dict[str, float]) -> None:
        """Store the weights."""
        away = float((to_vector(weights).double() - self.start.double()).norm())
        found = keep(self.store, {**self.facts, "iteration": row["iteration"]}, weights, {**row, "distance": away})
        self.rows.append(found)

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the rows of the members so far; their weights are in the store."""
        return {}, {"rows": self.rows}

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Go on after the members of an interrupted run."""
        self.rows = list(info["rows"])


class Members(Sequence[Weights]):
    """Networks in the order in which they were taken, read from the store when they are asked for.

    One member is in memory at a time, unless the caller keeps them. `a + b` joins the members of several runs, and a
    slice is `Members` again.

    Args:
        kept: the members, at least one.

    Raises:
        ValueError: for no members.
    """

    def __init__(self, kept: Iterable[Kept]) -> None:
        self._kept = tuple(kept)
        if not self._kept:
            raise ValueError("members must hold at least one network, got none")

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        runs = self.facts.run.nunique()
        return f"Members({len(self)} networks of {runs} run{'s' if runs > 1 else ''})"

    @overload
    def __getitem__(self, index: int) -> Weights: ...

    @overload
    def __getitem__(self, index: slice) -> Members: ...

    def __getitem__(self, index: int | slice) -> Weights | Members:
        """Return a member's weights, on the device of its run; of a slice the members in it."""
        return Members(self._kept[index]) if isinstance(index, slice) else self._kept[index].read()

    def __add__(self, other: Members) -> Members:
        """Return the members of both; the runs of `other` are numbered after ours."""
        if not isinstance(other, Members):
            return NotImplemented
        first = 1 + max(int(kept.row["run"]) for kept in self._kept)
        return Members([*self._kept, *(replace(kept, row={**kept.row, "run": kept.row["run"] + first})
                                       for kept in other._kept)])

    @property
    def facts(self) -> pd.DataFrame:
        """One row per member: run, iteration (from 1; 0: the start), epoch (a fraction, from the run's start), lr,
        distance [l2, from the run's start], seconds of training in the run so far."""
        return pd.DataFrame([{name: kept.row[name] for name in COLUMNS} for kept in self._kept])

    @cached_property
    def mean(self) -> Weights:
        """The mean of all members, in float64: the weights of Stochastic Weight Averaging."""
        for mean in running_mean(self):
            last = mean
        return last

    @property
    def average(self) -> Weights:
        """`mean` in the members' own precision. Its batch-norm statistics are estimated where it is evaluated.

        To save a complete state_dict: `average | batchnorm.refresh(net, average, task.prepare(task.train.images))`.
        """
        dtypes = {name: tensor.dtype for name, tensor in self[0].items()}
        return {name: tensor.to(dtypes[name]) for name, tensor in self.mean.items()}


def running_mean(members: Iterable[Weights]) -> Iterator[Weights]:
    """Yield the means of the first 1, 2, 3, ... networks, in float64; one of them is in memory at a time.

    Raises:
        ValueError: for no members, or such with other parameters than the first.

    Source: Izmailov et al. 2018, Algorithm 1.

    Examples:
        >>> networks = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}, {"w": torch.tensor([1.0])}]
        >>> [mean["w"].item() for mean in running_mean(networks)]
        [1.0, 2.5, 2.0]
    """
    mean: Weights = {}
    count = 0
    for count, weights in enumerate(members, 1):
        if not mean:
            mean = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
        check_match(mean, weights, ("members[0]", f"members[{count - 1}]"))
        mean = {name: tensor + (weights[name].double() - tensor) / count for name, tensor in mean.items()}
        yield mean
    if not count:
        raise ValueError("members must hold at least one network, got none")
