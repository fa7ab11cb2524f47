"""What a step of training draws: members of the family, and the pairs that W21's regularisers compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossland.families import Family
from lossland.layout import Layout, Mixture
from lossland.sampling import stream_seed
from lossland.schedules import Recipe

_POSITIONS, _LAYERS, _POINTS, _NETWORKS = 1, 3, 4, 5  # streams of an epoch; 0 is the order of images, 2 dropout


@dataclass(frozen=True)
class Sample:
    """One step's draw.

    Attributes:
        where: positions of n networks, as `Family.coefficients` takes them; layerwise with an axis of modules behind n.
        mixtures: their coefficients.
        points: two free control points that cos^2 is taken of; None without `beta`.
        networks: two of the n networks whose features are compared; None without `similarity`.
    """

    where: Tensor
    mixtures: tuple[Mixture, ...]
    points: tuple[int, int] | None = None
    networks: tuple[int, int] | None = None


class Draws:
    """The draws of an epoch. Every kind has a stream of its own: one that a recipe does not ask for moves no other."""

    def __init__(self, family: Family, recipe: Recipe, layout: Layout, *, seed: int, epoch: int) -> None:
        self.family, self.recipe, self.layout = family, recipe, layout
        self._free = [i for i, movable in enumerate(family.free) if movable]
        self._streams = {number: torch.Generator().manual_seed(stream_seed(seed, epoch, number))
                         for number in (_POSITIONS, _LAYERS, _POINTS, _NETWORKS)}

    def next(self, n: int) -> Sample:
        """Return the draw of a step with n networks."""
        where, mixtures = self._layerwise(n) if self.recipe.layerwise else self._whole(n)
        points = self._pair(_POINTS, self._free) if self.recipe.beta else None
        networks = self._pair(_NETWORKS, list(range(n))) if self.recipe.similarity and n > 1 else None
        return Sample(where, mixtures, points, networks)

    def _whole(self, n: int) -> tuple[Tensor, tuple[Mixture, ...]]:
        where = self.family.draw(self._streams[_POSITIONS], n, strata=self.recipe.strata)
        everything = slice(0, self.layout.size)
        return where, tuple(((everything, row),) for row in self.family.coefficients(where).tolist())

    def _layerwise(self, n: int) -> tuple[Tensor, tuple[Mixture, ...]]:
        where = self.family.draw_layerwise(self._streams[_LAYERS], n, len(self.layout.modules),
                                           strata=self.recipe.strata)
        rows = self.family.coefficients(where.flatten(0, 1)).unflatten(0, where.shape[:2]).tolist()  # (n, M, k)
        return where, tuple(tuple((stretch, coefficients) for module, coefficients in
                                  zip(self.layout.modules, row, strict=True) for stretch in module) for row in rows)

    def _pair(self, stream: int, numbers: list[int]) -> tuple[int, int]:
        if len(numbers) == 2:
            return numbers[0], numbers[1]
        j, k = torch.randperm(len(numbers), generator=self._streams[stream])[:2].tolist()
        return numbers[j], numbers[k]
