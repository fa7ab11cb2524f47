"""The layer list of any network: traced by torch.fx on tensors without storage, and proved by permuting its units."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Proxy, Tracer
from torch.fx.node import map_aggregate
from torch.fx.proxy import TraceError

from lossland.layers import Layer, verify
from lossland.tracing.blocks import applied, rule_of
from lossland.tracing.labels import Axis, Ledger, Run, Value, plain, roots
from lossland.tracing.listing import listed
from lossland.tracing.operations import Call, stripped, values_in
from lossland.weights import skeleton, tied

BY_HAND = ("; pass layers= by hand, a list such as [ll.Layer('first', None, 'hidden'), ll.Layer('second', 'hidden', "
           "None)], and check it by ll.verify(net, layers, images)")
_DATA = {"item", "tolist", "numpy", "nonzero", "unique", "__bool__", "bincount"}


def trace(net: nn.Module, example: Tensor) -> list[Layer]:
    """Return the weight layers of any network in forward order, found by running it on an example's shape.

    torch.fx follows the forward pass on tensors without storage; every dimension of every tensor carries the unit axis
    that lies along it. Residual additions make axes one, concatenations string them together; a module or function
    that gives units an order (a grouped convolution, group normalisation) makes their axis `fixed`: methods without
    matching still work. At the end the list is proved by `layers.verify`.

    Args:
        net: the network; it is not changed. Its parameters may live on the `meta` device.
        example: (n, ...) one or a few inputs as the network takes them, such as `task.train.images[:2]`, prepared.

    Returns:
        Layers; an axis is called after the first module that writes it.

    Raises:
        TypeError: if `net` is not a module, or `example` not a tensor.
        ValueError: if the network has no weights; two of its parameters share memory without being one; its forward
            pass depends on the values of the data, cannot take the example, changes a parameter, or has an operation
            whose effect on units is not known (named, with its module); or permuting units changes the outputs.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> for layer in trace(net, torch.zeros(1, 4)):
        ...     layer.module, layer.reads, layer.writes
        ('0', None, '0')
        ('2', '0', None)
    """
    _check(net, example)
    inputs = example[:2]
    walk = _Walk(net, inputs)
    layers = listed(walk.ledger, {name for name, _ in net.named_parameters()})
    try:
        verify(net, layers, inputs)
    except ValueError as error:
        raise ValueError(f"trace found layers of {type(net).__name__} that permuting its units does not bear out: "
                         f"{error}{BY_HAND}") from error
    return layers


def layers_of(net: nn.Module, layers: Sequence[Layer] | None = None,
              example: Tensor | None = None) -> tuple[Layer, ...]:
    """Return the layers of a network: those given, else its own `net.layers()`, else what `trace` finds.

    Args:
        net: the network.
        layers: given by hand.
        example: what `trace` takes; None: the network is not traced.

    Raises:
        TypeError: if nothing tells the layers.
        ValueError: as `trace`.
    """
    if layers is not None:
        return tuple(layers)
    if isinstance(getattr(net, "layers", None), MethodType):
        return tuple(net.layers())
    if example is None:
        raise TypeError(f"layers must be given for {type(net).__name__}, which has no method layers(): a list such as "
                        "[ll.Layer('first', None, 'hidden'), ll.Layer('second', 'hidden', None)]; or a task, on whose "
                        "images it can be traced")
    return tuple(trace(net, example))


def _check(net: nn.Module, example: Tensor) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be an nn.Module, got {type(net).__name__}")
    if not isinstance(example, Tensor):
        raise TypeError(f"example must be a tensor of inputs (n, ...), got {type(example).__name__}")
    parameters = dict(net.named_parameters())
    if not parameters:
        raise ValueError(f"net must have weights, got a {type(net).__name__} without parameters")
    places: dict[int, str] = {}
    for name, parameter in parameters.items():
        other = name if parameter.is_meta or not parameter.numel() else places.setdefault(
            parameter.untyped_storage().data_ptr(), name)
        if other != name:
            raise ValueError(f"parameters {other!r} and {name!r} share memory but are two parameters, so that changing "
                             "one changes the other; tie weights by giving both modules the same nn.Parameter")


class _Root(nn.Module):
    """Gives a network exactly one input, whatever else its forward takes by default."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        return self.net(images)


class _Walk(Tracer):
    """One run of a network on values; sizes are plain numbers, so that Python may branch on them, but not on data."""

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        super().__init__()
        bare = skeleton(net)
        dtype = next(bare.parameters()).dtype
        meta = example.to("meta")
        self.input = plain(meta.to(dtype) if meta.is_floating_point() else meta)
        self.tensors = {**dict(bare.named_buffers()), **dict(bare.named_parameters(remove_duplicate=False))}
        self.ledger, self.running = Ledger(tied(net)), False
        self.found: dict[Any, Any] = {}
        try:
            graph = self.trace(_Root(bare))
        except (TraceError, TypeError, RuntimeError) as error:
            raise ValueError(f"forward of {type(net).__name__} cannot be traced: {error}{BY_HAND}") from error
        self._close(graph)

    def _close(self, graph: Graph) -> None:
        """Mark the axes that reach the outputs."""
        (last,) = [node for node in graph.nodes if node.op == "output"]
        outputs: list[Any] = []
        map_aggregate(last.args, lambda one: outputs.append(self.found.get(one)))
        for value in values_in(outputs):
            for label in value.labels:
                for axis in roots(label):
                    axis.output = True

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Take modules of known kinds as a whole, and PyTorch's that have weights of their own; look into others."""
        ours = type(module).forward.__module__.startswith("torch.nn")
        return ours and (rule_of(module) is not None or not list(module.children()))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run modules as they are while an operation is tried out."""
        return forward(*args, **kwargs) if self.running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Hand out parameters as they are while an operation is tried out."""
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: Proxy) -> bool:
        """Return a truth value that does not depend on data.

        Raises:
            ValueError: if it does.
        """
        return bool(self._plainly(obj, "a condition"))

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Iterate over the first dimension."""
        value = self.found[obj.node]
        return iter([obj[i] for i in range(value.shape[0])]) if isinstance(value, Value) else iter(value)

    def _plainly(self, obj: Proxy, what: str) -> Any:
        value = self.found[obj.node]
        if isinstance(value, Value):
            raise ValueError(f"forward depends on the values of the data: {what} {self._where()}{BY_HAND}")
        return value

    def _where(self) -> str:
        path = str(self.scope.module_path).removeprefix("net").removeprefix(".")
        kind = getattr(self.scope.module_type, "__name__", "the network")
        return f"in {path!r} ({kind})" if path else f"in the forward of {kind}"

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Record an operation, and find out what it gives; what holds no tensor is handed out as it is."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        given = map_aggregate((args, kwargs), self._value)
        self.found[proxy.node] = result = self._result(kind, target, *given)
        if target is getattr:  # a proxy that fx makes for itself
            return proxy
        if type(result) in (tuple, list) and any(True for _ in values_in(result)):
            return type(result)(proxy[i] for i in range(len(result)))
        return proxy if any(True for _ in values_in(result)) else result

    def _value(self, one: Any) -> Any:
        if isinstance(one, Proxy):
            return self.found[one.node]
        return plain(one.to("meta")) if isinstance(one, Tensor) else one

    def _result(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.input
        if kind == "get_attr":
            return self._parameter(target.removeprefix("net."))
        if target is getattr:
            return self._attribute(*args[:2])
        call = self._tried(kind, target, args, kwargs)
        if not any(True for _ in call.values) or not _tensors(call.result):
            return call.result
        same = [value for value in call.values if value.tensor is call.result]
        if same and not same[0].parameter:
            return same[0]  # it hands on its input: dropout in evaluation
        try:
            return applied(self.ledger, call)
        except LookupError as error:
            what = f"module {call.path!r} ({call.name})" if call.path else f"{call.name} {self._where()}"
            more = f" ({error.args[0]})" if error.args[0] != call.name else ""
            raise ValueError(f"trace does not know what {what}{more} does to units{BY_HAND}") from error

    def _parameter(self, name: str) -> Value:
        tensor = self.tensors[name]
        if not isinstance(tensor, nn.Parameter):
            return plain(tensor)
        labels = tuple((Run(Axis(n), n),) if n > 1 else None for n in tensor.shape)
        return Value(tensor.detach(), labels, parameter=self.ledger.first.get(name, name))

    def _attribute(self, value: Any, name: str) -> Any:
        if name in ("T", "mT") and isinstance(value, Value):
            return self._result("call_method", "transpose", (value, -1, -2), {})
        if name in ("values", "indices") and isinstance(value, tuple):
            return value[name == "indices"]
        if name in ("data", "grad"):
            raise ValueError(f"forward uses .{name} of a tensor {self._where()}, which cannot be followed{BY_HAND}")
        return getattr(value.tensor if isinstance(value, Value) else value, name)

    def _tried(self, kind: str, target: Any, args: Any, kwargs: Any) -> Call:
        path = module = None
        if kind == "call_module":
            path = target.removeprefix("net").removeprefix(".")
            function = module = self.root.get_submodule(target)
            name = type(module).__name__
        elif kind == "call_method":
            name, function = target, functools.partial(_method, target)
        else:
            name, function = getattr(target, "__name__", str(target)), target
        inside = name.endswith("_") and not name.endswith("__") or target in (operator.iadd, operator.imul)
        if inside and args and isinstance(args[0], Value) and args[0].parameter:
            raise ValueError(f"forward changes the parameter {args[0].parameter!r} in place by {name} {self._where()}; "
                             "a network must be a function of its parameters")
        if name in _DATA:
            raise ValueError(f"forward depends on the values of the data: {name} {self._where()}{BY_HAND}")
        name = name if name.startswith("__") else name.rstrip("_")
        result = None if isinstance(module, nn.MultiheadAttention) else self._run(function, args, kwargs, (
            f"module {path!r}, {module}," if module is not None else f"{name} {self._where()}"))
        call = Call(name, function, args, kwargs, result, path, module)
        if isinstance(module, nn.MultiheadAttention):
            query = call.first.tensor
            return Call(name, function, args, kwargs, (query.new_empty(query.shape), None), path, module)
        return call

    def _run(self, function: Callable[..., Any], args: Any, kwargs: Any, what: str) -> Any:
        self.running = True
        try:
            return function(*stripped(args), **stripped(kwargs))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            shapes = [value.shape for value in values_in((args, kwargs))]
            raise ValueError(f"{what} cannot take inputs of shape {', '.join(map(str, shapes))}: {error}") from error
        finally:
            self.running = False


def _method(name: str, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return getattr(value, name)(*args, **kwargs)


def _tensors(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return any(_tensors(one) for one in result)
    return isinstance(result, Tensor)
