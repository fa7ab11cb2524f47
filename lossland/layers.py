"""Units of a network: which rows and columns of which tensors belong to one hidden unit.

A network is described by a list of `Layer`s in forward order. The units of an axis u are the rows of the layers that
write u (weight, bias, normalisation) together with the columns of the layers that read u: AY20's butterflies (Fig. 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland.weights import Weights, buffers_of, skeleton, weights_of

_PER_UNIT = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Layer:
    """One weight layer of a network.

    Attributes:
        module: dotted name of the linear or convolutional module, such as "blocks.0.conv2".
        reads: unit axis of its inputs, such as "stream0"; None: it reads the data.
        writes: unit axis of its outputs; None: it writes the logits.
        norm: name of the normalisation that follows it (indexed by `writes`).
        pre_norm: name of the normalisation that precedes it (indexed by `reads`).
    """

    module: str
    reads: str | None
    writes: str | None
    norm: str | None = None
    pre_norm: str | None = None


def axes(layers: Iterable[Layer]) -> dict[str, tuple[tuple[Layer, ...], tuple[Layer, ...]]]:
    """Return unit axis -> (layers that write it, layers that read it), in forward order."""
    found: dict[str, tuple[list[Layer], list[Layer]]] = {}
    for layer in layers:
        if layer.reads is not None:
            found.setdefault(layer.reads, ([], []))[1].append(layer)
        if layer.writes is not None:
            found.setdefault(layer.writes, ([], []))[0].append(layer)
    return {axis: (tuple(writers), tuple(readers)) for axis, (writers, readers) in found.items()}


@dataclass(frozen=True)
class _Piece:
    """One tensor and the way its entries are dealt out to n units."""

    name: str
    incoming: bool  # True: units are its leading axis; False: units are the (outer part of the) second axis


def _pieces(weights: Mapping[str, Tensor], writers: Sequence[Layer], readers: Sequence[Layer]) -> list[_Piece]:
    pieces = []
    for layer in writers:
        names = [f"{layer.module}.weight", f"{layer.module}.bias"]
        names += [f"{layer.norm}.{part}" for part in _PER_UNIT] if layer.norm else []
        pieces += [_Piece(name, True) for name in names if name in weights]
    for layer in readers:
        if layer.pre_norm:
            names = [f"{layer.pre_norm}.{part}" for part in _PER_UNIT]
            pieces += [_Piece(name, True) for name in names if name in weights]
        pieces.append(_Piece(f"{layer.module}.weight", False))
    return pieces


def unit_count(weights: Mapping[str, Tensor], layers: Iterable[Layer], axis: str) -> int:
    """Return n, the number of units of `axis`.

    Raises:
        ValueError: if no layer writes the axis, or its writers disagree.
    """
    writers, _ = axes(layers).get(axis, ((), ()))
    counts = {weights[f"{layer.module}.weight"].shape[0] for layer in writers}
    if len(counts) != 1:
        raise ValueError(f"axis {axis!r} must be written by layers of equal width, got widths {sorted(counts)}")
    return counts.pop()


def _rows(tensor: Tensor, piece: _Piece, n: int) -> Tensor:
    """Return the (n, d) rows of one tensor: a view where memory allows."""
    if piece.incoming:
        # A normalisation behind a flatten has n * positions entries, unit-major: one unit owns a run of them.
        return tensor.reshape(n, -1)
    out = tensor.shape[0]
    # (out, n, positions) -> (n, out * positions); positions are kernel taps, or pixels behind a flatten.
    return tensor.reshape(out, n, -1).transpose(0, 1).reshape(n, -1)


def _unrows(rows: Tensor, like: Tensor, piece: _Piece) -> Tensor:
    """Exact inverse of `_rows`."""
    if piece.incoming:
        return rows.reshape(like.shape)
    n, out = rows.shape[0], like.shape[0]
    return rows.reshape(n, out, -1).transpose(0, 1).reshape(like.shape)


def _width(weights: Mapping[str, Tensor], writers: Sequence[Layer]) -> int:
    if not writers:
        raise ValueError("writers must name at least one layer, got none")
    return weights[f"{writers[0].module}.weight"].shape[0]


def gather(weights: Mapping[str, Tensor], writers: Sequence[Layer], readers: Sequence[Layer] = ()) -> Tensor:
    """Return one row per hidden unit: AY20's butterflies.

    Args:
        weights: name -> tensor (not stacked).
        writers: layers that write the unit axis; each gives [weight row | bias | normalisation].
        readers: layers that read it; each gives [its normalisation in front | weight column]. None: rows only.

    Returns:
        (n, D) matrix, unscaled; a convolution gives its filter, and its outgoing slice with all taps. A linear layer
        behind a flatten gives each channel its pixels' weights for every output.

    Source: AY20 section 3.1 and Fig. 1; filters as units: section 4.2.
    """
    n = _width(weights, writers)
    return torch.cat([_rows(weights[p.name], p, n) for p in _pieces(weights, writers, readers)], dim=1)


def scatter(
    weights: Mapping[str, Tensor], units: Tensor, writers: Sequence[Layer], readers: Sequence[Layer] = ()
) -> Weights:
    """Return `weights` with the rows of `units` (n, D) put back: the exact inverse of `gather`.

    Raises:
        ValueError: if `units` does not have the shape that `gather` returns.
    """
    n = _width(weights, writers)
    pieces = _pieces(weights, writers, readers)
    sizes = [weights[p.name].numel() // n for p in pieces]
    if units.shape != (n, sum(sizes)):
        raise ValueError(f"units must have shape ({n}, {sum(sizes)}), got {tuple(units.shape)}")
    changed = dict(weights)
    for piece, rows in zip(pieces, units.split(sizes, dim=1), strict=True):
        changed[piece.name] = _unrows(rows, weights[piece.name], piece)
    return changed


def permute(
    weights: Mapping[str, Tensor], layers: Sequence[Layer], permutations: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the isomorphic network whose unit i of each axis is unit `permutation[i]` of the given one.

    Args:
        weights: parameters, and buffers too where they are to be moved along.
        layers: the network's layers.
        permutations: axis -> (n,) integer permutation; axes left out stay as they are.

    Raises:
        ValueError: for an unknown axis, or an index tensor that is not a permutation of its n units.
    """
    known = axes(layers)
    changed = dict(weights)
    for axis, permutation in permutations.items():
        if axis not in known:
            raise ValueError(f"permutations must name unit axes {sorted(known)}, got {axis!r}")
        n = unit_count(changed, layers, axis)
        index = torch.as_tensor(permutation)
        if index.shape != (n,) or not torch.equal(index.sort().values.cpu(), torch.arange(n)):
            raise ValueError(f"permutation of {axis!r} must hold each of 0..{n - 1} once, got an index of shape "
                             f"{tuple(index.shape)}")
        for piece in _pieces(changed, *known[axis]):
            tensor = changed[piece.name]
            rows = _rows(tensor, piece, n)[index.to(tensor.device)]
            changed[piece.name] = _unrows(rows, tensor, piece)
    return changed


def depths(layers: Sequence[Layer]) -> dict[str, int]:
    """Return module name -> i: how many weight layers lie between the data and its output, itself included.

    Raises:
        ValueError: if two ways from the data to one axis have different lengths (residual nets), so that no single i
            exists.

    Source: the i of G18 A.6, where the trivial curve scales b_i by t^i.
    """
    axis_depth: dict[str | None, int] = {None: 0}
    found = {}
    for layer in layers:
        depth = axis_depth[layer.reads] + 1
        if layer.writes is not None and axis_depth.setdefault(layer.writes, depth) != depth:
            raise ValueError(f"layer {layer.module!r} reaches axis {layer.writes!r} at depth {depth} and "
                             f"{axis_depth[layer.writes]}: a network with skip connections has no single depth")
        found[layer.module] = depth
    return found


def check_cover(net: nn.Module, layers: Sequence[Layer]) -> None:
    """Raise unless `layers` covers every parameter of `net` exactly once.

    Raises:
        ValueError: naming the parameters that are missing, listed twice, or do not exist.
    """
    parameters = set(dict(net.named_parameters()))
    listed: list[str] = []
    for layer in layers:
        modules = [m for m in (layer.module, layer.norm, layer.pre_norm) if m]
        if f"{layer.module}.weight" not in parameters:
            raise ValueError(f"layers name {layer.module!r}, which has no weight in this network")
        listed += [f"{m}.{part}" for m in modules for part in ("weight", "bias") if f"{m}.{part}" in parameters]
    missing, twice = sorted(parameters - set(listed)), sorted({name for name in listed if listed.count(name) > 1})
    if missing or twice:
        raise ValueError(f"layers must cover every parameter exactly once; missing {missing}, listed twice {twice}")


def verify(net: nn.Module, layers: Sequence[Layer], example: Tensor, *, seed: int = 0) -> float:
    """Return the largest relative change of the outputs when every unit axis is permuted at random.

    The property that specifies a layer list: permuting units must leave the function unchanged, and the list must cover
    every parameter exactly once. Weights, biases, normalisations and their statistics are drawn at random in float64,
    so that no symmetry of an initialisation can hide a mistake; `net` itself is not changed.

    Args:
        net: the network; it is run in evaluation mode.
        layers: its layers in forward order.
        example: (n, C, H, W) or (n, D) a few inputs.
        seed: of the random weights and permutations.

    Raises:
        ValueError: if a parameter is not covered, an axis is written or read by nobody, or a permutation changes the
            outputs by more than 1e-9 (naming the axis).
    """
    check_cover(net, layers)
    for axis, (writers, readers) in axes(layers).items():
        if not writers or not readers:
            raise ValueError(f"axis {axis!r} must have layers that write it and layers that read it, "
                             f"got writers {[w.module for w in writers]}, readers {[r.module for r in readers]}")
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in {**weights_of(net), **buffers_of(net)}.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            positive = name.endswith("running_var")
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            state[name] = noise.abs() + 0.5 if positive else noise / fan_in**0.5
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.cpu()
    bare = skeleton(net)
    images = example.detach().cpu().double()
    outputs = functional_call(bare, state, (images,))
    worst = 0.0
    for axis in axes(layers):
        n = unit_count(state, layers, axis)
        moved = permute(state, layers, {axis: torch.randperm(n, generator=generator)})
        change = float((functional_call(bare, moved, (images,)) - outputs).abs().max() / outputs.abs().max())
        if not change < 1e-9:
            raise ValueError(f"permuting axis {axis!r} must leave the outputs unchanged, "
                             f"got a relative change of {change:.1e}")
        worst = max(worst, change)
    return worst
