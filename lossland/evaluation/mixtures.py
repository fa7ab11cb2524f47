"""Scores of members of the span of k points of weight space, which share the work that they can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland.allocation import keep_memory
from lossland.batchnorm import Estimate, estimating
from lossland.evaluation import scoring
from lossland.evaluation.arguments import naming
from lossland.evaluation.dense import OneHidden
from lossland.evaluation.first_layers import FirstLayers
from lossland.evaluation.reuse import PROBE, Batch, Cost, Member, Span
from lossland.evaluation.scoring import Manner, Sums, batches
from lossland.evaluation.sharing import jobs_of, score_jobs
from lossland.paths import Mix, adds_up
from lossland.tasks import Split, Task
from lossland.weights import Weights, skeleton

_CACHE = 8 * 2**20  # bytes of the largest result of a pass on a CPU: what is made stays in cache until it is read
# Images per pass, so that weights are read for several of them; more where the weights do not stay in cache, either
# (VGG16, float32, channels-last, two cores: 32 images 1.86 ms each, 64 1.73, 128 1.61, 256 1.57). Several networks at
# once (vmap over weights) do not win: PreResNet20 1.1 to 2 times, Conv2FC1 2 to 3.6 times slower at 16 and 64 images.
_LEAST, _LEAST_HEAVY = 16, 256
# A number that is mixed is read from memory at each point, which takes as long as 20 to 30 multiply-adds: convolutions
# of three colours (VGG16: 27 a number, 1.06 times slower with mixing; Conv2FC1: 75, 1.1 times) are computed anew.
_WORTH = 40  # multiply-adds per number and point


def _most(split: Split) -> int:
    """Return how many images, or texts of so many words, make a pass that nothing else limits."""
    return max(1, scoring.BATCH // split.labels[0].numel())


def skeletons_of(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return private copies of a network: for scores, and for the estimation of batch-norm statistics."""
    return skeleton(net), estimating(net)


@dataclass(frozen=True)
class _Members:
    """T networks: coefficients, buffers, and the names of the buffers that differ."""

    coefficients: Tensor  # (T, k)
    buffers: Sequence[dict[str, Tensor]]
    moving: frozenset[str]


class Mixtures:
    """Members of the span of k fixed points, evaluated together.

    Work that depends only on parameters which are one and the same tensor in all points is done once for each batch of
    images, and so are, for each of the k points, the products of the first layers that differ, where they cost more
    than their mixing. Networks that compute as `dense` says (`one_hidden`) run in a kernel of their own.

    Attributes:
        way: "sweep" or "fused" (`kernels.path_way`), "reference" (exact), "shared prefix" (some parameters do not
            move), "shared first layer", or "one by one"; known after scoring.
        product: what first layers were multiplied in (`FirstLayers.product`), or the type of the weights; known after
            scoring.
    """

    def __init__(self, net: nn.Module, task: Task, points: Sequence[Weights], *, dense: OneHidden | None = None,
                 manner: Manner = Manner(), skeletons: tuple[nn.Module, nn.Module] | None = None) -> None:
        self.net, self.task, self.points, self.manner = net, task, tuple(points), manner
        self.moving = Mix(self.points, lambda s: s).moving()
        self.dense = dense
        self.way = "fused" if dense else "one by one"
        self.like = next(iter(self.points[0].values()))
        self.low = manner.precision == "bfloat16"
        if self.low and self.like.dtype != torch.float32 and not dense:
            raise ValueError("precision='bfloat16' needs float32 weights, got "
                             f"{str(self.like.dtype).removeprefix('torch.')}: only networks with one hidden layer take "
                             "other ones")
        self.product = "bfloat16" if self.low else str(self.like.dtype).removeprefix("torch.")
        # Measured on a CPU (float32, 64 to 256 images): VGG16 1.2 to 1.3 times, PreResNet20 1.2 to 2 times as fast.
        self.channels_last = any(isinstance(module, nn.Conv2d) for module in net.modules())
        self.bare, self.estimating = skeletons or skeletons_of(net)

    def score(self, totals: Mapping[str, Sums], where: Tensor, coefficients: Tensor,
              tick: Callable[[float], None]) -> None:
        """Add the scores of the members with coefficients (T, k) to the rows `where` (T,) of the sums of each split."""
        with naming(self.net, self.task):
            (self._one_hidden if self.dense else self._one_by_one)(totals, where, coefficients, tick)

    @keep_memory()
    def _one_by_one(self, totals: Mapping[str, Sums], where: Tensor, coefficients: Tensor,
                    tick: Callable[[float], None]) -> None:
        members = self._members(coefficients)
        span = self._span(members)
        cost = self._cost(span, members, self.task.split(next(iter(totals))))
        if cost and cost.shares:
            prefix = not span.moving >= self.points[0].keys()
            self.way = "shared prefix" if prefix else "shared first layer" if cost.mixes else self.way
        for name, sums in totals.items():
            split, here = self.task.split(name), sums.like(len(where), self.like.device)
            for block in self._blocks(split, cost):
                several = [(Batch(span, images, shared=bool(cost and cost.shares)), labels) for images, labels in block]
                for row in range(len(where)):  # images outside, members inside, so that they meet the same images
                    member = self._member(members, row)
                    for batch, labels in several:
                        here.add(slice(row, row + 1), batch(member)[None], labels)
                    tick(sum(len(labels) for _, labels in several) / len(split))
            sums.add_all(where, here)

    def _one_hidden(self, totals: Mapping[str, Sums], where: Tensor, coefficients: Tensor,
                    tick: Callable[[float], None]) -> None:
        """Score one-hidden-layer networks: the products of the images with the k first layers are shared."""
        dense, exact = self.dense, self.manner.exact
        layers = [dense.layer(dense.first, point) for point in self.points]
        first = FirstLayers(self.task, layers, self.manner.precision or ("float32" if exact else None),
                            images=sum(len(self.task.split(name)) for name in totals))
        second = [dense.second(point) for point in self.points]
        jobs = jobs_of(dense, (totals, where, coefficients), second, exact=exact)
        self.way, self.product = " + ".join(sorted({job.way for job in jobs})), first.product
        score_jobs(self.task, first, jobs, tick)

    def _blocks(self, split: Split, cost: Cost | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield a split in runs of batches (images, labels) that fit into memory with what members keep of them."""
        images, _ = next(self._images(split, 1))
        each = cost.mixed if cost else images.nbytes
        size = max(1, int(min(_most(split), scoring.SHARED / each)))
        if cost and images.device.type == "cpu":
            heavy = sum(tensor.nbytes for tensor in self.points[0].values()) > _CACHE
            least = max(_LEAST, min(_LEAST_HEAVY, int(scoring.SHARED / cost.largest))) if heavy else _LEAST
            size = min(size, max(least, int(_CACHE / cost.largest)))
        every, count = self._images(split, size), max(1, int(scoring.SHARED / (each * size)))
        while block := list(islice(every, count)):
            yield block

    def _span(self, members: _Members, *, private: bool = False) -> Span:
        """Return the networks as a function; `private`: the one that estimates batch-norm statistics."""
        c = members.coefficients
        moving = self.moving if adds_up(c) else frozenset(self.points[0])
        several = len(c) > len(self.points)  # otherwise k products cost more than they save
        points = {name: [point[name].contiguous() for point in self.points] for name in moving} if several else {}
        bare = self.estimating if private else self.bare
        return Span(partial(self._call, bare), points, moving | members.moving, private, scoring.SHARED,
                    _WORTH * len(self.points))

    def _call(self, bare: nn.Module, weights: Weights, buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        with torch.autocast(self.like.device.type, torch.bfloat16, enabled=self.low):
            found = functional_call(bare, (weights, buffers), (images,))
        return found.to(self.like.dtype)

    def _member(self, members: _Members, row: int) -> Member:
        c = members.coefficients[row]
        used = c.nonzero()[:, 0].tolist() or [0]
        mixed = Mix(tuple(self.points[i] for i in used), lambda s: s)
        weights = mixed.mixed(c[used])
        for name in self.moving - mixed.moving():  # in memory of its own, by which a recording knows it
            weights[name] = weights[name].clone(memory_format=torch.contiguous_format)
        return Member(weights, members.buffers[row], c)

    def _images(self, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches(self.task, split, size, self.like.dtype):
            if self.channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels

    def _cost(self, span: Span, members: _Members, split: Split) -> Cost | None:
        """Return the bytes per image of what members share and compute, or None for a single one."""
        if len(members.coefficients) == 1:
            return None
        images, _ = next(self._images(split, PROBE))
        return span.probe(self._member(members, 0), self._member(members, -1), images)

    def _members(self, coefficients: Tensor) -> _Members:
        """Return the members with their batch-norm statistics: one pass over the training split each, shared too."""
        estimates = [Estimate(self.net, self.like) for _ in coefficients]
        if not (names := estimates[0].names):
            return _Members(coefficients, [estimates[0].buffers] * len(coefficients), frozenset())
        members = _Members(coefficients, [estimate.buffers for estimate in estimates], frozenset())
        span = self._span(members, private=True)
        split = self.manner.statistics or self.task.train
        cost = self._cost(span, members, split)
        for images, _ in self._images(split, _most(split)):
            shares = cost is not None and cost.shares and cost.apart * len(images) <= scoring.SHARED
            batch = Batch(span, images, shared=shares)
            for row, estimate in enumerate(estimates):
                batch(self._member(members, row))
                if batch.recording:  # statistics in front of the first moving parameter are those of the first member
                    for name in names:
                        if not batch.recording.moves(estimates[0].buffers[name]):
                            estimate.buffers[name].copy_(estimates[0].buffers[name])
                estimate.add(len(images))
        results = [estimate.result() for estimate in estimates]
        moving = frozenset(name for name in names
                           if any(not torch.equal(one[name], results[0][name]) for one in results))
        return _Members(coefficients, results, moving)
