"""Training: one loop for single networks, curves and subspaces.

A control point is one flat vector. A step mixes the control points into a flat buffer whose views are the network's
parameters, takes the gradient there, and gives control point i the gradient times its coefficient (G18 A.2, W21
Eq. (3)): no autograd graph runs through the combination.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from lossland.batchnorm import fresh_buffers
from lossland.errors import choose
from lossland.families import Family
from lossland.targets import flatten
from lossland.tasks import Task
from lossland.weights import Weights, check_belongs, from_vector, skeleton, to_vector

VERSION = 1  # of the numbers this loop produces: raised whenever the same recipe would give other weights
_SCHEDULES = ("piecewise", "cosine", "constant")
_PRECISIONS = ("float32", "float64", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How a family is trained: stochastic gradient descent with momentum on cross-entropy.

    Attributes:
        epochs: passes over the training split.
        lr: largest learning rate.
        batch_size: images per step.
        momentum: of SGD.
        weight_decay: factor of the L2 term.
        decay_on: "points": the optimiser's weight decay on each control point (AY20, W21); "sampled": the loss has
            1/2 * weight_decay * ||w||^2 of the sampled network (G18).
        schedule: "piecewise" (AY20, G18), "cosine" (W21) or "constant"; see `learning_rate`.
        warmup: epochs of linear warm-up, "cosine" only.
        augment: whether the task's augmentation is used.
        precision: "float32", "float64", or "bfloat16" (autocast over float32 weights).
    """

    epochs: int
    lr: float
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_on: str = "points"
    schedule: str = "piecewise"
    warmup: int = 0
    augment: bool = True
    precision: str = "float32"

    def __post_init__(self) -> None:
        choose("decay_on", self.decay_on, ("points", "sampled"))
        choose("schedule", self.schedule, _SCHEDULES)
        choose("precision", self.precision, _PRECISIONS)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("lr", "momentum", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        return torch.float64 if self.precision == "float64" else torch.float32


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0; it is constant within an epoch.

    With r = epoch / epochs: "piecewise" is lr for r <= 1/2, linear down to lr / 100 at r = 9/10, then constant.
    "cosine" rises linearly over the warm-up epochs, reaching lr in the last of them, and then falls as
    (1 + cos(pi u)) / 2, with u from 0 in steps of 1 / (epochs - warmup).

    Source: AY20 and G18 (released settings; both papers say only "standard"); W21 section 4 (cosine, 5 warm-up epochs).

    Examples:
        >>> recipe = Recipe(epochs=10, lr=1.0)
        >>> [round(learning_rate(recipe, e), 4) for e in (0, 5, 7, 9)]
        [1.0, 1.0, 0.505, 0.01]
        >>> recipe = Recipe(epochs=10, lr=1.0, schedule="cosine", warmup=2)
        >>> [round(learning_rate(recipe, e), 4) for e in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "piecewise":
        ratio = epoch / recipe.epochs
        return recipe.lr * (1.0 if ratio <= 0.5 else 0.01 if ratio >= 0.9 else 1 - (ratio - 0.5) / 0.4 * 0.99)
    if epoch < recipe.warmup:
        return recipe.lr * (epoch + 1) / recipe.warmup
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup) / (recipe.epochs - recipe.warmup))) / 2


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
    velocity: Tensor  # (k, P); rows of fixed points stay zero
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        saved = checkpoint.load() if checkpoint else None
        if saved:
            tensors, info = saved
            self.points.copy_(tensors["points"])
            self.velocity.copy_(tensors["velocity"])
            self.epoch, self.history = info["epoch"], info["history"]

    def save(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            tensors = {"points": self.points, "velocity": self.velocity}
            checkpoint.save(tensors, {"epoch": self.epoch, "history": self.history})


class _Network:
    """A network on flat memory: parameters and gradients are views of two vectors (P,)."""

    def __init__(self, net: nn.Module, like: Weights, precision: str) -> None:
        self.theta = to_vector(like).clone()
        self.gradient = torch.zeros_like(self.theta)
        views = from_vector(self.theta, like)
        self.parameters = {name: view.detach().requires_grad_() for name, view in views.items()}
        for name, view in from_vector(self.gradient, like).items():
            self.parameters[name].grad = view
        self.bare = skeleton(net).train()
        self.buffers = fresh_buffers(net, self.theta)  # batch norm in training mode writes here; never read
        low = precision == "bfloat16"
        self.autocast = torch.autocast(self.theta.device.type, torch.bfloat16) if low else nullcontext()

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the mean cross-entropy in `gradient`; return the loss and the number of hits."""
        self.gradient.zero_()
        with self.autocast:
            logits, labels = flatten(functional_call(self.bare, (self.parameters, self.buffers), (images,)), labels)
            loss = cross_entropy(logits, labels)
        loss.backward()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def _stream(seed: int, *numbers: int) -> int:
    """Return a seed for one of many independent random streams."""
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, which dropout cannot do without, and give them back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        on_gpu = device.type == "cuda"
        generator = torch.cuda.default_generators[device.index or 0] if on_gpu else torch.default_generator
        generator.manual_seed(seed)
        yield


@dataclass(frozen=True)
class _Run:
    """What does not change during training."""

    family: Family
    task: Task
    split: str
    recipe: Recipe
    seed: int


def _step(state: _State, network: _Network, coefficients: list[float], run: _Run) -> None:
    """Update the free control points from the gradient at the sampled network."""
    recipe, lr = run.recipe, learning_rate(run.recipe, state.epoch)
    if recipe.weight_decay and recipe.decay_on == "sampled":
        network.gradient.add_(network.theta, alpha=recipe.weight_decay)
    for i, c in enumerate(coefficients):
        if not run.family.free[i]:
            continue
        velocity = state.velocity[i].mul_(recipe.momentum).add_(network.gradient, alpha=c)
        if recipe.weight_decay and recipe.decay_on == "points":
            velocity.add_(state.points[i], alpha=recipe.weight_decay)
        state.points[i].add_(velocity, alpha=-lr)


def _mix_into(theta: Tensor, points: Tensor, coefficients: list[float]) -> None:
    torch.mul(points[0], coefficients[0], out=theta)
    for i, c in enumerate(coefficients[1:], 1):
        if c:
            theta.add_(points[i], alpha=c)


def _epoch(state: _State, network: _Network, run: _Run) -> dict[str, float]:
    """Run one epoch in place; return its row of the history."""
    task, recipe, seed = run.task, run.recipe, run.seed
    started, lr, device = time.perf_counter(), learning_rate(recipe, state.epoch), network.theta.device
    order = torch.Generator().manual_seed(_stream(seed, state.epoch, 0))
    draws = torch.Generator().manual_seed(_stream(seed, state.epoch, 1))
    total, hits = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
    first_bad = torch.full((), -1, device=device)
    sampled = []
    batches = task.batches(run.split, batch_size=recipe.batch_size, generator=order, augment=recipe.augment,
                           dtype=recipe.dtype)
    with _dropout_seed(_stream(seed, state.epoch, 2), device):
        for step, (images, labels) in enumerate(batches):
            sampled.append(run.family.sample(draws).tolist())
            _mix_into(network.theta, state.points, sampled[-1])
            loss, hit = network.loss(images, labels)
            _step(state, network, sampled[-1], run)
            total += loss * len(labels)
            hits += hit
            first_bad = torch.where((first_bad < 0) & ~loss.isfinite(), step, first_bad)
    if (bad := int(first_bad)) >= 0 or not bool(state.points.isfinite().all()):
        where = f"step {bad}, coefficients {sampled[bad]}" if bad >= 0 else "its last step"
        raise FloatingPointError(f"training diverged: loss or weights NaN or infinite in epoch {state.epoch}, {where} "
                                 f"(lr {lr:g}); the last good state is the one after epoch {state.epoch - 1}")
    labels = task.split(run.split).labels
    return {"epoch": state.epoch, "lr": lr, "loss": float(total) / len(labels),
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


def fit(net: nn.Module, family: Family, task: Task, recipe: Recipe, *, seed: int = 0, split: str = "train",
        progress: bool = False, checkpoint: Checkpoint | None = None) -> Fit:
    """Return the trained family; the one given, and `net`, do not change.

    Batch order, augmentation, sampled members and dropout come from streams of `seed` and the epoch's number, so that a
    run which continues from a checkpoint gives the weights of an uninterrupted one.

    Args:
        net: the network that the control points are weights of.
        family: control points, basis and domain.
        task: data; training happens on its device.
        recipe: epochs, learning rate, decay.
        seed: of everything random.
        split: which split is trained on.
        progress: show a line with epoch, loss and accuracy.
        checkpoint: saved to after every epoch, and continued from where it holds something.

    Raises:
        FloatingPointError: if the loss or a weight becomes NaN or infinite, naming epoch, step and sampled member.
        ValueError, TypeError: if the control points are not weights of `net`.

    Source: G18 Eq. (3) and A.2; W21 Algorithm 1 (without its regulariser); AY20 section 5 for plain training.
    """
    if not isinstance(family, Family):
        raise TypeError(f"family must be a Family, such as ll.bezier(a, b), got {type(family).__name__}")
    device = task.split(split).images.device
    for i, p in enumerate(family.points):
        check_belongs(net, p, f"family.points[{i}]")
    cast = [{name: tensor.detach().to(device, recipe.dtype) for name, tensor in p.items()} for p in family.points]
    points = torch.stack([to_vector(p) for p in cast])  # (k, P)
    state = _State(points, torch.zeros_like(points))
    state.restore(checkpoint)
    network, run = _Network(net, cast[0], recipe.precision), _Run(family, task, split, recipe, seed)
    with tqdm(total=recipe.epochs, initial=state.epoch, desc=family.kind, unit="epoch", disable=not progress) as bar:
        while state.epoch < recipe.epochs:
            row = _epoch(state, network, run)
            state.history.append(row)
            state.epoch += 1
            state.save(checkpoint)
            bar.set_postfix(loss=f"{row['loss']:.4f}", accuracy=f"{row['accuracy']:.2%}")
            bar.update()
    trained = [{name: view.clone() for name, view in from_vector(row, cast[0]).items()} for row in state.points]
    return Fit(family.with_points(trained), pd.DataFrame(state.history))
