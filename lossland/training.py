"""Training: one loop for single networks, curves, subspaces, and for the members of ensembles along the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.allocation import keep_memory
from lossland.checkpoints import Checkpoint, Collector
from lossland.descent import Run, State, step
from lossland.draws import Draws
from lossland.families import Family
from lossland.flat import FlatNetwork, dropout_seed
from lossland.layout import Layout
from lossland.parallel import ranks
from lossland.regularisers import apart, check_suits
from lossland.requests import batch_norm_needs_two, check_request
from lossland.sampling import stream_seed
from lossland.schedules import Recipe, learning_rate, rate
from lossland.tasks import Task
from lossland.weights import Weights, check_belongs, check_finite, from_vector

__all__ = ["Checkpoint", "Collector", "Fit", "Recipe", "Start", "VERSION", "fit", "learning_rate"]

VERSION = 1  # of the numbers this loop produces: raised whenever the same recipe would give other weights
_COLLECTED = "collected."


def _named(family: Family, where: Tensor, layerwise: bool) -> str:
    """Return the sampled members in words."""
    if layerwise:
        return ", another member of the family in every module"
    values = [f"{value:.6g}" if value.ndim == 0 else str([round(c, 6) for c in value.tolist()]) for value in where]
    name = {"point": "", "interval": "t", "simplex": "coefficients"}[family.domain]
    return f", {name} = {', '.join(values)}" if name else ""


class _Epoch:
    """What an epoch adds up on the device."""

    def __init__(self, state: State, run: Run) -> None:
        self.state, self.run, self.started = state, run, time.perf_counter()
        device = state.points.device
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.first_bad = torch.full((), -1, device=device)
        self.sampled: list[Tensor] = []

    @property
    def iteration(self) -> int:
        """Return the number of iterations since the start of training."""
        return self.state.epoch * self.run.per_epoch + len(self.sampled)

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration."""
        return rate(self.run.recipe, iteration, self.run.per_epoch)

    def add(self, loss: Tensor, hits: Tensor, count: int, where: Tensor) -> None:
        """Add a step of `count` images at the sampled members `where`."""
        self.loss += loss * count
        self.hits += hits
        self.first_bad = torch.where((self.first_bad < 0) & ~loss.isfinite(), len(self.sampled), self.first_bad)
        self.sampled.append(where)

    def check(self) -> None:
        """Raise if a loss or weight has become NaN or infinite."""
        # A sum is NaN or infinite where one of its terms is, and needs no memory.
        if (bad := int(self.first_bad)) >= 0 or not bool(self.state.points.sum().isfinite()):
            last, epoch = len(self.sampled) - 1, self.state.epoch
            place = f"step {bad}" if bad >= 0 else f"step {last}, the last"
            good = f"the one after epoch {epoch - 1}" if epoch else "the start"
            lr = self.rate(self.iteration - last + (bad if bad >= 0 else last))
            member = _named(self.run.family, self.sampled[bad], self.run.recipe.layerwise)
            raise FloatingPointError(f"training diverged: loss or weights NaN or infinite in epoch {epoch}, {place}"
                                     f"{member} (lr {lr:g}); the last good state is {good}")

    def seconds(self) -> float:
        """Return the seconds since the epoch began."""
        return time.perf_counter() - self.started

    def member(self) -> dict[str, float]:
        """Return what a collector is told about the weights as they are now."""
        self.check()  # on a GPU it waits for the step, so that the time is right
        earlier = sum(row["seconds"] for row in self.state.history)
        return {"iteration": self.iteration, "epoch": self.iteration / self.run.per_epoch,
                "lr": self.rate(self.iteration), "seconds": earlier + self.seconds()}

    def row(self) -> dict[str, float]:
        """Return the epoch's row of the history."""
        self.check()
        labels = self.run.task.split(self.run.split).labels
        row = {"epoch": self.state.epoch, "lr": self.rate(self.iteration), "loss": float(self.loss) / len(labels),
               "accuracy": float(self.hits) / labels.numel(), "seconds": self.seconds()}
        return row | _spread(self.state, self.run)


def _spread(state: State, run: Run) -> dict[str, float]:
    return apart([state.points[i] for i in state.free], run.layout.weights) if len(state.free) > 1 else {}


def _epoch(state: State, networks: Sequence[FlatNetwork], run: Run, collect: Collector | None) -> dict[str, float]:
    """Run one epoch in place; return its row of the history."""
    recipe, seed, done = run.recipe, run.seed, _Epoch(state, run)
    order = torch.Generator().manual_seed(stream_seed(seed, state.epoch, 0))
    draws = Draws(run.family, recipe, run.layout, seed=seed, epoch=state.epoch)
    batches = run.task.batches(run.split, batch_size=recipe.batch_size, generator=order, augment=recipe.augment,
                               dtype=recipe.dtype)
    own = (run.ranks.rank,) if run.ranks.size > 1 else ()
    with (dropout_seed(stream_seed(seed, state.epoch, 2, *own), state.points.device),
          batch_norm_needs_two(recipe, len(run.task.split(run.split)))):
        for batch in batches:
            count = len(batch[1])
            # A short last batch is cut into fewer parts: two images each, so that batch norm has a variance.
            sample = draws.next(max(1, min(recipe.draws, count // 2)))
            done.add(*step(state, networks, run, batch, sample, lr=done.rate(done.iteration + 1)), count, sample.where)
            if collect is not None and collect.wants(done.iteration):
                collect.take(from_vector(state.points[0], run.layout.like), done.member())
    return done.row()


@dataclass(frozen=True)
class Fit:
    """What training returns.

    Attributes:
        family: the family with its trained control points, on the task's device.
        history: one row per epoch: epoch, lr, loss [nats, of the sampled networks while training; with label smoothing,
            without what the recipe adds], accuracy [fraction], seconds; with two or more free control points also
            their distance and cos2 at the end of the epoch (`regularisers.spread`).
        velocity: what SGD's momentum has gathered, one for each free control point, where `until` asked for it.
        start: distance and cos2 of the free control points before training; empty where there are fewer than two.
    """

    family: Family
    history: pd.DataFrame
    velocity: tuple[Weights, ...] = ()
    start: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Where a run starts that goes on from another one.

    Attributes:
        weights: of the network.
        velocity: what SGD's momentum had gathered; None: zero.
        epoch: epochs that were spent on them.
    """

    weights: Weights
    velocity: Weights | None = None
    epoch: int = 0


def _check(net: nn.Module, family: Family, recipe: Recipe, until: int | None, collect: Collector | None) -> None:
    """Raise unless family, recipe and what else `fit` is asked for go together."""
    if until is not None and not 1 <= until <= recipe.epochs:
        raise ValueError(f"until must be an epoch of the recipe, 1..{recipe.epochs}, got {until}")
    if recipe.similarity and ranks().size > 1:
        raise ValueError(f"similarity must be 0 where {ranks().size} processes train together, because it compares "
                         f"networks on whole batches, got {recipe.similarity:g}")
    if collect is not None and family.domain != "point":
        raise ValueError(f"collect needs a family of one network, point(weights), got a {family.kind}")
    check_suits(family, recipe)
    for i, point in enumerate(family.points):
        check_belongs(net, point, f"family.points[{i}]")


def _begin(net: nn.Module, run: Run, velocity: Sequence[Weights] | None) -> State:
    """Return the state at the start: copies of the control points on the task's device."""
    family, recipe, like = run.family, run.recipe, run.layout.like
    device = run.task.split(run.split).images.device
    points = torch.empty(len(family.points), run.layout.size, dtype=recipe.dtype, device=device)
    for row, point in zip(points, family.points, strict=True):
        for name, view in from_vector(row, like).items():
            view.copy_(point[name].detach())
    if recipe.measure == "length" and family.path().length() <= 1e-6 * float(points[0].norm()):  # nothing but rounding
        raise ValueError("measure='length' needs a curve whose end points differ, got a length of 0")
    free = [i for i, movable in enumerate(family.free) if movable]
    for i in free if recipe.beta else ():
        if not any(bool(points[i, stretch].any()) for stretch in run.layout.weights):
            raise ValueError(f"family.points[{i}] must not be zero with beta > 0: it has no angle to the others")
    state = State(points, free, torch.zeros_like(points[: len(free)]))
    if velocity is not None:
        if isinstance(velocity, dict) or len(velocity) != len(free):
            raise ValueError(f"velocity must be a sequence with one for each of the {len(free)} free control points, "
                             f"got {'a single one' if isinstance(velocity, dict) else len(velocity)}")
        for i, (row, kept) in enumerate(zip(state.velocity, velocity, strict=True)):
            check_belongs(net, kept, f"velocity[{i}]")
            check_finite(kept, f"velocity[{i}]")
            for name, view in from_vector(row, like).items():
                view.copy_(kept[name].detach())
    return state


def _restore(state: State, checkpoint: Checkpoint | None, collect: Collector | None) -> None:
    saved = checkpoint.load() if checkpoint else None
    if saved:
        tensors, info = saved
        state.restore(tensors, info)
        if collect is not None and "collected" in info:
            mark = len(_COLLECTED)
            collect.restore({k[mark:]: v for k, v in tensors.items() if k.startswith(_COLLECTED)}, info["collected"])


def _save(state: State, checkpoint: Checkpoint | None, collect: Collector | None) -> None:
    if checkpoint:
        tensors, info = state.saved()
        if collect is not None:
            kept, facts = collect.save()
            tensors |= {_COLLECTED + name: tensor for name, tensor in kept.items()}
            info |= {"collected": facts}
        checkpoint.save(tensors, info)


@keep_memory()
def fit(net: nn.Module, family: Family, task: Task, recipe: Recipe, *, seed: int = 0, split: str = "train",
        progress: bool = False, checkpoint: Checkpoint | None = None, until: int | None = None,
        velocity: Sequence[Weights] | None = None, collect: Collector | None = None) -> Fit:
    """Return the trained family; the one given, and `net`, do not change.

    Batch order, augmentation, sampled members and dropout come from streams of `seed` and the epoch's number, so that a
    run which continues from a checkpoint gives the weights of an uninterrupted one.

    With `recipe.measure="length"` the loss of a step is sum_j v_j L_j / sum_j v_j over its `recipe.draws` stratified
    draws of t, v_j = ||phi'(t_j)||, and its gradient is taken in full, through the speeds too. Both sums are unbiased
    for the two integrals of G18 Eq. (1); their ratio is not, nor is its gradient: the bias falls with the number of
    draws (with independent draws like 1 / draws; strata make it smaller), and a single draw would give Eq. (3). Nothing
    is biased where the speed is constant, as on a segment or on a chain with legs of equal length.

    W21's terms are added to the loss of a step: `beta` cos^2(w_j, w_k) of a random pair of free control points
    (Eq. (5)), and `similarity` |t_j - t_k| times the mean over images of cos^2(phi_j, phi_k) for a random pair of the
    step's networks (Eq. (13)), phi being the input of the last linear layer that runs. The paper does not say whether
    both networks see the same images there: `recipe.similarity_on`. The history's loss leaves these terms out.

    Processes that torchrun has started share the work on every batch (`lossland.parallel`). Memory beyond that of
    training one network: one vector for each control point but the first, and one velocity for each free one but the
    first (a line, or a curve with one bend and fixed ends: two networks). Similarity takes two more, and two graphs.

    Args:
        net: the network that the control points are weights of.
        family: control points, basis and domain.
        task: data; training happens on its device.
        recipe: epochs, learning rate, decay, draws, what is added to the loss.
        seed: of everything random.
        split: which split is trained on.
        progress: show a line with epoch, loss and accuracy.
        checkpoint: saved to after every epoch, and continued from where it holds something; `recipes.trained` brings
            one from the store.
        until: stop after so many epochs of the recipe's schedule, and return the velocity too; None: after all.
        velocity: of SGD's momentum at the start, one for each free control point (`Fit.velocity`); None: zero.
        collect: takes weights out of the run at iterations of its choice; for a single network.

    Raises:
        FloatingPointError: if the loss or a weight becomes NaN or infinite, naming epoch, step and sampled t; the
            checkpoint keeps the state before that epoch.
        ValueError, TypeError: if the control points or velocities are not weights of `net`, or some of its parameters
            are frozen; measure="length" without a curve; beta, layerwise or similarity for a family that they do not
            suit; until outside 1..epochs; a collector for more than a single network; a batch of one image with batch
            norm; arguments of other kinds, or a seed below 0.

    Source: G18 Eqs. (1) to (3) and A.2; W21 Algorithm 1, Eqs. (5) and (13); AY20 section 5 for plain training.
    """
    check_request(net, family, task, recipe, seed)
    _check(net, family, recipe, until, collect)
    # With beta > 0 the regularised weights lie together; other runs keep the order that their checkpoints have.
    run = Run(family, task, split, recipe, seed, Layout.of(net, family.points[0], norms_last=recipe.beta > 0),
              ranks())
    state = _begin(net, run, velocity)
    start = _spread(state, run)
    _restore(state, checkpoint, collect)
    networks = [FlatNetwork(net, run.layout.like, state.points, recipe.precision, smoothing=recipe.smoothing,
                            features=recipe.similarity > 0, shared=run.ranks.size > 1)
                for _ in range(2 if recipe.similarity else 1)]
    last = recipe.epochs if until is None else until
    with tqdm(total=last, initial=state.epoch, desc=family.kind, unit="epoch", disable=not progress) as bar:
        while state.epoch < last:
            row = _epoch(state, networks, run, collect)
            state.history.append(row)
            state.epoch += 1
            _save(state, checkpoint, collect)
            bar.set_postfix(loss=f"{row['loss']:.4f}", accuracy=f"{row['accuracy']:.2%}")
            bar.update()
    points, history, left = state.points, pd.DataFrame(state.history), () if until is None else state.velocity
    del networks, state  # frees their memory before the points are copied
    trained, moving = ([_copied(row, run) for row in rows] for rows in (points, left))
    del points, left  # before the family looks through its points
    return Fit(family.with_points(trained), history, tuple(moving), start)


def _copied(vector: Tensor, run: Run) -> Weights:
    """Return a copy of a flat vector (P,) as weights in the order that the family's points have."""
    views = from_vector(vector, run.layout.like)
    return {name: views[name].clone() for name in run.family.points[0]}
