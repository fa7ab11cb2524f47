"""Execute the chapters that the cache does not hold, several at a time; Sphinx then renders them from the cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from chapters import ROOT, notebooks
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from execution_cache import cache_folder  # noqa: E402

TIMEOUT = 600  # seconds a cell, as in _config.yml


def workers() -> int:
    """Return how many chapters run at a time: one per core that this process may use, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def run(notebook: str, folder: str) -> ExecutionResult:
    """Execute a notebook, given as its text, in a folder."""
    import nbformat

    return single_nb_execution(nbformat.reads(notebook, as_version=4), folder, TIMEOUT, allow_errors=False)


def is_cached(cache: JupyterCacheAbstract, path: Path) -> bool:
    """Return whether the cache holds an execution of a notebook with these very cells."""
    import nbformat

    try:
        cache.match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        return False
    return True


def execute(root: Path, jobs: int | None = None) -> Iterator[tuple[Path, ExecutionResult]]:
    """Execute what is new, keep what succeeded in the cache, and yield each chapter as it is done.

    Args:
        root: folder that holds book/.
        jobs: chapters at a time; None: `workers`.
    """
    cache = get_cache(cache_folder(root / "_build", root / "book"))
    waiting = [path for path in notebooks(root) if not is_cached(cache, path)]
    if not waiting:
        return
    with ProcessPoolExecutor(min(jobs or workers(), len(waiting)), mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, path.read_text(encoding="utf-8"), str(path.parent)): path for path in waiting}
        for done in as_completed(running):
            path, result = running[done], done.result()
            if result.err is None:
                bundle = CacheBundleIn(result.nb, str(path), data={"execution_seconds": result.time})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            yield path, result
