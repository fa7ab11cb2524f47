"""A network on flat memory: its parameters are views of one vector, and so are their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lossland.batchnorm import fresh_buffers
from lossland.targets import flatten
from lossland.weights import Weights, from_vector, skeleton

_CHUNK = 2**15  # numbers per thread and tensor that are mixed at a time: they stay in cache


class FlatNetwork:
    """A network in training mode at one point of weight space, and the gradient of the loss there.

    Attributes:
        theta: (P,) the point.
        gradient: (P,) of the mean cross-entropy over the last batch.

    Args:
        net: the network; it does not change.
        like: weights of the network: their names and shapes are used.
        space: a tensor whose device and dtype are used.
        precision: "bfloat16" for autocast.
    """

    def __init__(self, net: nn.Module, like: Weights, space: Tensor, precision: str) -> None:
        self.theta = space.new_zeros(sum(tensor.numel() for tensor in like.values()))
        self.gradient = torch.zeros_like(self.theta)
        views = from_vector(self.theta, like)
        self._parameters = {name: view.detach().requires_grad_() for name, view in views.items()}
        for name, view in from_vector(self.gradient, like).items():
            self._parameters[name].grad = view
        self._bare = skeleton(net).train()
        self._buffers = fresh_buffers(net, self.theta)  # batch norm in training mode writes here; never read
        low = precision == "bfloat16"
        self._autocast = torch.autocast(self.theta.device.type, torch.bfloat16) if low else nullcontext()

    def move_to(self, points: Tensor, coefficients: Sequence[float]) -> None:
        """Go to the linear combination of points (k, P), in place."""
        size = _CHUNK * torch.get_num_threads() if self.theta.device.type == "cpu" else len(self.theta)
        for start in range(0, len(self.theta), size):
            here = self.theta[start : start + size]
            parts = points[:, start : start + size]
            torch.mul(parts[0], coefficients[0], out=here)
            for i, c in enumerate(coefficients[1:], 1):
                if c:
                    here.add_(parts[i], alpha=c)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the mean cross-entropy in `gradient`; return the loss and the number of hits."""
        self.gradient.zero_()
        with self._autocast:
            logits, labels = flatten(functional_call(self._bare, (self._parameters, self._buffers), (images,)), labels)
            loss = cross_entropy(logits, labels)
        loss.backward()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()


@contextmanager
def dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, which dropout cannot do without, and give them back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        on_gpu = device.type == "cuda"
        generator = torch.cuda.default_generators[device.index or 0] if on_gpu else torch.default_generator
        generator.manual_seed(seed)
        yield
