"""Numbers and switches as arguments: what is none is refused by name; those of numpy become Python's."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np


def whole(name: str, value: Any) -> int:
    """Return a whole number as Python's.

    Raises:
        TypeError: for anything else, True and 2.0 included.

    Examples:
        >>> import numpy as np
        >>> whole("epochs", np.int64(3))
        3
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def number(name: str, value: Any) -> int | float:
    """Return a number as Python's; a whole one stays whole.

    Raises:
        TypeError: for anything else, True and text included.

    Examples:
        >>> number("lr", 1), number("lr", 0.5)
        (1, 0.5)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def flag(name: str, value: Any) -> bool:
    """Return True or False as Python's.

    Raises:
        TypeError: for anything else.

    Examples:
        >>> import numpy as np
        >>> flag("exact", np.float64(2) > 1)
        True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def seed_of(value: Any) -> int:
    """Return a seed: a whole number >= 0.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {value!r}")
    return int(value)
