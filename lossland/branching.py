"""Networks that share the first epochs of a run and then part, and what lies between them.

How long two networks must be trained together until the straight line between them stays in one valley: the instability
analysis of Frankle et al. 2020, as W21 appendix H takes it further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import nn

from lossland.devices import device_name
from lossland.ensembles.random_mixtures import KINDS, mixtures
from lossland.evaluation.arguments import check_task, single
from lossland.families import Family, point
from lossland.identity import described, fingerprint
from lossland.recipes import Resumed, stopped_at, trained
from lossland.store import Checkpoint, Store
from lossland.tasks import Task
from lossland.training import VERSION, Recipe, fit
from lossland.weights import Weights, from_vector, to_vector

__all__ = ["KINDS", "branches", "instability", "mixtures"]


def _check_branches(recipe: Recipe, epoch: int, seeds: Sequence[int]) -> None:
    if isinstance(seeds, int):
        raise TypeError(f"seeds must be a sequence such as (1, 2), got {seeds!r}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be different numbers >= 0, one for each branch, got {list(seeds)}")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch <= recipe.epochs:
        raise ValueError(f"epoch must be one of the recipe's 0..{recipe.epochs}, got {epoch!r}")


def branches(net: nn.Module, start: Weights | Family, task: Task, recipe: Recipe, *, epoch: int, seeds: Sequence[int],
             seed: int = 0, name: Mapping[str, Any] | None = None, store: Store | None = None,
             progress: bool = False) -> list[Weights]:
    """Return networks that share the first k epochs of one run, and then have their own batches and augmentation.

    The schedule goes on where the shared part stopped, momentum included. A branch whose seed is that of the shared run
    is that run, unbranched; k = 0 shares the initial weights alone, and with k = all epochs every branch is the same
    network. Each is trained once, then read from the store.

    Args:
        net: the network.
        start: initial weights, theta_0, or a family of that one point.
        task: the data.
        recipe: the whole schedule.
        epoch: k.
        seeds: of the SGD noise of each branch, xi_i.
        seed: of the SGD noise of the shared epochs, xi.
        name: JSON values that determine network and initial weights, as for `recipes.trained`.
        store: where to look and keep; None: the default store.
        progress: show a line per network.

    Raises:
        TypeError: for a single seed, or a start that is no network.
        ValueError: for no seeds, the same twice, or an epoch outside 0..recipe.epochs.

    Source: W21 Observation 4 and appendix H; Frankle et al. 2020.
    """
    check_task(net, task)
    start = single(net, start, "start")
    _check_branches(recipe, epoch, seeds)
    device, place = task.train.images.device, store or Store()
    if name is None:
        name = {"net": described(net), "start": fingerprint(start, recipe.dtype)}
    shared = {"name": name, "store": place, "progress": progress}
    facts = {"name": dict(name), "kind": "branch", "shared": {"epochs": epoch, "seed": seed}, "task": task.fingerprint,
             "recipe": recipe.facts(), "training": VERSION, "device": device.type}
    found = []
    for own in seeds:
        if epoch == 0 or own == seed or epoch == recipe.epochs:
            whole = own if epoch == 0 else seed
            found += trained(point(start), net, task, recipe, seed=whole, **shared).points
            continue

        def make(checkpoint: Checkpoint, own: int = own) -> Weights:
            common, = stopped_at(net, start, task, recipe, epochs=[epoch], seed=seed, **shared)
            state = {"points": to_vector(common.weights)[None], "velocity": to_vector(common.velocity)[None]}
            done = fit(net, point(start), task, recipe, seed=own, progress=progress,
                       checkpoint=Resumed(checkpoint, (state, {"epoch": epoch, "history": []})))
            checkpoint.record.update(task=task.name, history=done.history.to_dict("records"),
                                     device=device_name(device))
            return {"point0": to_vector(done.family.points[0]).cpu()}

        vector = place.fetch({**facts, "seed": own}, make).tensors["point0"]
        found.append(from_vector(vector.to(device), like=start))
    return found


def instability(net: nn.Module, start: Weights | Family, task: Task, recipe: Recipe, *, epochs: Sequence[int],
                seeds: Sequence[int] = (1, 2), seed: int = 0, name: Mapping[str, Any] | None = None,
                store: Store | None = None, progress: bool = False, **settings: Any) -> pd.DataFrame:
    """Return the instability analysis: `mixtures` of `branches` for every number of shared epochs.

    Args:
        net: the network.
        start: initial weights, or a family of that one point.
        task: the data.
        recipe: the whole schedule.
        epochs: numbers k of shared epochs, such as (0, 1, 2, 5, 20).
        seeds: of the branches: (1, 2) for Fig. 21 left and middle, five of them for its right side.
        seed: of the shared epochs.
        name, store, progress: as for `branches`.
        **settings: of `mixtures`: kinds, draws, seed of the mixtures as `mixture_seed`, split, average.

    Returns:
        The table of `mixtures` with the column epoch in front.

    Raises:
        TypeError, ValueError: as `branches` and `mixtures`; no epochs.

    Source: W21 appendix H and Fig. 21.
    """
    check_task(net, task)
    start = single(net, start, "start")
    if isinstance(epochs, int):
        raise TypeError(f"epochs must be a sequence of numbers of shared epochs such as (0, {epochs}), got {epochs!r}")
    if not epochs:
        raise ValueError("epochs must hold at least one number of shared epochs, got none")
    for epoch in epochs:
        _check_branches(recipe, epoch, seeds)
    settings["seed"] = settings.pop("mixture_seed", 0)
    shared = {"name": name, "store": store, "progress": progress}
    if stops := sorted({epoch for epoch in epochs if 0 < epoch < recipe.epochs}):
        stopped_at(net, start, task, recipe, epochs=stops, seed=seed, **shared)  # one run: each stop from the last
    tables = []
    for epoch in epochs:
        found = branches(net, start, task, recipe, epoch=epoch, seeds=seeds, seed=seed, **shared)
        tables.append(mixtures(net, found, task, progress=progress, **settings).assign(epoch=epoch))
    table = pd.concat(tables, ignore_index=True)
    table.attrs.update(tables[0].attrs)
    return table[["epoch", *table.columns.drop("epoch")]]
