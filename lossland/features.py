"""What layers read: the inputs of modules of a network as the features of a linear system, and their second moments.

A linear layer and a convolution are linear maps of their inputs, of patches of them for a convolution. The modules that
read may lie anywhere in the network: hooks see their inputs, pooled, flattened or normalised as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from lossland import batchnorm
from lossland.errors import choose
from lossland.least_squares import Moments
from lossland.patches import PATCHES, groups_of, is_linear_map, rows_of
from lossland.recording import Recording
from lossland.tasks import Task
from lossland.weights import Weights, skeleton

BLOCK = 4096  # images at a time: a float32 sum over a block loses less than the ridge
BLOCK_BYTES = 128 * 2**20  # of one block of features, and of the outputs that are kept for the next point
_STATISTICS = 1000  # images per batch of batch-norm statistics
_PLENTY = 10  # samples per unit from which float32 products leave the residual as it is


class _Reached(Exception):
    """All inputs that are wanted have been seen: the rest of the pass is not needed."""


class Features:
    """Features of some modules of a network: a function of weights, buffers and images."""

    def __init__(self, net: nn.Module, names: Sequence[str], *, patches: int | None = None,
                 estimate: bool = False) -> None:
        """Take a private copy of the network.

        Args:
            net: the network.
            names: linear or convolutional modules whose inputs are wanted.
            patches: see `rows_of`.
            estimate: whether normalisations use the statistics of a batch, and leave them in the buffers.

        Raises:
            TypeError: for a module that is neither linear nor a 2-D convolution, naming it.
        """
        self.bare = batchnorm.estimating(net) if estimate else skeleton(net)
        self.modules = {name: net.get_submodule(name) for name in names}
        self.patches = patches
        self.seen: dict[str, list[Tensor]] = {}
        self._calls = 0  # of the modules in one pass; 0: not known yet
        for name, module in self.modules.items():
            if not is_linear_map(module):
                raise TypeError(f"layer {name!r} must be a linear or 2-D convolutional module to be adjusted, "
                                f"got {type(module).__name__}")
            self.bare.get_submodule(name).register_forward_pre_hook(partial(self._keep, name), with_kwargs=True)

    def _keep(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        # Copied at once: a later operation of the network may write to its inputs.
        self.seen[name].append(rows_of(self.modules[name], inputs[0] if inputs else named["input"], self.patches))
        if sum(map(len, self.seen.values())) == self._calls:
            raise _Reached  # and return nothing: a pre-hook's return value would replace the input

    def __call__(self, weights: Weights, buffers: dict[str, Tensor], images: Tensor) -> dict[str, list[Tensor]]:
        """Return module name -> its features (groups, samples, D), one tensor for every call of it in a pass.

        The pass ends where the last one is known.

        Raises:
            ValueError: if a pass does not call a module.
        """
        self.seen = {name: [] for name in self.modules}
        try:
            functional_call(self.bare, (weights, buffers), (images,))
        except _Reached:
            pass
        for name, found in self.seen.items():
            if not found:
                raise ValueError(f"layer {name!r} must be reached by a forward pass, but its module was not called")
        self._calls = sum(map(len, self.seen.values()))
        return self.seen


@dataclass(frozen=True)
class Members:
    """Points of weight space with the buffers that belong to them.

    Attributes:
        weights: T of them.
        buffers: of each.
    """

    weights: Sequence[Weights]
    buffers: Sequence[dict[str, Tensor]]

    def moving(self, *, private: bool = False) -> list[str]:
        """Return the names of the tensors that are not one and the same object at all points.

        Args:
            private: leave out buffers, which a pass writes to before it reads them.
        """
        every = list(self.weights) if private else [{**weights, **buffers} for weights, buffers in
                                                    zip(self.weights, self.buffers, strict=True)]
        return [name for name, tensor in every[0].items() if any(one[name] is not tensor for one in every)]

    def run(self, features: Features, images: Tensor, *,
            private: bool = False) -> Iterator[tuple[dict[str, list[Tensor]], Recording | None]]:
        """Yield the features of every member, and the recording of the pass that they share, if there are several.

        What only tensors decide that all members share is computed once.

        Args:
            features: of some modules.
            images: (b, C, H, W), prepared.
            private: whether a pass writes to the member's buffers.
        """
        if len(self.weights) == 1:
            yield features(self.weights[0], self.buffers[0], images), None
            return
        moving, recording, first = self.moving(private=private), None, {}
        for weights, buffers in zip(self.weights, self.buffers, strict=True):
            if recording is None or not recording.safe:
                named = {**weights, **buffers}
                recording = Recording([named[name] for name in moving],
                                      private=buffers.values() if private else ())
                with recording:
                    found = first = features(weights, buffers, images)
            else:
                with recording.again():
                    found = features(weights, buffers, images)
                found = {name: [x if recording.moves(known) else known for x, known in
                                zip(found[name], first[name], strict=True)] for name in first}
            yield found, recording


def blocks(task: Task, size: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the prepared training images (b, C, H, W), un-augmented, `size` at a time."""
    for images in task.train.images.split(size):  # as they are: AY20's augmentation is for training
        yield task.prepare(images, dtype)


def products_dtype(samples: int, units: int, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for a block's products.

    With few samples X X^T has eigenvalues near zero, and rounding of float32 products, though small beside the largest,
    is large beside the ridge: measured on 256 digits and 256 units, accuracy at the knots fell to 23 %.
    """
    return torch.promote_types(dtype, torch.float32) if samples >= _PLENTY * units else torch.float64


class Target:
    """Network A as the source of the outputs that layers are fitted to, with its batch-norm statistics."""

    def __init__(self, net: nn.Module, weights: Weights, task: Task, *, patches: int | None = None,
                 products: torch.dtype | None = None) -> None:
        """Remember the network.

        Args:
            net, weights: A.
            task: its training images are used.
            patches: see `rows_of`.
            products: dtype of a block's products; None: that of the weights, or float64 where there are fewer than 10
                samples per unit. Sums are always float64.

        Raises:
            ValueError: if the network cannot take the task's images, or `patches` is neither None nor 4.
        """
        self.net, self.weights, self.task = net, weights, task
        self.patches, self.products = choose("patches", patches, PATCHES), products
        self.dtype = next(iter(weights.values())).dtype
        self._check_images()
        self.buffers = batchnorm.refresh(net, weights, blocks(task, _STATISTICS, self.dtype))

    def _check_images(self) -> None:
        image = next(blocks(self.task, 1, self.dtype))
        buffers = batchnorm.fresh_buffers(self.net, next(iter(self.weights.values())))
        try:
            functional_call(skeleton(self.net), (self.weights, buffers), (image,))
        except RuntimeError as error:
            raise ValueError(f"net must take the task's images, one of which is {tuple(image.shape[1:])}; "
                             f"{type(self.net).__name__} says: {error}") from error

    @cached_property
    def called(self) -> set[str]:
        """The linear maps that a forward pass calls as modules: not those whose weights attention takes on its own."""
        return self._where(lambda _: True)

    def reached(self, names: Sequence[str]) -> set[str]:
        """Return the linear maps whose inputs depend on some parameters."""
        recording = Recording([self.weights[name] for name in names])
        with recording:
            return self._where(recording.moves)

    def _where(self, says: Callable[[Tensor], bool]) -> set[str]:
        """Return the linear maps with an input of which something is true, in a pass over one image."""
        found, private = set(), skeleton(self.net)

        def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            if says(inputs[0] if inputs else named["input"]):
                found.add(name)

        for name, module in private.named_modules():
            if is_linear_map(module):
                module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        functional_call(private, (self.weights, self.buffers), (next(blocks(self.task, 1, self.dtype)),))
        return found

    def _statistics(self, points: Sequence[Weights], names: Sequence[str]) -> Members:
        """Return the points with their batch-norm statistics, as far as the features of some modules need them."""
        like = next(iter(self.weights.values()))
        estimates = [batchnorm.Estimate(self.net, like) for _ in points]
        members = Members(points, [estimate.buffers for estimate in estimates])
        if not estimates[0].names:
            return Members(points, [estimates[0].buffers] * len(points))
        features = Features(self.net, names, patches=4, estimate=True)
        for images in blocks(self.task, _STATISTICS, self.dtype):
            for (_, recording), estimate in zip(members.run(features, images, private=True), estimates, strict=True):
                for name in estimate.names:  # in front of what moves, the first member's
                    if recording and not recording.moves(estimates[0].buffers[name]):
                        estimate.buffers[name].copy_(estimates[0].buffers[name])
                estimate.add(len(images))
        found = [estimate.result() for estimate in estimates]
        for name, value in found[0].items():
            if all(torch.equal(one[name], value) for one in found):
                found = [{**one, name: value} for one in found]
        return Members(points, found)

    def _zeros(self, name: str, samples: int) -> list[Moments]:
        weight, groups = self.weights[f"{name}.weight"], groups_of(self.net.get_submodule(name))
        units = weight[0].numel()
        products = self.products or products_dtype(samples, units, self.dtype)
        return [Moments.zeros(units, len(weight) // groups, products=products, device=weight.device)
                for _ in range(groups)]

    def moments(self, points: Sequence[Weights], names: Sequence[str]) -> list[dict[str, list[Moments]]]:
        """Return for every point: module name -> moments of its inputs there and its outputs, without bias, at A.

        All points and modules share one pass over the training images, block by block, and tensors that are the same
        objects at all points are gone through once.

        Args:
            points: T points of weight space.
            names: linear or convolutional modules; one list of moments has one entry for each group of a convolution.

        Raises:
            TypeError: for a module that is neither linear nor a 2-D convolution, naming it.
            ValueError: if a pass does not call a module.

        Source: AY20 Eqs. (9) and (10).
        """
        features = Features(self.net, names, patches=self.patches)
        members = self._statistics(points, names)
        image = next(blocks(self.task, 1, self.dtype))
        found, recording = next(members.run(features, image))
        samples = {name: sum(rows.shape[1] for rows in every) * len(self.task.train) for name, every in found.items()}
        each = sum(rows.nbytes for every in found.values() for rows in every) + (recording.bytes if recording else 0)
        sums = [{name: self._zeros(name, count) for name, count in samples.items()} for _ in points]
        for images in blocks(self.task, max(1, min(BLOCK, BLOCK_BYTES // each)), self.dtype):
            targets = {name: self._outputs(name, every)
                       for name, every in features(self.weights, self.buffers, images).items()}
            for (found, _), totals in zip(members.run(features, images), sums, strict=True):
                for name, every in found.items():
                    for total, x, y in zip(totals[name], torch.cat(every, 1), targets[name], strict=True):
                        total.add(x, y)
        return sums

    def _outputs(self, name: str, every: Sequence[Tensor]) -> list[Tensor]:
        """Return A's outputs (samples, C) of a module's groups, without bias."""
        rows = torch.cat(list(every), 1)
        heads = self.weights[f"{name}.weight"].flatten(1).chunk(len(rows))  # (C, D) each
        return [linear(x, head) for x, head in zip(rows, heads, strict=True)]
