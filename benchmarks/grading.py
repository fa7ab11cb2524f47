"""Seconds to mark a class: copies of the six assignments' right answers, blanks, and one notebook that loops for ever.

    python -m benchmarks.grading --students 20
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from benchmarks.measure import result, where

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "book" / "assignments"


def hand_in(course: Path, name: str, students: int) -> None:
    """Make the submissions: every fifth one is blank, the first one has a cell that never ends."""
    right, blank = (course / step / name / f"{name}.ipynb" for step in ("source", "release"))
    for number in range(students):
        file = course / "submitted" / f"student{number}" / name / f"{name}.ipynb"
        file.parent.mkdir(parents=True)
        shutil.copy(blank if number % 5 == 4 else right, file)
    looping = course / "submitted" / "student0" / name / f"{name}.ipynb"
    notebook = nbformat.read(looping, as_version=4)
    solution = next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution"))
    solution.source = "while True:\n    pass"
    nbformat.write(notebook, looping)


def seconds(name: str, students: int) -> float:
    """Return the wall-clock seconds of `nbgrader autograde` for a class, in a fresh course."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        shutil.copytree(COURSE / "source", course / "source")
        shutil.copy(COURSE / "nbgrader_config.py", course)
        tool = [sys.executable, str(ROOT / "book" / "_tools" / "build_assignments.py"), "--course", folder]
        subprocess.run(tool, env=environment, check=True, capture_output=True)
        hand_in(course, name, students)
        started = time.monotonic()
        subprocess.run(["nbgrader", "autograde", name], cwd=course, env=environment, check=True, capture_output=True)
        return time.monotonic() - started


def main() -> None:
    """Print the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--assignment", default="06_predict_then_measure", help="the one that takes longest")
    args = parser.parse_args()
    taken = seconds(args.assignment, args.students)
    print(where())
    print(f"{args.students} notebooks of {args.assignment}, one of which loops for ever: {taken:.0f} s")
    print(result("grading", class_seconds=taken, students=args.students, assignment=args.assignment))


if __name__ == "__main__":
    main()
