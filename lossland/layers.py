"""Units of a network: which rows and columns of which tensors belong to one hidden unit.

A network is described by a list of `Layer`s in forward order. The units of an axis u are the rows of the layers that
write u (weight, bias, normalisation) together with the columns of the layers that read u: AY20's butterflies (Fig. 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland.units import PER_UNIT, Layer, axes, elementwise, free_axes, named, pieces, tensor_name, width
from lossland.weights import Weights, buffers_of, skeleton, weights_of

__all__ = ["Layer", "axes", "check_cover", "depths", "elementwise", "free_axes", "gather", "permute", "scatter",
           "tensor_name", "unit_count", "verify"]


def unit_count(weights: Mapping[str, Tensor], layers: Iterable[Layer], axis: str) -> int:
    """Return n, the number of units of `axis`.

    Raises:
        ValueError: if no layer writes the axis, or its writers disagree.
    """
    writers, _ = axes(layers).get(axis, ((), ()))
    if not writers:
        raise ValueError(f"axis {axis!r} must be written by a layer, got the axes {list(axes(layers))}")
    return width(weights, writers)


def gather(weights: Mapping[str, Tensor], writers: Sequence[Layer], readers: Sequence[Layer] = ()) -> Tensor:
    """Return one row per hidden unit: AY20's butterflies.

    Args:
        weights: name -> tensor (not stacked).
        writers: layers that write the unit axis; each gives [weight row | bias | normalisation].
        readers: layers that read it; each gives [its normalisation in front | weight column]. None: rows only. Both are
            one entry of `axes(layers)`, or some of its layers.

    Returns:
        (n, D) matrix, unscaled; a convolution gives its filter, and its outgoing slice with all taps. A linear layer
        behind a flatten gives each channel its pixels' weights for every output.

    Source: AY20 section 3.1 and Fig. 1; filters as units: section 4.2.
    """
    n = width(weights, writers)
    return torch.cat([piece.rows(weights[piece.name], n) for piece in pieces(weights, writers, readers)], dim=1)


def scatter(
    weights: Mapping[str, Tensor], units: Tensor, writers: Sequence[Layer], readers: Sequence[Layer] = ()
) -> Weights:
    """Return `weights` with the rows of `units` (n, D) put back: the exact inverse of `gather`.

    Raises:
        ValueError: if `units` does not have the shape that `gather` returns.
    """
    n, parts = width(weights, writers), pieces(weights, writers, readers)
    sizes = [piece.entries(weights[piece.name], n) for piece in parts]
    if units.shape != (n, sum(sizes)):
        raise ValueError(f"units must have shape ({n}, {sum(sizes)}), got {tuple(units.shape)}")
    changed = dict(weights)
    for piece, rows in zip(parts, units.split(sizes, dim=1), strict=True):
        changed[piece.name] = piece.put(changed[piece.name], rows)
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
        ValueError: for an unknown axis, a fixed one, or an index tensor that is not a permutation of its n units.
    """
    known = axes(layers)
    changed = dict(weights)
    for axis, permutation in permutations.items():
        if axis not in known:
            raise ValueError(f"permutations must name unit axes {sorted(known)}, got {axis!r}")
        if any(layer.fixed for layer in known[axis][0]):
            raise ValueError(f"permutations must leave out {axis!r}: the order of its units matters (a grouped "
                             "convolution, say)")
        n = unit_count(changed, layers, axis)
        index = torch.as_tensor(permutation)
        if index.shape != (n,) or not torch.equal(index.sort().values.cpu(), torch.arange(n)):
            raise ValueError(f"permutation of {axis!r} must hold each of 0..{n - 1} once, got an index of shape "
                             f"{tuple(index.shape)}")
        for piece in pieces(changed, *known[axis]):
            tensor = changed[piece.name]
            changed[piece.name] = piece.put(tensor, piece.rows(tensor, n)[index.to(tensor.device)])
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
        ways = {axis_depth[axis] + 1 for axis in named(layer.reads)}
        for axis in named(layer.writes):
            ways |= {axis_depth[axis]} if axis in axis_depth and axis is not None else set()
        if len(ways) != 1:
            raise ValueError(f"layer {layer.module!r} reaches axis {layer.writes!r} at depths {sorted(ways)}: a "
                             "network with skip connections has no single depth")
        found[layer.module] = ways.pop()
        axis_depth.update({axis: found[layer.module] for axis in named(layer.writes) if axis is not None})
    return found


def check_cover(net: nn.Module, layers: Sequence[Layer]) -> None:
    """Raise unless `layers` covers every parameter of `net` exactly once.

    Raises:
        ValueError: naming the parameters that are missing or listed twice, or the module that does not exist.
    """
    parameters, modules = set(dict(net.named_parameters())), set(dict(net.named_modules()))
    listed: list[str] = []
    for layer in layers:
        weight = str(tensor_name(parameters, layer))
        listed += [] if layer.tied else [weight]
        bias = tensor_name(parameters, layer, "bias")
        listed += [bias] if bias else []
        norms = [name for name in (layer.norm, layer.pre_norm) if name]
        if unknown := [norm for norm in norms if norm not in modules]:
            raise ValueError(f"layers name {unknown[0]!r} as a normalisation, which this network does not have")
        listed += [name for norm in norms for part in PER_UNIT if (name := f"{norm}.{part}") in parameters]
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
        # An axis that is contracted with itself (queries and keys of attention) has no reader, but is written twice.
        twice = sum(named(layer.writes).count(axis) for layer in writers) > 1
        fixed = any(layer.fixed for layer in writers)
        if not writers or not (readers or twice or fixed):
            raise ValueError(f"axis {axis!r} must have layers that write it and layers that read it, "
                             f"got writers {[w.module for w in writers]}, readers {[r.module for r in readers]}")
    generator = torch.Generator().manual_seed(seed)
    state, bare = _random_state(net, generator), skeleton(net)
    images = example.detach().cpu()
    images = images.double() if images.is_floating_point() else images
    outputs = functional_call(bare, state, (images,))
    orders = {axis: _cycle(unit_count(state, layers, axis), generator) for axis in free_axes(layers)}

    def change(some: Mapping[str, Tensor]) -> float:
        moved = functional_call(bare, permute(state, layers, some), (images,))
        return float((moved - outputs).abs().max() / outputs.abs().max())

    # Few passes for many axes, and of any two axes each is once permuted without the other, since equal permutations
    # of two axes can hide that a tensor is listed under the wrong one. Axis by axis only to tell which one is wrong.
    worst = max((change(some) for some in _halves(orders)), default=0.0, key=lambda x: x if x == x else math.inf)
    if worst < 1e-9:
        return worst
    alone = {axis: change({axis: order}) for axis, order in orders.items()}
    axis = next((axis for axis, each in alone.items() if not each < 1e-9), None)
    if axis is None:
        raise ValueError("permuting several axes at once must leave the outputs unchanged, "
                         f"got a relative change of {worst:.1e}")
    raise ValueError(f"permuting axis {axis!r} must leave the outputs unchanged, "
                     f"got a relative change of {alone[axis]:.1e}")


def _halves(orders: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the permutations whose number has a certain binary digit 0, or 1, for every digit."""
    for digit in range(max(1, (len(orders) - 1).bit_length())):
        for value in (0, 1):
            some = {axis: order for i, (axis, order) in enumerate(orders.items()) if i >> digit & 1 == value}
            if some:
                yield some


def _cycle(n: int, generator: torch.Generator) -> Tensor:
    """Return a random permutation (n,) that leaves no unit in its place."""
    places = torch.randperm(n, generator=generator)
    return places.roll(1)[places.argsort()]


def _random_state(net: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random weights and buffers, float64, on the CPU."""
    state = {}
    for name, tensor in {**weights_of(net), **buffers_of(net)}.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            state[name] = noise / fan_in**0.5
            if name.endswith("running_var"):
                state[name] = noise.abs() + 0.5
            elif name.endswith("bias"):  # positive: a narrow layer with all ReLUs off would hide mistakes before it
                state[name] = state[name].abs()
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.cpu()
    return state
