"""What tells networks and weights apart that have no name: keys of the store for what the user brings."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossland.batchnorm import statistics

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice)
_BY_TEXT = (torch.dtype, torch.device, torch.layout, torch.memory_format, os.PathLike, np.dtype)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # `training`, and torch's containers of parameters, buffers, hooks
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_KNOWN = ("torch", "torchvision", "lossland")
_LIBRARIES = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "purelib", "platlib"))
_DEPTH = 40


def fingerprint(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Return 16 hexadecimal digits of the sha256 of names, shapes and numbers, the numbers in `dtype`."""
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(repr((key, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().to("cpu", dtype).contiguous().numpy())
    return digest.hexdigest()[:16]


def described(net: nn.Module) -> dict[str, Any]:
    """Return JSON values that tell networks apart: class, description, shapes, buffers that stay, the user's own code.

    For modules of classes which do not come with torch, torchvision or this package these count, too:

    - their attributes, whether the description (`repr`) shows them or not: numbers, texts, containers, tensors and
      arrays by their numbers, functions, and other objects by their class and their own attributes;
    - the code of their methods, and their class's attributes;
    - what that code reaches by name: functions and classes of the user's by their code, and so on from there; global
      numbers, texts, containers and tensors by their values; closures and defaults likewise.

    In a network with such a module the attributes of torch's modules count as well, in every network the user's hooks.
    What comes with Python or is installed counts by its name: a new version of a library is not noticed. Nor is what
    code reads from elsewhere (files, the environment), looks up by a computed name, or keeps in objects of C.
    Parameters count by name and shape alone, batch-norm statistics not at all.
    """
    shapes = [(key, tuple(parameter.shape)) for key, parameter in net.named_parameters()]
    digest = hashlib.sha256(repr((repr(net), shapes)).encode())
    walk, own = _Walk(net), [kind for kind in dict.fromkeys(map(type, net.modules())) if _is_own(kind)]
    for kind in own:  # each once, in the network's order
        digest.update(repr(walk.of(kind)).encode())
    for name, module in net.named_modules():
        if found := [(key, walk.of(value)) for key, value in _attributes(module, bool(own))]:
            digest.update(repr((name, found)).encode())
    ours = statistics(net)
    for key, buffer in net.named_buffers():
        if key not in ours:
            digest.update(repr((key, buffer.tolist())).encode())
    return {"class": f"{type(net).__module__}.{type(net).__qualname__}", "description": digest.hexdigest()[:16]}


def _is_own(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in _KNOWN


def _attributes(module: nn.Module, in_own: bool) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module that count, by name: of torch's modules only in networks with the user's own."""
    every = _is_own(type(module)) or in_own and not type(module).__module__.startswith("lossland")
    for key, value in sorted(vars(module).items()):
        if key in _HOOKS:
            yield from ((key, hook) for hook in value.values())
        elif key not in _OF_EVERY_MODULE and (every or isinstance(value, (FunctionType, MethodType))
                                              and not _is_installed(value.__code__.co_filename, value.__module__)):
            yield key, value


def _is_installed(file: str, module: str | None) -> bool:
    """Return whether code comes with Python or a library."""
    return ((module or "").partition(".")[0] in _KNOWN or file.startswith("<frozen")
            or os.path.realpath(file).startswith(_LIBRARIES) or "site-packages" in file or "dist-packages" in file)


def _is_installed_module(name: str | None) -> bool:
    if name == "__main__":
        return False
    module = sys.modules.get(name or "builtins")
    file = getattr(module, "__file__", None)
    root = (name or "builtins").partition(".")[0]
    return _is_installed(file, name) if file else root in _KNOWN or root in sys.builtin_module_names


class _Walk:
    """Says what values are in texts, numbers, tuples and lists: the same in every process, without addresses."""

    def __init__(self, net: nn.Module) -> None:
        self._names: dict[int, tuple[Any, ...]] = {id(m): ("module", name) for name, m in net.named_modules()}
        self._names |= {id(p): ("parameter", name) for name, p in net.named_parameters(remove_duplicate=False)}
        self._names |= {id(b): ("buffer", name) for name, b in net.named_buffers()}
        self._kept: list[Any] = [net]  # what is alive keeps its id
        self._depth = 0

    def of(self, value: Any) -> Any:
        """Return the description of a value."""
        if type(value) in _PLAIN:
            return repr(value)
        if id(value) in self._names:
            return self._names[id(value)]
        if self._depth >= _DEPTH:
            return "deep", _name(type(value))
        self._depth += 1
        try:
            return self._part(value)
        finally:
            self._depth -= 1

    def _part(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return _name(type(value)), value.name, self.of(value.value)
        if isinstance(value, _BY_TEXT):
            return _name(type(value)), str(value)
        if base := next((base for base in _PLAIN if isinstance(value, base)), None):  # a subclass of the user's
            return _name(type(value)), base.__repr__(value)
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return self._numbers(value)
        if isinstance(value, (tuple, list, set, frozenset, Mapping)):
            return self._container(value)
        self._kept.append(value)
        self._names[id(value)] = ("again", len(self._kept))
        if isinstance(value, ModuleType):
            return "module", value.__name__
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return "method", self.of(value.__func__), self.of(value.__self__)
        if isinstance(value, functools.partial):
            return "partial", self.of(value.func), self.of(value.args), self.of(value.keywords)
        if isinstance(value, (staticmethod, classmethod)):
            return type(value).__name__, self.of(value.__func__)
        if isinstance(value, property):
            return "property", self.of(value.fget)
        return self._class(value) if isinstance(value, type) else self._object(value)

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            kind = "tensor", str(value.dtype), tuple(value.shape)
            if value.is_meta:
                return kind
            value = value.detach().to_dense().cpu().resolve_conj().resolve_neg().contiguous()
            data = value.flatten().view(torch.uint8).numpy().tobytes()
        else:
            kind = "array", str(value.dtype), value.shape
            if value.dtype.hasobject:
                return *kind, self.of(value.tolist())
            data = value.tobytes()
        return *kind, hashlib.sha256(data).hexdigest()

    def _container(self, value: Any) -> Any:
        self._names[id(value)] = ("around", self._depth)  # a container that holds itself
        try:
            if isinstance(value, Mapping):
                parts = [(self.of(key), self.of(each)) for key, each in value.items()]
            elif isinstance(value, (set, frozenset)):
                parts = sorted(map(self.of, value), key=repr)
            else:
                parts = [self.of(each) for each in value]
        finally:
            self._names.pop(id(value))
        return _name(type(value)), parts

    def _function(self, value: FunctionType) -> Any:
        code = value.__code__
        if _is_installed(code.co_filename, None if hasattr(value, "__wrapped__") else value.__module__):
            wrapped = getattr(value, "__wrapped__", None)
            return "function", value.__module__, value.__qualname__, self.of(wrapped)
        reached = [(name, self._reached(value.__globals__[name], code)) for name in _globals(code)
                   if name in value.__globals__]
        cells = [self.of(cell.cell_contents) if _is_filled(cell) else "empty" for cell in value.__closure__ or ()]
        return "function", _text(code), reached, cells, self.of(value.__defaults__), self.of(value.__kwdefaults__)

    def _reached(self, value: Any, code: CodeType) -> Any:
        """Return what a global is: of a module of the user's, what the code takes out of it."""
        if not isinstance(value, ModuleType) or _is_installed_module(value.__name__):
            return self.of(value)
        inside = vars(value)
        return "module", value.__name__, [(name, self.of(inside[name])) for name in _attribute_names(code)
                                          if name in inside]

    def _class(self, kind: type) -> Any:
        if _is_installed_module(kind.__module__):
            # The code of a module that a library brings counts, not what that code reaches.
            methods = issubclass(kind, nn.Module) and _is_own(kind)
            found = [(key, _text(value.__code__)) for key, value in sorted(vars(kind).items())
                     if isinstance(value, FunctionType)] if methods else []
            return _name(kind), found, [self.of(base) for base in kind.__bases__] if methods else []
        found = [(key, self.of(value)) for key, value in sorted(vars(kind).items())
                 if not key.startswith("__") or isinstance(value, (FunctionType, staticmethod, classmethod, property))]
        return _name(kind), found, [self.of(base) for base in kind.__bases__]

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if kind.__name__ == "ScriptFunction":
            return _name(kind), str(value.code)
        if hasattr(value, "__wrapped__"):  # functools.cache
            return _name(kind), self.of(value.__wrapped__)
        if callable(value) and hasattr(value, "__qualname__"):  # of C: torch.tanh, math.sin
            return "builtin", str(getattr(value, "__module__", None)), value.__qualname__
        held = dict(getattr(value, "__dict__", {}))
        held |= {name: getattr(value, name) for base in kind.__mro__ for name in _slots(base) if hasattr(value, name)}
        # Objects of libraries, such as loggers, hold much that changes: those alone count that hold nothing but values.
        if _is_installed_module(kind.__module__) and not isinstance(value, nn.Module) and not _is_plain(held):
            return _name(kind), "held"
        return self.of(kind), [(name, self.of(each)) for name, each in sorted(held.items())]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ()) if not _is_installed_module(kind.__module__) else ()
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return depth < _DEPTH and all(_is_plain(each, depth + 1) for each in value)
    return isinstance(value, (*_PLAIN, *_BY_TEXT, np.generic))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents
    except ValueError:
        return False
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions in it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _codes(value)


def _globals(code: CodeType) -> list[str]:
    return sorted({each.argval for part in _codes(code) for each in dis.get_instructions(part)
                   if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")})


def _attribute_names(code: CodeType) -> list[str]:
    return sorted({name for part in _codes(code) for name in part.co_names})


def _text(code: CodeType) -> tuple[str, tuple[str, ...], list[Any]]:
    """Return what a function does, the same in every process of one version of Python."""
    constants = [_text(value) if isinstance(value, CodeType) else sorted(map(repr, value))
                 if isinstance(value, frozenset) else repr(value) for value in code.co_consts]
    return code.co_code.hex(), code.co_names, constants
