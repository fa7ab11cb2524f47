"""Marking a notebook without a kernel: its code cells, one after the other, in one fresh namespace."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
from chapters import ROOT
from nbformat import NotebookNode

matplotlib.use("Agg")
COURSE = ROOT / "book" / "assignments"
ASSIGNMENTS = sorted(path.name for path in (COURSE / "source").iterdir() if path.is_dir())


def source(name: str, course: Path = COURSE, step: str = "source") -> NotebookNode:
    """Read the notebook of an assignment: "source" has solutions and hidden tests, "release" is what students get."""
    return nbformat.read(course / step / name / f"{name}.ipynb", as_version=4)


def about(cell: NotebookNode) -> dict:
    """Return what nbgrader knows about a cell."""
    return cell.metadata.get("nbgrader", {})


def cells(notebook: NotebookNode, kind: str) -> dict[str, NotebookNode]:
    """Return the cells of one kind by name: "test", "solution" (code), "written"."""
    kinds = {(True, False): "test", (False, True): "solution", (True, True): "written"}
    return {about(c)["grade_id"]: c for c in notebook.cells
            if about(c) and kinds.get((about(c)["grade"], about(c)["solution"])) == kind}


@dataclass
class Marked:
    """What the tests of a notebook said.

    Attributes:
        lost: name of a test -> why it failed.
        points: of the tests that passed.
    """

    lost: dict[str, str] = field(default_factory=dict)
    points: float = 0.0


def mark(notebook: NotebookNode, answers: dict[str, str] | None = None, pictures: bool = False) -> Marked:
    """Run a notebook with other answers (name of a cell -> its code) and count as nbgrader does.

    An error takes the points of a test; so does a warning, since nbgrader takes everything on stderr for an error. Cells that only draw are left out
    unless `pictures`; an error in one of them is raised.
    """
    found, space, answers = Marked(), {"__name__": "__main__"}, answers or {}
    for cell in notebook.cells:
        name, graded = about(cell).get("grade_id", ""), about(cell).get("grade")
        draws = name.startswith("picture")
        if cell.cell_type != "code" or draws and not pictures:
            continue
        error = _run(answers.get(name, cell.source), name, space)
        if error and draws:
            raise RuntimeError(f"{name}: {error}")
        if graded and error:
            found.lost[name] = error
        found.points += about(cell).get("points", 0) if graded and not error else 0
    plt.close("all")
    return found


def _run(code: str, name: str, space: dict) -> str:
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        try:
            exec(compile(code, name or "cell", "exec"), space)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    said = [str(w.message) for w in caught if "non-interactive" not in str(w.message)]
    return f"warning: {said[0]}" if said else ""
