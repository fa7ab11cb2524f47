"""Recipes of training, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lossland.errors import choose

SCHEDULES = ("piecewise", "cosine", "constant")
PRECISIONS = ("float32", "float64", "bfloat16")
MEASURES = ("parameter", "length")

_LATER = {"draws": 1, "measure": "parameter"}  # fields that came after the first stored recipes, and what those meant


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
        draws: sampled networks per step. The batch is cut into as many parts, one per network, so that a step costs the
            same; on an interval there is one t in each of `draws` equal parts of [0, 1].
        measure: what the mean over a curve is taken over: "parameter": t ~ U(0, 1) (G18 Eq. (3)); "length": the
            uniform distribution on the curve (G18 Eqs. (1), (2)), see `training.fit`.
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
    draws: int = 1
    measure: str = "parameter"

    def __post_init__(self) -> None:
        choose("decay_on", self.decay_on, ("points", "sampled"))
        choose("schedule", self.schedule, SCHEDULES)
        choose("precision", self.precision, PRECISIONS)
        choose("measure", self.measure, MEASURES)
        for name in ("epochs", "batch_size", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("lr", "momentum", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")
        if self.draws > 1 and self.batch_size < 2 * self.draws:
            raise ValueError(f"batch_size must be >= 2 * draws (two images for each sampled network), got "
                             f"{self.batch_size} for {self.draws} draws")
        if self.measure == "length" and self.draws < 2:
            raise ValueError(f"draws must be >= 2 with measure='length': one draw has nothing to be weighed against, "
                             f"got {self.draws}")

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def facts(self) -> dict[str, Any]:
        """Return the recipe as JSON values, for keys of the store and for records.

        Fields that were added later are left out where they have the value that recipes without them meant: networks
        trained before keep their place in the store.

        Examples:
            >>> facts = Recipe(epochs=3, lr=0.1).facts()
            >>> "draws" in facts, Recipe(epochs=3, lr=0.1, draws=2).facts()["draws"]
            (False, 2)
        """
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != _LATER[name]}


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
