"""Training: one loop for single networks, curves and subspaces.

A control point is one flat vector. A step mixes the control points into a flat buffer whose views are the network's
parameters, takes the gradient there, and gives control point i the gradient times its coefficient (G18 A.2, W21
Eq. (3)): no autograd graph runs through the combination.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.families import Family
from lossland.flat import FlatNetwork, dropout_seed
from lossland.sampling import stream_seed
from lossland.schedules import Recipe, learning_rate
from lossland.tasks import Task
from lossland.weights import Weights, check_belongs, from_vector

__all__ = ["Checkpoint", "Fit", "Recipe", "VERSION", "fit", "learning_rate"]

VERSION = 1  # of the numbers this loop produces: raised whenever the same recipe would give other weights


class Checkpoint(Protocol):
    """Where an interrupted training run continues from; the store's checkpoints are of this kind."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and facts saved last, or None."""

    def save(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Keep tensors and facts, replacing the ones before."""


@dataclass
class _State:
    """All that changes during training; with the recipe and the seed it determines the rest of the run."""

    points: Tensor  # (k, P)
    free: list[int]  # numbers of the f points that training moves
    velocity: Tensor  # (f, P)
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        saved = checkpoint.load() if checkpoint else None
        if saved:
            tensors, info = saved
            # Checkpoints of earlier versions hold all k points.
            rows = slice(None) if len(tensors["points"]) == len(self.free) else self.free
            self.points[self.free] = tensors["points"][rows].to(self.points)
            self.velocity.copy_(tensors["velocity"][rows])
            self.epoch, self.history = info["epoch"], info["history"]

    def save(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            tensors = {"points": self.points[self.free], "velocity": self.velocity}
            checkpoint.save(tensors, {"epoch": self.epoch, "history": self.history})


@dataclass(frozen=True)
class _Run:
    """What does not change during training."""

    family: Family
    task: Task
    split: str
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class _Length:
    """Draws of a step weighted by their speed: loss (1) of G18 as a ratio of two sums."""

    slopes: Tensor  # (n, k) derivatives of the coefficients
    speeds: Tensor  # (n,) l2 norms of the curve's derivative

    @staticmethod
    def of(points: Tensor, slopes: Tensor) -> _Length:
        slopes = slopes.to(points)
        return _Length(slopes, torch.stack([(row @ points).norm() for row in slopes]))  # one (P,) vector at a time

    def pull(self, losses: Tensor) -> Tensor:
        """Return (k, k): row i times the points is the part of point i's gradient that comes from the speeds.

        The derivative of sum_j v_j L_j / sum_j v_j by v_j is (L_j - mean) / sum v, and that of v_j by point i is
        c_i'(t_j) phi'(t_j) / v_j, which is linear in the points again.
        """
        total = self.speeds.sum()
        excess = (losses - (self.speeds * losses).sum() / total) / (total * self.speeds)
        return self.slopes.T @ (excess[:, None] * self.slopes)


def _step(state: _State, network: FlatNetwork, run: _Run, batch: tuple[Tensor, Tensor],
          where: Tensor) -> tuple[Tensor, Tensor]:
    """Update the free control points from the gradients at the n sampled networks; return loss and hits."""
    n, decay = len(where), run.recipe.weight_decay if run.recipe.decay_on == "sampled" else 0.0
    length = _Length.of(state.points, run.family.slopes(where)) if run.recipe.measure == "length" else None
    shares = length.speeds / length.speeds.sum() if length else state.points.new_full((n,), 1 / n)
    parts = zip(*(tensor.tensor_split(n) for tensor in batch), run.family.coefficients(where).tolist(), strict=True)
    losses, objective, hits = [], [], []
    for j, (images, labels, coefficients) in enumerate(parts):
        network.move_to(state.points, coefficients)
        loss, hit = network.loss(images, labels)
        losses.append(loss)
        hits.append(hit)
        if length:
            objective.append(loss + 0.5 * decay * network.theta.square().sum() if decay else loss)
        pull = length.pull(torch.stack(objective).to(shares)) if length and j == n - 1 else None
        _descend(state, network, run, coefficients, share=shares[j] if n > 1 else None, pull=pull,
                 ends=(j == 0, j == n - 1))
    return (shares * torch.stack(losses)).sum(), torch.stack(hits).sum()


def _descend(state: _State, network: FlatNetwork, run: _Run, coefficients: list[float], *, share: Tensor | None,
             pull: Tensor | None, ends: tuple[bool, bool]) -> None:
    """Add the gradient to the velocities; after the last of a step's networks move the free points."""
    recipe, lr, (first, last) = run.recipe, learning_rate(run.recipe, state.epoch), ends
    sampled, decay = recipe.decay_on == "sampled", recipe.weight_decay
    for piece, gradient in network.gradients():
        points, velocity = state.points[:, piece], state.velocity[:, piece]
        if first:
            velocity.mul_(recipe.momentum)
        if sampled and decay:
            gradient.add_(network.theta[piece], alpha=decay)
        if share is not None:
            gradient.mul_(share)
        for row, i in enumerate(state.free):
            velocity[row].add_(gradient, alpha=coefficients[i])
            if last and pull is not None:
                velocity[row].add_(pull[i] @ points)
            if last and decay and not sampled:
                velocity[row].add_(points[i], alpha=decay)
        for row, i in enumerate(state.free if last else ()):
            points[i].add_(velocity[row], alpha=-lr)


def _named(family: Family, where: Tensor) -> str:
    """Return the sampled members in words."""
    values = [f"{value:.6g}" if value.ndim == 0 else str([round(c, 6) for c in value.tolist()]) for value in where]
    name = {"point": "", "interval": "t", "simplex": "coefficients"}[family.domain]
    return f", {name} = {', '.join(values)}" if name else ""


def _epoch(state: _State, network: FlatNetwork, run: _Run) -> dict[str, float]:
    """Run one epoch in place; return its row of the history."""
    task, recipe, seed = run.task, run.recipe, run.seed
    started, device = time.perf_counter(), network.theta.device
    order = torch.Generator().manual_seed(stream_seed(seed, state.epoch, 0))
    draws = torch.Generator().manual_seed(stream_seed(seed, state.epoch, 1))
    total, hits = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
    first_bad = torch.full((), -1, device=device)
    sampled = []
    batches = task.batches(run.split, batch_size=recipe.batch_size, generator=order, augment=recipe.augment,
                           dtype=recipe.dtype)
    with dropout_seed(stream_seed(seed, state.epoch, 2), device):
        for step, batch in enumerate(batches):
            count = len(batch[1])
            # A short last batch is cut into fewer parts: two images each, so that batch norm has a variance.
            sampled.append(run.family.draw(draws, max(1, min(recipe.draws, count // 2))))
            loss, hit = _step(state, network, run, batch, sampled[-1])
            total += loss * count
            hits += hit
            first_bad = torch.where((first_bad < 0) & ~loss.isfinite(), step, first_bad)
    # A sum is NaN or infinite where one of its terms is, and needs no memory.
    if (bad := int(first_bad)) >= 0 or not bool(state.points.sum().isfinite()):
        place = f"step {bad}" if bad >= 0 else f"step {len(sampled) - 1}, the last"
        good = f"the one after epoch {state.epoch - 1}" if state.epoch else "the start"
        raise FloatingPointError(f"training diverged: loss or weights NaN or infinite in epoch {state.epoch}, {place}"
                                 f"{_named(run.family, sampled[bad])} (lr {learning_rate(recipe, state.epoch):g}); the "
                                 f"last good state is {good}")
    labels = task.split(run.split).labels
    return {"epoch": state.epoch, "lr": learning_rate(recipe, state.epoch), "loss": float(total) / len(labels),
            "accuracy": float(hits) / labels.numel(), "seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class Fit:
    """What training returns.

    Attributes:
        family: the family with its trained control points, on the task's device.
        history: one row per epoch: epoch, lr, loss [nats, of the sampled networks while training, without the L2 term],
            accuracy [fraction], seconds.
    """

    family: Family
    history: pd.DataFrame


def _begin(net: nn.Module, run: _Run) -> _State:
    """Return the state at the start: copies of the control points on the task's device."""
    family, recipe = run.family, run.recipe
    for i, point in enumerate(family.points):
        check_belongs(net, point, f"family.points[{i}]")
    size = sum(tensor.numel() for tensor in family.points[0].values())
    device = run.task.split(run.split).images.device
    points = torch.empty(len(family.points), size, dtype=recipe.dtype, device=device)
    for row, point in zip(points, family.points, strict=True):
        for name, view in from_vector(row, point).items():
            view.copy_(point[name].detach())
    if recipe.measure == "length" and family.path().length() <= 1e-6 * float(points[0].norm()):  # nothing but rounding
        raise ValueError("measure='length' needs a curve whose end points differ, got a length of 0")
    free = [i for i, movable in enumerate(family.free) if movable]
    return _State(points, free, points.new_zeros(len(free), size))


def fit(net: nn.Module, family: Family, task: Task, recipe: Recipe, *, seed: int = 0, split: str = "train",
        progress: bool = False, checkpoint: Checkpoint | None = None) -> Fit:
    """Return the trained family; the one given, and `net`, do not change.

    Batch order, augmentation, sampled members and dropout come from streams of `seed` and the epoch's number, so that a
    run which continues from a checkpoint gives the weights of an uninterrupted one.

    With `recipe.measure="length"` the loss of a step is sum_j v_j L_j / sum_j v_j over its `recipe.draws` stratified
    draws of t, v_j = ||phi'(t_j)||, and its gradient is taken in full, through the speeds too. Both sums are unbiased
    for the two integrals of G18 Eq. (1); their ratio is not, nor is its gradient: the bias falls with the number of
    draws (with independent draws like 1 / draws; strata make it smaller), and a single draw would give Eq. (3). Nothing
    is biased where the speed is constant, as on a segment or on a chain with legs of equal length.

    Memory beyond that of training one network: one vector for each control point but the first, and one velocity for
    each free one but the first; a curve with one bend and fixed ends takes two networks more.

    Args:
        net: the network that the control points are weights of.
        family: control points, basis and domain.
        task: data; training happens on its device.
        recipe: epochs, learning rate, decay, draws.
        seed: of everything random.
        split: which split is trained on.
        progress: show a line with epoch, loss and accuracy.
        checkpoint: saved to after every epoch, and continued from where it holds something.

    Raises:
        FloatingPointError: if the loss or a weight becomes NaN or infinite, naming epoch, step and sampled t; the
            checkpoint keeps the state before that epoch.
        ValueError, TypeError: if the control points are not weights of `net`; measure="length" without a curve.

    Source: G18 Eqs. (1) to (3) and A.2; W21 Algorithm 1 (without its regulariser); AY20 section 5 for plain training.
    """
    if not isinstance(family, Family):
        raise TypeError(f"family must be a Family, such as ll.bezier(a, b), got {type(family).__name__}")
    run = _Run(family, task, split, recipe, seed)
    state = _begin(net, run)
    state.restore(checkpoint)
    network = FlatNetwork(net, family.points[0], state.points, recipe.precision)
    with tqdm(total=recipe.epochs, initial=state.epoch, desc=family.kind, unit="epoch", disable=not progress) as bar:
        while state.epoch < recipe.epochs:
            row = _epoch(state, network, run)
            state.history.append(row)
            state.epoch += 1
            state.save(checkpoint)
            bar.set_postfix(loss=f"{row['loss']:.4f}", accuracy=f"{row['accuracy']:.2%}")
            bar.update()
    points, history = state.points, pd.DataFrame(state.history)
    del network, state  # frees their memory before the points are copied
    trained: list[Weights] = [{name: view.clone() for name, view in from_vector(row, family.points[0]).items()}
                              for row in points]
    del points
    return Fit(family.with_points(trained), history)
