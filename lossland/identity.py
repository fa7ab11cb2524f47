"""What tells networks and weights apart that have no name: keys of the store for what the user brings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossland.batchnorm import norms


def fingerprint(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Return 16 hexadecimal digits of the sha256 of names, shapes and numbers, the numbers in `dtype`."""
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(repr((key, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().to("cpu", dtype).contiguous().numpy())
    return digest.hexdigest()[:16]


def described(net: nn.Module) -> dict[str, Any]:
    """Return JSON values that tell networks apart: the class, its description, shapes, and buffers that stay.

    What a module's description (`repr`) does not show, such as what its `forward` does, is not in it.
    """
    ours = {f"{norm}.{part}" for norm in norms(net) for part in ("running_mean", "running_var", "num_batches_tracked")}
    shapes = [(key, tuple(parameter.shape)) for key, parameter in net.named_parameters()]
    digest = hashlib.sha256(repr((repr(net), shapes)).encode())
    for key, buffer in net.named_buffers():
        if key not in ours:
            digest.update(repr((key, buffer.tolist())).encode())
    return {"class": f"{type(net).__module__}.{type(net).__qualname__}", "description": digest.hexdigest()[:16]}
