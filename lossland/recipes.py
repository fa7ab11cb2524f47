"""Named recipes, and networks that are trained once and then read from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Generator, Tensor, nn
from tqdm import tqdm

from lossland.devices import device_name
from lossland.errors import choose
from lossland.families import Family, point
from lossland.identity import described, fingerprint
from lossland.models import build, initial_weights
from lossland.regularisers import spread
from lossland.requests import check_data, check_name, check_recipe, check_request, store_at
from lossland.store import Checkpoint, Store
from lossland.tasks import Task
from lossland.training import VERSION, Fit, Recipe, Start, fit
from lossland.weights import Weights, from_vector, to_vector

RECIPES: dict[str, Recipe] = {
    # 1,297 images of 8 x 8: about 1,600 steps, a second on one core
    "digits": Recipe(epochs=40, lr=0.05, batch_size=32, weight_decay=1e-3),
    # 45,000 words of Python's documentation: about 400 steps; a language model wants large steps
    "pydoc": Recipe(epochs=10, lr=2.0, batch_size=32),
    "ay20-mnist": Recipe(epochs=30, lr=0.01, weight_decay=1e-4),
    "ay20-cifar10": Recipe(epochs=400, lr=0.01, weight_decay=1e-4),
    "g18-vgg16": Recipe(epochs=200, lr=0.05, weight_decay=5e-4),
    "g18-preresnet": Recipe(epochs=150, lr=0.1, weight_decay=3e-4),
    # The TensorFlow tutorial's large setting: it adds up the losses of a window's 35 words at a learning rate of 1 and
    # clips that gradient at 10, without momentum. The rate stays for 14 epochs, then each divides it by 1.15.
    "g18-ptb": Recipe(epochs=55, lr=35.0, batch_size=20, momentum=0.0, clip=10 / 35),
    "w21-cifar10": Recipe(epochs=160, lr=0.1, weight_decay=1e-4, schedule="cosine", warmup=5),
    "w21-line": Recipe(epochs=160, lr=0.1, weight_decay=1e-4, schedule="cosine", warmup=5, beta=1.0),
    "w21-tinyimagenet": Recipe(epochs=160, lr=0.1, weight_decay=1e-4, schedule="cosine", warmup=5),
    # WideResNet50; ResNet50 takes 200 epochs, Fig. 10 up to 300
    "w21-imagenet": Recipe(epochs=100, lr=0.1, batch_size=256, weight_decay=5e-5, schedule="cosine", warmup=5),
}
"""Named recipes: AY20 section 5 and its released settings; G18 and its released settings; W21 section 4.

Those of W21 are its standard training (beta = 0), and "w21-line" what its lines, curves and simplexes of CIFAR-10 take;
for other data sets, `dataclasses.replace(RECIPES["w21-imagenet"], beta=1.0)`.
"""

_NEVER_0 = ("epochs", "lr", "batch_size", "draws")  # 0 stands for the recipe's own value


def network(task: Task, model: str, **sizes: Any) -> nn.Module:
    """Return the named network for a task's images and classes: a skeleton without weights (see `models.build`).

    Raises:
        ValueError: for an unknown model or size, with the nearest valid name.
        TypeError: for a size of the wrong type, such as text; for the name of a task in place of a task.
    """
    check_data(task)
    return build(model, task.input_shape, task.classes, **sizes)


def recipe_for(task: Task, **changes: Any) -> Recipe:
    """Return the papers' recipe for a task: AY20's for MNIST-like and CIFAR-like images, W21's for folders of images;
    ours for digits and texts.

    Args:
        task: images of one channel take 30 epochs, of three channels 400. Folders of images up to 64 pixels have the
            recipe of TinyImageNet, of larger ones that of ImageNet.
        **changes: fields of `Recipe` to replace. None keeps the recipe's value; so does 0 for epochs, lr, batch_size
            and draws, which cannot be 0. Elsewhere 0 means 0: `weight_decay=0.0` is without weight decay.

    Raises:
        ValueError: for a name that is no field, or a value that a field cannot have.
        TypeError: for a value of another type; for the name of a task in place of a task.

    Examples:
        >>> from lossland import load_task
        >>> recipe = recipe_for(load_task("digits"), epochs=0, weight_decay=0.0)
        >>> recipe.epochs, recipe.weight_decay
        (40, 0.0)
    """
    check_data(task)
    by_channels = "ay20-mnist" if task.input_shape[0] == 1 else "ay20-cifar10"
    name = "digits" if task.name == "digits" else "pydoc" if task.is_text else by_channels
    if task.class_names:  # a folder of images, which may have any name
        name = "w21-tinyimagenet" if task.input_shape[1] <= 64 else "w21-imagenet"
    fields = asdict(RECIPES[name])
    for key, value in changes.items():
        choose("field of the recipe", key, fields)
        # 0 == False, which is to be refused by its field.
        if value is not None and (key not in _NEVER_0 or isinstance(value, bool) or value != 0):
            fields[key] = value
    return Recipe(**fields)


def trained(family: Family, net: nn.Module, task: Task, recipe: Recipe, *, name: Mapping[str, Any] | None = None,
            seed: int = 0, store: Store | Path | str | None = None, progress: bool = False) -> Family:
    """Return the trained family, read from the store where this very recipe has been trained before.

    Args:
        family: control points to start from, such as `ll.bezier(a, b)`; one network: `ll.point(weights)`.
        net: the network.
        task: data; its content hash belongs to the recipe.
        recipe: epochs, learning rate, decay.
        name: JSON values that determine network and starting points, such as model, sizes and seeds: these names stand
            for them, their numbers are not looked at. None: the numbers of the control points, and of the network its
            classes, `repr`, shapes and buffers; of classes of your own also attributes, the code of their methods, and
            what that reaches by name: your functions, globals, closures (`identity.described`).
        seed: of batches, augmentation and sampled members.
        store: a store or its folder, where to look and keep; None: the default store.
        progress: show a line.

    Returns:
        The family with its trained control points, on the task's device. `fitted` has the history, too. A run that was
        cut off continues from its last epoch.

    Raises:
        FloatingPointError: if the loss or a weight becomes NaN or infinite.
        ValueError, TypeError: as `training.fit`, whose checks come first; for a name that is no dictionary.

    Examples:
        Networks of your own, and a curve between them:

        >>> curve = trained(bezier(a, b), net, task, recipe)  # doctest: +SKIP
    """
    return fitted(family, net, task, recipe, name=name, seed=seed, store=store, progress=progress).family


def fitted(family: Family, net: nn.Module, task: Task, recipe: Recipe, *, name: Mapping[str, Any] | None = None,
           seed: int = 0, store: Store | Path | str | None = None, progress: bool = False) -> Fit:
    """Return the trained family and its history, read from the store where this very recipe has been trained before.

    Args:
        family: control points to start from.
        net: the network.
        task: data; its content hash belongs to the recipe.
        recipe: epochs, learning rate, decay.
        name: JSON values that determine network and starting points, such as model, sizes and seeds: these names stand
            for them, their numbers are not looked at. None: the numbers of the control points, and of the network its
            classes, `repr`, shapes and buffers; of classes of your own also attributes, the code of their methods, and
            what that reaches by name: your functions, globals, closures (`identity.described`).
        seed: of batches, augmentation and sampled members.
        store: a store or its folder, where to look and keep; None: the default store.
        progress: show a line.

    Returns:
        What `training.fit` returns, without velocity; the family is on the task's device. A run that was cut off
        continues from its last epoch.

    Raises:
        FloatingPointError: if the loss or a weight becomes NaN or infinite.
        ValueError, TypeError: as `training.fit`, whose checks come first; for a name that is no dictionary.
    """
    check_request(net, family, task, recipe, seed)
    check_name(name)
    device = task.train.images.device
    if name is None:
        name = {"net": described(net), "start": [fingerprint(weights, recipe.dtype) for weights in family.points]}
    facts = {"name": dict(name), "kind": family.kind, "points": len(family.points), "task": task.fingerprint,
             "recipe": recipe.facts(), "seed": seed, "training": VERSION, "device": device.type}

    def make(checkpoint: Checkpoint) -> Weights:
        done = fit(net, family, task, recipe, seed=seed, progress=progress, checkpoint=checkpoint)
        checkpoint.record.update(task=task.name, history=done.history.to_dict("records"), device=device_name(device))
        return {f"point{i}": to_vector(p).cpu() for i, p in enumerate(done.family.points)}

    entry = store_at(store).fetch(facts, make)
    vectors = [entry.tensors[f"point{i}"].to(device) for i in range(len(family.points))]
    done = family.with_points([from_vector(v, like=p) for v, p in zip(vectors, family.points, strict=True)])
    free = [p for p, movable in zip(family.points, family.free, strict=True) if movable]
    return Fit(done, pd.DataFrame(entry.record["history"]), start=spread(net, free) if len(free) > 1 else {})


def endpoints(task: Task, model: str, *, seeds: Sequence[int], recipe: Recipe | None = None,
              store: Store | Path | str | None = None, progress: bool = False, **sizes: Any) -> list[Weights]:
    """Return independently trained networks: trained once, then read from the store.

    Args:
        task: data set.
        model: name of a network (`models.MODELS`).
        seeds: one network per seed; a seed decides initial weights, batch order and augmentation.
        recipe: how to train; None: `recipe_for(task)`.
        store: a store or its folder; None: the default store.
        progress: show a line per network.
        **sizes: of the network.

    Raises:
        ValueError: for an unknown model, or no seeds.

    Source: AY20 section 5: independent initialisations and data orders.
    """
    if isinstance(seeds, int):
        raise TypeError(f"seeds must be a sequence such as (1, 2), got {seeds!r}")
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be >= 0, got {list(seeds)}")
    if not len(seeds):
        raise ValueError("seeds must hold at least one seed, got none")
    net, recipe = network(task, model, **sizes), recipe if recipe is not None else recipe_for(task)
    check_recipe(recipe)
    place = store_at(store)
    found = []
    for seed in tqdm(seeds, desc=f"{model} end points", unit="net", disable=not progress):
        start = initial_weights(net, Generator().manual_seed(seed), device=task.train.images.device, dtype=recipe.dtype)
        name = {"model": model, "sizes": sizes, "seed": seed}
        family = trained(point(start), net, task, recipe, name=name, seed=seed, store=place, progress=progress)
        found.append(family.points[0])
    return found


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that, as long as it is empty, holds the state of an earlier stop of the same run."""

    own: Checkpoint
    earlier: tuple[dict[str, Tensor], dict[str, Any]] | None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.own.load() or self.earlier

    def save(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        self.own.save(tensors, info)


def stopped_at(net: nn.Module, start: Weights, task: Task, recipe: Recipe, *, epochs: Sequence[int],
               name: Mapping[str, Any] | None = None, seed: int = 0, store: Store | Path | str | None = None,
               progress: bool = False) -> list[Start]:
    """Return weights and momentum of one run after some of its epochs: trained once, then read from the store.

    The run is that of `training.fit`: after all its epochs the weights are those of `trained`. Each stop is kept, and
    a later one goes on from the one before it.

    Args:
        net: the network.
        start: initial weights.
        task: data; its content hash belongs to the recipe.
        recipe: the whole schedule.
        epochs: where to stop, such as (120, 156) of 200; the result has their order.
        name: JSON values that determine network and initial weights, as for `trained`.
        seed: of batches and augmentation.
        store: a store or its folder, where to look and keep; None: the default store.
        progress: show a line.

    Raises:
        ValueError: for no epochs, or epochs outside 1..recipe.epochs.

    Source: G18 section 5 and A.5 (checkpoints 120 and 156 of one run).
    """
    check_request(net, point(start), task, recipe, seed)
    check_name(name)
    if not epochs or not all(1 <= epoch <= recipe.epochs for epoch in epochs):
        raise ValueError(f"epochs must be some of the recipe's 1..{recipe.epochs}, got {list(epochs)}")
    device, place = task.train.images.device, store_at(store)
    if name is None:
        name = {"net": described(net), "start": fingerprint(start, recipe.dtype)}
    facts = {"name": dict(name), "kind": "stop", "task": task.fingerprint, "recipe": recipe.facts(), "seed": seed,
             "training": VERSION, "device": device.type}
    found: dict[int, Start] = {}
    earlier = None
    for epoch in sorted(set(epochs)):
        def make(checkpoint: Checkpoint, epoch: int = epoch, earlier: Any = earlier) -> Weights:
            done = fit(net, point(start), task, recipe, seed=seed, progress=progress, until=epoch,
                       checkpoint=Resumed(checkpoint, earlier))
            checkpoint.record.update(task=task.name, history=done.history.to_dict("records"),
                                     device=device_name(device))
            return {"points": to_vector(done.family.points[0])[None], "velocity": to_vector(done.velocity[0])[None]}

        entry = place.fetch({**facts, "until": epoch}, make)
        earlier = entry.tensors, {"epoch": epoch, "history": entry.record["history"]}
        weights, velocity = (from_vector(entry.tensors[part][0].to(device), like=start)
                             for part in ("points", "velocity"))
        found[epoch] = Start(weights, velocity, epoch)
    return [found[epoch] for epoch in epochs]


def trained_until(task: Task, model: str, *, epochs: Sequence[int], seed: int, recipe: Recipe | None = None,
                  store: Store | Path | str | None = None, progress: bool = False, **sizes: Any) -> list[Start]:
    """Return a named network after some epochs of its training, with its momentum: where ensembles start.

    Args:
        task: data set.
        model: name of a network (`models.MODELS`).
        epochs: where to stop, such as (120, 156) of 200; the last epoch of the recipe gives the network of `endpoints`.
        seed: decides initial weights, batch order and augmentation.
        recipe: the whole schedule; None: `recipe_for(task)`.
        store: a store or its folder; None: the default store.
        progress: show a line.
        **sizes: of the network.

    Raises:
        ValueError: for an unknown model, no epochs, or epochs outside the recipe.
    """
    net, recipe = network(task, model, **sizes), recipe if recipe is not None else recipe_for(task)
    check_recipe(recipe)
    start = initial_weights(net, Generator().manual_seed(seed), device=task.train.images.device, dtype=recipe.dtype)
    name = {"model": model, "sizes": sizes, "seed": seed}
    place = store_at(store)
    return stopped_at(net, start, task, recipe, epochs=epochs, name=name, seed=seed, store=place, progress=progress)
