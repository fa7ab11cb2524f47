"""How much worse networks become on corrupted images, relative to how good they are on clean ones."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from lossland.allocation import keep_memory
from lossland.ensembles.scores import checked_members
from lossland.errors import choose
from lossland.evaluation.scoring import Stateless, Sums, check_task, logits_of
from lossland.tasks import Task
from lossland.weights import Weights


@torch.no_grad()
def relative_changes(net: nn.Module, networks: Mapping[str, Weights], task: Task, corrupted: Mapping[str, Task], *,
                     split: str = "test", progress: bool = False) -> pd.DataFrame:
    """Return the relative change (b - a) / a of accuracy from clean to corrupted images, for each network and damage.

    Batch-norm statistics are estimated once per network, on the clean training split of `task`.

    Args:
        net: the network.
        networks: name -> weights: "standard", "midpoint", or points of a line.
        task: the data without damage.
        corrupted: name of the damage -> task with corrupted images, of `corruptions.corrupted` or `load_corrupted`.
        split: of the tasks.
        progress: show a line.

    Returns:
        One row per (network, corruption): name, corruption, clean (a), accuracy (b), change, all fractions; below 0
        where accuracy falls. `attrs`: task, split.

    Raises:
        TypeError: for networks or corruptions without names.
        ValueError: for no networks or corruptions, weights of another network, images of another shape, or a network
            that is right on no clean image.

    Source: W21 appendix G; Figs. 19 and 20 draw the change of a line's midpoint (of its best network) minus that of
        standard training.
    """
    check_task(net, task)
    for argument, given, holds in (("networks", networks, "weights"), ("corrupted", corrupted, "task")):
        if not isinstance(given, Mapping):
            raise TypeError(f"{argument} must be a dictionary name -> {holds}, such as {{'first': ...}}, got "
                            f"{type(given).__name__}")
    if not corrupted:
        raise ValueError("corrupted must name at least one task, got none")
    for kind, other in corrupted.items():
        check_task(net, other)
        if other.input_shape != task.input_shape:
            raise ValueError(f"corrupted[{kind!r}] must hold images of the shape {task.input_shape} of the task, "
                             f"got {other.input_shape}")
    function, rows = Stateless(net, task), []
    members = checked_members(net, networks.values())
    for name, weights in tqdm(zip(networks, members, strict=True), "networks", len(networks), disable=not progress):
        buffers = function.buffers(weights)
        clean, *broken = (_accuracy(function, weights, buffers, each, split) for each in (task, *corrupted.values()))
        if not clean:
            raise ValueError(f"networks[{name!r}] must be right on some clean image for a relative change, got none of "
                             f"{len(task.split(split))}")
        rows += [{"name": name, "corruption": kind, "clean": clean, "accuracy": accuracy,
                  "change": (accuracy - clean) / clean} for kind, accuracy in zip(corrupted, broken, strict=True)]
    table = pd.DataFrame(rows)
    table.attrs.update(task=task.name, split=split)
    return table


def best_changes(table: pd.DataFrame, *, keep: str = "standard", name: str = "best on the line") -> pd.DataFrame:
    """Return a table of a reference and, for every corruption, of the best of all other networks, under one name.

    Which one is the best is chosen on the very images it is reported on: it shows that such a network exists on a line,
    and not how to find it. A validation split of corrupted images (`split="validation"`) could choose in earnest.

    Args:
        table: of `relative_changes`: a reference, and networks all along a line.
        keep: name of the reference.
        name: of the best.

    Raises:
        ValueError: if the reference is not in the table, or nothing else is.

    Source: W21 appendix G and Fig. 20 (t = 0, 0.1, ..., 1).

    Examples:
        >>> rows = [("standard", "blur", -0.3), ("t = 0", "blur", -0.2), ("t = 1", "blur", -0.25)]
        >>> best_changes(pd.DataFrame(rows, columns=["name", "corruption", "change"])).to_dict("list")
        {'name': ['standard', 'best on the line'], 'corruption': ['blur', 'blur'], 'change': [-0.3, -0.2]}
    """
    choose("keep", keep, table["name"].unique().tolist())
    others = table[table["name"] != keep]
    if others.empty:
        raise ValueError(f"table must hold networks besides {keep!r}, got none")
    best = others.loc[others.groupby("corruption", sort=False)["change"].idxmax()]
    return pd.concat([table[table["name"] == keep], best.assign(name=name)], ignore_index=True)


@keep_memory()
def _accuracy(function: Stateless, weights: Weights, buffers: dict[str, torch.Tensor], task: Task, split: str) -> float:
    part, sums = task.split(split), Sums.zeros(1)
    for logits, labels in logits_of(function, weights, part, buffers):
        sums.add(torch.tensor([0]), logits[None], labels)
    return float(sums.hits[0]) / part.labels.numel()
