"""Weights are values: dictionaries of tensors, and the stateless networks that they are plugged into.

A point of weight space is `Weights`, a dictionary from parameter name to tensor, never buffers. Stacked weights carry a
leading axis T: one entry per point of a path. Networks are used as stateless skeletons; nothing here, or anywhere in
the package, changes a user's module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(net: nn.Module) -> Weights:
    """Return a detached copy of the parameters of `net`.

    Args:
        net: any module; tied parameters appear once, under their first name.

    Returns:
        Name -> tensor, on the device and with the dtype of the module.
    """
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def buffers_of(net: nn.Module) -> dict[str, Tensor]:
    """Return a detached copy of the buffers of `net` (batch-norm statistics, say)."""
    return {name: buffer.detach().clone() for name, buffer in net.named_buffers()}


def tied(net: nn.Module) -> dict[str, str]:
    """Return other name -> first name of the parameters that have several names, as tied weights do."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(p), name)) for name, p in net.named_parameters(remove_duplicate=False)]
    return {name: known for name, known in names if name != known}


def skeleton(net: nn.Module) -> nn.Module:
    """Return a private copy of `net` in evaluation mode, without storage: parameters live on the `meta` device.

    Call it by `torch.func.functional_call(skeleton, (weights, buffers), (images,))`. Its modules may be rewired or
    switched to training mode without the user's module noticing.

    On a GPU a recurrent layer would move the tensors it is called with into one block of its own, away from the memory
    that whoever called it (training, say) goes on writing to. Its copy here leaves them where they are; cuDNN then
    warns once that it copies them at every call.
    """
    private = copy.deepcopy(net).to("meta")
    for name, first in tied(net).items():  # moving to another device unties them, and what is left computes garbage
        module, _, part = name.rpartition(".")
        private.get_submodule(module).register_parameter(part, private.get_parameter(first))
    for module in private.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters = _leave_in_place
    return private.requires_grad_(False).eval()


def _leave_in_place() -> None:
    """Stand in for `nn.RNNBase.flatten_parameters`."""


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Return module -> its own parameters, in order: the layers to which W21's layerwise training gives a coefficient.

    Args:
        names: of parameters, `weights.keys()`.

    Source: W21 section 3, "layerwise": every convolution, linear layer and normalisation on its own.

    Examples:
        >>> by_module(["conv.weight", "conv.bias", "norm.weight"])
        {'conv': ['conv.weight', 'conv.bias'], 'norm': ['norm.weight']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def check_finite(weights: Mapping[str, Tensor], name: str) -> None:
    """Raise unless every number in `weights` is finite.

    Raises:
        TypeError: for what is no tensor of floating point numbers.
        ValueError: naming the argument, the tensor and how many of its entries are NaN or infinite.
    """
    for key, tensor in weights.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must hold tensors of floating point numbers, got {kind} in {key!r}")
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries in {key!r}")


def check_belongs(net: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Raise unless `weights` are weights of `net`: its parameters, all of them and nothing else, with their shapes.

    Raises:
        ValueError: naming what is missing, what does not belong, or the shape that differs.
        TypeError: if `weights` is not a dictionary of tensors.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"{name} must be a dictionary parameter name -> tensor, such as dict(net.named_parameters()), "
                        f"got {type(weights).__name__}")
    shapes = {key: tuple(parameter.shape) for key, parameter in net.named_parameters()}
    missing, extra = [k for k in shapes if k not in weights], [k for k in weights if k not in shapes]
    if missing or extra:
        raise ValueError(f"{name} must hold the parameters of {type(net).__name__}; missing {missing}, "
                         f"not a parameter {extra}{_hint(net, extra)}")
    for key, shape in shapes.items():
        if tuple(weights[key].shape) != shape:
            raise ValueError(f"{name} must fit the network: {key!r} is {shape} there, got {tuple(weights[key].shape)}")


def _hint(net: nn.Module, extra: Sequence[str]) -> str:
    """Return what to do about names that are no parameters, where they tell."""
    if set(extra) & {name for name, _ in net.named_buffers()}:
        return "; pass dict(net.named_parameters()), not state_dict()"
    if extra and all(key.startswith("module.") for key in extra):
        return "; take off 'module.', which DataParallel puts in front"
    inside = next((key for key in ("state_dict", "model_state_dict", "model", "weights") if key in extra), None)
    return f"; this looks like a checkpoint that holds the weights under {inside!r}" if inside else ""


def check_match(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: tuple[str, str] = ("a", "b"), *,
                dtypes: bool = False) -> None:
    """Raise unless `a` and `b` have the same parameter names and shapes; and `dtypes`, where they are mixed.

    Raises:
        ValueError: naming the parameter that differs, and both shapes or dtypes.
        TypeError: if one of them is not a dictionary.
    """
    first, second = names
    for value, name in ((a, first), (b, second)):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dictionary parameter name -> tensor, such as "
                            f"dict(net.named_parameters()), got {type(value).__name__}")
    if a.keys() != b.keys():
        missing, extra = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
        raise ValueError(
            f"{first} and {second} must have the same parameter names; only in {first}: {missing}, "
            f"only in {second}: {extra}"
        )
    for key in a:
        if a[key].shape != b[key].shape:
            raise ValueError(
                f"{first} and {second} must have the same shapes; {key!r} is {tuple(a[key].shape)} in {first} "
                f"and {tuple(b[key].shape)} in {second}"
            )
        if dtypes and a[key].dtype != b[key].dtype:
            raise ValueError(f"{first} and {second} must have the same dtypes; {key!r} is {a[key].dtype} in {first} "
                             f"and {b[key].dtype} in {second}")


def mix(points: Sequence[Weights], coefficients: Tensor) -> Weights:
    """Return the linear combinations of k points of weight space.

    Args:
        points: k weights with equal names and shapes.
        coefficients: (k,) for one combination or (T, k) for T of them.

    Returns:
        Weights, with a leading axis T where `coefficients` has one. A coefficient row that is a unit vector gives that
        point to the last bit, so that the ends of a path are exact.
    """
    single = coefficients.ndim == 1
    rows = coefficients[None] if single else coefficients
    if rows.shape[-1] != len(points):
        raise ValueError(f"coefficients must have one entry per point ({len(points)}), got shape {tuple(rows.shape)}")
    mixed = {}
    for key, reference in points[0].items():
        c = rows.to(device=reference.device, dtype=reference.dtype).reshape(len(rows), -1, *[1] * reference.ndim)
        # Not one matrix product: 0 * x + 1 * y must give y to the last bit, whatever order a product adds up in.
        total = c[:, 0] * reference
        for i in range(1, len(points)):
            total = total.addcmul_(c[:, i], points[i][key])
        mixed[key] = total[0] if single else total
    return mixed


def at(stacked: Mapping[str, Tensor], index: int) -> Weights:
    """Return point number `index` of stacked weights (views, not copies)."""
    return {key: tensor[index] for key, tensor in stacked.items()}


def stack(points: Sequence[Mapping[str, Tensor]]) -> Weights:
    """Return stacked weights with a leading axis T = len(points)."""
    return {key: torch.stack([point[key] for point in points]) for key in points[0]}


def to_vector(weights: Mapping[str, Tensor]) -> Tensor:
    """Return all entries as one flat vector (P,), in the order of the dictionary."""
    return torch.cat([tensor.reshape(-1) for tensor in weights.values()])


def from_vector(vector: Tensor, like: Mapping[str, Tensor]) -> Weights:
    """Return weights with the names and shapes of `like` whose tensors are views of `vector` (P,).

    Raises:
        ValueError: if `vector` is not of length P, the number of entries of `like`.
    """
    total = sum(tensor.numel() for tensor in like.values())
    if vector.shape != (total,):
        raise ValueError(f"vector must have shape ({total},), got {tuple(vector.shape)}")
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {key: piece.view(tensor.shape) for (key, tensor), piece in zip(like.items(), pieces, strict=True)}


def count(weights: Mapping[str, Tensor]) -> int:
    """Return the number of parameters, P."""
    return sum(tensor.numel() for tensor in weights.values())


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the inner product over all tensors, added up in float64."""
    check_match(a, b)
    return sum(float((a[key].double() * b[key].double()).sum()) for key in a)


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance over all tensors, added up in float64."""
    check_match(a, b)
    return sum(float((a[key].double() - b[key].double()).square().sum()) for key in a) ** 0.5


def cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the cosine of the angle between two weight vectors, in [-1, 1].

    Raises:
        ValueError: if one of them is zero.
    """
    norms = (inner(a, a) * inner(b, b)) ** 0.5
    if norms == 0:
        raise ValueError("cosine needs two nonzero weight vectors, got a zero one")
    return inner(a, b) / norms
