"""Scores along the permutation stage of one-hidden-layer networks: all swaps at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from lossland import kernels
from lossland.evaluation import scoring
from lossland.evaluation.dense import OneHidden
from lossland.evaluation.first_layers import FirstLayers
from lossland.evaluation.scoring import Manner, Sums
from lossland.layers import axes, gather
from lossland.legs import Swaps
from lossland.tasks import Split, Task
from lossland.weights import Weights, distance
from lossland.workers import in_threads

_FEATURES = 32 * 2**20  # bytes of pre-activations at a time on a CPU, all threads together
_GROUP = 16  # images that compiled swaps take together: what is no whole group is copied


class Exchanges:
    """Points of the permutation stage of a one-hidden-layer network, evaluated together.

    On the way of a swap two units differ from the network at the end, so its features are computed once for all swaps,
    and a point's logits are a rank-two update of its logits. Completed swaps change nothing and share one evaluation.

    Attributes:
        way: "swap sweep" (compiled), or "rank two" (plain torch: exact, or for other activations than ReLU).
        product: what the first layer was multiplied in.
    """

    def __init__(self, net: OneHidden, task: Task, leg: Swaps, manner: Manner = Manner(), *, images: int) -> None:
        self.net, self.task, self.leg, self.manner = net, task, leg, manner
        (self.writers, self.readers), = axes(leg.layers).values()
        precision = manner.precision or ("float32" if manner.exact else None)
        self.first = FirstLayers(task, [self.net.layer(self.net.first, leg.weights)], precision, images=images)
        self.head, self.shift = self.net.second(leg.weights)
        compiled = not manner.exact and kernels.swaps_pay(self.head, self.net.activation)
        self.way, self.product = "swap sweep" if compiled else "rank two", self.first.product

    @staticmethod
    def serves(net: OneHidden | None, leg: object) -> bool:
        """Say whether points of this leg can be evaluated so."""
        if net is None or not isinstance(leg, Swaps):
            return False
        return [(one.module, one.pre_norm) for one in leg.layers] == [(net.first, None), (net.head, None)]

    def score(self, totals: Mapping[str, Sums], where: Tensor, s: Tensor, tick: Callable[[float], None]) -> None:
        """Add the scores of the points at s (T,) to the rows `where` (T,) of the sums of each split."""
        swap, u = self.leg.locate(s)
        moving = (u > 0) & (u < 1)
        swaps = self.leg.units[swap[moving]].to(self.head.device), u[moving].to(self.head.device)
        on_cpu = self.head.device.type == "cpu"
        most = _FEATURES // min(torch.get_num_threads(), 8) if on_cpu else scoring.SHARED
        size = max(1, most // (self.head.shape[1] * self.head.itemsize * _GROUP)) * _GROUP
        for name, sums in totals.items():
            split = self.task.split(name)
            windows = [slice(i, min(i + size, len(split))) for i in range(0, len(split), size)]
            one = partial(self._scored, split, swaps)
            for window, (rest, found) in zip(windows, in_threads(one, windows) if on_cpu else map(one, windows),
                                             strict=True):
                if found:
                    sums.add_scores(where[moving], *found)
                sums.add_scores(where[~moving], *(part.expand(int((~moving).sum()), *part.shape[1:]) for part in rest))
                tick(len(where) * (window.stop - window.start) / len(split))

    def _scored(self, split: Split, swaps: tuple[Tensor, Tensor], window: slice) -> tuple[tuple, tuple]:
        """Return the scores of the network with all units in place, and of those under way, on some of the images."""
        z = self.first(split.images[window])[0].T.contiguous()  # (n, b): a unit's features lie together
        act, labels = self.net.activation, split.labels[window]
        logits = torch.addmm(self.shift[:, None], self.head, (act or torch.relu)(z))  # (C, b)
        rest = kernels.class_scores(logits.T[None], labels, scoring.BINS)
        if not len(swaps[1]):
            return rest, ()
        return rest, kernels.swap_scores(logits, z, self.head, swaps, labels, bins=scoring.BINS, activation=act,
                                         exact=self.manner.exact)

    def distances(self, s: Tensor, origin: Weights | None) -> Tensor:
        """Return the distances (T,) float64 of the points from `origin`; None: from zero, their norms.

        Squared, a distance is quadratic along every swap: two units move, on a straight line.
        """
        w, (swap, u) = self.leg.weights, self.leg.locate(s)
        origin = origin or {name: torch.zeros_like(tensor) for name, tensor in w.items()}
        places, units = self.leg.places, self.leg.units
        ours, theirs = (gather(x, self.writers, self.readers).double().cpu() for x in (w, origin))
        way = ours[units[:, 1]] - ours[units[:, 0]]  # (m, D): what a swap adds to its first place
        square, slope = way.square().sum(1), ((theirs[places[:, 1]] - theirs[places[:, 0]]) * way).sum(1)
        start = self.leg(torch.zeros(1))
        rest = torch.cat([torch.zeros(1, dtype=torch.float64), 2 * slope.cumsum(0)])
        rest += distance({name: tensor[0] for name, tensor in start.items()}, origin) ** 2
        if not len(square):
            return rest[:1].sqrt().expand(len(s)).clone()
        return (rest[swap] + 2 * u * (slope[swap] - (1 - u) * square[swap])).clamp(min=0).sqrt()
