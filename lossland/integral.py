"""Integral subspaces: functions whose mean over a whole line or curve of networks is one network's output.

Let P be a line or curve through the weight space of a network g, and let f(x, P(alpha)) = g(x, P(0)) + d g(x, P(alpha))
/ d alpha. The integral of f over alpha from 0 to 1 telescopes to g(x, P(1)): the ensemble of all f costs a single pass.

Source: W21 Appendix C.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from lossland.batchnorm import fresh_buffers, statistics
from lossland.bases import bezier_basis
from lossland.errors import choose
from lossland.families import Family, bezier, line, point
from lossland.recipes import network, recipe_for, trained
from lossland.store import Store
from lossland.subspaces import start
from lossland.tasks import Task
from lossland.training import Recipe
from lossland.weights import Weights, skeleton

EPSILON = 0.1
"""Step of the finite difference. Source: W21 Appendix C."""

_BENDS = {"line": 0, "bezier": 1}
_OF_FAMILIES = {"draws": 1, "measure": "parameter", "beta": 0.0, "layerwise": False, "similarity": 0.0}


class Integral(nn.Module):
    """A network that holds the control points of a line or curve through the weights of another one, g.

    In training mode each call draws alpha ~ U(0, 1), once for the batch, and returns

        f(x, P(alpha)) = g(x, P(0)) + (g(x, P(alpha + epsilon)) - g(x, P(alpha))) / epsilon,

    alpha from torch's own generator on the device of the images, as dropout does: `training.fit` seeds it. In
    evaluation mode it returns g(x, P(1)), the integral of (15) over alpha. So training, checkpoints, the store and all
    evaluation are those of a single network with three times g's passes per step; every control point has its own
    momentum and weight decay. The difference multiplies gradients by up to 1 / epsilon. Which learning rate suits it
    depends on network, data and epsilon, and has to be tried: on digits the rate of g itself was far too large in some
    runs, and better than a tenth of it in others. The paper states none.

    Batch norm: in training each of the three passes is normalised by its own batch, and no statistics are kept. Those
    of g at P(1), and only those, are estimated where that is evaluated (`batchnorm.refresh`). The paper is silent.

    With a finite epsilon the integral of (17) is not quite g(x, P(1)) but g(x, P(0)) + the mean of g over [1, 1 +
    epsilon] - its mean over [0, epsilon]. Both agree where g is linear in its weights and P is a line, whatever alpha
    and epsilon; else they differ by epsilon / 2 (g'(1) - g'(0)) to first order. P is continued beyond alpha = 1.

    Args:
        net: g; it does not change. As all networks here this one is a skeleton: its weights come with the call.
        kind: "line", or "bezier" with one bend.
        epsilon: step of the finite difference, in units of alpha; 0: the derivative itself, by forward differentiation
            through g, whose integral is g(x, P(1)) for every g.

    Raises:
        ValueError: for another kind, or an epsilon that is negative or not finite.

    Source: W21 Appendix C, Eqs. (14) to (17). The curve and epsilon = 0 are ours.

    Examples:
        >>> integral = Integral(nn.Linear(3, 2))
        >>> [name for name, _ in integral.named_parameters()]
        ['points.0.weight', 'points.0.bias', 'points.1.weight', 'points.1.bias']
    """

    def __init__(self, net: nn.Module, *, kind: str = "line", epsilon: float = EPSILON) -> None:
        super().__init__()
        self.kind, self.epsilon = choose("kind", kind, _BENDS), epsilon
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and >= 0, got {epsilon}")
        held = [_without(skeleton(net), [name for name, _ in net.named_buffers()]) for _ in range(_BENDS[kind] + 1)]
        for each in held:  # a skeleton is frozen; all control points are trained, as far as g is
            for (_, parameter), original in zip(each.named_parameters(), net.parameters(), strict=True):
                parameter.requires_grad_(original.requires_grad)
        self.points = nn.ModuleList([*held, copy.deepcopy(net)])
        # In a tuple, where no module looks: its parameters are none of this network's.
        self._mixed = (_without(skeleton(net), statistics(net)),)

    def extra_repr(self) -> str:
        """Return what tells such networks apart."""
        return f"kind={self.kind!r}, epsilon={self.epsilon:g}"

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C) of f at a random alpha in training, of g at P(1) in evaluation."""
        if not self.training:
            return self.points[-1](images)
        like = next(self.parameters())
        return self.integrand(images, torch.rand((), device=like.device, dtype=like.dtype))

    def integrand(self, images: Tensor, alpha: Tensor) -> Tensor:
        """Return logits (n, C) of f at alpha (), with the batch's own batch-norm statistics.

        Source: W21 Eq. (17); with epsilon = 0 Eq. (15).
        """
        first = self._outputs(images, torch.zeros_like(alpha))
        if self.epsilon:
            ahead, here = self._outputs(images, alpha + self.epsilon), self._outputs(images, alpha)
            return first + (ahead - here) / self.epsilon
        with forward_ad.dual_level(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, when it loads its rules of differentiation
            outputs = self._outputs(images, forward_ad.make_dual(alpha, torch.ones_like(alpha)))
            return first + forward_ad.unpack_dual(outputs).tangent

    def _outputs(self, images: Tensor, alpha: Tensor) -> Tensor:
        """Return g(x, P(alpha))."""
        points = [dict(each.named_parameters()) for each in self.points]
        coefficients = bezier_basis(alpha, _BENDS[self.kind])
        mixed = {name: sum(c * each[name] for c, each in zip(coefficients, points, strict=True)) for name in points[0]}
        own, ours = self.points[-1], statistics(self.points[-1])
        constants = {name: buffer for name, buffer in own.named_buffers() if name not in ours}
        return functional_call(self._mixed[0].train(self.training), (mixed, constants), (images,))

    def family(self, weights: Weights) -> Family:
        """Return the line or curve P of weights of g that `weights` of this network hold; its last point is P(1).

        Raises:
            KeyError: if `weights` are not those of such a network.
        """
        names = [name for name, _ in self.points[0].named_parameters()]
        points = [{name: weights[f"points.{i}.{name}"] for name in names} for i in range(len(self.points))]
        if self.kind == "line":
            return line(*points)
        return bezier(points[0], points[-1], bends=1, ends="free").with_points(points)

    def weights(self, family: Family) -> Weights:
        """Return the weights of this network that hold the control points of a family: the inverse of `family`.

        Raises:
            ValueError: for another number of control points.
        """
        if len(family.points) != len(self.points):
            raise ValueError(f"family must have {len(self.points)} control points, got {len(family.points)}")
        return {f"points.{i}.{name}": each[name] for i, each in enumerate(family.points) for name in each}


def _without(bare: nn.Module, buffers: Iterable[str]) -> nn.Module:
    """Return the skeleton without some of its buffers: batch norms know nothing but the batch then."""
    for name in buffers:
        module, _, part = name.rpartition(".")
        setattr(bare.get_submodule(module), part, None)
    return bare


@torch.no_grad()
def averaged(integral: Integral, weights: Weights, images: Tensor, *, nodes: int = 16) -> Tensor:
    """Return logits (n, C) of the mean of f over alpha in [0, 1], by Gauss-Legendre quadrature: three passes a node.

    What `g(x, P(1))` stands for, to see how well it does. Dropout is off; batch norm, where there is any, sees `images`
    as one batch.

    Args:
        integral: the network.
        weights: its weights.
        images: (n, ...) prepared inputs.
        nodes: of the quadrature, exact for polynomials in alpha up to degree 2 nodes - 1.

    Raises:
        ValueError: if nodes < 1.

    Source: W21 Eq. (14).
    """
    if nodes < 1:
        raise ValueError(f"nodes must be >= 1, got {nodes}")
    places, shares = np.polynomial.legendre.leggauss(nodes)
    bare, like = _Integrand(skeleton(integral)), next(iter(weights.values()))
    given = {**weights, **fresh_buffers(integral, like)}
    parameters = {f"integral.{name}": tensor for name, tensor in given.items()}
    parts = (share / 2 * functional_call(bare, parameters, (images, like.new_tensor((place + 1) / 2)))
             for place, share in zip(places.tolist(), shares.tolist(), strict=True))
    return torch.stack(list(parts)).sum(0)


class _Integrand(nn.Module):
    """f as a module of its own, since `functional_call` calls `forward`."""

    def __init__(self, integral: Integral) -> None:
        super().__init__()
        self.integral = integral

    def forward(self, images: Tensor, alpha: Tensor) -> Tensor:
        return self.integral.integrand(images, alpha)


def integral_subspace(task: Task, model: str, *, seed: int, kind: str = "line", epsilon: float = EPSILON,
                      recipe: Recipe | None = None, store: Store | Path | str | None = None, progress: bool = False,
                      **sizes: Any) -> Family:
    """Return a trained Integral subspace: the line or curve P through the weights of g, read from the store.

    The network that W21 evaluates, the ensemble of all f, is g at the last control point: `family.points[-1]`.

    Args:
        task: data set; label noise comes with it (`load_task(..., label_noise=0.4)`).
        model: name of g (`models.MODELS`).
        seed: decides batch order, augmentation, every alpha, and the initial weights: those of `subspaces.start`, each
            control point's own.
        kind, epsilon: as for `Integral`.
        recipe: how to train; None: `recipe_for(task)`, whose learning rate is that of a single network: try others,
            larger and smaller (see `Integral`). It may ask for nothing that families alone have (draws, measure, beta,
            layerwise, similarity): to the loop this is a single network.
        store: a store or its folder; None: the default store.
        progress: show a line.
        **sizes: of g.

    Raises:
        ValueError: for an unknown model, kind or size, or a recipe for families.

    Source: W21 Appendix C and Fig. 14 (MNIST, label noise).
    """
    net, recipe = network(task, model, **sizes), recipe or recipe_for(task)
    asked = [f"{name}={value!r}" for name, usual in _OF_FAMILIES.items() if (value := getattr(recipe, name)) != usual]
    if asked:
        raise ValueError(f"recipe must leave out {', '.join(_OF_FAMILIES)}, which act on families while they are "
                         f"trained: an Integral subspace is trained as a single network; got {', '.join(asked)}")
    integral = Integral(net, kind=kind, epsilon=epsilon)
    drawn = integral.weights(start(net, kind, seed=seed, device=task.train.images.device, dtype=recipe.dtype))
    name = {"model": model, "sizes": sizes, "seed": seed, "scheme": "kaiming-normal",
            "integral": {"kind": kind, "epsilon": epsilon}}
    place = store if isinstance(store, Store) else Store(store)
    family = trained(point(drawn), integral, task, recipe, name=name, seed=seed, store=place, progress=progress)
    return integral.family(family.points[0])
