"""Networks that can be inverted: nflows' couplings and masked autoregressive layers, made fit for paths."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from nflows.nn.nets import MLP
from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform
from nflows.transforms.coupling import AffineCouplingTransform
from torch import Tensor, nn

_BOUND = 2.0  # of a coupling's log-scales


class _Coupling(AffineCouplingTransform):
    """nflows' affine coupling with scales on both sides of 1; its own never expand, so cannot whiten."""

    def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = transform_params.split(self.num_transform_features, dim=1)
        return torch.exp(_BOUND * torch.tanh(raw / _BOUND)), shift


class _Net(MLP):
    """nflows' perceptron as a coupling calls it; its output starts at zero, and the coupling as the identity."""

    def __init__(self, inputs: int, outputs: int, hidden: list[int]) -> None:
        super().__init__([inputs], [outputs], hidden)
        nn.init.zeros_(self._output_layer.weight)
        nn.init.zeros_(self._output_layer.bias)

    def forward(self, inputs: Tensor, context: None = None) -> Tensor:
        """Return (N, outputs)."""
        return super().forward(inputs)


def _fixed_point(step: Callable[[Tensor], Tensor], start: Tensor, limit: int) -> Tensor:
    """Return step(step(...)) until it rests, `limit` times at most; NaN stops it too."""
    with torch.no_grad():
        now = step(start)
        for _ in range(limit):
            before, now = now, step(now)
            if not bool((now - before).abs().max() > 1e-6 * now.abs().max()):
                break
    return now


class _Autoregressive(MaskedAffineAutoregressiveTransform):
    """nflows' masked affine transform whose inverse stops where it rests, and has a gradient without its D passes.

    The inverse z = (y - m(z)) / s(z) is a fixed point of a map with a strictly triangular Jacobian J: D passes give
    it exactly, and mostly a few do. The gradient g of z becomes (1 - J)^-T g, a fixed point of the same kind.
    """

    def inverse(self, inputs: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        """Return rows (N, D) and the log-determinant (N,) of the map that gave them."""

        def step(rows: Tensor) -> Tensor:
            return self._elementwise_inverse(inputs, self.autoregressive_net(rows))[0]

        solved = _fixed_point(step, torch.zeros_like(inputs), self.features)
        solved = step(solved)  # once more where autograd can see it
        if solved.requires_grad:
            probe = solved.detach().requires_grad_()
            image = step(probe)

            def backward(gradient: Tensor) -> Tensor:
                def pull(v: Tensor) -> Tensor:
                    return gradient + torch.autograd.grad(image, probe, v, retain_graph=True)[0]

                return _fixed_point(pull, gradient, self.features)

            solved.register_hook(backward)
        return solved, self._elementwise_inverse(inputs, self.autoregressive_net(solved))[1]


class RealNVP(nn.Module):
    """Affine couplings with alternating masks: even coordinates, odd coordinates, ..."""

    def __init__(self, dimension: int, couplings: int, hidden: int, depth: int) -> None:
        super().__init__()
        masks = [torch.arange(dimension) % 2 == i % 2 for i in range(couplings)]
        self.steps = nn.ModuleList(_Coupling(mask, lambda m, n: _Net(m, n, [hidden] * depth)) for mask in masks)

    def forward(self, rows: Tensor, to_noise: bool) -> tuple[Tensor, Tensor]:
        """Return rows (N, D) mapped to noise or back, and the log-determinant (N,) of that map."""
        total = rows.new_zeros(len(rows))
        for step in self.steps if to_noise else reversed(self.steps):
            rows, logdet = step(rows) if to_noise else step.inverse(rows)
            total = total + logdet
        return rows, total


class IAF(nn.Module):
    """Masked affine layers, fast from noise to units, with the order of the coordinates reversed in between."""

    def __init__(self, dimension: int, layers: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            _Autoregressive(dimension, hidden, num_blocks=depth - 1, use_residual_blocks=False) for _ in range(layers))
        for step in self.steps:
            last = step.autoregressive_net.final_layer
            nn.init.zeros_(last.weight)
            with torch.no_grad():  # (scale, shift) of each coordinate; softplus(bias) + epsilon = 1
                last.bias.copy_(torch.tensor([math.log(math.expm1(1 - step._epsilon)), 0.0]).repeat(dimension))

    def forward(self, rows: Tensor, to_noise: bool) -> tuple[Tensor, Tensor]:
        """Return rows (N, D) mapped to noise or back, and the log-determinant (N,) of that map."""
        total = rows.new_zeros(len(rows))
        for step in self.steps if to_noise else reversed(self.steps):
            rows, logdet = step.inverse(rows) if to_noise else step(rows.flip(1))
            rows = rows.flip(1) if to_noise else rows
            total = total + logdet
        return rows, total
