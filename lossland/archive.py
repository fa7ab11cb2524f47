"""Paths on disk: the points of their legs as safetensors, the recipe of the legs beside them. No code is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from lossland.files import Corrupt, copied, pack, sealed, unpack, unsealed, write_whole
from lossland.layers import Layer
from lossland.legs import Groups, Moved, Powers, Swaps
from lossland.neurons import Move
from lossland.paths import Basis, Leg, Mix, Path, arc_basis, bezier_basis, chain_basis, linear_basis
from lossland.weights import Weights

_FORM = "path-1"
_FACTORS: dict[str, Callable[[Tensor], Tensor]] = {"s": lambda s: s, "1 - s": lambda s: 1 - s}


def save_path(path: Path, file: FilePath | str) -> None:
    """Write a path to a file, whole or not at all; points that legs share are written once.

    Args:
        path: legs `Mix` with one of the package's bases, `Powers`, `Swaps`, `Moved`: all that `connect`, curves and
            chains are made of. A function cannot be stored: `load_path` wants the move of a `Moved` leg again.
        file: where; replaced if it exists.

    Raises:
        ValueError: for a leg of another kind or with a basis of its own, naming the leg; for NaN or infinite weights.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}  # identity of a tensor -> its name in the file

    def place(weights: Mapping[str, Tensor]) -> dict[str, str]:
        for tensor in weights.values():
            if id(tensor) not in names:
                names[id(tensor)] = f"t{len(names)}"
                tensors[names[id(tensor)]] = tensor
        return {key: names[id(tensor)] for key, tensor in weights.items()}

    legs = [_described(leg, place, f"legs[{i}]") for i, leg in enumerate(path.legs)]
    write_whole(FilePath(file), sealed(pack(copied(tensors, "weights"), {"form": _FORM, "legs": legs})))


def load_path(file: FilePath | str, *, move: Move | None = None, device: torch.device | str = "cpu") -> Path:
    """Return the path that `save_path` wrote, to the last bit.

    Args:
        file: its file.
        move: the move of its `Moved` legs, such as `flow.move`.
        device: where the weights shall live.

    Returns:
        A plain `Path`; what an `Adjusted` one tells of its knots is not stored.

    Raises:
        ValueError: if the file is not a saved path or has been changed, or it has a `Moved` leg and no move was given.
    """
    try:
        tensors, header = unpack(unsealed(FilePath(file).read_bytes()))
        known = header.get("form") == _FORM
    except (Corrupt, KeyError) as error:
        raise ValueError(f"file must hold a path that save_path wrote, got {FilePath(file).name}: {error}") from error
    if not known:
        raise ValueError(f"file must hold a path of form {_FORM!r}, got {header.get('form')!r}")
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Path(tuple(_restored(leg, placed, move) for leg in header["legs"]))


def _bases(points: int) -> dict[str, Basis]:
    curved = {"chain": partial(chain_basis, bends=points - 2), "bezier": partial(bezier_basis, bends=points - 2)}
    return {**({"linear": linear_basis} if points == 2 else {}), **({"arc": arc_basis} if points == 3 else {}),
            **(curved if points > 2 else {})}


def _recognised(function: Basis, known: Mapping[str, Basis], what: str) -> str:
    # By values: a curve's basis is a closure, which has no name of its own.
    s = torch.linspace(0, 1, 19, dtype=torch.float64)
    for name, other in known.items():
        if torch.equal(function(s), other(s)):
            return name
    raise ValueError(f"{what} must be one of the package's ({', '.join(known)}) to be saved, got one of its own")


def _described(leg: Leg, place: Callable[[Mapping[str, Tensor]], dict[str, str]], name: str) -> dict[str, Any]:
    if isinstance(leg, Mix):
        basis = _recognised(leg.basis, _bases(len(leg.points)), f"the basis of {name}")
        return {"kind": "mix", "basis": basis, "points": [place(point) for point in leg.points]}
    if isinstance(leg, Powers):
        factor = _recognised(leg.factor, _FACTORS, f"the factor of {name}")
        return {"kind": "powers", "factor": factor, "powers": dict(leg.powers), "weights": place(leg.weights)}
    if isinstance(leg, Swaps):
        layers = [asdict(layer) for layer in leg.layers]
        return {"kind": "swaps", "layers": layers, "weights": place(leg.weights),
                "permutations": place(leg.permutations)}
    if isinstance(leg, Moved):
        groups = [[[asdict(layer) for layer in side] for side in group] for group in leg.groups]
        return {"kind": "moved", "groups": groups, "a": place(leg.a), "b": place(leg.b)}
    raise ValueError(f"{name} must be a Mix, Powers, Swaps or Moved leg to be saved, got {type(leg).__name__}")


def _restored(leg: Mapping[str, Any], tensors: Mapping[str, Tensor], move: Move | None) -> Leg:
    def point(places: Mapping[str, str]) -> Weights:
        return {key: tensors[name] for key, name in places.items()}

    if leg["kind"] == "mix":
        points = tuple(point(places) for places in leg["points"])
        return Mix(points, _bases(len(points))[leg["basis"]])
    if leg["kind"] == "powers":
        return Powers(point(leg["weights"]), leg["powers"], _FACTORS[leg["factor"]])
    if leg["kind"] == "swaps":
        layers = tuple(Layer(**layer) for layer in leg["layers"])
        return Swaps(point(leg["weights"]), layers, point(leg["permutations"]))
    if move is None:
        raise ValueError("move must be given: the file has a leg on which a function moves the units, and no code is "
                         "stored")
    groups: Groups = tuple(tuple(tuple(Layer(**layer) for layer in side) for side in group) for group in leg["groups"])
    return Moved(point(leg["a"]), point(leg["b"]), groups, move)
