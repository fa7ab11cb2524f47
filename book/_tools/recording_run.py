"""One recorded run: a chapter executed in its own kernel, its result put into the book when the last cell has passed.

Nothing is lost when the process is killed: what is trained lies in the store, an unfinished training as a checkpoint of
its last epoch, and the tables of `ll.evaluate` beside the notebook; the kernel ends by itself when its parent is gone.
The result appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import recording_tables
from chapters import find_chapter, parameter_names, parameters_cell, tags
from filelock import FileLock, Timeout
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from recording import Recording, spoken

TICK, QUIET = 2.0, 60.0  # seconds between two looks at the clock, and between two lines about the same cell
CUT_OFF, INTERRUPTED = "cut off", "interrupted"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LINES = 8  # of a traceback that are shown; the notebook has all of it
Say = Callable[[str], None]


@dataclass
class Progress:
    """Where a run is; written down now and then, so that the time of a run that is killed is known."""

    run: Recording
    root: Path
    estimate: float  # seconds in all; 0: not known
    say: Say
    cells: int = 0
    cell: int = 0
    started: float = field(default_factory=time.monotonic)
    earlier: float = 0.0
    stopped: str = ""  # why, where we did it

    @property
    def seconds(self) -> float:
        """Return the seconds spent so far, those of runs that were cut off included."""
        return self.earlier + time.monotonic() - self.started

    def note(self) -> None:
        """Write the seconds down, whole or not at all."""
        file = self.run.work(self.root) / "spent.json"
        beside = file.with_suffix(f".{os.getpid()}.partial")
        beside.write_text(json.dumps({"seconds": round(self.seconds, 1)}), encoding="utf-8")
        os.replace(beside, file)

    def line(self) -> str:
        """Return the progress in words."""
        about = f" of about {spoken(self.estimate)}" if self.estimate else ""
        return f"{self.run.name}: cell {self.cell} of {self.cells}, {spoken(self.seconds)}{about}"

    async def watch(self) -> None:
        """Say how far the run is: on a terminal all the time, else where there is something to say."""
        said, when = -1, time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            self.note()
            if sys.stdout.isatty() or self.cell != said or time.monotonic() > when + QUIET:
                said, when = self.cell, time.monotonic()
                self.say(self.line())


def commit(root: Path) -> str:
    """Return the commit, with "+ changes" where package or chapters differ from it; "unknown" without git."""
    def git(*words: str) -> str:
        found = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lossland", "book/chapters")
        return git("rev-parse", "HEAD") + (" + changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def prepared(run: Recording, root: Path, parameters: dict[str, Any]) -> nbformat.NotebookNode:
    """Return the chapter with these parameters injected, and a cell by which its tables outlive a killed process."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    chapter = find_chapter(run.chapter, root)
    notebook = load_notebook_node(str(chapter))
    parameters_cell(notebook)  # raises where there is none
    known = parameter_names(chapter)
    chosen = {name: value for name, value in parameters.items() if name in known}
    notebook = parameterize_notebook(notebook, {"scale": run.scale, **chosen}, kernel_name="python3", language="python")
    place = next(i for i, each in enumerate(notebook.cells) if "injected-parameters" in tags(each))
    folder = run.work(root) / "tables" / recording_tables.context(notebook)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(recording_tables.cell(folder)))
    return notebook


async def _execute(notebook: nbformat.NotebookNode, root: Path, env: dict[str, str], progress: Progress,
                   seconds: float | None) -> None:
    """Execute a notebook; on SIGINT, SIGTERM and after so many seconds kill its kernel: DeadKernelError."""
    loop, tasks = asyncio.get_running_loop(), set()

    def stop(why: str) -> None:
        progress.stopped = why
        tasks.add(asyncio.ensure_future(client.km.shutdown_kernel(now=True)))

    def at_start(**_: Any) -> None:  # nbclient's own handlers stop the kernel, and we would go on with the next run
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop, INTERRUPTED)
        if seconds is not None:
            loop.call_later(seconds, stop, CUT_OFF)

    def at_cell(cell_index: int, **_: Any) -> None:
        progress.cell = cell_index + 1

    progress.cells = len(notebook.cells)
    client = NotebookClient(notebook, timeout=None, startup_timeout=300, kernel_name="python3", on_cell_start=at_cell,
                            on_notebook_start=at_start, resources={"metadata": {"path": str(root)}})
    tasks.add(asyncio.ensure_future(progress.watch()))
    try:
        await client.async_execute(env=env)
    finally:
        for each in tasks:
            each.cancel()


def publish(folder: Path, run: Recording, root: Path) -> list[Path]:
    """Put the records in a folder into the book, each whole or not at all, and return them.

    Raises:
        ValueError: the chapter recorded nothing.
    """
    made = sorted(folder.glob("*/*.json"))
    if not made:
        raise ValueError(f"{run.name} recorded nothing: the chapter calls lossland.records.record nowhere")
    found = []
    for file in made:
        target = root / "book" / "results" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
        shutil.copyfile(file, beside)
        os.replace(beside, target)
        found.append(target)
    return found


def perform(run: Recording, root: Path, parameters: dict[str, Any], *, estimate: float = 0.0,
            budget: float | None = None, say: Say = print, again: bool = False) -> str:
    """Execute one run and put its result into the book; return "done", "kept", "cut off", "busy" or what went wrong.

    Args:
        run: which.
        root: folder that holds book/.
        parameters: of the chapter besides the scale: dataset, data_dir, device; those that it lacks are left out.
        estimate: seconds, for the progress line.
        budget: seconds after which it is cut off; None: never.
        say: gets the progress line.
        again: whether a result that is there is replaced.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM; what is done is kept.
    """
    work = run.work(root)
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return "busy"
    try:
        if run.result(root).is_file() and not again:
            return "kept"
        for left in work.glob("attempt-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix="attempt-", dir=work))
        try:
            return _attempt(run, root, staging, prepared(run, root, parameters), (estimate, budget, say))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        lock.release()


def last_lines(text: str) -> str:
    """Return the last lines of a traceback, without colours."""
    lines = [line.rstrip() for line in COLOUR.sub("", text).splitlines()]
    return "\n".join([line for line in lines if line][-LINES:])


def _attempt(run: Recording, root: Path, staging: Path, notebook: nbformat.NotebookNode,
             limits: tuple[float, float | None, Say]) -> str:
    estimate, budget, say = limits
    progress = Progress(run, root, estimate, say, earlier=run.spent(root))
    source = staging / "chapter.ipynb"  # as it is now: it may be edited while it runs
    shutil.copyfile(find_chapter(run.chapter, root), source)
    provenance = {"commit": commit(root), "code_of": str(source), "began": time.time() - progress.earlier}
    env = {"LOSSLAND_STORE": str(root / "_build" / "store"), **os.environ, "LOSSLAND_RECORD": str(staging),
           "LOSSLAND_BOOK": str(root / "book"), "LOSSLAND_PROVENANCE": json.dumps(provenance)}
    try:
        asyncio.run(_execute(notebook, root, env, progress, budget))
        made = publish(staging, run, root)
        (run.work(root) / "spent.json").unlink(missing_ok=True)
        shutil.rmtree(run.work(root) / "tables", ignore_errors=True)
        return "done" if run.result(root) in made else f"recorded as {', '.join(file.name for file in made)}"
    except DeadKernelError as error:
        if progress.stopped == INTERRUPTED:
            raise KeyboardInterrupt from error
        return progress.stopped or "the kernel died (out of memory, or stopped from outside)"
    except CellExecutionError as error:
        return f"a cell failed, see {run.work(root).relative_to(root) / 'notebook.ipynb'}\n{last_lines(str(error))}"
    except ValueError as error:
        return str(error)
    finally:
        if not run.result(root).is_file():
            progress.note()
        nbformat.write(notebook, run.work(root) / "notebook.ipynb")


if __name__ == "__main__":
    sys.exit("this is called by record.py")
