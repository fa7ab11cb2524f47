"""What evaluation is given, checked where it comes in: the network, the data, a path, the weights of one network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from lossland import batchnorm
from lossland.families import Family
from lossland.paths import Path
from lossland.tasks import Task
from lossland.weights import Weights, check_belongs


def check_task(net: nn.Module, task: Task) -> None:
    """Raise unless `net` is a network and `task` the data, saying what a network is evaluated with.

    Raises:
        TypeError: for a class in place of a network of that class; naming the batch-norm layers whose statistics the
            training split gives, if there are any.
    """
    if isinstance(net, type):
        raise TypeError(f"net must be a network, got the class {net.__name__}: make one, {net.__name__}(...), or take "
                        "recipes.network(task, 'mlp')")
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a network, a torch.nn.Module such as recipes.network(task, 'mlp'), got "
                        f"{type(net).__name__}")
    if not isinstance(task, Task):
        names = list(batchnorm.norms(net))
        why = (f"the batch-norm statistics of {names[0]!r}" + (f" and {len(names) - 1} more" if names[1:] else "") +
               ", which no weights hold, are re-estimated on its training split") if names else "its splits are scored"
        raise TypeError(f"task must be the data, a Task such as load_task('digits'): {why}; got {type(task).__name__}")


def check_whole(name: str, value: int, least: int | None = None) -> None:
    """Raise unless this is a whole number, no less than `least`.

    Raises:
        TypeError: for what is no whole number.
        ValueError: for too small a one.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_tolerance(tolerance: float) -> None:
    """Raise unless this is a number above zero.

    Raises:
        TypeError: for what is no number.
        ValueError: for zero, what is negative, and NaN.
    """
    if not isinstance(tolerance, Real) or isinstance(tolerance, bool):
        raise TypeError(f"tolerance must be a number, such as 1e-3, got {tolerance!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")


def as_points(points: int | Sequence[float] | Tensor) -> int | Tensor:
    """Return the number of points that `points` is, or the t (T,) float64 that it holds.

    Raises:
        TypeError: for one t, which must be in a list, and for what holds no numbers.
    """
    if getattr(points, "ndim", None) == 0:  # of torch or numpy
        points = points.item()
    if isinstance(points, Integral) and not isinstance(points, bool):
        return int(points)
    if not isinstance(points, (Real, str)):
        try:
            return torch.as_tensor(points, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            pass
    one = f": one t alone is [{points!r}]" if isinstance(points, float) and 0 <= points <= 1 else ""
    raise TypeError("points must be a number, of equidistant t, such as 61, or the t themselves, such as [0.25, 0.5], "
                    f"got {points!r}{one}")


def holds_family(value: object) -> bool:
    """Return whether this is a `Fit`, or anything else that holds a family as `.family`."""
    return isinstance(getattr(value, "family", None), Family)


def as_path(path: Path | Family) -> Path:
    """Return the path that `path` is, or a family over an interval gives.

    Raises:
        TypeError: for a `Fit`, the weights of one network, or anything else that is no path, saying what to pass.
        ValueError: for a family over no interval, saying how one network is scored.
    """
    if isinstance(path, Path):
        return path
    if isinstance(path, Family):
        if path.kind == "point":
            raise ValueError("path() needs a family over an interval, got a point, which is one network: score it by "
                             "member_scores(net, family.points, task) of lossland.ensembles, or take the path that "
                             "rests there, segment(w, w) with w = family.points[0]")
        return path.path()
    advice = ""
    if holds_family(path):
        advice = ", what training returns: pass its .family"
    elif isinstance(path, Mapping):
        advice = (", the weights w of one network: score it by member_scores(net, [w], task) of lossland.ensembles, or "
                  "take the path that rests there, segment(w, w)")
    elif isinstance(path, nn.Module):
        advice = ", a network: segment(a, b) is the path between two dictionaries of weights"
    raise TypeError("path must be a Path, or a Family over an interval such as subspace(...).family, got "
                    f"{type(path).__name__}{advice}")


def single(net: nn.Module, weights: Weights | Family, name: str) -> Weights:
    """Return the weights of one network, which a family of one point may bring.

    Args:
        net: the network.
        weights: its weights, or a family of one point.
        name: of the argument.

    Raises:
        TypeError: for a `Fit`, a family of several points, or what is no dictionary of tensors, saying what to pass.
        ValueError: for weights of another network.
    """
    if isinstance(weights, Family) and weights.kind == "point":
        weights = weights.points[0]
    family = weights.family if holds_family(weights) else weights
    if isinstance(family, Family):
        inside = ".family" if family is not weights else ""
        which = ".points[0]" if len(family.points) == 1 else f".points[0] to .points[{len(family.points) - 1}]"
        raise TypeError(f"{name} must be the weights of one network, got {type(weights).__name__}: pass one of its "
                        f"control points, {inside}{which}")
    if isinstance(weights, Path):
        raise TypeError(f"{name} must be the weights of one network, got a Path: pass one of its points, path.point(t)")
    check_belongs(net, weights, name)
    return weights


@contextmanager
def naming(net: nn.Module, task: Task) -> Iterator[None]:
    """Add to an error that torch raises inside which network met which data."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, AttributeError, TypeError) as error:
        note = (f"{type(net).__name__} on task {task.name!r}: the network must take inputs of shape "
                f"{task.input_shape} and give {task.classes} logits, one for each class")
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
