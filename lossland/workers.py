"""Work on parts of the data by threads that do not share each other's products.

torch gives every product to all of its threads, which then wait for the slowest and, for some milliseconds, for the
next product. Where there is other work between two products, whole parts per thread are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

P = TypeVar("P")  # a part of the data
R = TypeVar("R")  # what becomes of it


def in_threads(function: Callable[[P], R], items: Sequence[P]) -> Iterator[R]:
    """Yield function(item) in order, computed without gradients by as many threads as torch may use, each alone.

    Args:
        function: what it computes must not depend on the order of calls. In it `torch.get_num_threads()` is 1.
        items: small, such as slices: all are handed out at once.
    """
    count = torch.get_num_threads()
    if min(count, len(items)) < 2:
        yield from map(torch.no_grad()(function), items)
        return
    # Torch's number of threads holds for the thread that sets it, and for those that work with torch later for the
    # first time.
    with ThreadPoolExecutor(min(count, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as threads:
        try:
            yield from threads.map(torch.no_grad()(function), items)
        finally:
            torch.set_num_threads(count)
