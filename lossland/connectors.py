"""Whether a path or a simplex connects its ends without loss of accuracy: Definitions 1 and 2 of W21."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from lossland.evaluation import default_points, evaluate
from lossland.evaluation.arguments import as_path, check_task
from lossland.evaluation.scoring import Stateless, Sums, add_point
from lossland.families import Family
from lossland.paths import Path
from lossland.tasks import Task
from lossland.weights import check_belongs


@dataclass(frozen=True)
class Connector:
    """What was found on the way between some networks.

    Attributes:
        worst: smallest accuracy of the networks that were looked at [fraction].
        at: where: (t,), or barycentric coordinates (m,).
        ends: accuracies of the ends [fractions].
        low, high: interval of the worst network's accuracy on images like these.
        networks: how many were looked at, the ends included.
        images: how many (words, of a text) they were tested on.
        tolerance: how far below the mean of the ends the worst may lie [fraction].
    """

    worst: float
    at: tuple[float, ...]
    ends: tuple[float, ...]
    low: float
    high: float
    networks: int
    images: int
    tolerance: float = 0.0

    def __bool__(self) -> bool:
        """Return whether the verdict is "yes": what the images leave undecided is not true."""
        return self.verdict == "yes"

    @property
    def mean(self) -> float:
        """Return the mean accuracy of the ends: the bar of the definitions."""
        return sum(self.ends) / len(self.ends)

    @property
    def verdict(self) -> str:
        """Return "yes": the worst reaches the mean of the ends, less the tolerance; "no": its interval lies below;
        "undecided"."""
        bar = self.mean - self.tolerance
        return "yes" if self.worst >= bar else "no" if self.high < bar else "undecided"

    def __str__(self) -> str:
        """Return one sentence."""
        where = ", ".join(f"{value:.3g}" for value in self.at)
        return (f"{self.verdict}: the worst of {self.networks} networks, at {where}, has {self.worst:.2%} "
                f"({self.low:.2%} to {self.high:.2%}) on {self.images} images; "
                f"the ends have {self.mean:.2%} on average" +
                (f", of which {self.tolerance:.2%} may be missing" if self.tolerance else ""))


@torch.no_grad()
def is_connector(net: nn.Module, path: Path | Family, task: Task, *, points: int | None = None, split: str = "test",
                 level: float = 0.95, tolerance: float = 0.0, seed: int = 0) -> Connector:
    """Return whether a path connects its ends, or a simplex its corners: is the worst network as accurate as they are?

    The definitions compare an infimum with the mean accuracy of the ends, by a sign "greater or about equal" whose
    "about" they leave open: `tolerance` says it. The ends belong to the path, so that without a tolerance a path whose
    ends differ in accuracy cannot be a connector: the worse end lies below their mean.

    The infimum is the worst of the networks looked at, and what the number of images leaves open is said by an exact
    (Clopper-Pearson) interval of its accuracy. As it is the worst of T networks, chosen by looking, the interval has
    level 1 - (1 - level) / T, so that the intervals of all T would hold together (Bonferroni). The ends' mean is taken
    as it was measured; all networks see the same images, which makes differences smaller than the interval says.

    Args:
        net: the network.
        path: a path, a family over an interval, or a simplex.
        task: the data.
        points: networks looked at: on a path as `evaluate` takes them, None: its default; on a simplex its corners, its
            centre and random members, None: 61.
        split: of the task.
        level: of the interval.
        tolerance: how far below the mean of the ends the worst may lie and still count [fraction]: 0.005 for half a
            percentage point.
        seed: of the random members of a simplex.

    Returns:
        What was found, with `.verdict` "yes", "no" or "undecided"; true where it is "yes".

    Raises:
        TypeError, ValueError: as `evaluate`; for a family of one point.
        ValueError: for a level outside (0, 1), a tolerance outside [0, 1), or fewer points than the ends (and the
            centre).

    Source: W21 Definition 1 (paths) and Definition 2 (m-connectors); the interval is ours.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be a fraction between 0 and 1, got {level!r}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be a fraction >= 0 of accuracy, such as 0.005, got {tolerance!r}")
    check_task(net, task)
    if isinstance(path, Family) and path.domain == "simplex":
        places = _in_simplex(path, 61 if points is None else points, seed)
        accuracies = _accuracies(net, path, places, task, split)
        ends = accuracies[: len(path.points)]
    else:
        as_path(path)
        points = default_points(path) if points is None else points
        table = evaluate(net, path, task, points=points, splits=(split,))
        places, accuracies = torch.tensor(table.t.to_numpy())[:, None], torch.tensor(table.accuracy.to_numpy())
        ends = accuracies[[0, -1]]
    images = task.split(split).labels.numel()
    row = int(accuracies.argmin())
    worst = float(accuracies[row])
    interval = binomtest(round(worst * images), images).proportion_ci(1 - (1 - level) / len(places), method="exact")
    return Connector(worst, tuple(places[row].tolist()), tuple(ends.tolist()), float(interval.low),
                     float(interval.high), len(places), images, float(tolerance))


def _in_simplex(family: Family, count: int, seed: int) -> Tensor:
    """Return coordinates (T, m): the m corners first, then the centre, then random ones."""
    m = len(family.points)
    if count <= m:
        raise ValueError(f"points must be > {m}, for {m} corners and the centre, got {count}")
    drawn = family.draw(torch.Generator().manual_seed(seed), count - m - 1) if count > m + 1 else torch.empty(0, m)
    return torch.cat([torch.eye(m, dtype=torch.float64), torch.full((1, m), 1 / m, dtype=torch.float64), drawn])


def _accuracies(net: nn.Module, family: Family, places: Tensor, task: Task, split: str) -> Tensor:
    """Return the accuracies (T,) of a simplex's members at coordinates (T, m)."""
    check_belongs(net, family.points[0], "family.points[0]")
    function, sums, part = Stateless(net, task), Sums.zeros(len(places)), task.split(split)
    for row, place in enumerate(places):
        add_point(sums, row, function, family.member(place), part)
    return torch.from_numpy(sums.columns(part.labels.numel())["accuracy"])
