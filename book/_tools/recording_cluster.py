"""Recorded runs on the workers of a Dask cluster: each run is one task, and a lost worker's task goes to another one.

The workers see the same folders under the same names: the repository, whose results and runs/ they write to, and the
store, through which a run goes on where the lost worker left it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from recording import Recording

WAIT = 10  # seconds for an answer of the scheduler
LOST = 3  # workers that a task may lose before it is given up
TOOLS = str(Path(__file__).resolve().parent)
FINE = ("done", "kept", "busy")


class Unreachable(ValueError):
    """There is no scheduler, or it has no workers."""


def task() -> Callable[..., str]:
    """Return the function that makes a run: local, so that it is sent by value to workers without this module."""
    def make(tools: str, fields: dict[str, Any], root: str, parameters: dict[str, str], again: bool) -> str:
        import sys
        from pathlib import Path

        if not Path(tools).is_dir() or not Path(root).is_dir():
            return f"{root} is not there: all workers must see the repository under this name"
        if tools not in sys.path:
            sys.path.insert(0, tools)
        from recording import Recording
        from recording_run import perform

        return perform(Recording(**fields), Path(root), parameters, say=lambda line: None, again=again)

    return make


@contextmanager
def connected(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """Give a client of the scheduler at an address, or of a new cluster of so many processes on this machine.

    Raises:
        Unreachable: nothing answers in time, or there are no workers.
    """
    from distributed import Client, LocalCluster

    if not scheduler:
        with LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
            with Client(cluster) as client:
                yield client
        return
    try:
        client = Client(scheduler, timeout=WAIT)
    except (OSError, ValueError) as error:
        raise Unreachable(f"SCHEDULER: no Dask scheduler answers at {scheduler} within {WAIT} seconds ({error}). Start "
                          "one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`") from error
    with client:
        if not client.scheduler_info()["workers"]:
            try:
                client.wait_for_workers(1, timeout=WAIT)
            except TimeoutError as error:
                raise Unreachable(f"SCHEDULER: {scheduler} has no workers; start some with "
                                  f"`dask worker {scheduler} --nthreads 1`") from error
        yield client


def fitting(client: Any, runs: list[Recording]) -> list[Recording]:
    """Return the runs that some worker can make: those that wait for a GPU want one with the resource GPU."""
    offered = client.scheduler_info(n_workers=-1)["workers"].values()
    on_gpu = any(worker["resources"].get("GPU") for worker in offered)
    return [run for run in runs if run.device != "gpu" or on_gpu]


def on_cluster(runs: list[Recording], machine: Any, *, scheduler: str | None, workers: int | None, again: bool) -> int:
    """Make the runs on a cluster and say how each went, in the order in which they end; return the exit status.

    Args:
        runs: which.
        machine: root, data folder and device, as `record.Machine` has them.
        scheduler: address; None: a cluster on this machine.
        workers: of that cluster.
        again: whether results that are there are replaced.
    """
    import dask
    from distributed import KilledWorker, as_completed

    dask.config.set({"distributed.scheduler.allowed-failures": LOST})
    whole = True
    with connected(scheduler, workers) as client:
        ready, futures = fitting(client, runs) if scheduler else runs, {}
        for run in ready:
            arguments = TOOLS, vars(run), str(machine.root.resolve()), machine.parameters(run), again
            needs = {"GPU": 1} if scheduler and run.device == "gpu" else None
            future = client.submit(task(), *arguments, key=f"{run.name}-{uuid4().hex[:8]}", pure=False, resources=needs)
            futures[future] = run
        print(f"{len(ready)} of {len(runs)} runs for the workers of {client.scheduler.address}", flush=True)
        for count, future in enumerate(as_completed(futures), 1):
            try:
                said = future.result()
            except (KilledWorker, OSError, ValueError, RuntimeError) as error:
                said = f"{type(error).__name__}: {error}"
            whole &= said in FINE
            print(f"{futures[future].name}: {said} ({count} of {len(ready)})", flush=True,
                  file=sys.stdout if said in FINE else sys.stderr)
    return int(not whole)
