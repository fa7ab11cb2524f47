"""Scores of one-hidden-layer networks on several legs at once, which share the products of images and first layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lossland import kernels
from lossland.evaluation import scoring
from lossland.evaluation.dense import OneHidden
from lossland.evaluation.first_layers import FirstLayers
from lossland.evaluation.scoring import Sums
from lossland.tasks import Split, Task
from lossland.workers import in_threads

_FEATURES = 32 * 2**20  # bytes of pre-activations at a time on a CPU: small enough that memory is used again
_SEVERAL = 128 * 2**20  # the same where many legs read them, so that what a leg needs once is not needed too often
_CLOSE = 1e-9  # of a step between neighbours: how far it may lead away from the line of a row

Scores = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Job:
    """Networks on a leg: mixtures of k points.

    Attributes:
        totals: split -> sums that the scores are added to.
        where: their rows there (T,).
        coefficients: (T, k).
        heads, biases: of the second layers of the k points, (C, n) and (C,), in the form that `path_scores` wants.
        features: makes the pre-activations of the k points, (N, n) each, of those under the shared first layers.
        form: how these networks compute.
        way: "reference", or as `kernels.path_way` says.
    """

    totals: Mapping[str, Sums]
    where: Tensor
    coefficients: Tensor
    heads: Sequence[Tensor]
    biases: Sequence[Tensor]
    features: Callable[[list[Tensor]], list[Tensor]]
    form: OneHidden
    way: str

    @staticmethod
    def of(dense: OneHidden, rows: tuple[Mapping[str, Sums], Tensor, Tensor], second: Sequence[tuple[Tensor, Tensor]],
           features: Callable[[list[Tensor]], list[Tensor]], *, exact: bool = False) -> Job:
        """Return a job.

        Args:
            dense: the network.
            rows: totals, where and coefficients.
            second: weight and bias of the second layers of the k points.
            features: as above.
            exact: let the reference do it.
        """
        heads, biases = zip(*second, strict=True)
        sweeps = not exact and kernels.path_way(rows[2], heads) != "fused"
        form = dense.as_relu() if sweeps else dense
        ours = form.heads(heads)
        way = "reference" if exact else kernels.path_way(rows[2], ours, form.activation)
        return Job(*rows, ours, biases, features, form, way)

    def scores(self, shared: list[Tensor], labels: Tensor) -> Scores:
        """Return the scores of one batch of images."""
        return kernels.path_scores(self.form.features(self.features(shared)), self.coefficients, self.heads,
                                   self.biases, labels, bins=scoring.BINS, activation=self.form.activation,
                                   exact=self.way == "reference")


def score_jobs(task: Task, first: FirstLayers, jobs: Sequence[Job], tick: Callable[[float], None]) -> None:
    """Score all jobs, on the splits that the first one names, batch by batch: all read the same pre-activations."""
    def scored(split: Split, window: slice) -> list[Scores]:  # images of a folder are read here
        shared = first(split.images[window])
        return [job.scores(shared, split.labels[window]) for job in jobs]

    head = jobs[0].heads[0]
    on_cpu, most = head.device.type == "cpu", scoring.SHARED
    if on_cpu:
        most = min(most, (_FEATURES if len(jobs) == 1 else _SEVERAL) // min(torch.get_num_threads(), 8))
    size = max(1, most // (first.width * head.itemsize))
    points = sum(len(job.where) for job in jobs)
    for name in jobs[0].totals:
        split = task.split(name)
        windows = [slice(i, min(i + size, len(split))) for i in range(0, len(split), size)]
        one, sums = partial(scored, split), None
        for window, every in zip(windows, in_threads(one, windows) if on_cpu else map(one, windows), strict=True):
            sums = every if sums is None else [tuple(a + b for a, b in zip(*both, strict=True))
                                               for both in zip(sums, every, strict=True)]
            tick(points * (window.stop - window.start) / len(split))
        for job, found in zip(jobs, sums, strict=True):  # the one time that a device is waited for
            job.totals[name].add_scores(job.where, *found)


def jobs_of(dense: OneHidden, rows: tuple[Mapping[str, Sums], Tensor, Tensor], second: Sequence[tuple[Tensor, Tensor]],
            *, exact: bool = False) -> list[Job]:
    """Return the jobs that score members of the span of k points: one, or one for each straight row of members.

    Rows of cells of a plane are segments between two members, whose pre-activations are mixtures of those of the three
    points: a sweep for each row is faster than a loop over its cells.

    Args:
        dense, rows, second, exact: as `Job.of` takes them.
    """
    whole = Job.of(dense, rows, second, list, exact=exact)
    totals, where, c = rows
    if whole.way != "fused" or len(second) < 3:
        return [whole]
    jobs, rest = [], []
    for some in straight(c):
        job = _segment(dense, (totals, where[some], c[some]), second)
        jobs, rest = (jobs + [job], rest) if job and job.way == "sweep" else (jobs, rest + [some])
    left = torch.cat(rest) if rest else None
    return jobs if left is None else jobs + [Job.of(dense, (totals, where[left], c[left]), second, list)]


def _segment(dense: OneHidden, rows: tuple[Mapping[str, Sums], Tensor, Tensor],
             second: Sequence[tuple[Tensor, Tensor]]) -> Job | None:
    """Return the job of members in a straight row, None if they are all alike."""
    totals, where, c = rows
    c = c.double().cpu()
    way = c - c[0]
    way = way[way.square().sum(1).argmax()]
    place = (c - c[0]) @ way
    low, high = int(place.argmin()), int(place.argmax())
    if low == high:
        return None
    tau = (place - place[low]) / (place[high] - place[low])
    ends = c[[low, high]].tolist()
    between = [tuple(_mixed(parts, end) for parts in zip(*second, strict=True)) for end in ends]
    return Job.of(dense, (totals, where, torch.stack([1 - tau, tau], 1)), between,
                  lambda shared: [_mixed(shared, end) for end in ends])


def _mixed(parts: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    found = parts[0] * coefficients[0]
    for part, c in zip(parts[1:], coefficients[1:], strict=True):
        found.add_(part, alpha=c)
    return found


def straight(coefficients: Tensor) -> list[Tensor]:
    """Return the numbers of rows of coefficients (T, k) that follow each other on one straight line, run by run."""
    steps = coefficients.detach().double().cpu().diff(dim=0).numpy()
    runs, way = [[0]], None
    for number, step in enumerate(steps, 1):
        length = np.linalg.norm(step)
        if length and way is None:
            way = step / length
        if length and np.linalg.norm(step - (step @ way) * way) > _CLOSE * length:
            runs.append([])
            way = None
        runs[-1].append(number)
    return [torch.tensor(run) for run in runs]
