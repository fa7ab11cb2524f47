"""Layers of a network, and the pieces of their tensors that belong to one unit axis."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from torch import Tensor

PER_UNIT = ("weight", "bias", "running_mean", "running_var")

Reads = str | tuple[str | None, ...] | None
Writes = str | tuple[str, ...] | None


@dataclass(frozen=True, repr=False)
class Layer:
    """One weight layer of a network.

    The first five fields describe dense, convolutional and residual networks; the others are for what `tracing.trace`
    meets in networks at large. A layer that reads the very axis it writes with a tensor that has no columns (a
    depth-wise convolution, a normalisation or PReLU on its own) works on every unit by itself: only its rows move.

    Attributes:
        module: dotted name of the linear or convolutional module, such as "blocks.0.conv2"; of a parameter, such as
            "class_token"; or of a packed part of a module: "attention.in_proj" has in_proj_weight and in_proj_bias.
        reads: unit axis of its inputs, such as "stream0"; several: their concatenation, in order; None: it reads the
            data, or nothing (a class token, an embedding).
        writes: unit axis of its outputs; several: its rows are dealt out to them in order, equally unless it reads the
            same axes; None: it writes the logits.
        norm: name of the normalisation that follows it (indexed by `writes`).
        pre_norm: name of the normalisation that precedes it (indexed by `reads`).
        fixed: whether the order of the units it writes matters; such an axis is never permuted or matched.
        widths: columns of each axis in `reads`, where these are several; empty: as many of each.
        dim: dimension of the tensor along which the units it writes lie: 1 for an embedding (words, units), 2 for a
            class token (1, 1, units). The units it reads lie along the other one of the first two.
        tied: name of the module that holds its weight, where two modules share one tensor.
        axis: the one of several axes that is meant; `axes` sets it.
    """

    module: str
    reads: Reads
    writes: Writes
    norm: str | None = None
    pre_norm: str | None = None
    fixed: bool = False
    widths: tuple[int, ...] = ()
    dim: int = 0
    tied: str | None = None
    axis: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Turn lists into tuples, so that a layer read back from JSON equals the one that was written."""
        for name in ("reads", "writes", "widths"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.widths and len(self.widths) != len(named(self.reads)):
            raise ValueError(f"widths of layer {self.module!r} must have one number for each axis that it reads, "
                             f"{named(self.reads)}, got {self.widths}")


    def __repr__(self) -> str:
        """Return the call that makes it, defaults left out."""
        more = [f"{each.name}={getattr(self, each.name)!r}" for each in fields(self)[3:]
                if each.compare and getattr(self, each.name) != each.default]
        return f"Layer({', '.join([repr(self.module), repr(self.reads), repr(self.writes), *more])})"


def named(value: Reads | Writes) -> tuple[str | None, ...]:
    """Return the axes of `reads` or `writes` as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def _narrowed(layer: Layer, value: Reads | Writes, axis: str) -> Layer:
    return replace(layer, axis=axis) if isinstance(value, tuple) else layer


def axes(layers: Iterable[Layer]) -> dict[str, tuple[tuple[Layer, ...], tuple[Layer, ...]]]:
    """Return unit axis -> (layers that write it, layers that read it), in forward order.

    A layer that reads or writes several axes is listed under each, equal to the given one, with its field `axis` set:
    hand layers on from here to `gather` and `scatter`.
    """
    found: dict[str, tuple[list[Layer], list[Layer]]] = {}
    for layer in layers:
        for side, value in ((1, layer.reads), (0, layer.writes)):
            for axis in dict.fromkeys(named(value)):
                if axis is not None:
                    found.setdefault(axis, ([], []))[side].append(_narrowed(layer, value, axis))
    return {axis: (tuple(writers), tuple(readers)) for axis, (writers, readers) in found.items()}


def free_axes(layers: Sequence[Layer]) -> list[str]:
    """Return the unit axes that may be permuted and matched, in forward order: none of their writers is `fixed`."""
    return [axis for axis, (writers, _) in axes(layers).items() if not any(layer.fixed for layer in writers)]


def tensor_name(weights: Collection[str], layer: Layer, part: str = "weight") -> str | None:
    """Return the name of a layer's weight, bias or statistic in `weights`; None where it has none.

    Raises:
        ValueError: if the layer has no weight there.
    """
    module = layer.tied if layer.tied and part == "weight" else layer.module
    for name in (f"{module}.{part}", f"{module}_{part}", *([module] if part == "weight" else [])):
        if name in weights:
            return name
    if part == "weight":
        raise ValueError(f"layers name {module!r}, which has no weight in this network")
    return None


def elementwise(weights: Mapping[str, Tensor], layer: Layer) -> bool:
    """Say whether a layer works on every unit of its axis by itself: a depth-wise convolution, a normalisation.

    Such a layer has no columns to refit.
    """
    if layer.reads is None or layer.reads != layer.writes:
        return False
    weight = weights[str(tensor_name(weights, layer))]
    return weight.ndim < 2 or layer.dim > 1 or weight.shape[1 - layer.dim] == 1


@dataclass(frozen=True)
class Piece:
    """The entries of one tensor that belong to an axis: a run along one dimension, dealt out to n units in order."""

    name: str
    dim: int
    start: int
    size: int

    def rows(self, tensor: Tensor, n: int) -> Tensor:
        """Return the (n, d) rows of the units: a view where memory allows."""
        if tensor.ndim == 0:
            return tensor.reshape(1, 1)
        # One unit owns a run of m entries behind a flatten: (..., n, m, ...) -> (n, ..., m, ...) -> (n, d).
        part = tensor.narrow(self.dim, self.start, self.size)
        return part.unflatten(self.dim, (n, self.size // n)).movedim(self.dim, 0).reshape(n, -1)

    def entries(self, tensor: Tensor, n: int) -> int:
        """Return d, the number of entries that one unit has."""
        return tensor.numel() // (tensor.shape[self.dim] if tensor.ndim else 1) * self.size // n

    def put(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """Return `tensor` with the rows (n, d) in their places: the inverse of `rows`."""
        n, shape = len(rows), list(tensor.shape) or [1]
        rest = [*shape[: self.dim], self.size // n, *shape[self.dim + 1 :]]
        part = rows.reshape(n, *rest).movedim(0, self.dim).flatten(self.dim, self.dim + 1)
        if self.size == shape[self.dim]:
            return part.reshape(tensor.shape)
        return tensor.slice_scatter(part, self.dim, self.start, self.start + self.size)


def _runs(value: Reads | Writes, total: int, layer: Layer, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, size) of the runs of `total` entries that belong to the layer's axis; widths: all axes' shares."""
    if not isinstance(value, tuple):
        return [(0, total)]
    if layer.axis is None:
        raise ValueError(f"layer {layer.module!r} has several axes, {value}: take it from layers.axes(), which says "
                         "which one is meant")
    shares = list(widths) or [1] * len(value)
    ends = [total * sum(shares[:i]) for i in range(len(shares) + 1)]
    if any(end % sum(shares) for end in ends):
        raise ValueError(f"widths of layer {layer.module!r} must share out {total} entries among the axes {value}, "
                         f"got {tuple(widths)}")
    places = [end // sum(shares) for end in ends]
    return [(places[i], places[i + 1] - places[i]) for i, name in enumerate(value) if name == layer.axis]


def _norm_pieces(weights: Mapping[str, Tensor], norm: str | None, value: Reads | Writes, layer: Layer,
                 widths: Sequence[int]) -> list[Piece]:
    found = [f"{norm}.{part}" for part in PER_UNIT if norm and f"{norm}.{part}" in weights]
    return [Piece(name, 0, *run) for name in found
            for run in _runs(value, weights[name].shape[0], layer, widths)]


def _written(weights: Mapping[str, Tensor], layer: Layer) -> list[Piece]:
    found, value = [], layer.writes if layer.axis else None  # on its own: all of its rows
    shares = layer.widths if layer.reads == layer.writes else ()
    for part in PER_UNIT:
        if name := tensor_name(weights, layer, part):
            dim = layer.dim if part == "weight" else 0
            total = weights[name].shape[dim] if weights[name].ndim else 1
            found += [Piece(name, dim, *run) for run in _runs(value, total, layer, shares)]
    return found + _norm_pieces(weights, layer.norm, value, layer, shares)


def _read(weights: Mapping[str, Tensor], layer: Layer) -> list[Piece]:
    found = _norm_pieces(weights, layer.pre_norm, layer.reads, layer, layer.widths)
    if elementwise(weights, layer):
        return found
    name = str(tensor_name(weights, layer))
    dim = 1 if layer.dim == 0 else 0
    runs = _runs(layer.reads, weights[name].shape[dim], layer, layer.widths)
    return found + [Piece(name, dim, *run) for run in runs]


def width(weights: Mapping[str, Tensor], writers: Sequence[Layer]) -> int:
    """Return n, the number of units that the layers write.

    Raises:
        ValueError: if there is no writer, or the writers disagree.
    """
    if not writers:
        raise ValueError("writers must name at least one layer, got none")
    sizes = {layer: _written(weights, layer)[0].size for layer in writers}
    # A depth-wise convolution may have several filters for each unit, and a scale one number for all.
    whole = {size for layer, size in sizes.items() if size > 1 and not elementwise(weights, layer)}
    counts = whole or {min(sizes.values())}
    if len(counts) != 1:
        raise ValueError(f"an axis must be written by layers of equal width, got widths {sorted(counts)} of "
                         f"{[layer.module for layer in writers]}")
    return counts.pop()


def pieces(weights: Mapping[str, Tensor], writers: Sequence[Layer], readers: Sequence[Layer]) -> list[Piece]:
    """Return the pieces of all tensors that belong to one axis, each once: rows of writers, then what readers have."""
    n = width(weights, writers)
    found = [piece for layer in writers for piece in _written(weights, layer)]
    found += [piece for layer in readers for piece in _read(weights, layer)]
    found = [piece for piece in dict.fromkeys(found) if piece.size > 1 or n == 1]
    if any(layer.fixed for layer in writers):  # its readers may see the units in another number or order
        return [piece for piece in found if not piece.size % n]
    for piece in found:
        if piece.size % n:
            raise ValueError(f"{piece.name!r} must have a multiple of {n} entries for the {n} units of its axis, "
                             f"got {piece.size}")
    return found
