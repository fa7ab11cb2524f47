"""What the kernels are given, checked where it comes in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def check_tensors(name: str, tensors: Mapping[str, Tensor], free: Mapping[str, Tensor] | None = None) -> None:
    """Raise unless the tensors are real floating-point numbers of one kind in one place, without gradients.

    Args:
        name: of the kernel.
        tensors: argument -> tensor.
        free: arguments that may be of another kind, in another place.

    Raises:
        TypeError: for what is no tensor.
        ValueError: naming the kernel, the arguments, and what they are.
    """
    every = {**tensors, **(free or {})}
    wrong = {key: type(one).__name__ for key, one in every.items() if not isinstance(one, Tensor)}
    if wrong:
        raise TypeError(f"{name} takes tensors, got {wrong}")
    kinds = {key: (one.dtype, one.device.type) for key, one in tensors.items()}
    if len(set(kinds.values())) > 1:
        shown = {key: f"{dtype} on {device}" for key, (dtype, device) in kinds.items()}
        raise ValueError(f"arguments of {name} must be of one dtype on one device, got {shown}")
    if not all(one.is_floating_point() for one in tensors.values()):
        raise ValueError(f"{name} takes floating-point numbers, got {next(iter(kinds.values()))[0]}")
    if torch.is_grad_enabled() and any(one.requires_grad for one in every.values()):
        raise ValueError(f"{name} gives no gradients: call it under torch.no_grad(), or detach its arguments")


def check_labels(labels: Tensor, images: int, classes: int, device: torch.device, bins: int) -> None:
    """Raise unless labels (N,) are classes of N images, on their device, and there are bins to count them in.

    On a GPU the values of labels are not looked at.

    Raises:
        ValueError: naming what they are.
    """
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    if labels.shape != (images,) or labels.device.type != device.type:
        raise ValueError(f"labels must be ({images},), one for each image, on {device}, got {tuple(labels.shape)} on "
                         f"{labels.device}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 classes 0..{classes - 1}, got {labels.dtype}")
    try:
        check_range("labels", labels, classes, "classes")
    except ValueError as error:
        many = f"{classes} logit{'s' if classes > 1 else ''}"
        raise ValueError(f"{error}: the network gives {many} for an input, it must give one for each class") from None


def check_range(name: str, index: Tensor, end: int, what: str) -> None:
    """Raise unless all entries lie in [0, end); on a GPU nothing is looked at, which would wait for it.

    Raises:
        ValueError: naming the range that was found.
    """
    if index.device.type == "cpu" and index.numel() and not 0 <= index.min() <= index.max() < end:
        raise ValueError(f"{name} must be int64 {what} 0..{end - 1}, got {index.dtype}, {index.min()}..{index.max()}")
