"""The chapters of the book: where they are, what parameters they take, and which source their outputs came from."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = "parameters"


def chapters(root: Path = ROOT) -> list[Path]:
    """Return the notebooks of the book in the order of their numbers."""
    return sorted((root / "book" / "chapters").glob("[0-9]*.ipynb"))


def notebooks(root: Path = ROOT) -> list[Path]:
    """Return all that is executed: the chapters, then pages that have no parameters and no number."""
    return [*chapters(root), *sorted((root / "book").glob("*.ipynb"))]


def find_chapter(name: str, root: Path = ROOT, among: list[Path] | None = None) -> Path:
    """Return the notebook that a number ("2", "02"), the beginning of a name or a file name means.

    Args:
        name: of a chapter.
        root: folder that holds book/.
        among: notebooks to choose from; None: the chapters.

    Raises:
        ValueError: no chapter or several fit; the message lists the chapters.
    """
    known = {path.stem: path for path in (chapters(root) if among is None else among)}
    wanted = Path(name).name.removesuffix(".ipynb").strip()
    wanted = wanted.zfill(2) if wanted.isdigit() else wanted
    fitting = [stem for stem in known if wanted and (stem == wanted or stem.startswith(wanted))]
    if len(fitting) != 1:
        listed = "\n  ".join(known) or "(there is none)"
        raise ValueError(f"CHAPTER must name one chapter, got {name!r}; the chapters are\n  {listed}")
    return known[fitting[0]]


def read(path: Path) -> NotebookNode:
    """Return the notebook at a path."""
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def parameters_cell(notebook: NotebookNode) -> NotebookNode:
    """Return the cell tagged `parameters`.

    Raises:
        ValueError: there is none or more than one.
    """
    found = [cell for cell in notebook.cells if PARAMETERS in tags(cell)]
    if len(found) != 1:
        raise ValueError(f"a chapter must have one cell tagged {PARAMETERS!r}, got {len(found)}")
    return found[0]


def parameter_names(path: Path) -> list[str]:
    """Return the parameters that a chapter declares, as papermill reads them."""
    from papermill import inspect_notebook

    return list(inspect_notebook(str(path)))


def nearest(name: str, choices: list[str]) -> str:
    """Return " (did you mean ...?)", or nothing where no choice is near."""
    found = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def read_parameters(path: Path | None) -> dict[str, Any]:
    """Return the parameters in a YAML file, without empty sections of chapters; none for no file.

    Raises:
        ValueError: the file is not there or does not hold `name: value` lines.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise ValueError(f"PARAMS must be a YAML file, got {str(path)!r}: there is no such file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"PARAMS must be a YAML file, got {str(path)!r}, which cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"PARAMS must hold lines `name: value`, got a {type(values).__name__} in {path}")
    return {str(name): value for name, value in values.items() if value is not None or not str(name).isdigit()}


def package_files(root: Path = ROOT) -> list[Path]:
    """Return the Python files of the package, sorted."""
    return sorted((root / "lossland").rglob("*.py"))


def source_stamp(notebook: NotebookNode, root: Path = ROOT) -> str:
    """Return 16 hexadecimal digits: package, quoted and recorded numbers, and a chapter's code cells with parameters.

    Outputs carry the stamp of the source that made them, so that stale ones can be told. Line ends do not count.
    """
    digest = hashlib.sha256()
    numbers = sorted([*(root / "book" / "papers").glob("*.yml"), *(root / "book" / "results").glob("*/*.json")])
    for path in [*package_files(root), *numbers]:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
    return digest.hexdigest()[:16]


ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
"""Two OpenMP threads on a busy two-core machine can be a hundred times slower than one: they wait by spinning."""
