"""Recipes of training, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lossland.errors import choose
from lossland.scalars import flag, number, whole

BY_EPOCH = ("piecewise", "cosine", "constant")
BY_ITERATION = ("triangular", "restarts")
SCHEDULES = BY_EPOCH + BY_ITERATION
PRECISIONS = ("float32", "float64", "bfloat16")
MEASURES = ("parameter", "length")
SIMILARITY_ON = ("own", "same")

# Fields that came after the first stored recipes, and what those meant
_LATER = {"draws": 1, "measure": "parameter", "cycle": 0, "lr_low": 0.0, "clip": 0.0, "beta": 0.0, "layerwise": False,
          "similarity": 0.0, "similarity_on": "own", "smoothing": 0.0, "strata": True}
_KINDS = dict.fromkeys(("epochs", "batch_size", "draws", "warmup"), whole) | dict.fromkeys(
    ("lr", "momentum", "weight_decay", "lr_low", "clip", "beta", "similarity", "smoothing"), number) | dict.fromkeys(
    ("augment", "layerwise", "strata"), flag)


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
        schedule: "piecewise" (AY20, G18), "cosine" (W21) or "constant", see `learning_rate`; "triangular" (G18's Fast
            Geometric Ensembling) or "restarts" (a cosine in every cycle: Snapshot Ensembles), see `rate`.
        warmup: epochs of linear warm-up, "cosine" only.
        augment: whether the task's augmentation is used.
        precision: "float32", "float64", or "bfloat16" (autocast over float32 weights).
        draws: sampled networks per step (s of W21 App. B). The batch is cut into as many parts, one per network, so
            that a step costs the same.
        measure: what the mean over a curve is taken over: "parameter": t ~ U(0, 1) (G18 Eq. (3)); "length": the
            uniform distribution on the curve (G18 Eqs. (1), (2)), see `training.fit`.
        cycle: epochs in a cycle of "triangular" and "restarts"; with "constant" the epochs between two members, 0: 1.
        lr_low: smallest learning rate of a cycle.
        clip: largest l2 norm of the gradient of the cross-entropy at a sampled network; 0: no limit. For language
            models; weight decay is added afterwards, as torch's optimisers do.
        beta: factor of cos^2(w_j, w_k) in the loss, W21 Eq. (5): a random pair of free control points per step, over
            all weights but those of normalisation layers; the paper's default is 1.
        layerwise: whether every module with parameters has a sampled position of its own (W21 section 3).
        similarity: factor lambda of |t_j - t_k| cos^2(phi_j, phi_k) in the loss, W21 Eq. (13): a random pair of a
            step's networks and their penultimate features, see `training.fit`; needs draws >= 2.
        similarity_on: the images whose features are compared, which the paper leaves open: "own": each network's own
            part of the batch, image by image, so that nothing is computed twice; "same": those of the first network,
            which the second one sees, too.
        smoothing: label smoothing of the training loss, in [0, 1).
        strata: on an interval, whether there is one t in each of `draws` equal parts of [0, 1]; False: independent t
            (W21 App. B).
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
    cycle: int = 0
    lr_low: float = 0.0
    clip: float = 0.0
    beta: float = 0.0
    layerwise: bool = False
    similarity: float = 0.0
    similarity_on: str = "own"
    smoothing: float = 0.0
    strata: bool = True

    def __post_init__(self) -> None:
        choose("decay_on", self.decay_on, ("points", "sampled"))
        choose("schedule", self.schedule, SCHEDULES)
        choose("precision", self.precision, PRECISIONS)
        choose("measure", self.measure, MEASURES)
        choose("similarity_on", self.similarity_on, SIMILARITY_ON)
        for name, kind in _KINDS.items():
            object.__setattr__(self, name, kind(name, getattr(self, name)))  # numbers of numpy become Python's
        for name in ("epochs", "batch_size", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("lr", "momentum", "weight_decay", "warmup", "cycle", "lr_low", "clip", "beta", "similarity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")
        if self.momentum >= 1:
            raise ValueError(f"momentum must be < 1, or the steps grow without end, got {self.momentum}")
        if self.draws > 1 and self.batch_size < 2 * self.draws:
            raise ValueError(f"batch_size must be >= 2 * draws (two images for each sampled network), got "
                             f"{self.batch_size} for {self.draws} draws")
        if self.measure == "length" and self.draws < 2:
            raise ValueError(f"draws must be >= 2 with measure='length': one draw has nothing to be weighed against, "
                             f"got {self.draws}")
        self._check_cycle()
        self._check_subspace()

    def _check_subspace(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}")
        if self.batch_size % self.draws:
            raise ValueError("draws must divide batch_size, so that every sampled network sees as many images "
                             f"(W21 App. B), got {self.draws} draws of batches of {self.batch_size}")
        if self.layerwise and self.measure == "length":
            raise ValueError("layerwise=True needs measure='parameter': without one t there is no speed on a curve")
        if self.similarity:
            self._check_similarity()

    def _check_similarity(self) -> None:
        if self.draws < 2:
            raise ValueError("draws must be >= 2 with similarity > 0: Eq. (13) of W21 compares two networks of a step, "
                             f"got {self.draws}")
        if self.layerwise:
            raise ValueError("similarity > 0 needs layerwise=False: |t_j - t_k| of Eq. (13) of W21 asks for one t each")
        if self.measure == "length" or self.clip:
            other = "measure='length'" if self.measure == "length" else f"clip={self.clip:g}"
            raise ValueError(f"similarity > 0 does not go together with {other}, which is about cross-entropy alone")

    def _check_cycle(self) -> None:
        cyclic = self.schedule in BY_ITERATION
        if isinstance(self.cycle, bool) or not isinstance(self.cycle, int):
            raise TypeError(f"cycle must be a whole number of epochs, got {self.cycle!r}")
        if cyclic and self.cycle < 1:
            raise ValueError(f"cycle must be >= 1 (epochs) with schedule={self.schedule!r}, got {self.cycle}")
        if self.cycle > self.epochs:
            raise ValueError(f"cycle must not be longer than the run of {self.epochs} epochs, got {self.cycle} epochs")
        if cyclic and self.lr_low > self.lr:
            raise ValueError(f"lr_low must be <= lr: alpha_1 = lr = {self.lr:g} is the largest learning rate of a "
                             f"cycle, got alpha_2 = lr_low = {self.lr_low:g}")
        if self.lr_low and not cyclic or self.cycle and self.schedule not in (*BY_ITERATION, "constant"):
            given = f"lr_low={self.lr_low:g}" if self.lr_low else f"cycle={self.cycle}"
            raise ValueError(f"{given} needs schedule='triangular' or 'restarts', got {self.schedule!r}")

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

    Raises:
        ValueError: for "triangular" and "restarts", which have one for every iteration: `rate`.

    Source: AY20 and G18 (released settings; both papers say only "standard"); W21 section 4 (cosine, 5 warm-up epochs).

    Examples:
        >>> recipe = Recipe(epochs=10, lr=1.0)
        >>> [round(learning_rate(recipe, e), 4) for e in (0, 5, 7, 9)]
        [1.0, 1.0, 0.505, 0.01]
        >>> recipe = Recipe(epochs=10, lr=1.0, schedule="cosine", warmup=2)
        >>> [round(learning_rate(recipe, e), 4) for e in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if recipe.schedule in BY_ITERATION:
        raise ValueError(f"schedule {recipe.schedule!r} has no learning rate of an epoch: it changes with every "
                         "iteration, see rate()")
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "piecewise":
        ratio = epoch / recipe.epochs
        return recipe.lr * (1.0 if ratio <= 0.5 else 0.01 if ratio >= 0.9 else 1 - (ratio - 0.5) / 0.4 * 0.99)
    if epoch < recipe.warmup:
        return recipe.lr * (epoch + 1) / recipe.warmup
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup) / (recipe.epochs - recipe.warmup))) / 2


def cycle_iterations(recipe: Recipe, per_epoch: int) -> int:
    """Return c, the iterations in a cycle: its epochs times the batches of an epoch, the short last one included.

    Args:
        recipe: with the schedule "triangular" or "restarts".
        per_epoch: batches in an epoch, `batches_per_epoch`.

    Raises:
        ValueError: for an odd c of "triangular", whose member is taken after c / 2 iterations.

    Source: G18 Algorithm 1, "cycle length c (even)". There c counts iterations; in the released code it counts epochs
        and must be even, so that a member is always taken at the end of an epoch. Ours may be an odd number of epochs
        where their batches are even in number.

    Examples:
        >>> recipe = Recipe(epochs=4, lr=0.1, schedule="triangular", cycle=2)
        >>> cycle_iterations(recipe, 11)
        22
    """
    length = recipe.cycle * per_epoch
    if recipe.schedule == "triangular" and length % 2:
        raise ValueError(f"cycle must be an even number of iterations (G18 Algorithm 1), got {recipe.cycle} epochs of "
                         f"{per_epoch} batches = {length}: take an even number of epochs, or a batch_size that makes "
                         "the batches even in number")
    return length


def batches_per_epoch(recipe: Recipe, images: int) -> int:
    """Return the number of batches that so many images (windows of a text) make; the last one may be short."""
    return -(-images // recipe.batch_size)


def rate(recipe: Recipe, iteration: int, per_epoch: int) -> float:
    """Return the learning rate alpha(i) of iteration i, counted from 1.

    "triangular": with t = (mod(i - 1, c) + 1) / c it is (1 - 2 t) alpha_1 + 2 t alpha_2 up to t = 1/2, and then
    (2 - 2 t) alpha_2 + (2 t - 1) alpha_1; alpha_1 = lr, alpha_2 = lr_low, c iterations in a cycle. "restarts": with
    u = mod(i - 1, c) / c it is alpha_2 + (alpha_1 - alpha_2) (1 + cos(pi u)) / 2. Every other schedule is constant
    within an epoch: `learning_rate`.

    Args:
        recipe: the schedule.
        iteration: i.
        per_epoch: batches in an epoch, `batches_per_epoch`.

    Raises:
        ValueError: for an iteration below 1, or an odd cycle.

    Source: G18 section 5; Huang et al. 2017, Eq. (2).

    Examples:
        >>> recipe = Recipe(epochs=4, lr=1.0, lr_low=0.2, schedule="triangular", cycle=2)
        >>> [round(rate(recipe, i, 5), 3) for i in (1, 5, 10)]  # i = 1, c/2, c
        [0.84, 0.2, 1.0]
        >>> [round(rate(recipe, i, 5), 3) for i in (11, 15, 20)]
        [0.84, 0.2, 1.0]
        >>> recipe = Recipe(epochs=4, lr=1.0, schedule="restarts", cycle=2)
        >>> [round(rate(recipe, i, 5), 3) for i in (1, 6, 10, 11)]
        [1.0, 0.5, 0.024, 1.0]
    """
    if iteration < 1 or per_epoch < 1:
        raise ValueError(f"iteration and per_epoch must be >= 1, got {iteration} and {per_epoch}")
    if recipe.schedule not in BY_ITERATION:
        return learning_rate(recipe, (iteration - 1) // per_epoch)
    high, low, length = recipe.lr, recipe.lr_low, cycle_iterations(recipe, per_epoch)
    before = (iteration - 1) % length
    if recipe.schedule == "restarts":
        return low + (high - low) * (1 + math.cos(math.pi * before / length)) / 2
    t = (before + 1) / length
    return (1 - 2 * t) * high + 2 * t * low if t <= 0.5 else (2 - 2 * t) * low + (2 * t - 1) * high


def member_iterations(recipe: Recipe, per_epoch: int) -> range:
    """Return the iterations, counted from 1, after which the members of an ensemble are taken.

    "triangular": those with mod(i, c) = c / 2, where the learning rate is lowest. "restarts": those with mod(i, c) = 0,
    the ends of the cycles. "constant": the end of every epoch, or of every `cycle` epochs.

    Args:
        recipe: the schedule.
        per_epoch: batches in an epoch, `batches_per_epoch`.

    Raises:
        ValueError: for another schedule, or an odd cycle.

    Source: G18 Algorithm 1; Huang et al. 2017, section 3; Izmailov et al. 2018, Algorithm 1 (constant).

    Examples:
        >>> list(member_iterations(Recipe(epochs=7, lr=0.1, schedule="triangular", cycle=2), 5))
        [5, 15, 25, 35]
        >>> list(member_iterations(Recipe(epochs=7, lr=0.1, schedule="restarts", cycle=2), 5))
        [10, 20, 30]
        >>> list(member_iterations(Recipe(epochs=3, lr=0.1, schedule="constant"), 5))
        [5, 10, 15]
    """
    choose("schedule", recipe.schedule, (*BY_ITERATION, "constant"))
    length = cycle_iterations(recipe, per_epoch) or per_epoch
    first = length // 2 if recipe.schedule == "triangular" else length
    return range(first, recipe.epochs * per_epoch + 1, length)
