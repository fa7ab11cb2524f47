"""Where the parameters of a network lie in a flat vector: those of each module, and those of normalisations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lossland.batchnorm import norm_parameters
from lossland.weights import Weights

Mixture = tuple[tuple[slice, list[float]], ...]
"""Stretches of a flat vector, each with the k coefficients of its linear combination of k points."""

@dataclass(frozen=True)
class Layout:
    """The order of the parameters in a flat vector (P,).

    Attributes:
        like: weights whose order, names and shapes are those of the vector.
        modules: for each module that has parameters, where they lie: stretches of the vector.
        weights: where all parameters but those of normalisation layers lie.
    """

    like: Weights
    modules: tuple[tuple[slice, ...], ...]
    weights: tuple[slice, ...]

    @staticmethod
    def of(net: nn.Module, like: Weights, *, norms_last: bool = False) -> Layout:
        """Return the layout of vectors in the order of `like`, or with the normalisations' parameters at the end.

        Where they are last, all the other parameters are one stretch.
        """
        norms = norm_parameters(net)
        if norms_last:
            like = {name: like[name] for name in sorted(like, key=lambda name: name in norms)}
        modules: dict[str, list[slice]] = {}
        weights: list[slice] = []
        start = 0
        for name, tensor in like.items():
            stop = start + tensor.numel()
            _append(modules.setdefault(name.rpartition(".")[0], []), start, stop)
            if name not in norms:
                _append(weights, start, stop)
            start = stop
        return Layout(like, tuple(map(tuple, modules.values())), tuple(weights))

    @property
    def size(self) -> int:
        """Return P."""
        return max(stretch.stop for module in self.modules for stretch in module)


def _append(stretches: list[slice], start: int, stop: int) -> None:
    """Add a stretch behind the others; one that the last of them ends at prolongs it."""
    if stretches and stretches[-1].stop == start:
        stretches[-1] = slice(stretches[-1].start, stop)
    else:
        stretches.append(slice(start, stop))


def within(stretch: slice, piece: slice) -> slice:
    """Return the part of a stretch that lies in a piece, counted from the start of the piece; it may be empty.

    Examples:
        >>> within(slice(0, 10), slice(4, 20)), within(slice(0, 3), slice(4, 20))
        (slice(0, 6, None), slice(0, 0, None))
    """
    start = max(stretch.start - piece.start, 0)
    return slice(start, max(start, min(stretch.stop, piece.stop) - piece.start))
