"""SWAG: a Gaussian fitted to the members of a run, from which further members are drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lossland.sampling import stream_seed
from lossland.weights import Weights, check_match, from_vector, to_vector


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution over weights: mean, diagonal, and a few directions.

    Its covariance is scale * (diag(variance) + D D^T / (K - 1)), with a scale that is chosen when it is drawn from.

    Attributes:
        mean: (P,) float64.
        variance: (P,) float64, that of the members around their mean, divided by their number.
        deviations: (K, P) D: the last K members less the mean of the members up to them.
        like: a member: names, shapes, precision.

    Source: Maddox et al. 2019, section 3.3 and Algorithm 1.
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor
    like: Weights

    @staticmethod
    def fit(members: Iterable[Weights], rank: int) -> Gaussian:
        """Return the Gaussian of these members; one of them is in memory at a time, and `rank` deviations.

        Args:
            members: at least two networks, in the order in which they were taken.
            rank: K, the number of the last members whose deviations span the low-rank part.

        Raises:
            ValueError: for a rank outside 2..the number of members.
        """
        mean, squares, like, count = None, None, {}, 0
        last: deque[Tensor] = deque(maxlen=max(rank, 0))
        for count, weights in enumerate(members, 1):
            like = like or weights
            check_match(like, weights, ("members[0]", f"members[{count - 1}]"))
            vector = to_vector(weights).double()
            before = torch.zeros_like(vector) if mean is None else mean
            mean = before + (vector - before) / count
            # Welford: a difference of second moments would lose the digits that the variance is made of.
            squares = (vector - before) * (vector - mean) + (0 if squares is None else squares)
            last.append((vector - mean).to(next(iter(like.values())).dtype))
        if not 2 <= rank <= count:
            raise ValueError(f"rank must be a number of members, 2..{count}, got {rank}")
        return Gaussian(mean, squares.clamp(min=0) / count, torch.stack(list(last)), like)

    def sample(self, generator: Generator, scale: float = 0.5) -> Weights:
        """Return random weights, in the members' precision and on their device.

        Args:
            generator: on the CPU, so that the draws are the same on every device.
            scale: factor of the covariance; the paper's is 1/2; 0 gives the mean.

        Raises:
            ValueError: for a negative scale.

        Source: Maddox et al. 2019, Eq. (1) (there with 1/2).
        """
        if not scale >= 0:
            raise ValueError(f"scale must be >= 0, got {scale}")
        single, shared = (torch.randn(n, generator=generator, dtype=torch.float64).to(self.mean.device)
                          for n in (len(self.mean), len(self.deviations)))
        low_rank = shared.to(self.deviations.dtype) @ self.deviations / (len(self.deviations) - 1) ** 0.5
        drawn = self.mean + scale**0.5 * (self.variance.sqrt() * single + low_rank)
        return {name: view.to(self.like[name].dtype) for name, view in from_vector(drawn, self.like).items()}

    def samples(self, count: int, *, seed: int = 0, scale: float = 0.5) -> Draws:
        """Return so many random networks, each drawn when it is asked for, and the same one every time.

        Raises:
            ValueError: for a count below 1.
        """
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        return Draws(self, range(count), seed, scale)


@dataclass(frozen=True, eq=False)
class Draws(Sequence[Weights]):
    """Random networks that are drawn when they are asked for; draw i is that of a stream of its own.

    Attributes:
        gaussian, scale: what they are drawn from.
        numbers: of the draws.
        seed: of the streams.
    """

    gaussian: Gaussian
    numbers: range
    seed: int
    scale: float

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int | slice) -> Weights | Draws:
        """Return one network, or of a slice the draws in it."""
        if isinstance(index, slice):
            return Draws(self.gaussian, self.numbers[index], self.seed, self.scale)
        generator = Generator().manual_seed(stream_seed(self.seed, self.numbers[index]))
        return self.gaussian.sample(generator, self.scale)
