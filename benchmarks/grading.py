"""Seconds to mark a class: right answers that train networks of their own, blanks, and one notebook that loops for ever.

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
from nbgrader.api import Gradebook

from benchmarks.measure import result, where

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "book" / "assignments"


def hand_in(course: Path, name: str, students: int) -> None:
    """Make the submissions: every fifth one is blank, the first one has a cell that never ends.

    The redrawn labels of assignment 6 differ from student to student: nobody finds a classmate's networks in the store.
    """
    right, blank = (course / step / name / f"{name}.ipynb" for step in ("source", "release"))
    for number in range(students):
        notebook = nbformat.read(blank if number % 5 == 4 else right, as_version=4)
        solutions = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]
        for cell in solutions:
            cell.source = cell.source.replace("    count = ", f"    torch.rand({number}, generator=generator)\n    count = ")
        if number == 0:
            solutions[0].source = "while True:\n    pass"
        file = course / "submitted" / f"student{number}" / name / f"{name}.ipynb"
        file.parent.mkdir(parents=True)
        nbformat.write(notebook, file)


def seconds(name: str, students: int) -> float:
    """Return the wall-clock seconds of `nbgrader autograde` for a class, in a fresh course with an empty store.

    Raises:
        ValueError: a notebook did not get its points, so that the seconds would be of something else.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        environment["LOSSLAND_STORE"] = str(course / "store")
        shutil.copytree(COURSE / "source", course / "source")
        shutil.copy(COURSE / "nbgrader_config.py", course)
        tool = [sys.executable, str(ROOT / "book" / "_tools" / "build_assignments.py"), "--course", folder]
        subprocess.run(tool, env=environment, check=True, capture_output=True)
        hand_in(course, name, students)
        started = time.monotonic()
        subprocess.run(["nbgrader", "autograde", name], cwd=course, env=environment, check=True, capture_output=True)
        taken = time.monotonic() - started
        check(course, name, students)
        return taken


def check(course: Path, name: str, students: int) -> None:
    """Refuse a class in which a right answer is without its 16 points, or a blank one has any."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        scores = {submission.student.id: submission.score for submission in gradebook.assignment_submissions(name)}
    expected = {f"student{k}": 0.0 if k % 5 == 4 else 16.0 for k in range(1, students)}
    first = scores.pop("student0")
    if scores != expected or not 0 < first < 16:
        raise ValueError(f"marks must be {expected} and between 0 and 16 for the first, got {scores} and {first}")


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
