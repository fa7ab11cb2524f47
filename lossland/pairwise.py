"""Paths between all pairs of several networks, evaluated together: m networks share m first-layer products."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.evaluation import check_split, default_points, evaluate, grid
from lossland.evaluation.arguments import as_path, as_points, check_task, naming, single
from lossland.evaluation.dense import OneHidden, one_hidden
from lossland.evaluation.first_layers import FirstLayers, check_precision
from lossland.evaluation.frames import check_sums, framed
from lossland.evaluation.lengths import Lengths
from lossland.evaluation.rounds import Scored
from lossland.evaluation.scoring import Sums
from lossland.evaluation.sharing import Job, score_jobs
from lossland.families import Family
from lossland.paths import Mix, Path, segment
from lossland.scalars import flag
from lossland.tasks import Split, Task
from lossland.weights import Weights

Between = Callable[[Weights, Weights], Path | Family]
Pair = tuple[int, int]
Layer = tuple[Tensor, Tensor | None]  # weight (n, D) and bias (n,)


@torch.no_grad()
def pairs(net: nn.Module, networks: Iterable[Weights], task: Task, *, path: Between = segment,
          points: int | Sequence[float] | Tensor | None = None, splits: Sequence[str] = ("train", "test"),
          exact: bool = False, precision: str | None = None, progress: bool = False) -> pd.DataFrame:
    """Return the tables that `evaluate` gives for the paths between all pairs of networks, in one.

    Of networks with one hidden layer the images are multiplied with the first layer of each network once, not once for
    each path: a permuted network has the same units in another order, and all units of an arc's centre are one. Paths
    whose legs have other units (adjusted weights), legs that are not linear in points, and all other networks are
    evaluated one path after the other.

    Args:
        net: the network.
        networks: m weights, at least two.
        task: the data.
        path: makes the path between two of the networks: `segment`, or a function of your own, such as
            ``lambda a, b: connect(net, a, b, matching="ot", move="arc", task=task)``.
        points, splits, exact, precision: as `evaluate` takes them. With `exact` paths are evaluated one by one.
        progress: show a line.

    Returns:
        Columns first and second, the numbers of the two networks, first < second, and those of `evaluate`.
        `attrs`: grid (number of t of a path, the largest one), task, pairs, shared (how many pairs shared products),
        way and product as `evaluate` gives them.

    Raises:
        TypeError: as `evaluate`; for a dictionary in place of the networks, or a `path` that is no function of two.
        ValueError: as `evaluate`, or for fewer than two networks.
        FloatingPointError: if the loss is NaN or infinite somewhere. A note names the pair that an error belongs to.

    Source: all pairs of independent optima, for which AY20 section 5 and G18 section 4 show one.
    """
    check_task(net, task)
    exact, progress = flag("exact", exact), flag("progress", progress)
    check_precision(precision)
    _check_function(path)
    networks, points = _several(net, networks), None if points is None else as_points(points)
    chosen, dense = check_split(task, splits), None if exact else one_hidden(net)
    shared = _Shared(dense, task, chosen, networks) if dense else None
    tables, attrs = {}, []
    with tqdm(total=math.comb(len(networks), 2), desc="pairs", unit="pair", disable=not progress) as bar:
        for i, j in combinations(range(len(networks)), 2):
            with _of_pair(i, j):
                between = path(networks[i], networks[j])
                if shared and shared.take((i, j), between, points):
                    continue
                tables[i, j] = evaluate(net, between, task, points=points, splits=splits, exact=exact,
                                        precision=precision)
            attrs.append(tables[i, j].attrs)
            bar.update()
        with naming(net, task):
            found, how = shared.scored(precision, bar.update) if shared and shared.plans else ({}, [])
    tables |= found
    every = pd.concat([table.assign(first=i, second=j) for (i, j), table in sorted(tables.items())], ignore_index=True)
    every = every[["first", "second", *(name for name in every if name not in ("first", "second"))]]
    every.attrs = {"grid": max(table.t.nunique() for table in tables.values()), "task": task.name, "pairs": len(tables),
                   "shared": len(found)}
    every.attrs |= {key: _joined(*(one[key] for one in (*attrs, *how))) for key in ("way", "product")}
    return every


def _several(net: nn.Module, networks: Iterable[Weights]) -> list[Weights]:
    if isinstance(networks, Mapping):
        one = all(isinstance(value, Tensor) for value in networks.values())
        advice = "the weights of one network" if one else "a dictionary: pass list(networks.values())"
        raise TypeError(f"networks must be the weights of several networks, such as [a, b, c], got {advice}")
    if not isinstance(networks, Iterable):
        raise TypeError(f"networks must be the weights of several networks, such as [a, b, c], got "
                        f"{type(networks).__name__}")
    every = list(networks)
    if len(every) < 2:
        raise ValueError(f"networks must be at least two, got {len(every)}")
    return [single(net, weights, f"networks[{i}]") for i, weights in enumerate(every)]


def _check_function(path: Between) -> None:
    """Raise unless `path` can be called with two networks."""
    wanted = "path must be a function (a, b) -> Path such as lossland.segment"
    if not callable(path) or isinstance(path, Path):
        raise TypeError(f"{wanted}, got {repr(path) if isinstance(path, str) else type(path).__name__}")
    try:
        signature = inspect.signature(path)
    except ValueError:  # of what is not written in Python
        return
    try:
        signature.bind({}, {})
    except TypeError as error:
        name = getattr(path, "__name__", type(path).__name__)
        raise TypeError(f"{wanted}, got {name}, which takes ({', '.join(signature.parameters)}): give it what else it "
                        f"needs by lambda a, b: {name}(a, b, ...)") from error


def _joined(*names: str) -> str:
    return " + ".join(sorted({part for name in names for part in name.split(" + ")}))


@contextmanager
def _of_pair(i: int, j: int) -> Iterator[None]:
    """Add to an error which pair it belongs to."""
    try:
        yield
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        error.add_note(f"on the path from networks[{i}] to networks[{j}]")
        raise


@dataclass(frozen=True)
class _Units:
    """Which of the shared units a layer has.

    Attributes:
        parts: (number of the shared layer, places in the layer, columns in the shared layer) of each that it reads.
        count: units.
    """

    parts: list[tuple[int, Tensor, Tensor]]
    count: int

    def of(self, shared: list[Tensor]) -> Tensor:
        """Return the pre-activations (N, n) of the layer."""
        block, places, columns = self.parts[0]
        if len(self.parts) > 1:
            found = shared[0].new_empty(len(shared[0]), self.count)
            for block, places, columns in self.parts:
                found[:, places] = shared[block].index_select(1, columns)
            return found
        if (columns == columns[0]).all():
            return shared[block][:, columns[:1]].expand(-1, self.count)
        whole = shared[block].shape[1] == self.count and torch.equal(columns, places)
        return shared[block] if whole else shared[block].index_select(1, columns)


class _Known:
    """The distinct units of first layers: rows of weights with their bias.

    Those of the networks are there from the start, layer by layer; `more` are rows of one further layer.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers, self.units = list(layers), len(layers[0][0])
        self.more: list[Layer] = []
        self._blocks = {tuple(map(id, layer)): i for i, layer in enumerate(layers)}
        self._rows = {key: (i, column) for i, layer in enumerate(layers) for column, key in enumerate(_digests(layer))}

    def find(self, layer: Layer) -> _Units | None:
        """Return which units a layer has; None if too many of them are new, its own or with those of earlier layers."""
        here = torch.arange(self.units, device=layer[0].device)
        block = self._blocks.get(tuple(map(id, layer)))
        if block is not None:
            return _Units([(block, here, here)], self.units)
        weight, bias = layer
        alike = bool((weight == weight[0]).all()) and (bias is None or bool((bias == bias[0]).all()))
        rows = _digests(layer, 1 if alike else None)
        new = {key: i for i, key in enumerate(rows) if key not in self._rows}
        half = max(1, self.units // 2)
        if len(new) > half or len(self.more) + len(new) > max(half, len(self.layers) ** 2):
            return None
        for key, i in new.items():
            self._rows[key] = len(self.layers), len(self.more)
            self.more.append((weight[i], None if bias is None else bias[i]))
        places = torch.tensor([self._rows[key] for key in rows], device=here.device).expand(self.units, 2)
        return _Units([(block, here[mine], places[mine, 1]) for block in places[:, 0].unique().tolist()
                       for mine in [places[:, 0] == block]], self.units)

    def every(self) -> list[Layer]:
        """Return the layers that are to be multiplied."""
        rows = [None if None in parts else torch.stack(parts) for parts in zip(*self.more, strict=True)]
        return self.layers + ([tuple(rows)] if rows else [])


def _digests(layer: Layer, count: int | None = None) -> list[bytes]:
    """Return what tells the first rows of a layer, or all, from others."""
    weight, bias = (None if part is None else part[:count] for part in layer)
    rows = (weight if bias is None else torch.cat([weight, bias[:, None]], 1)).detach().cpu().contiguous().numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


@dataclass(frozen=True)
class _Plan:
    """A path whose points share products, and where its scores go."""

    path: Path
    t: Tensor
    lengths: tuple[Tensor, Tensor]
    totals: dict[str, Sums]
    jobs: list[Job]


class _Shared:
    """Paths between one-hidden-layer networks that share first-layer products.

    Attributes:
        plans: pair -> what is known of its path; first layers are kept once.
    """

    def __init__(self, dense: OneHidden, task: Task, splits: Mapping[str, Split], networks: Sequence[Weights]) -> None:
        self.dense, self.task, self.splits = dense, task, splits
        self.known = _Known([dense.layer(dense.first, weights) for weights in networks])
        self.plans: dict[Pair, _Plan] = {}

    def take(self, pair: Pair, between: Path | Family, points: int | Sequence[float] | Tensor | None) -> bool:
        """Take on the path of a pair, or say that it shares too little."""
        path = as_path(between)
        if not all(isinstance(leg, Mix) for leg in path.legs):
            return False
        units = [[self.known.find(self.dense.layer(self.dense.first, point)) for point in leg.points]
                 for leg in path.legs]
        if any(one is None for some in units for one in some):
            return False
        t = grid(path, default_points(between) if points is None else points).sort().values
        totals = {name: Sums.zeros(len(t)) for name in self.splits}
        leg, s = path.locate(t)
        jobs = []
        for number in leg.unique().tolist():
            piece, where = path.legs[number], (leg == number).nonzero()[:, 0]
            jobs.append(Job.of(self.dense, (totals, where, piece.basis(s[where]).double()),
                               [self.dense.second(point) for point in piece.points],
                               partial(_features, units[number])))
        self.plans[pair] = _Plan(path, t, Lengths(path.point(0.0)).along(path, t), totals, jobs)
        return True

    def scored(self, precision: str | None, tick: Callable[[float], None]
               ) -> tuple[dict[Pair, pd.DataFrame], list[dict[str, str]]]:
        """Return pair -> table, and how the points were scored."""
        first = FirstLayers(self.task, self.known.every(), precision, images=sum(map(len, self.splits.values())))
        jobs = [job for plan in self.plans.values() for job in plan.jobs]
        every = len(self.splits) * sum(len(job.where) for job in jobs)
        score_jobs(self.task, first, jobs, lambda done: tick(done * len(self.plans) / every))
        tables = {}
        for pair, plan in self.plans.items():
            with _of_pair(*pair):
                for name, sums in plan.totals.items():
                    check_sums(sums, plan.t, name)
            tables[pair] = framed(Scored.of(plan.t, plan.totals, *plan.lengths), plan.path, self.splits, whole=None,
                                  nodes=False)
        return tables, [{"way": job.way, "product": first.product} for job in jobs]


def _features(units: Sequence[_Units], shared: list[Tensor]) -> list[Tensor]:
    return [one.of(shared) for one in units]
