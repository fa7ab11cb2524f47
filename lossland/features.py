"""What layers read: the inputs of modules of a network as the features of a linear system, and their second moments.

A linear layer and a convolution are linear maps of their inputs, of patches of them for a convolution. The modules that
read may lie anywhere in the network: hooks see their inputs, pooled, flattened or normalised as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, pad, unfold

from lossland import batchnorm
from lossland.errors import choose
from lossland.least_squares import Moments
from lossland.tasks import Task
from lossland.weights import Weights, skeleton

PATCHES = (None, 4)
_BLOCK = 4096  # images at a time: a float32 sum over a block loses less than the ridge
_BLOCK_BYTES = 128 * 2**20  # of one block of features, and of the outputs that are kept for the next point
_PLENTY = 10  # samples per unit from which float32 products leave the residual as it is


class _Reached(Exception):
    """All inputs that are wanted have been seen: the rest of the pass is not needed."""


class _Kept:
    """A module's forward that is computed at the first point of a block of images and told again at the others."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward, self.outputs, self.again = forward, [], iter(())

    def start(self, again: bool) -> None:
        """Begin a pass: `again` says that the images and all that lies in front are those of the pass before."""
        self.outputs = self.outputs if again else []
        self.again = iter(self.outputs) if again else iter(())

    def __call__(self, *inputs: Tensor) -> Tensor:
        known = next(self.again, None)
        if known is None:
            known = self.forward(*inputs)
            self.outputs.append(known)
        return known


def check_readable(name: str, module: nn.Module) -> None:
    """Raise unless the module is a linear map whose inputs are understood.

    Raises:
        TypeError: if it is neither linear nor a 2-D convolution, naming it.
    """
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        raise TypeError(f"layer {name!r} must be a linear or 2-D convolutional module to be adjusted, "
                        f"got {type(module).__name__}")


class Inputs:
    """Inputs of some modules of a network, at one point of weight space after the other."""

    def __init__(self, net: nn.Module, names: Sequence[str], *, held: Sequence[str] = ()) -> None:
        """Take a private copy of the network.

        Args:
            net: the network.
            names: modules whose inputs are wanted.
            held: modules whose outputs do not change between passes that are told `again`.

        Raises:
            TypeError: for a module that is neither linear nor a 2-D convolution, naming it.
        """
        self.bare = skeleton(net)
        self.modules = {name: net.get_submodule(name) for name in names}
        self.seen: dict[str, list[Tensor]] = {}
        self._calls = 0  # of the modules in one pass; 0: not known yet
        for name, module in self.modules.items():
            check_readable(name, module)
            self.bare.get_submodule(name).register_forward_pre_hook(partial(self._keep, name), with_kwargs=True)
        self.kept = []
        for module in map(self.bare.get_submodule, held):
            module.forward = _Kept(module.forward)
            self.kept.append(module.forward)

    def _keep(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        self.seen[name].append(inputs[0] if inputs else next(iter(named.values())))
        if sum(map(len, self.seen.values())) == self._calls:
            raise _Reached  # and return nothing: a pre-hook's return value would replace the input

    def __call__(self, weights: Weights, buffers: dict[str, Tensor], images: Tensor, *,
                 again: bool = False) -> dict[str, list[Tensor]]:
        """Return module name -> its inputs, one for every call of the module in a pass.

        Args:
            weights, buffers: the point.
            images: (b, C, H, W), prepared.
            again: whether images and the `held` modules' outputs are those of the pass before.

        Raises:
            ValueError: if a pass does not call a module.
        """
        self.seen = {name: [] for name in self.modules}
        for forward in self.kept:
            forward.start(again)
        try:
            functional_call(self.bare, (weights, buffers), (images,))
        except _Reached:
            pass
        for name, found in self.seen.items():
            if not found:
                raise ValueError(f"layer {name!r} must be reached by a forward pass, but its module was not called")
        self._calls = sum(map(len, self.seen.values()))
        return self.seen

    def bytes_per_image(self, weights: Weights, buffers: dict[str, Tensor], image: Tensor, patches: int | None) -> int:
        """Return the memory that features and kept outputs of one image (1, C, H, W) take."""
        seen = self(weights, buffers, image)
        rows = sum(rows_of(self.modules[name], x, patches).nbytes for name, found in seen.items() for x in found)
        return rows + sum(output.nbytes for forward in self.kept for output in forward.outputs)


def groups_of(module: nn.Module) -> int:
    """Return the number of independent linear maps that a module consists of: the groups of a convolution."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def rows_of(module: nn.Module, inputs: Tensor, patches: int | None = None) -> Tensor:
    """Return the features (groups, samples, D) of a linear or convolutional module's inputs.

    Args:
        module: its weight, flattened, is (groups * C, D).
        inputs: (..., D) of a linear module, (b, channels, H, W) of a convolution, whose samples are patches.
        patches: None: all of them; 4: two by two patches of every map, half a map apart.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    maps = pad(inputs, module._reversed_padding_repeated_twice, mode=mode)  # which knows padding="same", too
    stride = module.stride
    if patches:
        halves = [side // 2 // step * step for side, step in zip(inputs.shape[2:], stride, strict=True)]
        stride = tuple(max(step, half) for step, half in zip(stride, halves, strict=True))
    found = unfold(maps, module.kernel_size, module.dilation, 0, stride)  # (b, groups * D, positions)
    if patches:
        sides = [(side - gap * (taps - 1) - 1) // step + 1 for side, gap, taps, step in
                 zip(maps.shape[2:], module.dilation, module.kernel_size, stride, strict=True)]
        found = found.unflatten(2, sides)[:, :, :2, :2].flatten(2)
    return found.transpose(1, 2).reshape(-1, module.groups, found.shape[1] // module.groups).transpose(0, 1)


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
                 exact: bool = False) -> None:
        """Remember the network.

        Args:
            net, weights: A.
            task: its training images are used.
            patches: see `rows_of`.
            exact: whether products are always float64, for solutions without a ridge.
        """
        self.net, self.weights, self.task = net, weights, task
        self.patches, self.exact = choose("patches", patches, PATCHES), exact
        self.dtype = next(iter(weights.values())).dtype
        self.buffers = self.statistics(weights)

    def statistics(self, weights: Weights) -> dict[str, Tensor]:
        """Return the buffers of the network at `weights`: batch-norm statistics from one pass."""
        return batchnorm.refresh(self.net, weights, blocks(self.task, 1000, self.dtype))

    def _zeros(self, name: str, rows: Tensor) -> list[Moments]:
        weight = self.weights[f"{name}.weight"]
        groups, samples, units = len(rows), rows.shape[1] * len(self.task.train), rows.shape[2]
        products = torch.float64 if self.exact else products_dtype(samples, units, self.dtype)
        return [Moments.zeros(units, len(weight) // groups, products=products, device=weight.device)
                for _ in range(groups)]

    def moments(self, points: Sequence[Weights], names: Sequence[str], *,
                held: Sequence[str] = ()) -> list[dict[str, list[Moments]]]:
        """Return for every point: module name -> moments of its inputs there and its outputs, without bias, at A.

        All points and modules share one pass over the training images, block by block.

        Args:
            points: T points of weight space.
            names: linear or convolutional modules; one list of moments has one entry for each group of a convolution.
            held: modules whose outputs are equal at all points.

        Raises:
            TypeError: for a module that is neither linear nor a 2-D convolution, naming it.
            ValueError: if a pass does not call a module.

        Source: AY20 Eqs. (9) and (10).
        """
        ours, theirs = Inputs(self.net, names), Inputs(self.net, names, held=held)
        buffers = [self.statistics(point) for point in points]
        image = next(blocks(self.task, 1, self.dtype))
        size = _BLOCK_BYTES // (ours.bytes_per_image(self.weights, self.buffers, image, self.patches)
                                + theirs.bytes_per_image(points[0], buffers[0], image, self.patches))
        probe = {name: self._rows(ours.modules[name], found) for name, found in ours.seen.items()}
        sums = [{name: self._zeros(name, rows) for name, rows in probe.items()} for _ in points]
        for images in blocks(self.task, max(1, min(_BLOCK, size)), self.dtype):
            targets = self._outputs(ours, images)
            for i, (point, theirs_then) in enumerate(zip(points, buffers, strict=True)):
                seen = theirs(point, theirs_then, images, again=i > 0)
                for name, found in seen.items():
                    rows = self._rows(theirs.modules[name], found)
                    for total, x, y in zip(sums[i][name], rows, targets[name], strict=True):
                        total.add(x, y)
        return sums

    def _rows(self, module: nn.Module, found: Sequence[Tensor]) -> Tensor:
        return torch.cat([rows_of(module, x, self.patches) for x in found], 1)

    def _outputs(self, ours: Inputs, images: Tensor) -> dict[str, list[Tensor]]:
        outputs = {}
        for name, found in ours(self.weights, self.buffers, images).items():
            rows = self._rows(ours.modules[name], found)
            heads = self.weights[f"{name}.weight"].flatten(1).chunk(len(rows))  # (C, D) each
            outputs[name] = [linear(x, head) for x, head in zip(rows, heads, strict=True)]
        return outputs
