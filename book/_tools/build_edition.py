"""Re-run every chapter with your parameters and render a personal edition of the book.

    python book/_tools/build_edition.py --scale laptop --params mine.yml --name mine

A parameter goes to every chapter that has it; `"02": {width: 500}` in the file goes to chapter 02 alone. Chapters that
are already done with the same source and the same parameters are kept, and what the others trained is in the store: an
edition that was interrupted, by whatever, goes on where it was. Several chapters run at a time, the longest first.
"""

from __future__ import annotations

import argparse
import datetime
import html
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import yaml
from build_book import render
from chapters import ONE_THREAD, ROOT, read, source_stamp
from recording import edition_minutes, factors, spoken
from run_chapter import SCALE, assign, chosen, execute


def is_done(output: Path, mark: dict[str, Any]) -> bool:
    """Say whether a chapter was executed to its end with this source and these parameters."""
    try:
        return read(output).metadata.get("lossland", {}).get("edition") == mark
    except (FileNotFoundError, nbformat.reader.NotJSONError):
        return False


def run_one(chapter: Path, output: Path, parameters: dict[str, Any], root: Path) -> tuple[bool, str]:
    """Execute a chapter unless it is done; return whether all is well, and what happened.

    The output appears when the chapter is done, whole or not at all; before, it lies in `unfinished`.
    """
    from papermill import PapermillExecutionError

    mark = {"stamp": source_stamp(read(chapter), root), "parameters": parameters}
    if is_done(output, mark):
        return True, "kept"
    started, unfinished = time.monotonic(), output.parents[2] / "unfinished" / f"{os.getpid()}-{output.name}"
    try:
        execute(chapter, unfinished, parameters)
    except PapermillExecutionError as error:
        return False, f"{error}\nThe chapter stopped there; see {unfinished}"
    notebook = read(unfinished)
    notebook.metadata["lossland"] = {"edition": mark}
    nbformat.write(notebook, unfinished)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.replace(unfinished, output)
    return True, f"{time.monotonic() - started:.1f} s"


def run_all(root: Path, folder: Path, parameters: dict[str, Any], jobs: int) -> Iterator[tuple[str, bool, str]]:
    """Run what is not done, the longest chapters first; yield name, success and what happened as they end."""
    minutes = edition_minutes(root, parameters)
    tasks = sorted(assign(parameters, root).items(), key=lambda item: -minutes.get(item[0].stem[:2], 0.0))
    places = {chapter: folder / "book" / "chapters" / chapter.name for chapter, _ in tasks}
    if jobs == 1:
        yield from ((chapter.stem, *run_one(chapter, places[chapter], own, root)) for chapter, own in tasks)
        return
    os.environ.update({name: number for name, number in ONE_THREAD.items() if name not in os.environ})
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_one, chapter, places[chapter], own, root): chapter for chapter, own in tasks}
        yield from ((running[done].stem, *done.result()) for done in as_completed(running))


def estimate(root: Path, folder: Path, parameters: dict[str, Any], jobs: int) -> str:
    """Return how long the chapters that are not done should take, in words; nothing where it is not known."""
    minutes, left = edition_minutes(root, parameters), []
    for chapter, own in assign(parameters, root).items():
        mark = {"stamp": source_stamp(read(chapter), root), "parameters": own}
        if not is_done(folder / "book" / "chapters" / chapter.name, mark):
            left.append(60 * minutes.get(chapter.stem[:2], 0.0))
    if not any(left):
        return ""
    seconds = max(sum(left) / jobs, max(left)) * factors(root)["cpu"]
    return (f"{len(left)} chapters are to be executed, {jobs} at a time: about {spoken(seconds)} "
            "(an estimate, from recorded minutes and a speed test of this machine)")


def _listed(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())


def banner(parameters: dict[str, Any]) -> str:
    """Return the HTML that stands on top of every page of an edition."""
    shared = {name: value for name, value in parameters.items() if not isinstance(value, dict)}
    own = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    listed = "; ".join([_listed({"scale": None, **shared}), *(f"chapter {name}: {_listed(own[name])}" for name in own)])
    date = datetime.date.today().isoformat()
    return f'<p class="edition">Personal edition of {date}: {html.escape(listed)}</p>'


def lay_out(root: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Copy the book's pages beside the executed chapters and write the edition's configuration."""
    skip = shutil.ignore_patterns("chapters", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(root / "book", folder / "book", ignore=skip, dirs_exist_ok=True)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config["execute"] = {**config["execute"], "execute_notebooks": "off"}
    config["html"] = {**config["html"], "announcement": banner(parameters)}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    (folder / "_config.yml").write_text(text, encoding="utf-8")


def build(root: Path, folder: Path, parameters: dict[str, Any], jobs: int = 1) -> int:
    """Run what is not done, then render; return an exit code. A failing chapter does not stop the others."""
    failed = []
    for name, whole, said in run_all(root, folder, parameters, jobs):
        print(f"  {name}: {said}", flush=True, file=sys.stdout if whole else sys.stderr)
        failed += [] if whole else [name]
    if failed:
        print(f"no edition was rendered, because these chapters failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    shutil.rmtree(folder / "unfinished", ignore_errors=True)
    lay_out(root, folder, parameters)
    return render(folder)


def main() -> int:
    """Build the edition that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds book/ and _config.yml")
    parser.add_argument("--scale", help=f"tiny, laptop, gpu or paper (default: the file's, else {SCALE})")
    parser.add_argument("--params", type=Path, help="YAML file of parameters")
    parser.add_argument("--name", help="folder below runs/ (default: the scale and the file's name)")
    parser.add_argument("--jobs", type=int, default=1, help="chapters executed at a time, on one thread each")
    arguments = parser.parse_args()
    try:
        parameters = chosen(arguments.scale, arguments.params)
        suffix = f"-{arguments.params.stem}" if arguments.params else ""
        folder = arguments.root / "runs" / (arguments.name or f"{parameters['scale']}{suffix}")
        print(f"An edition with {_listed(parameters)}. {estimate(arguments.root, folder, parameters, arguments.jobs)}", flush=True)
        code = build(arguments.root, folder, parameters, arguments.jobs)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return 130
    if code == 0:
        print(f"\nThe edition is at {(folder / '_build' / 'html' / 'index.html').as_uri()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
