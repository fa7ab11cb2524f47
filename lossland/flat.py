"""A network on flat memory: its parameters are views of one vector, and so are their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lossland.batchnorm import fresh_buffers
from lossland.layout import Mixture
from lossland.targets import flatten
from lossland.weights import Weights, from_vector, skeleton

_PIECE = 2**18  # numbers per thread that are worked on at a time: with their kind in other vectors they stay in cache
_LARGE = 2**20  # parameters from which on a CPU is slowed down by memory more than by the number of operations


class FlatNetwork:
    """A network in training mode at one point of weight space, and the gradient of the loss there.

    Attributes:
        theta: (P,) the point; the parameters are views of it.
        sums: (P + 2,) the gradient and two numbers more, where it is `shared`.
        features: (n, ...) input of the last linear layer that ran, with its graph: the penultimate features.

    Args:
        net: the network; it does not change.
        like: weights of the network: their names and shapes are used.
        space: a tensor whose device and dtype are used.
        precision: "bfloat16" for autocast.
        smoothing: label smoothing of the cross-entropy.
        features: whether `features` is kept.
        shared: whether the gradient is one vector on any device, which other processes add to.

    Raises:
        ValueError: if features are asked for and the network has no linear layer.
    """

    def __init__(self, net: nn.Module, like: Weights, space: Tensor, precision: str, *, smoothing: float = 0.0,
                 features: bool = False, shared: bool = False) -> None:
        self.theta = space.new_zeros(sum(tensor.numel() for tensor in like.values()))
        views = from_vector(self.theta, like)
        self._parameters = {name: view.detach().requires_grad_() for name, view in views.items()}
        self._bare, self._smoothing, self.features = skeleton(net).train(), smoothing, space.new_zeros(0)
        if features:
            self._watch()
        self._buffers = fresh_buffers(net, self.theta)  # batch norm in training mode writes here; never read
        low = precision == "bfloat16"
        self._autocast = torch.autocast(self.theta.device.type, torch.bfloat16) if low else nullcontext()
        self._large = self.theta.device.type == "cpu" and len(self.theta) >= _LARGE and not shared
        self.sums = space.new_zeros(0 if self._large else len(self.theta) + 2 * shared)
        self._gradient = None if self._large else self.sums[: len(self.theta)]
        if self._gradient is not None:
            for name, view in from_vector(self._gradient, like).items():
                self._parameters[name].grad = view

    def _watch(self) -> None:
        linear = [module for module in self._bare.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError("similarity > 0 needs a network with a linear layer, whose input the penultimate features "
                             "are, got none")
        for module in linear:
            module.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]

    def _slices(self, start: int, stop: int) -> list[slice]:
        size = _PIECE * torch.get_num_threads() if self._large else stop - start
        return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]

    def move_to(self, points: Tensor, mixture: Mixture) -> None:
        """Go to the linear combination of points (k, P), in place."""
        for stretch, coefficients in mixture:
            for piece in self._slices(stretch.start, stretch.stop):
                here = self.theta[piece]
                torch.mul(points[0, piece], coefficients[0], out=here)
                for i, c in enumerate(coefficients[1:], 1):
                    if c:
                        here.add_(points[i, piece], alpha=c)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Work out the gradient of the mean cross-entropy; return the loss and the number of hits."""
        self.clear()
        loss, hits = self.forward(images, labels)
        loss.backward()
        return loss.detach(), hits

    def clear(self) -> None:
        """Set the gradient to zero."""
        if self._gradient is not None:
            self._gradient.zero_()
        else:
            for parameter in self._parameters.values():
                parameter.grad = None  # a large gradient is cheaper to make anew than to add to

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy with its graph, and the number of hits."""
        with self._autocast:
            logits, labels = flatten(functional_call(self._bare, (self._parameters, self._buffers), (images,)), labels)
            loss = cross_entropy(logits, labels, label_smoothing=self._smoothing)
        return loss, (logits.detach().argmax(1) == labels).sum()

    def clip(self, largest: float) -> None:
        """Scale the gradient down to an l2 norm of at most `largest`, as `torch.nn.utils.clip_grad_norm_` does."""
        if self._gradient is not None:
            parts = [self._gradient]
        else:
            parts = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norm = torch.stack([part.norm() for part in parts]).norm()
        scale = (largest / (norm + 1e-6)).clamp(max=1.0)
        for part in parts:
            part.mul_(scale)

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the gradient in pieces that may be written to: where in a vector (P,), and the numbers.

        Several passes over a piece cost one over memory. A GPU and a small network have one piece: there starting an
        operation costs more than its memory.
        """
        if self._gradient is not None:
            yield slice(0, len(self.theta)), self._gradient
            return
        start = 0
        for parameter in self._parameters.values():
            stop = start + parameter.numel()
            flat = torch.zeros(stop - start).to(parameter) if parameter.grad is None else parameter.grad.view(-1)
            yield from ((piece, flat[piece.start - start : piece.stop - start]) for piece in self._slices(start, stop))
            start = stop


@contextmanager
def dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, which dropout cannot do without, and give them back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        on_gpu = device.type == "cuda"
        generator = torch.cuda.default_generators[device.index or 0] if on_gpu else torch.default_generator
        generator.manual_seed(seed)
        yield
