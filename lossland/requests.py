"""What training is asked for, looked at before anything runs: each refusal says what to pass instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from lossland.families import Family
from lossland.scalars import seed_of
from lossland.schedules import Recipe
from lossland.store import Store
from lossland.tasks import Task

_BATCH_NORM = "Expected more than 1 value per channel when training"  # torch's words


def check_net(net: nn.Module) -> None:
    """Raise unless `net` is a network.

    Raises:
        TypeError: for anything else, a class of networks included.
    """
    if isinstance(net, type):
        raise TypeError(f"net must be a network, got the class {net.__name__}: make one, {net.__name__}(...)")
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a network, a torch.nn.Module, got {type(net).__name__}")


def check_data(task: Task) -> None:
    """Raise unless `task` is a task.

    Raises:
        TypeError: for anything else; for the name of one with what loads it.
    """
    if isinstance(task, str):
        raise TypeError(f"task must be a Task, got the text {task!r}: ll.load_task({task!r}) loads one")
    if not isinstance(task, Task):
        raise TypeError(f"task must be a Task such as ll.load_task('digits'), got {type(task).__name__}")


def check_recipe(recipe: Recipe) -> None:
    """Raise unless `recipe` is a recipe.

    Raises:
        TypeError: for anything else; for a dictionary, a name or the class with how to make one.
    """
    if isinstance(recipe, Recipe):
        return
    hint = "such as ll.recipe_for(task)"
    if isinstance(recipe, Mapping):
        hint = "made by ll.Recipe(**fields), or ll.recipe_for(task, **fields) for the papers' one with these changes"
    elif isinstance(recipe, str):
        hint = "such as ll.recipe_for(task), or one of those in recipes.RECIPES, which have names"
    elif recipe is Recipe:
        hint = "made by ll.Recipe(epochs=40, lr=0.05)"
    got = f"the class {recipe.__name__}" if isinstance(recipe, type) else f"{recipe!r} ({type(recipe).__name__})"
    raise TypeError(f"recipe must be a Recipe, {hint}; got {got}")


def check_family(family: Family) -> None:
    """Raise unless `family` is a family.

    Raises:
        TypeError: for anything else; for a `Fit` or the weights of a network with what to pass.
    """
    if isinstance(family, Family):
        return
    hint = "such as ll.bezier(a, b)"
    if isinstance(getattr(family, "family", None), Family):
        hint = "which this one holds as .family"
    elif isinstance(family, Mapping):
        hint = "for one network ll.point(weights)"
    raise TypeError(f"family must be a Family, {hint}, got {type(family).__name__}")


def check_request(net: nn.Module, family: Family, task: Task, recipe: Recipe, seed: int) -> None:
    """Raise unless these are a network whose weights all move, a family, a task, a recipe and a seed.

    Raises:
        TypeError: for arguments of other kinds.
        ValueError: for a seed below 0, or a network some of whose parameters are without grad.
    """
    check_net(net)
    check_family(family)
    check_data(task)
    check_recipe(recipe)
    seed_of(seed)
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    if frozen and len(frozen) < len(list(net.parameters())):  # all of them: a skeleton
        shown = ", ".join(map(repr, frozen[:3])) + (f" and {len(frozen) - 3} more" if frozen[3:] else "")
        raise ValueError(f"net must have no frozen parameters, because all weights of a family are trained, got "
                         f"requires_grad=False for {shown}: call net.requires_grad_() to train them, too, or make them "
                         "buffers (register_buffer), which stay as they are")


def check_name(name: Mapping[str, Any] | None) -> None:
    """Raise unless `name` is None or a dictionary.

    Raises:
        TypeError: for anything else.
    """
    if name is not None and not isinstance(name, Mapping):
        raise TypeError("name must be a dictionary that determines network and starting points, such as "
                        f"{{'model': 'mine', 'seed': 1}}, or None, got {name!r}")


def store_at(store: Store | Path | str | None) -> Store:
    """Return a store: itself, that of a folder, or the default one.

    Raises:
        TypeError: for anything else.
    """
    if store is not None and not isinstance(store, (Store, Path, str)):
        raise TypeError(f"store must be a Store or its folder, got {store!r}")
    return store if isinstance(store, Store) else Store(store)


@contextmanager
def batch_norm_needs_two(recipe: Recipe, images: int) -> Iterator[None]:
    """Say which batch_size to take where a batch of one image has no variance.

    Raises:
        ValueError: in place of torch's.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_BATCH_NORM):
            raise
        size, draws = recipe.batch_size, recipe.draws
        sizes = range(max(size, 2 * draws), images + 3 * draws, draws)
        fits = next((each for each in sizes if images % each != 1), 2 * size)
        raise ValueError(
            f"batch_size must leave two images or more for every sampled network, because one has no batch-norm "
            f"variance: {images} images in batches of {size} (draws={draws}) end with a batch of "
            f"{images % size or size}; take batch_size={fits}, or another number of images (task.subset)") from error
