"""One step of training: the mix of the control points, its gradient, and what that does to each control point.

A control point is one flat vector. A step mixes the control points into a flat buffer whose views are the network's
parameters, takes the gradient there, and gives control point i the gradient times its coefficient (G18 A.2, W21
Eq. (3)): no autograd graph runs through the combination.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossland.draws import Sample
from lossland.families import Family
from lossland.flat import FlatNetwork
from lossland.layout import Layout, Mixture, within
from lossland.parallel import Ranks, shared_loss
from lossland.regularisers import Apart, alike
from lossland.schedules import Recipe, batches_per_epoch
from lossland.tasks import Task


@dataclass(frozen=True)
class Run:
    """What does not change during training."""

    family: Family
    task: Task
    split: str
    recipe: Recipe
    seed: int
    layout: Layout
    ranks: Ranks = Ranks()

    @property
    def per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return batches_per_epoch(self.recipe, len(self.task.split(self.split)))


@dataclass
class State:
    """All that changes during training; with the recipe and the seed it determines the rest of the run."""

    points: Tensor  # (k, P)
    free: list[int]  # numbers of the f points that training moves
    velocity: Tensor  # (f, P)
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Become the state that `saved` gave."""
        # Checkpoints of earlier versions hold all k points.
        rows = slice(None) if len(tensors["points"]) == len(self.free) else self.free
        self.points[self.free] = tensors["points"][rows].to(self.points)
        self.velocity.copy_(tensors["velocity"][rows])
        self.epoch, self.history = info["epoch"], info["history"]

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and facts from which `restore` goes on."""
        tensors = {"points": self.points[self.free], "velocity": self.velocity}
        return tensors, {"epoch": self.epoch, "history": self.history}


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


def step(state: State, networks: Sequence[FlatNetwork], run: Run, batch: tuple[Tensor, Tensor], sample: Sample, *,
         lr: float) -> tuple[Tensor, Tensor]:
    """Update the free control points from the gradients at the n sampled networks; return loss and hits."""
    n, decay = len(sample.where), run.recipe.weight_decay if run.recipe.decay_on == "sampled" else 0.0
    length = _Length.of(state.points, run.family.slopes(sample.where)) if run.recipe.measure == "length" else None
    shares = length.speeds / length.speeds.sum() if length else state.points.new_full((n,), 1 / n)
    apart = sample.points and Apart.of(state.points, sample.points, run.recipe.beta, run.layout.weights)
    parts = list(zip(*(tensor.tensor_split(n) for tensor in batch), strict=True))
    losses, objective, hits = [], [], []
    for done, (network, j, loss, hit) in enumerate(_gradients(state, networks, run, parts, sample), 1):
        if run.recipe.clip:
            network.clip(run.recipe.clip)
        losses.append(loss)
        hits.append(hit)
        if length:
            objective.append(loss + 0.5 * decay * network.theta.square().sum() if decay else loss)
        pull = length.pull(torch.stack(objective).to(shares)) if length and done == n else None
        _descend(state, network, run, sample.mixtures[j], share=shares[j] if n > 1 else None, pull=pull, apart=apart,
                 ends=(done == 1, done == n), lr=lr)
    return (shares * torch.stack(losses)).sum(), torch.stack(hits).sum()


def _gradients(state: State, networks: Sequence[FlatNetwork], run: Run, parts: list[tuple[Tensor, ...]],
               sample: Sample) -> Iterator[tuple[FlatNetwork, int, Tensor, Tensor]]:
    """Yield a network that holds its gradient, its number, loss and hits; two networks of a pair come last."""
    pair = sample.networks or ()
    for j, part in enumerate(parts):
        if j not in pair:
            networks[0].move_to(state.points, sample.mixtures[j])
            yield (networks[0], j, *shared_loss(networks[0], *part, run.ranks))
    if pair:
        for network, j in zip(networks, pair, strict=True):
            network.move_to(state.points, sample.mixtures[j])
        apart = float((sample.where[pair[0]] - sample.where[pair[1]]).abs())
        # Every network's gradient is divided by their number in the end; lambda is not.
        factor = run.recipe.similarity * apart * len(parts)
        found = _compare(networks, [parts[j] for j in pair], factor, same=run.recipe.similarity_on == "same")
        yield from ((network, j, *scores) for network, j, scores in zip(networks, pair, found, strict=True))


def _compare(networks: Sequence[FlatNetwork], parts: Sequence[tuple[Tensor, ...]], factor: float, *,
             same: bool) -> list[tuple[Tensor, Tensor]]:
    """Work out the gradients of two networks' cross-entropies and of what their features have in common.

    The sum of the two losses and `factor` times `alike` of the features has one graph.

    Args:
        networks: two, which keep their features.
        parts: images and labels for each.
        factor: of cos^2.
        same: whether both networks' features are those of the first one's images; else each has its own.

    Returns:
        For each network its loss and the number of hits.

    Source: W21 Eq. (13).
    """
    (first, second), losses, found, features = networks, [], [], []
    for network, part in zip(networks, parts, strict=True):
        network.clear()
        loss, hits = network.forward(*part)
        losses.append(loss)
        found.append((loss.detach(), hits))
        features.append(network.features)
    if same:
        second.forward(*parts[0])
        features[1] = second.features
    one, other = (phi.to(first.theta.dtype) for phi in features)
    (losses[0] + losses[1] + factor * alike(one, other)).backward()
    return found


def _descend(state: State, network: FlatNetwork, run: Run, mixture: Mixture, *, share: Tensor | None,
             pull: Tensor | None, apart: Apart | None, ends: tuple[bool, bool], lr: float) -> None:
    """Add the gradient to the velocities; after the last of a step's networks move the free points."""
    recipe, (first, last) = run.recipe, ends
    sampled, decay = recipe.decay_on == "sampled", 0.0 if recipe.decay_on == "sampled" else recipe.weight_decay
    for piece, gradient in network.gradients():
        points, velocity = state.points[:, piece], state.velocity[:, piece]
        if first:
            velocity.mul_(recipe.momentum)
        if sampled and recipe.weight_decay:
            gradient.add_(network.theta[piece], alpha=recipe.weight_decay)
        if share is not None:
            gradient.mul_(share)
        for stretch, coefficients in mixture:
            part = within(stretch, piece)
            for row, i in enumerate(state.free):
                velocity[row, part].add_(gradient[part], alpha=coefficients[i])
        for row, i in enumerate(state.free if last else ()):
            if pull is not None:
                velocity[row].add_(pull[i] @ points)
            if apart and i in apart.pair:
                apart.add(velocity[row], points, i, piece, decay=decay)
            elif decay:
                velocity[row].add_(points[i], alpha=decay)
        for row, i in enumerate(state.free if last else ()):
            points[i].add_(velocity[row], alpha=-lr)
