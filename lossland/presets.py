"""Parameters of a chapter: checked names and types, and the settings of a scale."""

import math
import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from lossland.errors import choose, did_you_mean

T = TypeVar("T")

SCALES = ("tiny", "laptop", "gpu", "paper")

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "list": (list,), "None": (type(None),),
}
_JSON = (str, int, float, bool, list, dict, tuple, type(None))  # what papermill can inject
_IPYTHON = ("In", "Out")  # IPython's other names start with an underscore or are functions
_CHECKED = "__lossland_checked__"


def check_parameters(namespace: Mapping[str, Any], *, chapter: str | None = None,
                     known: Mapping[str, Any] | None = None, scales: Iterable[str] = SCALES) -> None:
    """Refuse unknown parameters, wrong types and unknown scales; call it right after the parameters cell.

    papermill only logs a parameter that the notebook does not have, and ``-p flag false`` gives the string
    ``"false"``, which is true. The parameters of a chapter are the names annotated in its parameters cell
    (``epochs: int = 0``); any other plain value (string, number, list, dictionary, None) that stands in the namespace
    at this point was injected under a wrong name. Names that start with an underscore, functions, classes and modules
    pass. If ``namespace`` can be written, a first success leaves a mark in it (``__lossland_checked__``), and running
    the cell again in the same kernel, when the names of the later cells exist, checks types and scale only.

    Args:
        namespace: ``globals()`` of the notebook or script.
        chapter: Name of the chapter for messages.
        known: Parameter name -> type; None: ``namespace["__annotations__"]``. Types are ``str``, ``int``, ``float``,
            ``bool``, ``list``, ``list[int]`` and the like, and unions with ``None``, as types or as their text.
            An int passes for a float; a bool is no int.
        scales: Valid values of the parameter ``scale``, where the chapter has one.

    Raises:
        ValueError: An unknown parameter (with the nearest known one), a parameter that has no value, an infinite, NaN
            or negative number, an unknown scale, no annotations at all.
        TypeError: A value of the wrong type, or an annotation of another kind than those above.

    Example:
        >>> check_parameters({"__annotations__": {"epochs": int}, "epochs": 3})
        >>> check_parameters({"__annotations__": {"epochs": int}, "epochs": 3, "epoch": 5}, chapter="chapter 1")
        Traceback (most recent call last):
            ...
        ValueError: unknown parameter 'epoch' (did you mean 'epochs'?); parameters of chapter 1: epochs
    """
    known = namespace.get("__annotations__") if known is None else known
    if not known:
        raise ValueError("namespace must hold annotated parameters (epochs: int = 0), got none: pass globals()")
    if _CHECKED not in namespace:
        _check_names(namespace, known, chapter or "this chapter")
    for name, annotation in known.items():
        if name not in namespace:
            raise ValueError(f"parameter {name!r} has no value: give it one in the parameters cell")
        _check_type(name, namespace[name], annotation)
    if "scale" in known:
        choose("scale", namespace["scale"], scales)
    if isinstance(namespace, MutableMapping):
        namespace[_CHECKED] = True


def at_scale(scales: Mapping[str, T], scale: str, **overrides: Any) -> T:
    """Return the settings of a scale, with some of them replaced.

    Args:
        scales: Scale -> frozen dataclass of settings.
        scale: One of the keys.
        **overrides: Settings by name. 0 and None mean "from the scale", as in the chapters' parameters; False is a
            value.

    Returns:
        A dataclass of the same type; ``scales`` is not changed.

    Raises:
        ValueError: An unknown scale or setting, with the nearest valid one.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     epochs: int
        ...     width: int
        >>> at_scale({"tiny": Settings(3, 64)}, "tiny", epochs=5, width=0)
        Settings(epochs=5, width=64)
    """
    settings: Any = scales[choose("scale", scale, scales)]
    for name in overrides:
        choose("setting", name, [field.name for field in fields(settings)])
    given = {name: value for name, value in overrides.items() if isinstance(value, bool) or value not in (0, None)}
    return replace(settings, **given)


def _check_names(namespace: Mapping[str, Any], known: Mapping[str, Any], chapter: str) -> None:
    unknown = [name for name, value in namespace.items()
               if name not in known and not name.startswith("_") and name not in _IPYTHON and isinstance(value, _JSON)]
    if unknown:
        named = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown)
        plural = "s" if len(unknown) > 1 else ""
        raise ValueError(f"unknown parameter{plural} {named}; parameters of {chapter}: {', '.join(known)}")


def _check_type(name: str, value: Any, annotation: Any) -> None:
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")  # list[int] is a type on 3.11 too
    text = annotation.__name__ if plain else str(annotation)
    if not any(_fits(name, value, kind.strip()) for kind in text.split("|")):
        hint = ""
        if "bool" in text and isinstance(value, str):
            hint = f": papermill's -p makes a string of it, use -y '{{{name}: {value.lower()}}}'"
        raise TypeError(f"parameter {name!r} must be {text}, got {value!r} ({type(value).__name__}){hint}")
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ValueError(f"parameter {name!r} must be finite, got {value!r}")
    if any(isinstance(number, (int, float)) and number < 0 for number in numbers):
        raise ValueError(f"parameter {name!r} must be >= 0, got {value!r}")


def _fits(name: str, value: Any, kind: str) -> bool:
    of = re.fullmatch(r"list\[(\w+)\]", kind)
    if of:
        return isinstance(value, list) and all(_fits(name, item, of[1]) for item in value)
    if kind not in _TYPES:
        raise TypeError(f"annotation of parameter {name!r} must be one of {', '.join(_TYPES)} or list[...], got {kind}")
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, _TYPES[kind])
