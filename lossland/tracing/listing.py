"""From the layers that a trace has met to the list of `Layer`s: which axes are free, what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from lossland.tracing.labels import Axis, Label, Ledger, Record, fix, roots
from lossland.units import Layer


def listed(ledger: Ledger, parameters: Collection[str]) -> list[Layer]:
    """Return the layers of a traced network in forward order.

    Args:
        ledger: what was met.
        parameters: names of the network's parameters.
    """
    records = [record for record in ledger.records if not record.taken]
    for record in records:
        if record.kind == "norm" and f"{record.module}.weight" not in parameters:
            fix(record.writes)  # its statistics have no row in a list of weights
    records = [record for record in records if record.kind != "norm" or f"{record.module}.weight" in parameters]
    written = Counter(axis for record in records if record.kind == "weight" for axis in roots(record.writes))
    read = Counter(axis for record in records if record.kind == "weight" for axis in roots(record.reads))
    for record in records:
        if record.kind == "parameter" and any(record.every):
            _place(record, {*written, *read})
    _settle(records, written, read)
    names = _names(records)
    return [_layer(record, names, unread={axis for axis in written if not read[axis]}) for record in records]


def _place(record: Record, known: Collection[Axis]) -> None:
    """Choose the dimension of a parameter along which units lie; the others are fixed."""
    dims = [dim for dim, label in enumerate(record.every) if label is not None]
    record.dim = max(dims, key=lambda dim: (any(axis in known for axis in roots(record.every[dim])),
                                            not any(axis.fixed for axis in roots(record.every[dim])), dim))
    record.writes = record.every[record.dim]
    fix(*(record.every[dim] for dim in dims if dim != record.dim))


def _settle(records: list[Record], written: Counter[Axis], read: Counter[Axis]) -> None:
    """Fix the axes whose units cannot change places."""
    for record in records:
        for axis in roots(record.writes):
            # An axis without readers is free only if it is contracted with itself: queries and keys of attention.
            if axis.output or (not read[axis] and written[axis] < 2):
                axis.fixed = True


def _names(records: list[Record]) -> dict[Axis, str]:
    found: dict[Axis, str] = {}
    for record in records:
        for i, axis in enumerate(roots(record.writes)):
            found.setdefault(axis, record.names[i] if record.names else record.module)
    return found


def _named(label: Label, names: dict[Axis, str]) -> str | tuple[str | None, ...] | None:
    if label is None or all(run.axis is None for run in label):
        return None
    found = tuple(run.axis and names[run.axis.root()] for run in label)
    return found if len(found) > 1 else found[0]


def _layer(record: Record, names: dict[Axis, str], *, unread: Collection[Axis]) -> Layer:
    reads, writes = (_named(label, names) for label in (record.reads, record.writes))
    ends = [axis for axis in roots(record.writes) if axis.output and (axis in unread or axis not in names)]
    if ends:
        reads, writes = (None if record.kind == "each" else reads), None
    fixed = writes is not None and any(axis.fixed for axis in roots(record.writes))
    widths = tuple(run.size for run in record.reads or ()) if isinstance(reads, tuple) else ()
    return Layer(record.module, reads, writes, record.norm, record.pre_norm, fixed, widths, record.dim, record.tied)
