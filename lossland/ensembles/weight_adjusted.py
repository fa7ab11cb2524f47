"""Ensembles on a shared backbone, solved by weight adjustment (AY20 section 6), and independent networks beside them.

A weight-adjusted ensemble runs the first layers of one network for all members. The layer behind them is solved for
each member, so that it gives this member's own outputs, as nearly as it can, on the features of the shared backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn

from lossland import batchnorm
from lossland.ensembles.averaging import AVERAGES, averaged, running_average
from lossland.ensembles.backbones import Backbone
from lossland.ensembles.costs import Cost, multiply_adds
from lossland.ensembles.heads import Member, adjusted_heads
from lossland.ensembles.scores import checked_members
from lossland.errors import choose
from lossland.evaluation.scoring import Sums, batches, check_task
from lossland.features import blocks
from lossland.layers import Layer
from lossland.least_squares import RIDGE
from lossland.tasks import Task
from lossland.tracing import layers_of
from lossland.weights import Weights

_BATCH = 1000  # images per pass


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks of one architecture whose predictions are averaged; the backbone they share runs once for all of them.

    Attributes:
        net: the network.
        layers: its layers in forward order.
        n: how many of them every member has for itself, counted from the output; all: nothing is shared.
        members: complete weights of each; the tensors of the backbone are the same objects in all of them.
        buffers: batch-norm statistics of each, re-estimated on the training split of the task it was made for.
        fits: one row per adjusted layer of a member: member, module, residual [fraction], condition.
    """

    net: nn.Module
    layers: tuple[Layer, ...]
    n: int
    members: tuple[Weights, ...] = field(repr=False)
    buffers: tuple[dict[str, Tensor], ...] = field(repr=False)
    fits: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __len__(self) -> int:
        return len(self.members)

    def outputs(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the logits (b, C) of one member after the other; the backbone runs once, in front of the first.

        Args:
            images: (b, C, H, W) prepared.
        """
        yield from self._outputs(Backbone(self.net, self.layers, self.n), images)

    @torch.no_grad()
    def _outputs(self, backbone: Backbone, images: Tensor) -> Iterator[Tensor]:
        features = backbone.features(self.members[0], self.buffers[0], images)
        for weights, buffers in zip(self.members, self.buffers, strict=True):
            yield backbone.head(weights, buffers, features)

    @torch.no_grad()
    def predict(self, task: Task, split: str = "test", *, average: str = "probabilities") -> Tensor:
        """Return the scores (N, C) [nats] of the ensemble on a split; their softmax is its prediction.

        Args:
            task: the data.
            split: of the task.
            average: of "probabilities" or of "logits"; see `running_average`.

        Raises:
            ValueError: for an unknown split or average.
        """
        choose("average", average, AVERAGES)
        check_task(self.net, task)
        backbone = Backbone(self.net, self.layers, self.n)
        images = batches(task, task.split(split), _BATCH, _dtype(self.members[0]))
        return torch.cat([averaged(self._outputs(backbone, some), average) for some, _ in images])

    @torch.no_grad()
    def scores(self, task: Task, *, splits: Sequence[str] = ("train", "test"),
               average: str = "probabilities") -> pd.DataFrame:
        """Return a table of the ensembles of the first 1, 2, ..., m members: one row per (split, members).

        All of them come from one pass; predictions are added up member by member.

        Returns:
            Columns members, split, nll [nats], accuracy, ece [fractions; 20 bins].

        Raises:
            ValueError: for an unknown split or average.
            FloatingPointError: if a loss is NaN or infinite, naming split and number of members.

        Source: AY20 Fig. 7 and Table 5.
        """
        choose("average", average, AVERAGES)
        check_task(self.net, task)
        backbone, tables = Backbone(self.net, self.layers, self.n), []
        for name in splits:
            split, sums = task.split(name), Sums.zeros(len(self))
            for images, labels in batches(task, split, _BATCH, _dtype(self.members[0])):
                for row, scores in enumerate(running_average(self._outputs(backbone, images), average)):
                    sums.add(torch.tensor([row]), scores[None], labels)
            if len(bad := (~sums.nll.isfinite()).nonzero()):
                raise FloatingPointError(f"the loss on {name!r} is NaN or infinite from {int(bad[0]) + 1} members on")
            tables.append(pd.DataFrame({"members": range(1, len(self) + 1), "split": name,
                                        **sums.columns(split.labels.numel())}))
        return pd.concat(tables, ignore_index=True)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return multiply-adds and stored parameters, for images of a shape (C, H, W).

        Raises:
            TypeError: for a layer that is neither linear nor a convolution.
        """
        return ensemble_cost(self.net, shape, n=self.n, members=len(self), layers=self.layers)

    def averaged(self) -> Weights:
        """Return one network that averages the members' logits: the mean of their output layers, no extra inference.

        Raises:
            ValueError: unless n = 1: only the output layer enters the logits linearly.

        Source: AY20 section 6.
        """
        if self.n != 1 or len(self.layers) == 1:
            raise ValueError("averaged needs an ensemble that shares all layers but the output layer (n=1): behind any "
                             f"other, outputs are not linear in the weights; got n={self.n} of {len(self.layers)}")
        backbone = Backbone(self.net, self.layers, 1)
        return {name: tensor if backbone.owns(name) else torch.stack([member[name] for member in self.members]).mean(0)
                for name, tensor in self.members[0].items()}


def ensemble_cost(net: nn.Module, shape: tuple[int, ...], *, n: int, members: int,
                  layers: Sequence[Layer] | None = None) -> Cost:
    """Return what WA(n) of so many members costs; no weights are needed.

    Args:
        net: the network; it may live on the `meta` device.
        shape: (C, H, W) of one image.
        n: layers that every member has for itself, counted from the output; all: independent networks.
        members: of the ensemble.
        layers: the network's layers; None: `net.layers()`, or else what `tracing.trace` finds for such an image.

    Raises:
        ValueError: for an n at which the network cannot be cut, or members < 1.
        TypeError: for a layer that is neither linear nor a convolution.

    Examples:
        >>> from lossland.models import build
        >>> dense5 = build("fc5", (3, 32, 32), 10)  # AY20's
        >>> round(ensemble_cost(dense5, (3, 32, 32), n=3, members=7).in_networks, 2)
        1.53
    """
    if members < 1:
        raise ValueError(f"members must be >= 1, got {members}")
    layers = layers_of(net, layers, torch.zeros(2, *shape))
    backbone, work = Backbone(net, layers, n), multiply_adds(net, layers, shape)
    front = sum(work[layer.module] for layer in layers[:-n])
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    stored = sum(size for name, size in sizes.items() if backbone.owns(name))
    return Cost(members, front, sum(work.values()) - front, stored, sum(sizes.values()) - stored)


def _dtype(weights: Weights) -> torch.dtype:
    return next(iter(weights.values())).dtype


def _refreshed(net: nn.Module, members: Iterable[Weights], task: Task) -> list[dict[str, Tensor]]:
    return [batchnorm.refresh(net, weights, blocks(task, _BATCH, _dtype(weights))) for weights in members]


def independent(net: nn.Module, members: Sequence[Weights], task: Task, *,
                layers: Sequence[Layer] | None = None) -> Ensemble:
    """Return the ensemble of networks that share nothing: the conventional one, which runs every network.

    Args:
        net: the network.
        members: weights of each.
        task: its training images give batch-norm statistics.
        layers: the network's layers; None: `net.layers()`, or else what `tracing.trace` finds on the task's images.

    Raises:
        ValueError: for no members, or members that are not weights of `net`.
    """
    check_task(net, task)
    members, layers = tuple(checked_members(net, members)), layers_of(net, layers, task.prepare(task.train.images[:2]))
    return Ensemble(net, layers, len(layers), members, tuple(_refreshed(net, members, task)))


@torch.no_grad()
def wa_ensemble(net: nn.Module, members: Sequence[Weights], task: Task, *, n: int = 1, ridge: float = RIDGE,
                patches: int | None = None, layers: Sequence[Layer] | None = None) -> Ensemble:
    """Return the weight-adjusted ensemble WA(n): heads of all members on the backbone of the first one.

    The layer at the cut solves W X_1 = W_k X_k in the least-squares sense, X_1 its inputs in the first network and X_k
    those in network k, over the whole training split without augmentation. Its bias and all that follows are network
    k's; what lies in front of it, a normalisation of its inputs included, is the first network's. Where two layers read
    the backbone (a convolution and a shortcut, say), each is solved.

    Args:
        net: the network.
        members: weights of each; the first is the base, and a member itself.
        task: its training images are used.
        n: layers that every member keeps for itself, counted from the output: 1 adjusts the output layer, and with all
            layers nothing is shared. `backbones.cuts` lists the n that are possible.
        ridge: relative to the mean eigenvalue of X_1 X_1^T.
        patches: of an image that a convolution's system is made of: None: all; 4: AY20's released setting.
        layers: the network's layers; None: `net.layers()`, or else what `tracing.trace` finds on the task's images.

    Returns:
        The ensemble: `predict(task)` averages its members, `scores(task)` tells how good the first 1, 2, ... of them
        are, `fits` how well every adjusted layer was solved for, and for n = 1 `averaged()` makes one network of it.

    Raises:
        ValueError: for an n at which the network cannot be cut (naming those that are possible), no members, or members
            that are not weights of `net`.
        TypeError: if a layer at the cut is neither linear nor a 2-D convolution.

    Source: AY20 section 6; the ridge is ours.
    """
    check_task(net, task)
    members, layers = tuple(checked_members(net, members)), layers_of(net, layers, task.prepare(task.train.images[:2]))
    backbone = Backbone(net, layers, n)
    own = _refreshed(net, members, task)
    pairs = [Member(weights, buffers) for weights, buffers in zip(members, own, strict=True)]
    heads, fits = adjusted_heads(net, backbone, pairs, task, ridge=ridge, patches=patches)
    # A backbone's statistics are the base's; those behind the cut are estimated anew on what the base feeds them.
    buffers = [{name: own[0][name] if backbone.owns(name) else tensor for name, tensor in found.items()}
               for found in _refreshed(net, heads[1:], task)]
    return Ensemble(net, layers, n, tuple(heads), (own[0], *buffers), fits)
