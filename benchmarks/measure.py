"""Interleaved timing, peak memory, and the common form of output."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def interleaved(candidates: Mapping[str, Callable[[int], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Return seconds and results per candidate; in every repeat each candidate runs once, in turn.

    Args:
        candidates: name -> function of the repeat's number.
        repeats: how often.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, list[Any]] = {name: [] for name in candidates}
    for repeat in range(repeats):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            results[name].append(candidate(repeat))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def peak_gib() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as an aligned text table."""
    names = list(rows[0])
    cells = [names] + [[str(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the median of the ratios of two candidates' figures, repeat by repeat."""
    return median([x / y for x, y in zip(first, second, strict=True)])


def where() -> str:
    """Return the device and the number of threads."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def result(name: str, **values: float | int | str) -> str:
    """Return the closing line."""
    shown = (f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items())
    return f"RESULT {name} " + " ".join(shown)
