"""Learned subspaces: lines, curves and simplexes of networks that one run trains from scratch (W21)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lossland.errors import choose
from lossland.families import Family, bezier, line, point, simplex
from lossland.models import initial_weights
from lossland.recipes import fitted, network, recipe_for
from lossland.requests import check_net, check_recipe, store_at
from lossland.sampling import stream_seed
from lossland.scalars import flag, seed_of
from lossland.schedules import Recipe
from lossland.store import Store
from lossland.tasks import Task
from lossland.training import Fit

KINDS = {"point": 1, "line": 2, "bezier": 3, "simplex": None}
"""Kinds of subspaces and how many control points they have; a simplex has any m >= 2."""

_FIRST, _SECOND = "dict(first.named_parameters())", "dict(second.named_parameters())"
_WAY_OUT = {"point": f"ll.point({_FIRST})", "line": f"ll.line({_FIRST}, {_SECOND})",
            "bezier": f"ll.bezier({_FIRST}, {_SECOND}, ends='free')",
            "simplex": "ll.simplex([dict(net.named_parameters()) for net in nets])"}


def start(net: nn.Module, kind: str, *, points: int | None = None, seed: int = 0, same_start: bool = False,
          scheme: str = "kaiming-normal", device: torch.device | str = "cpu",
          dtype: torch.dtype = torch.float32) -> Family:
    """Return an untrained subspace: control points with initial weights of their own, all of them free to move.

    The first control point is the same for every kind of one seed: the start of plain training; a line's two are the
    first two of a simplex.

    Args:
        net: the network, one of ours or your own.
        kind: "point" (plain training), "line", "bezier" (one bend, which has initial weights of its own, too) or
            "simplex".
        points: control points m of a simplex; None: 2. The other kinds have 1, 2 and 3.
        seed: of the initial weights.
        same_start: whether all control points start from the same weights ("point init", W21 Fig. 15).
        scheme: how weights are drawn, see `models.initial_weights`.
        device: where the weights go.
        dtype: of the weights.

    Raises:
        ValueError: for an unknown kind or scheme, a seed below 0, a simplex of fewer than two points, another number of
            points than the kind has.
        TypeError: for a module that `initial_weights` does not know: pass weights of your own to `families.line`,
            `families.bezier` or `families.simplex`; for a class in place of a network, or a same_start that is no bool.

    Source: W21 section 3 and Algorithm 1 ("Initialize each omega_i independently").
    """
    count = _count(choose("kind", kind, KINDS), points)
    check_net(net)
    seed, drawn = seed_of(seed), []
    for i in range(1 if flag("same_start", same_start) else count):
        generator = torch.Generator().manual_seed(stream_seed(seed, i) if i else seed)
        try:
            drawn.append(initial_weights(net, generator, scheme=scheme, device=device, dtype=dtype))
        except TypeError as error:
            raise TypeError(f"{error}: make {count} networks of your own and take {_WAY_OUT[kind]}") from error
    if same_start:
        drawn = [{name: tensor.clone() for name, tensor in drawn[0].items()} for _ in range(count)]
    if kind == "bezier":
        return bezier(drawn[0], drawn[1], ends="free").with_points([drawn[0], drawn[2], drawn[1]])
    return simplex(drawn) if kind == "simplex" else line(*drawn) if kind == "line" else point(*drawn)


def _count(kind: str, points: int | None) -> int:
    if points is not None and (isinstance(points, bool) or not isinstance(points, int)):
        raise TypeError(f"points must be a whole number, got {points!r}")
    if (own := KINDS[kind]) is None:
        if points is not None and points < 2:
            raise ValueError(f"points of a simplex must be >= 2: its networks differ by lying between m corners, got "
                             f"{points}; kind='point' is plain training")
        return points or 2
    if points not in (None, own):
        raise ValueError(f"points must be {own} for a {kind}, got {points}; kind='simplex' has as many as you like")
    return own


def subspace(task: Task, model: str, kind: str, *, points: int | None = None, seed: int = 0,
             recipe: Recipe | None = None, same_start: bool = False, store: Store | Path | str | None = None,
             progress: bool = False, **sizes: Any) -> Fit:
    """Return a subspace of networks trained from scratch in one run: trained once, then read from the store.

    Args:
        task: data set.
        model: name of a network (`models.MODELS`).
        kind: "line", "bezier", "simplex", or "point" for plain training from the same initial weights.
        points: control points of a simplex; None: 2.
        seed: decides initial weights, batch order, augmentation and sampled networks.
        recipe: how to train; None: `recipe_for(task)` with W21's beta = 1, for a point 0.
        same_start: whether all control points start from the same weights.
        store: a store or its folder; None: the default store.
        progress: show a line.
        **sizes: of the network.

    Returns:
        The trained family, its history with distance and cos2 of the control points, and both at the start.

    Raises:
        ValueError: for an unknown model or kind, a seed below 0, a number of points that the kind does not have, or a
            recipe that does not suit it, such as beta > 0 for a point.

    Source: W21 Algorithm 1.

    Examples:
        >>> from lossland import load_task
        >>> task = load_task("digits")
        >>> line = subspace(task, "mlp", "line", seed=1, width=32)  # doctest: +SKIP
        >>> line.family.midpoint(), line.history.cos2.iloc[-1]  # doctest: +SKIP
    """
    seed = seed_of(seed)
    net = network(task, model, **sizes)
    recipe = recipe if recipe is not None else replace(recipe_for(task), beta=0.0 if kind == "point" else 1.0)
    check_recipe(recipe)
    family = start(net, kind, points=points, seed=seed, same_start=same_start, device=task.train.images.device,
                   dtype=recipe.dtype)
    name = {"model": model, "sizes": sizes, "seed": seed, "scheme": "kaiming-normal", "same_start": same_start}
    return fitted(family, net, task, recipe, name=name, seed=seed, store=store_at(store), progress=progress)
