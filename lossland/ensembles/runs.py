"""Runs that gather an ensemble on their way: Fast Geometric Ensembling, Snapshot Ensembles, weight averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossland.devices import device_name
from lossland.ensembles.gaussian import Gaussian
from lossland.ensembles.members import Keeper, Kept, Members, keep
from lossland.ensembles.starts import as_start
from lossland.errors import choose
from lossland.families import point
from lossland.identity import described, fingerprint
from lossland.schedules import Recipe, batches_per_epoch, member_iterations
from lossland.store import Checkpoint, Store
from lossland.tasks import Task
from lossland.training import VERSION, Start, fit
from lossland.weights import Weights, to_vector

Starts = Mapping[str, Tensor] | Start | Sequence[Mapping[str, Tensor] | Start]


def check_budget(budget: int, spent: int, runs: int, epochs: int) -> None:
    """Raise unless training for `spent` epochs and so many runs of `epochs` epochs fit into a budget.

    Raises:
        ValueError: with the sum.

    Examples:
        >>> check_budget(200, 156, 2, 22)  # G18 A.5: 156 + 22 + 22
    """
    total = spent + runs * epochs
    if total > budget:
        raise ValueError(f"budget must cover {spent} epochs of training and {runs} run{'s' if runs > 1 else ''} of "
                         f"{epochs} epochs = {total}, got {budget}")


def fge(net: nn.Module, start: Starts, task: Task, recipe: Recipe, *, seed: int = 0, include_start: bool = False,
        budget: int | None = None, name: Mapping[str, Any] | None = None, store: Store | Path | str | None = None,
        progress: bool = False) -> Members:
    """Return the members that Fast Geometric Ensembling finds around trained weights: trained once, kept in the store.

    From `start` SGD goes on with a learning rate that rises and falls in every cycle; a member is taken in the middle
    of each, where the rate is lowest. Weights and momentum are kept from cycle to cycle; from `start` the momentum is
    kept if it has one.

    Args:
        net: any module; it does not change.
        start: trained weights, the state_dict of `net` included (batch-norm statistics are left out), or a `Start` with
            its momentum, as `recipes.trained_until` gives them. Several: one run from each, run i with seed + i, and
            the members of all, in order.
        task: data; training happens on its device.
        recipe: with schedule="triangular"; `settings.FGE_SETTINGS` has those of the paper.
        seed: of batch order, augmentation and dropout.
        include_start: whether the starting weights are the first member of a run (G18 6.1), as iteration 0.
        budget: epochs that everything together may take: those of the latest start (`Start.epoch`; plain weights count
            as 0), and of all runs. None: no limit.
        name: JSON values that tell networks apart which the class, description and code of `net` do not.
        store: a store or its folder; None: the default store.
        progress: show a line per run.

    Returns:
        The members, in the store under recipe, data, seed and the starting numbers themselves. An interrupted run goes
        on from its last epoch, to the same members.

    Raises:
        ValueError: for another schedule, an odd cycle, a start that is not of `net`, a budget that is too small, or no
            start.

    Source: G18 Algorithm 1 and A.5.
    """
    choose("schedule of the recipe", recipe.schedule, ("triangular",))
    return _runs(net, start, task, recipe, seed=seed, include_start=include_start, budget=budget, name=name,
                 store=store, progress=progress)


def snapshots(net: nn.Module, start: Starts, task: Task, recipe: Recipe, *, seed: int = 0, include_start: bool = False,
              budget: int | None = None, name: Mapping[str, Any] | None = None,
              store: Store | Path | str | None = None, progress: bool = False) -> Members:
    """Return a Snapshot Ensemble: from initial weights, one member at the end of each cosine cycle.

    Args:
        net, task, seed, include_start, name, store, progress: as for `fge`.
        start: initial weights; as for `fge`.
        recipe: with schedule="restarts" and a whole number of cycles; `settings.SSE_SETTINGS` has those of G18.
        budget: epochs that all runs together may take.

    Raises:
        ValueError: for another schedule, epochs that no snapshot ends, and as for `fge`.

    Source: Huang et al. 2017; G18 section 6.
    """
    choose("schedule of the recipe", recipe.schedule, ("restarts",))
    if recipe.epochs % recipe.cycle:
        raise ValueError(f"epochs must be a whole number of cycles of {recipe.cycle}, got {recipe.epochs}: no snapshot "
                         f"would end the last {recipe.epochs % recipe.cycle} epochs")
    return _runs(net, start, task, recipe, seed=seed, include_start=include_start, budget=budget, name=name,
                 store=store, progress=progress)


def swa(net: nn.Module, start: Starts, task: Task, recipe: Recipe, *, seed: int = 0, include_start: bool = False,
        budget: int | None = None, name: Mapping[str, Any] | None = None, store: Store | Path | str | None = None,
        progress: bool = False) -> Members:
    """Return the networks that Stochastic Weight Averaging averages; `.average` is their mean.

    Args:
        net, start, task, seed, budget, name, store, progress: as for `fge`.
        recipe: cyclic, with schedule="restarts" or "triangular", or a high constant rate, with "constant".
        include_start: whether the mean has the starting weights in it, as in the paper's Algorithm 1; its released
            code leaves them out.

    Raises:
        ValueError: as for `fge`.

    Source: Izmailov et al. 2018; W21 Appendix D.4 (cyclic and high constant).
    """
    return _runs(net, start, task, recipe, seed=seed, include_start=include_start, budget=budget, name=name,
                 store=store, progress=progress)


def swag(net: nn.Module, start: Starts, task: Task, recipe: Recipe, *, rank: int | None = None, seed: int = 0,
         include_start: bool = False, budget: int | None = None, name: Mapping[str, Any] | None = None,
         store: Store | Path | str | None = None, progress: bool = False) -> Gaussian:
    """Return the Gaussian fitted to the networks of `swa`; draw members from it by `.samples(count)`.

    Args:
        net, start, task, recipe, seed, include_start, budget, name, store, progress: as for `swa`.
        rank: the last members whose deviations from the running mean span the low-rank part; None: all.

    Raises:
        ValueError: for a rank outside 2..the number of members, and as for `swa`.

    Source: Maddox et al. 2019; W21 Appendix D.4 (six members).
    """
    members = swa(net, start, task, recipe, seed=seed, include_start=include_start, budget=budget, name=name,
                  store=store, progress=progress)
    return Gaussian.fit(members, len(members) if rank is None else rank)


def _runs(net: nn.Module, start: Starts, task: Task, recipe: Recipe, *, seed: int, include_start: bool,
          budget: int | None, name: Mapping[str, Any] | None, store: Store | Path | str | None,
          progress: bool) -> Members:
    several = isinstance(start, Sequence) and not isinstance(start, str)
    given = list(start) if several else [start]
    if not given:
        raise ValueError("start must hold at least one network, got none")
    starts = [as_start(net, one, f"start[{i}]" if several else "start") for i, one in enumerate(given)]
    if budget is not None:
        check_budget(budget, max(one.epoch for one in starts), len(starts), recipe.epochs)
    place = store if isinstance(store, Store) else Store(store)
    runs = [Members(_run(net, one, task, recipe, seed=seed + i, include_start=include_start, name=name, store=place,
                         progress=progress)) for i, one in enumerate(starts)]
    members = runs[0]
    for run in runs[1:]:
        members += run
    return members


def run_facts(net: nn.Module, start: Start, task: Task, recipe: Recipe, *, seed: int,
              name: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the JSON values that determine a run, its starting numbers by their hash."""
    velocity = None if start.velocity is None else fingerprint(start.velocity, recipe.dtype)
    return {"kind": "members", "net": described(net), "name": dict(name or {}), "task": task.fingerprint,
            "start": fingerprint(start.weights, recipe.dtype), "velocity": velocity, "recipe": recipe.facts(),
            "seed": seed, "training": VERSION, "device": task.train.images.device.type}


def _run(net: nn.Module, start: Start, task: Task, recipe: Recipe, *, seed: int, include_start: bool,
         name: Mapping[str, Any] | None, store: Store, progress: bool) -> list[Kept]:
    """Return the members of one run; it is trained where the store lacks it, or lacks one of its members."""
    iterations = member_iterations(recipe, batches_per_epoch(recipe, len(task.train)))
    facts, device = run_facts(net, start, task, recipe, seed=seed, name=name), task.train.images.device
    first = {key: tensor.to(device, recipe.dtype) for key, tensor in start.weights.items()}

    def make(checkpoint: Checkpoint) -> Weights:
        keeper = Keeper(store, facts, to_vector(first), iterations)
        done = fit(net, point(first), task, recipe, seed=seed, progress=progress, checkpoint=checkpoint, collect=keeper,
                   velocity=None if start.velocity is None else [start.velocity])
        checkpoint.record.update(task=task.name, history=done.history.to_dict("records"), members=keeper.rows,
                                 device=device_name(device))
        return {"iterations": torch.tensor(list(iterations))}

    like = {key: tensor.to("meta") for key, tensor in first.items()}
    for attempt in range(2):
        rows = store.fetch(facts, make).record["members"]
        if include_start:
            row = {"iteration": 0, "epoch": 0.0, "lr": 0.0, "distance": 0.0, "seconds": 0.0}
            rows = [keep(store, {**facts, "iteration": 0}, first, row), *rows]
        kept = [Kept(store, {**facts, "iteration": row["iteration"]}, like, device, {**row, "run": 0}) for row in rows]
        if attempt or all(one.there() for one in kept):
            break
        store.remove(facts)  # a member was lost: the run makes it again, and finds the others
    return kept
