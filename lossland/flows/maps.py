"""Flows: invertible maps nu that make hidden units normal, and the paths that they give.

AY20's learnable connections move a unit from X to Y along psi(t) = nu^-1[cos(pi t / 2) nu(X) + sin(pi t / 2) nu(Y)]:
an arc where the units are normal. nu begins by standardising the units, so that an untrained flow, whose network is
the identity, is the arc about the mean of the units that it was made from. The networks are nflows' masked and
coupling transforms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland.errors import choose
from lossland.flows.invertible import IAF, RealNVP
from lossland.paths import arc_basis
from lossland.weights import Weights, check_finite, check_match, weights_of

KINDS = ("realnvp", "iaf")
STANDARDS = ("covariance", "coordinates", "none")
INVERSION = 1e-4  # largest |nu^-1(nu(x)) - x| that a path accepts, relative to the largest |x|
_ROWS = 2**14  # mapped at a time along a path
_KEPT = 8  # unit matrices whose noise a flow remembers


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, the only one that nflows draws initial weights from, and put it back."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        yield


def _module(settings: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the untrained network of a flow on the CPU; no other random number depends on its having been drawn."""
    sizes = {name: value for name, value in settings.items() if name not in ("kind", "standardise")}
    with _seeded(seed):
        return {"realnvp": RealNVP, "iaf": IAF}[choose("kind", settings["kind"], KINDS)](**sizes).requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Flow:
    """An invertible map nu between units (n, D) and noise (n, D): standardisation, then an nflows network.

    A flow is a value: training returns another one, which differs in `weights` only. Made by `realnvp` or `iaf`.

    Directions: a path maps noise to units at every t, and units to noise once for each network. A coupling is equally
    fast both ways. An autoregressive network is fast one way only; IAF takes noise -> units in one pass (hence
    *inverse* autoregressive flow) and nu(X), nu(Y) by up to D passes. `move` remembers nu(X) and nu(Y) of the
    networks it saw last.

    Attributes:
        settings: kind and sizes, JSON values.
        weights: parameters of the network.
        centre: (D,) mean of the units that the flow was made from.
        spread: (D, D): units = centre + spread @ standardised units.
        unspread: (D, D) its inverse.
        volume: () log |det unspread|.
        module: the network without its parameters (structure and masks).
    """

    settings: Mapping[str, Any]
    weights: Weights
    centre: Tensor
    spread: Tensor
    unspread: Tensor
    volume: Tensor
    module: nn.Module = field(repr=False)
    _known: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    @property
    def dimension(self) -> int:
        """Return D, the number of coordinates of a unit."""
        return len(self.centre)

    def to_noise(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return nu(units) (n, D) and log |det d nu / d unit| (n,).

        Raises:
            ValueError: for units of another dimension.
        """
        rows = (self.checked(units, "units") - self.centre) @ self.unspread.T
        noise, logdet = functional_call(self.module, self.weights, (rows, True))
        return noise, logdet + self.volume

    def to_units(self, noise: Tensor) -> Tensor:
        """Return nu^-1(noise) (n, D).

        Raises:
            ValueError: for noise of another dimension.
        """
        rows, _ = functional_call(self.module, self.weights, (self.checked(noise, "noise"), False))
        return self.centre + rows @ self.spread.T

    def log_density(self, units: Tensor) -> Tensor:
        """Return log p(unit) (n,) [nats] of the distribution that nu turns into the standard normal one.

        Source: AY20 section 3.3, the integrand of Flow's likelihood.
        """
        noise, logdet = self.to_noise(units)
        return logdet - 0.5 * noise.square().sum(1) - 0.5 * self.dimension * math.log(2 * math.pi)

    @torch.no_grad()
    def move(self, x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Return the units between x and y: nu^-1[cos(pi s / 2) nu(x) + sin(pi s / 2) nu(y)]; a `Move`.

        s = 0 gives x and s = 1 gives y to the last bit. In between, what nu^-1 nu loses by rounding (at most 1e-4 of
        the largest weight) is added back linearly, so that the path has no jump at its ends.

        Args:
            x, y: (n, D) units; unit i of x goes to unit i of y.
            s: (T,) positions in [0, 1].

        Returns:
            (T, n, D), with the dtype and on the device of x; computed where the flow lives.

        Raises:
            ValueError: for units of another dimension, or unequal numbers of units.
            FloatingPointError: where nu^-1 nu is not the identity to 1e-4, naming the error.

        Source: AY20 Eq. (7).
        """
        if x.shape != y.shape:
            raise ValueError(f"x and y must have equal numbers of units, got {tuple(x.shape)} and {tuple(y.shape)}")
        (noise_x, gap_x), (noise_y, gap_y) = self._noise_of(x, "x"), self._noise_of(y, "y")
        share = s.to(self.centre)[:, None, None]
        cos, sin, _ = arc_basis(share).unbind(-1)  # (T, 1, 1)
        moved = x.new_empty(len(s), *x.shape)
        for part in torch.arange(len(s)).split(max(1, _ROWS // len(x))):
            noise = cos[part] * noise_x + sin[part] * noise_y  # (T', n, D)
            units = self.to_units(noise.flatten(0, 1)).view_as(noise)
            moved[part] = (units + (1 - share[part]) * gap_x + share[part] * gap_y).to(x)
        moved[s.cpu() == 0], moved[s.cpu() == 1] = x, y.to(x)
        return moved

    def _noise_of(self, units: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return nu(units) and units - nu^-1 nu(units), computed once for each of the last networks."""
        rows = self.checked(units, name)
        for known, noise, gap in self._known:
            if torch.equal(known, rows):
                return noise, gap
        noise, _ = self.to_noise(rows)
        gap = rows - self.to_units(noise)
        error = float(gap.abs().max() / rows.abs().max())
        if not error <= INVERSION:
            raise FloatingPointError(f"the flow must be invertible on {name} to {INVERSION:g} of its largest weight, "
                                     f"got an inversion error of {error:.2g}; use float64 (Flow.to) or a lower lr, or "
                                     "learn from more networks: noise of units like those learned from is about 1, "
                                     f"here it is up to {float(noise.abs().max()):.2g}")
        self._known[_KEPT - 1 :] = []
        self._known.insert(0, (rows.clone(), noise, gap))
        return noise, gap

    def checked(self, units: Tensor, name: str) -> Tensor:
        """Return units (n, D) with the dtype and on the device of the flow.

        Raises:
            ValueError: for units of another dimension, calling them `name`.
        """
        if units.ndim != 2 or units.shape[1] != self.dimension:
            raise ValueError(f"{name} must be (n, {self.dimension}) like the units that this flow was made from, got "
                             f"{tuple(units.shape)}")
        return units.to(self.centre)

    def with_weights(self, weights: Weights) -> Flow:
        """Return the flow with other parameters."""
        return replace(self, weights=weights)

    def to(self, like: Tensor) -> Flow:
        """Return the flow with the dtype and on the device of a floating-point tensor."""
        moved = {name: getattr(self, name).to(like) for name in ("centre", "spread", "unspread", "volume")}
        weights = {name: tensor.to(like) for name, tensor in self.weights.items()}
        return replace(self, weights=weights, module=copy.deepcopy(self.module).to(like), **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that, with `settings`, make up the flow: what a store keeps (`restored`)."""
        own = {name: getattr(self, name) for name in ("centre", "spread", "unspread", "volume")}
        return {**own, **{f"weights.{name}": tensor for name, tensor in self.weights.items()}}


def restored(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Flow:
    """Return the flow whose `settings` and `tensors()` are given; nothing is trained.

    Raises:
        ValueError: if the tensors belong to other settings, or are NaN or infinite.
    """
    module, standard = _module(settings, 0), ("centre", "spread", "unspread", "volume")
    if missing := sorted(set(standard) - tensors.keys()):
        raise ValueError(f"tensors must be those of a flow, got none called {missing}")
    weights = {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name not in standard}
    check_match(weights_of(module), weights, ("settings", "tensors"))
    check_finite(dict(tensors), "tensors")
    return Flow(dict(settings), weights, *(tensors[name] for name in standard), module=module.to(tensors["centre"]))


def _standard(rows: Tensor, standardise: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centre, spread, unspread and volume for units (n, D) in float64."""
    axes, centre = torch.eye(rows.shape[1]).to(rows), rows.mean(0)
    if standardise == "covariance":
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        variances, axes = values.flip(0), vectors.flip(1)  # leading axes first
    elif standardise == "coordinates":
        variances = rows.var(0)
    else:
        variances, centre = torch.ones_like(centre), torch.zeros_like(centre)
    # A floor: directions in which the units do not vary get a small spread instead of none.
    roots = variances.clamp(min=1e-6 * float(variances.max())).sqrt()
    return centre, axes * roots, (axes / roots).T, -roots.log().sum()


def _made(settings: dict[str, Any], units: Tensor, seed: int) -> Flow:
    for name in ("couplings", "layers", "hidden", "depth"):
        if name in settings and settings[name] < 1:
            raise ValueError(f"{name} must be >= 1, got {settings[name]}")
    choose("standardise", settings["standardise"], STANDARDS)
    if units.ndim != 2 or min(units.shape) < 2:
        raise ValueError(f"units must be (n, D) with at least 2 units of 2 coordinates, got {tuple(units.shape)}")
    check_finite({"units": units}, "units")
    standard = _standard(units.detach().double(), settings["standardise"])
    module = _module(settings, seed).to(units)
    return Flow(settings, weights_of(module), *(tensor.to(units).contiguous() for tensor in standard), module=module)


def realnvp(units: Tensor, *, couplings: int = 2, hidden: int = 2000, depth: int = 2, standardise: str = "covariance",
            seed: int = 0) -> Flow:
    """Return an untrained RealNVP: affine couplings with alternating masks (even coordinates, odd coordinates, ...).

    It starts as the identity on standardised units: its path is the arc about their mean, and with
    `standardise="covariance"` its density is the Gaussian fitted to them.

    Args:
        units: (n, D) units of the networks V, for mean and covariance; decides dtype and device.
        couplings: number of couplings.
        hidden: width of the couplings' networks.
        depth: hidden layers of the couplings' networks.
        standardise: "covariance": leading principal axes first, each divided by its deviation; "coordinates": mean 0
            and deviation 1 for each coordinate; "none". Directions without spread get 1e-3 of the largest.
        seed: of the initial parameters.

    Raises:
        ValueError: for sizes below 1, units that are not finite (n, D), or an unknown choice.

    Source: AY20 section 3.3; Dinh et al. 2016. MNIST: 2 couplings with 2000 hidden units (Bijection), 14 couplings
        (Flow).
        Deviation: log-scales lie in (-2, 2) by a hyperbolic tangent; nflows' own coupling never expands.
    """
    settings = {"kind": "realnvp", "dimension": units.shape[-1], "couplings": couplings, "hidden": hidden,
                "depth": depth, "standardise": standardise}
    return _made(settings, units, seed)


def iaf(units: Tensor, *, layers: int = 2, hidden: int = 0, depth: int = 2, standardise: str = "covariance",
        seed: int = 0) -> Flow:
    """Return an untrained inverse autoregressive flow: masked affine layers with the order reversed in between.

    It starts as the identity on standardised units, like `realnvp`. Noise to units is one pass; units to noise, and
    with it every step of maximum likelihood, is a fixed-point iteration of up to D passes.

    Args:
        units: (n, D) units of the networks V, for mean and covariance; decides dtype and device.
        layers: autoregressive layers.
        hidden: width of their masked networks, at least D - 1 so that every coordinate can be read; 0: D.
        depth: hidden layers of their networks.
        standardise: as for `realnvp`.
        seed: of the initial parameters.

    Raises:
        ValueError: for sizes below 1 or hidden < D - 1, units that are not finite (n, D), or an unknown choice.

    Source: AY20 section 3.3; Kingma et al. 2016. MNIST: 2 layers with 795 hidden units.
    """
    dimension = units.shape[-1]
    if 0 < hidden < dimension - 1:
        raise ValueError(f"hidden must be >= D - 1 = {dimension - 1}, to read every coordinate, got {hidden}")
    settings = {"kind": "iaf", "dimension": dimension, "layers": layers, "hidden": hidden or dimension, "depth": depth,
                "standardise": standardise}
    return _made(settings, units, seed)
