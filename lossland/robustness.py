"""How much worse networks become on corrupted images, relative to how good they are on clean ones."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from lossland.ensembles.scores import checked_members
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
        ValueError: for no networks or corruptions, weights of another network, images of another shape, or a network
            that is right on no clean image.

    Source: W21 appendix G; Figs. 19 and 20 draw the change of a line's midpoint (of its best network) minus that of
        standard training.
    """
    check_task(net, task)
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


def _accuracy(function: Stateless, weights: Weights, buffers: dict[str, torch.Tensor], task: Task, split: str) -> float:
    part, sums = task.split(split), Sums.zeros(1)
    for logits, labels in logits_of(function, weights, part, buffers):
        sums.add(torch.tensor([0]), logits[None], labels)
    return float(sums.hits[0]) / part.labels.numel()
