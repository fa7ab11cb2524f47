"""Errors that name the valid choices and the nearest one."""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def did_you_mean(value: Any, choices: Iterable[Any]) -> str:
    """Return the end of an error message that names the nearest choice.

    Args:
        value: What was asked for.
        choices: What exists; compared as text, upper and lower case alike.

    Returns:
        ``" (did you mean 'epochs'?)"``, or ``""`` where nothing is near.

    Example:
        >>> did_you_mean("Epoch", ["epochs", "seed"])
        " (did you mean 'epochs'?)"
    """
    by_text = {str(choice).lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(value).lower(), by_text, n=1, cutoff=0.5)
    return f" (did you mean {by_text[near[0]]!r}?)" if near else ""


def choose(argument: str, value: T, choices: Iterable[T]) -> T:
    """Return ``value`` if it is one of the choices.

    Args:
        argument: Name of the argument, for the message.
        value: What was asked for.
        choices: The valid values, in the order in which the message lists them.

    Returns:
        ``value`` itself.

    Raises:
        ValueError: ``value`` is none of the choices; the message lists them and the nearest.

    Example:
        >>> choose("scale", "tiny", ("tiny", "laptop"))
        'tiny'
    """
    choices = tuple(choices)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{argument} must be one of {listed}; got {value!r}{did_you_mean(value, choices)}")
    return value
