"""Execute what is new, render the book, say where the page is and how long each chapter took.

    python book/_tools/build_book.py [--strict] [--fresh] [--jobs N]

A failing chapter fails the build with its traceback and a non-zero exit code; the other chapters' work is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from chapters import ONE_THREAD, ROOT
from execute_chapters import execute


def jupyter_book() -> list[str]:
    """Return the command line of the jupyter-book that belongs to this Python."""
    return [sys.executable, "-c", "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"]


def environment() -> dict[str, str]:
    """Return the environment of a build: one thread, this Python's kernel, our own store unless told otherwise."""
    ours = {**ONE_THREAD, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONUNBUFFERED": "1"}
    return {"LOSSLAND_STORE": str(ROOT / "_build" / "store"), **os.environ, **ours}


def run_chapters(root: Path, jobs: int | None) -> bool:
    """Execute the chapters that are new and return whether all went through; tracebacks go to stderr."""
    os.environ.update(environment())
    print("Executing the chapters that are new ...", flush=True)
    whole = True
    for path, result in execute(root, jobs):
        if result.err is None:
            print(f"  {path.stem}: {result.time:.1f} s", flush=True)
        else:
            whole = False
            print(f"  {path.stem}: failed\n{result.exc_string}", file=sys.stderr, flush=True)
    return whole


def render(root: Path, *, strict: bool = False) -> int:
    """Run jupyter-book on `root/book` with `root/_config.yml` and return its exit code."""
    flags = ["-W", "-n", "--keep-going"] if strict else []
    command = [*jupyter_book(), "build", "book", "--config", "_config.yml", "--path-output", ".", *flags]
    return subprocess.run(command, cwd=root, env=environment(), stdin=subprocess.DEVNULL).returncode


def forget(root: Path) -> None:
    """Delete the pages, Sphinx's memory and the executed notebooks, so that all is made anew."""
    for name in ("html", ".doctrees", ".jupyter_cache", "jupyter_execute", "timings.json"):
        path = root / "_build" / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def summary(root: Path, started: float) -> str:
    """Return the lines that end a build: seconds per chapter and the address of the first page."""
    path = root / "_build" / "timings.json"
    timings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    width = max([len(name) for name in timings], default=0)
    lines = ["", "Chapters, seconds of execution:"] if timings else [""]
    for name, run in timings.items():
        kept = "" if run["finished"] >= started else "   (unchanged, from the cache)"
        lines.append(f"  {name:<{width}}  {run['seconds'] or 0:6.1f} s{kept}")
    return "\n".join([*lines, "", f"The book is at {(root / '_build' / 'html' / 'index.html').as_uri()}"])


def main() -> int:
    """Build the book of this repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds book/ and _config.yml")
    parser.add_argument("--strict", action="store_true", help="every warning is an error (-W -n --keep-going)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier pages and executions first")
    parser.add_argument("--summary", action="store_true", help="only print the closing lines of the last build")
    parser.add_argument("--jobs", type=int, help="chapters executed at a time (default: one per core, at most 4)")
    arguments = parser.parse_args()
    started = time.time()
    if arguments.fresh:
        forget(arguments.root)
    if arguments.summary:
        code = 0
    elif run_chapters(arguments.root, arguments.jobs):
        code = render(arguments.root, strict=arguments.strict)
    else:
        code = 1
    if code:
        print("\nThe book was NOT built: the error stands above.", file=sys.stderr)
        return code
    print(summary(arguments.root, started))
    return 0


if __name__ == "__main__":
    sys.exit(main())
