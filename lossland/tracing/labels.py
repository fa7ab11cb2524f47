"""Labels: which unit axis lies along which dimension of a tensor that flows through a network, and the layers found.

`operations` says what every operation does to labels, `tracing` runs a network on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import prod

from torch import Tensor


class Axis:
    """A set of n units; axes that turn out to be the same are merged (union-find)."""

    def __init__(self, n: int) -> None:
        self.n, self.fixed, self.output = n, False, False
        self._parent: Axis | None = None

    def root(self) -> Axis:
        """Return the axis that stands for all that were merged with this one."""
        return self if self._parent is None else self._parent.root()

    def merge(self, other: Axis) -> Axis:
        """Return one axis for both; where their numbers of units differ, its order matters."""
        one, two = self.root(), other.root()
        if one is not two:
            two._parent = one
            one.fixed |= two.fixed or one.n != two.n
            one.output |= two.output
        return one


@dataclass(frozen=True)
class Run:
    """A run of entries along a dimension that belongs to one axis, unit by unit; None: to the data."""

    axis: Axis | None
    size: int


Label = tuple[Run, ...] | None
"""What lies along one dimension: runs of unit axes in order; None: pixels, images, words, nothing that is a unit."""


@dataclass(frozen=True)
class Value:
    """A tensor in a network's forward pass: its shape (on the `meta` device) and the label of every dimension.

    Attributes:
        tensor: without storage.
        labels: one for each dimension.
        writer: the layer whose outputs these are, as they come.
        norm: a normalisation behind them that no layer has taken up yet.
        parameter: name of the parameter that this is.
    """

    tensor: Tensor
    labels: tuple[Label, ...]
    writer: Record | None = None
    norm: Record | None = None
    parameter: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.tensor.shape)


@dataclass(eq=False)
class Record:
    """A layer as it is found: like `Layer`, with labels instead of names."""

    kind: str  # "weight" | "each" (works on every unit by itself) | "norm" | "parameter"
    module: str
    reads: Label = None
    writes: Label = None
    norm: str | None = None
    pre_norm: str | None = None
    dim: int = 0
    tied: str | None = None
    names: tuple[str, ...] = ()
    taken: bool = False  # a normalisation that belongs to another record
    every: tuple[Label, ...] = field(default=())  # a parameter's labels, all dimensions


def plain(tensor: Tensor) -> Value:
    """Return a value without units."""
    return Value(tensor, (None,) * tensor.ndim)


def roots(label: Label) -> list[Axis]:
    """Return the axes along a dimension."""
    return [run.axis.root() for run in label or () if run.axis is not None]


def fix(*labels: Label) -> None:
    """Note that the order of these units matters."""
    for label in labels:
        for axis in roots(label):
            axis.fixed = True


def unify(one: Label, two: Label) -> Label:
    """Return the label of a dimension along which both lie: their axes are the same, or their order matters."""
    if one is None or two is None:
        fix(one, two)
        return one or two
    if [run.size for run in one] != [run.size for run in two]:
        fix(one, two)
        return one
    merged = []
    for first, second in zip(one, two, strict=True):
        if first.axis is None or second.axis is None:
            fix((first, second))
            merged.append(Run(first.axis or second.axis, first.size))
        else:
            merged.append(Run(first.axis.merge(second.axis), first.size))
    return tuple(merged)


def broadcast(values: Sequence[Value], shape: Sequence[int]) -> tuple[Label, ...]:
    """Return the labels of an elementwise combination of `values`, whose result has this shape."""
    found: list[Label] = []
    for back in range(1, len(shape) + 1):
        whole = [value for value in values if len(value.shape) >= back and value.shape[-back] == shape[-back] != 1]
        label: Label = whole[0].labels[-back] if whole else None
        for value in whole[1:]:
            label = unify(label, value.labels[-back])
        # A position embedding's places are those of the data: nothing to permute.
        places = any(value.labels[-back] is None and not value.parameter for value in whole)
        owned = all(value.parameter for value in whole if value.labels[-back] is not None)
        found.append(None if places and owned else label)
    return tuple(reversed(found))


def regroup(value: Value, shape: Sequence[int]) -> tuple[Label, ...]:
    """Return the labels behind a reshape: units in front of pixels may be flattened, and unflattened again."""
    old = [i for i, size in enumerate(value.shape) if size != 1]
    new = [i for i, size in enumerate(shape) if size != 1]
    found: list[Label] = [None] * len(shape)
    while old and new:
        take, give = [old.pop(0)], [new.pop(0)]
        while (here := prod(value.shape[i] for i in take)) != (there := prod(shape[i] for i in give)):
            (take.append(old.pop(0)) if here < there else give.append(new.pop(0)))
        first, rest = value.labels[take[0]], [value.labels[i] for i in take[1:]]
        if all(label is None for label in (first, *rest)):
            continue
        inner = prod(value.shape[i] for i in take[1:])
        outer = prod(shape[i] for i in give[1:])
        known = first or next(label for label in rest if label is not None)
        sizes = [run.size * inner / outer for run in known]
        whole = all(size.is_integer() and (run.axis is None or size % run.axis.n == 0)
                    for size, run in zip(sizes, known, strict=True))
        if any(label is not None for label in rest) or not whole:
            fix(first, *rest)
            held = dict.fromkeys(axis for label in (first, *rest) for axis in roots(label))
            for i in give:  # in an order of its own, but known to hold these units
                found[i] = tuple(Run(axis, shape[i]) for axis in held)
        else:
            found[give[0]] = tuple(Run(run.axis, int(size)) for size, run in zip(sizes, known, strict=True))
    return tuple(found)


def part(label: Label, start: int, size: int) -> Label:
    """Return the label of `size` entries from `start` on; where a run is cut, the order of its units matters."""
    if label is None:
        return None
    found, here = [], 0
    for run in label:
        low, high = max(start, here), min(start + size, here + run.size)
        if low < high:
            if high - low < run.size:
                fix((run,))
            found.append(Run(run.axis, high - low))
        here += run.size
    return tuple(found)


def joined(values: Sequence[Value], dim: int, shape: Sequence[int]) -> tuple[Label, ...]:
    """Return the labels of a concatenation along `dim`."""
    along = [value.labels[dim] for value in values]
    units = [run for label, value in zip(along, values, strict=True)
             for run in label or (Run(None, value.shape[dim]),)]
    found: list[Label] = []
    for i in range(len(shape)):
        label = values[0].labels[i]
        for value in values[1:] if i != dim else ():
            label = unify(label, value.labels[i])
        found.append(label)
    found[dim] = tuple(units) if any(label is not None for label in along) else None
    return tuple(found)


def same_units(one: Label, two: Label) -> bool:
    """Say whether two labels name the same axes in the same order."""
    pairs = zip_longest(one or (), two or ())
    return all(a and b and a.axis and b.axis and a.axis.root() is b.axis.root() for a, b in pairs)


class Ledger:
    """What is known of a network's layers while it is traced.

    Attributes:
        records: layers in the order in which they are met.
        first: other name -> first name of parameters with several names.
    """

    def __init__(self, first: dict[str, str]) -> None:
        self.records: list[Record] = []
        self.first = first
        self._bound: dict[tuple[str, int], Label] = {}

    def bind(self, tensor: str, dim: int, label: Label) -> Label:
        """Return the label of a dimension of a parameter: every use of the parameter has the same one."""
        key = (self.first.get(tensor, tensor), dim)
        self._bound[key] = unify(self._bound[key], label) if key in self._bound else label
        return self._bound[key]

    def enter(self, kind: str, module: str, names: Iterable[str] = ()) -> Record:
        """Return the record of a module, a new one at its first use."""
        for record in self.records:
            if record.module == module:
                return record
        self.records.append(Record(kind, module, names=tuple(names)))
        return self.records[-1]

    def weight(self, weight: str, bias: str | None, reads: Label, writes: Label, *, dim: int = 0) -> Record:
        """Note a layer by the names of its tensors; the rows of its weight lie along `dim`, its columns across."""
        module = weight.removesuffix(".weight")
        record = self.enter("weight", module)
        home = self.first.get(weight)
        record.tied = home.removesuffix(".weight") if home else None
        record.dim = dim
        record.writes = self.bind(weight, dim, writes)
        record.reads = self.bind(weight, 1 - dim, reads)
        if bias is not None:
            self.bind(bias, 0, record.writes)
            if bias != f"{module}.bias":
                self.enter("parameter", bias).every = (record.writes,)
        return record

    def absorb(self, record: Record, value: Value) -> None:
        """Let a layer take up the normalisation in front of it."""
        norm = value.norm
        if norm is not None and not norm.taken and record.pre_norm is None and same_units(norm.writes, record.reads):
            record.pre_norm, norm.taken = norm.module, True

    def each(self, module: str, label: Label, *, tensors: Iterable[str] = ("weight", "bias")) -> Record:
        """Note a layer that works on every unit of `label` by itself."""
        record = self.enter("each", module)
        for tensor in tensors:
            label = self.bind(f"{module}.{tensor}", 0, label)
        record.reads = record.writes = label
        return record

    def normalise(self, module: str, value: Value, label: Label) -> Record | None:
        """Note a normalisation indexed by `label`; return its record unless it belongs to the layer before it."""
        known = any(record.module == module or record.norm == module for record in self.records)
        label = self.bind(f"{module}.norm", 0, label)
        if known:
            return None
        if value.writer is not None and value.writer.norm is None:
            value.writer.norm = module
            return None
        record = self.enter("norm", module)
        record.reads = record.writes = label
        return record

    def parameter(self, value: Value) -> None:
        """Note a parameter that is added or multiplied, or starts a stream."""
        name = str(value.parameter)
        bound = tuple(label and self.bind(name, i, label) for i, label in enumerate(value.labels))
        self.enter("parameter", name).every = bound
