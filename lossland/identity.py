"""What tells networks and weights apart that have no name: keys of the store for what the user brings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lossland.batchnorm import statistics


def fingerprint(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Return 16 hexadecimal digits of the sha256 of names, shapes and numbers, the numbers in `dtype`."""
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(repr((key, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().to("cpu", dtype).contiguous().numpy())
    return digest.hexdigest()[:16]


def described(net: nn.Module) -> dict[str, Any]:
    """Return JSON values that tell networks apart: class, description, shapes, buffers that stay, the user's own code.

    The code is that of the methods of modules which do not come with torch, torchvision or this package: a class whose
    `forward` was edited is another network. Functions that a method calls, and attributes that the description (`repr`)
    does not show, are not looked at.
    """
    shapes = [(key, tuple(parameter.shape)) for key, parameter in net.named_parameters()]
    digest = hashlib.sha256(repr((repr(net), shapes)).encode())
    for kind in dict.fromkeys(type(module) for module in net.modules()):  # each once, in the network's order
        digest.update(repr([*_methods(kind)]).encode() if _is_own(kind) else b"")
    ours = statistics(net)
    for key, buffer in net.named_buffers():
        if key not in ours:
            digest.update(repr((key, buffer.tolist())).encode())
    return {"class": f"{type(net).__module__}.{type(net).__qualname__}", "description": digest.hexdigest()[:16]}


def _is_own(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in ("torch", "torchvision", "lossland")


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield name and code of the methods of a class and of those it inherits from, as far as they are the user's."""
    for base in kind.__mro__[:-1]:
        if _is_own(base):
            yield from ((name, _text(value.__code__)) for name, value in sorted(vars(base).items())
                        if isinstance(value, FunctionType))


def _text(code: CodeType) -> tuple[str, tuple[str, ...], list[Any]]:
    """Return what a function does, the same in every process of one version of Python."""
    constants = [_text(value) if isinstance(value, CodeType) else sorted(map(repr, value))
                 if isinstance(value, frozenset) else repr(value) for value in code.co_consts]
    return code.co_code.hex(), code.co_names, constants
