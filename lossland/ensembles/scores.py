"""What an ensemble is worth, member by member: one pass for each, one of them in memory at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.allocation import keep_memory
from lossland.ensembles.averaging import Average
from lossland.evaluation import check_split
from lossland.evaluation.arguments import single
from lossland.evaluation.scoring import Stateless, Sums, check_task, logits_of
from lossland.targets import flatten
from lossland.tasks import Split, Task
from lossland.weights import Weights, check_finite

Buffers = dict[str, Tensor]
Temperatures = float | Iterable[float] | None


def checked_members(net: nn.Module, members: Iterable[Weights]) -> Iterator[Weights]:
    """Yield the members, each checked when its turn comes.

    Raises:
        TypeError: if `members` is one network instead of several.
        ValueError: for no members, weights of another network, NaN or infinite weights, naming the member.
    """
    if isinstance(members, (Mapping, nn.Module)) or not isinstance(members, Iterable):
        raise TypeError("members must be several weights, [weights] for a single network, got "
                        f"{type(members).__name__}")
    return _checked(net, members)


def _checked(net: nn.Module, members: Iterable[Weights]) -> Iterator[Weights]:
    count = 0
    for count, weights in enumerate(members, 1):
        weights = single(net, weights, f"members[{count - 1}]")
        check_finite(weights, f"members[{count - 1}]")
        yield weights
    if not count:
        raise ValueError("members must hold at least one network, got none")


def checked_temperatures(temperatures: Temperatures, members: object = ()) -> Iterator[float]:
    """Yield the temperature of one member after the other: 1 for None, a number for all, or one for each.

    Raises:
        ValueError: for a temperature that is not positive and finite; fewer or more of them than members, at once where
            both are counted.
    """
    if temperatures is None or isinstance(temperatures, (int, float)):
        return _forever(_positive(1.0 if temperatures is None else temperatures, "temperatures"))
    given = [_positive(float(value), f"temperatures[{i}]") for i, value in enumerate(temperatures)]
    if isinstance(members, Sized) and len(given) != len(members):
        raise ValueError(f"temperatures must be one for each of the {len(members)} members, got {len(given)}")
    return iter(given)


def _forever(value: float) -> Iterator[float]:
    while True:
        yield value


def _positive(value: float, name: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


def next_temperature(temperatures: Iterator[float], count: int) -> float:
    """Return the temperature of member number `count` (from 1).

    Raises:
        ValueError: if there is none.
    """
    value = next(temperatures, None)
    if value is None:
        raise ValueError(f"temperatures must be one for each member, got {count - 1} for at least {count} members")
    return value


@keep_memory()
def outputs(function: Stateless, weights: Weights, split: Split, buffers: Buffers | None = None) -> Tensor:
    """Return the logits (N, C) of one network on a split in float64, one row per label.

    Args:
        function: the network.
        weights: of the member.
        split: of the task.
        buffers: batch-norm statistics where they are known; None: re-estimated.
    """
    found = [flatten(logits, labels)[0] for logits, labels in logits_of(function, weights, split, buffers)]
    return torch.cat([logits.reshape(-1, logits.shape[-1]) for logits in found]).double()


class Scores:
    """Scores of a growing ensemble on one split, and of each member alone.

    Args:
        name: of the split.
        split: its images.
        average: what is averaged.
    """

    def __init__(self, name: str, split: Split, average: str) -> None:
        self.name, self.labels, self.mean = name, split.labels.flatten(), Average(average)

    def add(self, logits: Tensor) -> dict[str, float]:
        """Return the row of a member with logits (N, C).

        Raises:
            FloatingPointError: if a loss is NaN or infinite, naming the member.
        """
        together, sums = self.mean.add(logits), Sums.zeros(2)
        for row, scores in enumerate((together, logits)):
            sums.add(torch.tensor([row]), scores[None], self.labels)
        for row, what in ((1, "members[{}]"), (0, "the ensemble up to members[{}]")):
            if not sums.nll[row].isfinite():
                raise FloatingPointError(f"the loss on {self.name!r} is NaN or infinite for "
                                         f"{what.format(self.mean.count - 1)}")
        columns = sums.columns(len(self.labels))
        return {"members": self.mean.count, "split": self.name, **{key: float(x[0]) for key, x in columns.items()},
                **{f"single_{key}": float(x[1]) for key, x in columns.items()}}


@torch.no_grad()
def member_scores(net: nn.Module, members: Iterable[Weights], task: Task, *,
                  splits: Sequence[str] = ("train", "test"), average: str = "probabilities",
                  temperatures: Temperatures = None, progress: bool = False) -> pd.DataFrame:
    """Return a table of an ensemble as it grows: one row per (number of members, split).

    Every member is asked for once, passes once through the splits and is let go. What is kept is one table of scores
    (images x classes, float64) per split, however many members there are. Batch-norm statistics are re-estimated for
    every member on the training split.

    Args:
        net: the network.
        members: weights of one member after the other: a list, a generator, networks in a store.
        task: the data.
        splits: of the task.
        average: "probabilities" (AY20, G18) or "logits" (W21).
        temperatures: a member's logits are divided by its temperature before they are averaged: one number for all, or
            one for each; None: 1.
        progress: show a line.

    Returns:
        Columns members (1, 2, ...), split; nll [nats], accuracy, ece [fractions; 20 bins] of the first so many members
        together; single_nll, single_accuracy, single_ece of the last one of them alone; seconds (of its pass through
        the split; re-estimating statistics counts with the first split). `attrs`: task, average.

    Raises:
        TypeError: if members is one network.
        ValueError: for no members, members of another network, an unknown split or average, temperatures that are not
            positive or not one for each member.
        FloatingPointError: if a loss is NaN or infinite, naming split and member.

    Source: G18 section 6 and Fig. 6; AY20 Fig. 7 (averages of probabilities), W21 (of logits).
    """
    check_task(net, task)
    scores = [Scores(name, split, average) for name, split in check_split(task, splits).items()]
    heats, function, rows = checked_temperatures(temperatures, members), Stateless(net, task), []
    total = len(members) if isinstance(members, Sized) else None
    for number, weights in enumerate(tqdm(checked_members(net, members), "members", total, disable=not progress), 1):
        heat, start = next_temperature(heats, number), time.perf_counter()
        buffers = function.buffers(weights)
        for score in scores:
            row = score.add(outputs(function, weights, task.split(score.name), buffers) / heat)
            end = time.perf_counter()
            rows.append({**row, "seconds": end - start})
            start = end
    _check_used(heats, temperatures, number)
    table = pd.DataFrame(rows)
    table.attrs.update(task=task.name, average=average)
    return table


def _check_used(heats: Iterator[float], temperatures: Temperatures, members: int) -> None:
    more = not (temperatures is None or isinstance(temperatures, (int, float))) and next(heats, None) is not None
    if more:
        raise ValueError(f"temperatures must be one for each of the {members} members, got more")


@torch.no_grad()
def predict_members(net: nn.Module, members: Iterable[Weights], task: Task, *, split: str = "test",
                    average: str = "probabilities", temperatures: Temperatures = None) -> Tensor:
    """Return the scores (N, C) [nats] of all members together, float64; their softmax is the prediction.

    Of a text one row per word, in the order of `task.split(split).labels.flatten()`. Arguments and errors as
    `member_scores`.
    """
    check_task(net, task)
    mean, part, function = Average(average), task.split(split), Stateless(net, task)
    heats = checked_temperatures(temperatures, members)
    for number, weights in enumerate(checked_members(net, members), 1):
        together = mean.add(outputs(function, weights, part) / next_temperature(heats, number))
    _check_used(heats, temperatures, mean.count)
    return together
