"""Many small networks trained at once: the set V that a global connection model learns from.

A network of a few thousand weights keeps no core busy: most of a step's time goes into starting operations. Stacked
along a leading axis, m networks share those starts (`torch.func.vmap` over the gradient; linear layers become batched
products).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from lossland.devices import device_name
from lossland.errors import choose
from lossland.families import point
from lossland.models import initial_weights
from lossland.recipes import endpoints, network, recipe_for
from lossland.sampling import stream_seed
from lossland.schedules import Recipe, learning_rate
from lossland.store import Store
from lossland.tasks import Task
from lossland.training import VERSION, Checkpoint, fit
from lossland.weights import Weights, check_finite, check_match, count, from_vector, skeleton, to_vector

WAYS = ("auto", "together", "one by one")
SMALL = 100_000  # parameters; up to here training together is faster on a CPU (see `fit_many`)
DENSE = 10_000_000  # parameters of dense networks on a GPU, by estimate: a step of one alone takes less than its start


def together(net: nn.Module, parameters: int, device: torch.device | str = "cpu") -> bool:
    """Return whether `fit_many` trains such networks at once when it may choose: small ones of plain layers.

    On a GPU larger dense ones, too: what a step of one network costs there is the time to start its operations. Filters
    of several networks make grouped convolutions, which are slow: networks that have any stay small ones.
    """
    dense = not any(isinstance(module, nn.modules.conv._ConvNd) for module in net.modules())
    most = DENSE if torch.device(device).type == "cuda" and dense else SMALL
    return parameters <= most and not _unstackable(net)


def _unstackable(net: nn.Module) -> list[str]:
    """Return the kinds of modules that keep statistics or draw numbers, each network its own."""
    norms, drops = nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd
    return sorted({type(module).__name__ for module in net.modules()
                   if isinstance(module, norms) or (isinstance(module, drops) and module.p > 0)})


def fit_many(net: nn.Module, starts: Sequence[Weights], task: Task, recipe: Recipe, seeds: Sequence[int], *,
             way: str = "auto", progress: bool = False, checkpoint: Checkpoint | None = None) -> list[Weights]:
    """Return the trained networks: those of `fit` with the same starts and seeds, up to rounding.

    Batched products add up in another order than single ones, so the weights agree with those of `fit` to about 1e-6
    in float64 arithmetic of the same run length and drift apart slowly in float32; a store recipe must name the way.

    Measured on one core of a busy two-core machine, medians of interleaved runs: 16 networks on 8 x 8 digits in batches
    of 32 took, one by one / together, 3.1 times as long at width 64 (4,810 parameters), 2.1 at 256, 1.2 at 1024 and
    2000; 16 networks on 28 x 28 images in batches of 128: 1.7 at widths 32 and 100, 1.4 at 300 (238,510 parameters).
    One wide network of blocks is no other way: each network has batches of its own, so that its first layer is a
    batched product, too. "auto" trains up to 100,000 parameters together, on a GPU up to 10 million of dense networks.

    Args:
        net: the network.
        starts: m initial weights.
        task: data; training happens on its device.
        recipe: as for `fit`, without bfloat16 when together.
        seeds: m seeds of batch order and augmentation.
        way: "together", "one by one" (a loop of `fit`), or "auto" by size and kind of network.
        progress: show a line.
        checkpoint: saved to after every epoch and continued from.

    Raises:
        ValueError: for unequal numbers of starts and seeds, none at all, or starts that do not match; a recipe of
            subspaces (beta, layerwise, similarity); together, for networks with batch norm or dropout, or bfloat16.
        FloatingPointError: if a loss or weight becomes NaN or infinite, naming epoch and network.
    """
    if not starts or len(starts) != len(seeds):
        raise ValueError(f"starts and seeds must be as many and at least one, got {len(starts)} and {len(seeds)}")
    for i, start in enumerate(starts):
        check_match(starts[0], start, ("starts[0]", f"starts[{i}]"))
        check_finite(start, f"starts[{i}]")
    choose("way", way, WAYS)
    if recipe.beta or recipe.layerwise or recipe.similarity:
        asked = (f"beta={recipe.beta:g}" if recipe.beta else "layerwise=True" if recipe.layerwise
                 else f"similarity={recipe.similarity:g}")
        raise ValueError(f"{asked} is for subspaces, fit_many trains single networks: use lossland.subspaces.subspace")
    if way == "one by one" or (way == "auto" and not together(net, count(starts[0]), task.train.labels.device)):
        return _in_turn(net, starts, task, recipe, seeds, progress=progress, checkpoint=checkpoint)
    if (found := _unstackable(net)) or recipe.precision == "bfloat16" or recipe.clip:
        limit = f"clip={recipe.clip:g}" if recipe.clip else recipe.precision
        raise ValueError(f"way='together' needs a network without batch norm and dropout, and float32 or float64 "
                         f"without clipping, got {found or limit}; use way='one by one'")
    return _train(net, starts, task, recipe, seeds, progress=progress, checkpoint=checkpoint)


def _in_turn(net: nn.Module, starts: Sequence[Weights], task: Task, recipe: Recipe, seeds: Sequence[int], *,
             progress: bool, checkpoint: Checkpoint | None) -> list[Weights]:
    turns = _Turns(checkpoint) if checkpoint else None
    made = [] if turns is None else turns.made
    for start, seed in list(zip(starts, seeds, strict=True))[len(made):]:
        fitted = fit(net, point(start), task, recipe, seed=seed, progress=progress, checkpoint=turns)
        made.append(to_vector(fitted.family.points[0]))
        if turns:
            turns.state = None
    like = {name: tensor.to(task.train.labels.device, recipe.dtype) for name, tensor in starts[0].items()}
    return [dict(from_vector(row.to(task.train.labels.device), like)) for row in made]


class _Turns:
    """The checkpoint of runs that follow each other: networks that are made, and the state of the one at work."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.state, self.made = checkpoint, None, []
        if saved := checkpoint.load():
            tensors, info = saved
            names = [f"made.{i}" for i in range(info.pop("made"))]
            self.made, self.state = [tensors.pop(name) for name in names], (tensors, info)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the state of the network at work, if it has one."""
        return self.state

    def save(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Keep it with the networks that are made."""
        made = {f"made.{i}": row for i, row in enumerate(self.made)}
        self.checkpoint.save(tensors | made, info | {"made": len(made)})


def _train(net: nn.Module, starts: Sequence[Weights], task: Task, recipe: Recipe, seeds: Sequence[int], *,
           progress: bool, checkpoint: Checkpoint | None) -> list[Weights]:
    device = task.train.images.device
    like = {name: tensor.to(device, recipe.dtype) for name, tensor in starts[0].items()}
    points = torch.stack([to_vector(start).to(device, recipe.dtype) for start in starts])  # (m, P)
    velocity, epoch, history = torch.zeros_like(points), 0, []
    if checkpoint and (saved := checkpoint.load()):
        points.copy_(saved[0]["points"])
        velocity.copy_(saved[0]["velocity"])
        epoch, history = saved[1]["epoch"], saved[1]["history"]
    gradient = _gradient(net, like, recipe.smoothing)
    title = f"{len(starts)} networks"
    with tqdm(total=recipe.epochs, initial=epoch, desc=title, unit="epoch", disable=not progress) as bar:
        for epoch in range(epoch, recipe.epochs):
            row = _epoch(gradient, points, velocity, task=task, recipe=recipe, seeds=seeds, epoch=epoch)
            history.append(row)
            if checkpoint:
                checkpoint.save({"points": points, "velocity": velocity}, {"epoch": epoch + 1, "history": history})
            bar.set_postfix(loss=f"{row['loss']:.4f}")
            bar.update()
    return [{name: view.clone() for name, view in from_vector(row, like).items()} for row in points]


def _gradient(net: nn.Module, like: Weights,
              smoothing: float) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (m, P) weights, (m, b, ...) images, (m, b) labels -> gradients (m, P) and losses (m,) [nats]."""
    bare = skeleton(net)  # evaluation mode is training mode without norms and dropout

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(bare, from_vector(theta, like), (images,))
        return cross_entropy(logits, labels, label_smoothing=smoothing)

    return vmap(grad_and_value(loss))


def _epoch(gradient: Callable[..., tuple[Tensor, Tensor]], points: Tensor, velocity: Tensor, *, task: Task,
           recipe: Recipe, seeds: Sequence[int], epoch: int) -> dict[str, float]:
    """Run one epoch in place; return its row of the history, the loss averaged over images and networks."""
    started, lr, total = time.perf_counter(), learning_rate(recipe, epoch), points.new_zeros(len(points))
    for images, labels in _batches(task, recipe, [stream_seed(seed, epoch, 0) for seed in seeds]):
        slope, loss = gradient(points, images, labels)
        velocity.mul_(recipe.momentum).add_(slope).add_(points, alpha=recipe.weight_decay)
        points.add_(velocity, alpha=-lr)
        total += loss * labels.shape[1]
    bad = (~(total.isfinite() & points.isfinite().all(1))).nonzero()[:, 0].tolist()
    if bad:
        raise FloatingPointError(f"training diverged: loss or weights of networks {bad} (seeds "
                                 f"{[seeds[i] for i in bad]}) NaN or infinite in epoch {epoch} (lr {lr:g})")
    loss = float(total.mean()) / len(task.train)
    return {"epoch": epoch, "lr": lr, "loss": loss, "seconds": time.perf_counter() - started}


def _batches(task: Task, recipe: Recipe, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (m, b, C, H, W) images and (m, b) labels: to each network the batches that `fit` would show it."""
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    split = task.train
    if (recipe.augment and task.augment != "none") or split.is_lazy:
        streams = [task.batches("train", batch_size=recipe.batch_size, generator=order, augment=recipe.augment,
                                dtype=recipe.dtype) for order in orders]
        for batches in zip(*streams, strict=True):
            yield tuple(torch.stack(part) for part in zip(*batches, strict=True))
        return
    every = torch.stack([torch.randperm(len(split), generator=order) for order in orders]).to(split.labels.device)
    for rows in every.split(recipe.batch_size, 1):  # one look into the images for all networks
        images = task.prepare(split.images[rows.flatten()], recipe.dtype)
        yield images.unflatten(0, rows.shape), split.labels[rows]


def trained_set(task: Task, model: str, *, seeds: Sequence[int], recipe: Recipe | None = None, way: str = "auto",
                store: Store | Path | str | None = None, progress: bool = False, **sizes: Any) -> list[Weights]:
    """Return independently trained networks like `recipes.endpoints`, the small ones trained at once; kept in the
    store.

    Trained together, the whole set is one entry of the store, and its recipe says so; trained one by one, the entries
    are those of `endpoints`.

    Args:
        task: data set.
        model: name of a network (`models.MODELS`).
        seeds: one network per seed.
        recipe: how to train; None: `recipe_for(task)`.
        way: as in `fit_many`.
        store: a store or its folder; None: the default store.
        progress: show a line.
        **sizes: of the network.

    Raises:
        ValueError: for an unknown model or way, or no seeds.

    Source: the set V of AY20 sections 3.3 and 5.1 (16 networks).
    """
    choose("way", way, WAYS)
    if not len(seeds):
        raise ValueError("seeds must hold at least one seed, got none")
    net, recipe = network(task, model, **sizes), recipe or recipe_for(task)
    if way == "auto":
        size, device = sum(p.numel() for p in net.parameters()), task.train.labels.device
        way = "together" if together(net, size, device) else "one by one"
    place = store if isinstance(store, Store) else Store(store)
    if way == "one by one":
        return endpoints(task, model, seeds=seeds, recipe=recipe, store=place, progress=progress, **sizes)
    device = task.train.images.device
    facts = {"set": {"model": model, "sizes": dict(sizes), "seeds": list(seeds)}, "way": way, "task": task.fingerprint,
             "recipe": recipe.facts(), "training": VERSION, "device": device.type}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    starts = [initial_weights(net, generator, device=device, dtype=recipe.dtype) for generator in generators]

    def make(checkpoint: Checkpoint) -> Weights:
        made = fit_many(net, starts, task, recipe, seeds, way=way, progress=progress, checkpoint=checkpoint)
        checkpoint.record.update(task=task.name, device=device_name(device))
        return {"points": torch.stack([to_vector(weights) for weights in made]).cpu()}

    rows = place.fetch(facts, make).tensors["points"].to(device)
    return [from_vector(row, like=start) for row, start in zip(rows, starts, strict=True)]
