"""What the operations of a forward pass do to unit labels: one rule for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from lossland.tracing.labels import (
    Axis,
    Label,
    Ledger,
    Record,
    Run,
    Value,
    broadcast,
    fix,
    joined,
    part,
    plain,
    regroup,
    roots,
    unify,
)


@dataclass(frozen=True)
class Call:
    """One operation: a function, a method or a module, with its arguments and what it gives on the `meta` device.

    Attributes:
        name: of the function or method, without the underscore of the in-place form; of a module its class.
        function: runs it.
        args, kwargs: with `Value`s for tensors.
        result: a tensor, several, or something else.
        path: dotted name of the module; None for functions.
        module: itself.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    path: str | None = None
    module: nn.Module | None = None

    @property
    def values(self) -> list[Value]:
        """All tensors among the arguments."""
        return list(values_in((self.args, dict(self.kwargs))))

    @property
    def first(self) -> Value:
        """The tensor that is worked on."""
        return self.values[0]

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument given by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


def values_in(some: Any) -> Iterator[Value]:
    """Yield the values in nested arguments or results."""
    if isinstance(some, Value):
        yield some
    elif isinstance(some, Mapping):
        for one in some.values():
            yield from values_in(one)
    elif isinstance(some, (tuple, list)):
        for one in some:
            yield from values_in(one)
    elif isinstance(some, slice):
        yield from values_in((some.start, some.stop, some.step))


def stripped(some: Any) -> Any:
    """Return arguments with tensors in place of values."""
    return map_aggregate(some, lambda one: one.tensor if isinstance(one, Value) else one)


Rule = Callable[[Ledger, Call], Any]


def _same(call: Call, labels: tuple[Label, ...], norm: Record | None = None) -> Value:
    return Value(call.result, labels, norm=norm)


def _elementwise(ledger: Ledger, call: Call) -> Value:
    values = call.values
    norms = [value.norm for value in values if value.norm]
    labels = broadcast(values, call.result.shape)
    for value in values:
        if value.parameter and not any(value.labels):  # one number for all units
            ledger.enter("parameter", value.parameter).writes = next((label for label in labels if label), None)
    return _same(call, labels, norms[0] if len(values) == 1 and norms else None)


def _views(ledger: Ledger, call: Call) -> Value:
    """Reshapes of any kind."""
    value = call.first
    return replace(_same(call, regroup(value, call.result.shape), value.norm), writer=value.writer)


def _expand(ledger: Ledger, call: Call) -> Value:
    return _same(call, broadcast([call.first], call.result.shape), call.first.norm)


def _reorder(ledger: Ledger, call: Call) -> Value:
    """Permutations of dimensions: seen on a tensor whose sizes are all different."""
    value = call.first
    probe = torch.empty(tuple(range(2, 2 + len(value.shape))), device="meta")
    rest = stripped(call.args[1:])
    places = [size - 2 for size in call.function(probe, *rest, **stripped(dict(call.kwargs))).shape]
    return Value(call.result, tuple(value.labels[i] for i in places), value.writer, value.norm)


def _pool(ledger: Ledger, call: Call) -> Any:
    """Pooling, resizing and padding of pixels: batch and channels keep their units where their size stays."""
    value = call.first
    result = call.result if isinstance(call.result, Tensor) else call.result[0]
    labels: list[Label] = []
    for i, label in enumerate(value.labels):
        inside = i >= 2 if len(value.shape) > 2 else i >= 1
        if label is not None and (inside or value.shape[i] != result.shape[i]):
            fix(label)
            label = None if inside else tuple(Run(axis, result.shape[i]) for axis in roots(label)[:1])
        labels.append(label)
    found = Value(result, tuple(labels), norm=value.norm)
    return found if isinstance(call.result, Tensor) else (found, plain(call.result[1]))


def _scrambled(ledger: Ledger, call: Call) -> Value:
    """Operations that put units into an order of their own: their axes are fixed."""
    value = call.first
    fix(*value.labels)
    axes = [axis for label in value.labels for axis in roots(label)]
    labels: list[Label] = [None] * call.result.ndim
    if axes:
        place = next(i for i, label in enumerate(value.labels) if label is not None)
        labels[place] = (Run(axes[0], call.result.shape[place]),)
    return _same(call, tuple(labels))


def _reduce(ledger: Ledger, call: Call) -> Any:
    """Sums, means and extremes: symmetric in what they are taken over."""
    if len(call.values) > 1:
        return _elementwise(ledger, call)
    value, dims = call.first, call.get(1, "dim")
    whole = range(len(value.shape)) if dims is None else dims if isinstance(dims, (tuple, list)) else (dims,)
    gone = {dim % max(len(value.shape), 1) for dim in whole}
    result = call.result if isinstance(call.result, Tensor) else call.result[0]
    if result.ndim == len(value.shape):
        labels = tuple(None if i in gone else label for i, label in enumerate(value.labels))
    else:
        labels = tuple(label for i, label in enumerate(value.labels) if i not in gone)
    if isinstance(call.result, Tensor):
        return _same(call, labels, value.norm)
    fix(*(value.labels[i] for i in gone))  # its second result says which unit it was
    return tuple(Value(tensor, labels) for tensor in call.result)


def _concatenate(ledger: Ledger, call: Call) -> Value:
    values, dim = list(call.values), call.get(1, "dim", 0)
    return _same(call, joined(values, dim % len(values[0].shape), call.result.shape))


def _stack(ledger: Ledger, call: Call) -> Value:
    values, dim = list(call.values), call.get(1, "dim", 0)
    labels = list(broadcast(values, values[0].shape))
    labels.insert(dim % call.result.ndim, None)
    return _same(call, tuple(labels))


def _pieces(ledger: Ledger, call: Call) -> tuple[Value, ...]:
    """Chunk, split, unbind: several parts along one dimension."""
    value, found, start = call.first, [], 0
    dim = call.get(1 if call.name == "unbind" else 2, "dim", 0) % len(value.shape)
    for tensor in call.result:
        labels = list(value.labels)
        if call.name == "unbind":
            fix(labels.pop(dim))
        else:
            labels[dim] = part(value.labels[dim], start, tensor.shape[dim])
            start += tensor.shape[dim]
        found.append(Value(tensor, tuple(labels)))
    return tuple(found)


def _index(ledger: Ledger, call: Call) -> Any:
    """Indexing of a tensor, or of several results."""
    value, index = call.args
    if not isinstance(value, Value):
        return value[index]
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(one, (Value, list)) for one in index):
        if any(label is not None for label in value.labels):
            raise LookupError("indexing by a tensor")
        return plain(call.result)
    used = sum(one is not None and one is not Ellipsis for one in index)
    fill = (slice(None),) * (len(value.shape) - used)
    at = index.index(Ellipsis) if any(one is Ellipsis for one in index) else len(index)
    labels: list[Label] = []
    dims = iter(range(len(value.shape)))
    for one in (*index[:at], *fill, *index[at + 1 :]):
        if one is None:
            labels.append(None)
            continue
        dim = next(dims)
        if isinstance(one, slice):
            start, stop, step = one.indices(value.shape[dim])
            if step != 1:
                fix(value.labels[dim])
            labels.append(part(value.labels[dim], start, len(range(start, stop, step))))
        else:
            fix(value.labels[dim])
    return _same(call, tuple(labels), value.norm)


def _contract(ledger: Ledger, call: Call) -> Value:
    """Matrix product of two tensors, neither of them a vector."""
    one, two = call.values[:2]
    if min(len(one.shape), len(two.shape)) < 2:
        raise LookupError("product with a vector")
    if two.parameter and len(two.shape) == 2:
        record = ledger.weight(two.parameter, None, one.labels[-1], new_units(two.shape[1]), dim=1)
        ledger.absorb(record, one)
        return replace(_same(call, (*one.labels[:-1], record.writes)), writer=record)
    if one.parameter or two.parameter:
        raise LookupError("product with a parameter that is not the second factor of x @ weight")
    unify(one.labels[-1], two.labels[-2])
    rest = broadcast([_corner(one), _corner(two)], call.result.shape)[:-2]
    return _same(call, (*rest, one.labels[-2], two.labels[-1]))


def _corner(value: Value) -> Value:
    """Return a value for the dimensions in front of the last two alone."""
    shape = (*value.shape[:-2], 1, 1)
    return Value(value.tensor.new_empty(shape), (*value.labels[:-2], None, None))


def _attention_function(ledger: Ledger, call: Call) -> Value:
    query, key, value = call.values[:3]
    unify(query.labels[-1], key.labels[-1])
    fix(unify(key.labels[-2], value.labels[-2]))
    rest = broadcast([_corner(query), _corner(key), _corner(value)], call.result.shape)[:-2]
    return _same(call, (*rest, query.labels[-2], value.labels[-1]))


def _symmetric(ledger: Ledger, call: Call) -> Value:
    """Softmax, L2 normalisation: they treat what they run over alike."""
    return _same(call, call.first.labels)


def new_units(n: int) -> Label:
    """Return the label of n new units."""
    return (Run(Axis(n), n),)


_WORDS = {
    _elementwise: "add radd sub rsub mul rmul truediv rtruediv div pow rpow neg abs relu relu6 gelu silu mish sigmoid "
    "logsigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus softsign threshold clamp clip "
    "exp log log1p sqrt rsqrt square sin cos erf maximum minimum where dropout dropout1d dropout2d dropout3d "
    "alpha_dropout clone contiguous detach to type float double half type_as lerp addcmul positive sign eq ne lt gt le "
    "ge masked_fill iadd isub imul itruediv",
    _views: "view reshape flatten unflatten squeeze unsqueeze ravel view_as reshape_as",
    _expand: "expand expand_as broadcast_to",
    _reorder: "permute transpose swapaxes swapdims movedim moveaxis t",
    _pool: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d interpolate pad lp_pool2d",
    _scrambled: "pixel_shuffle pixel_unshuffle channel_shuffle roll flip cumsum",
    _reduce: "mean sum amax amin max min var std logsumexp norm prod",
    _concatenate: "cat concat concatenate", _stack: "stack", _pieces: "chunk split tensor_split unbind",
    _index: "getitem", _contract: "matmul bmm", _attention_function: "scaled_dot_product_attention",
    _symmetric: "softmax log_softmax normalize",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _WORDS.items() for name in names.split()}
"""Name of a function or method -> what it does to labels."""
