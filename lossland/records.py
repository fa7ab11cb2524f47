"""Numbers that a page did not compute itself: quoted from a paper, or recorded by an earlier run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

import torch
import yaml

from lossland.errors import choose
from lossland.files import installed_version, write_whole

MISSING = "not run"
_KEYS = ("values", "dataset", "scale", "device", "date", "settings", "versions")


def book_folder() -> Path | None:
    """Return the folder `book` with papers and recorded runs, or None where there is none.

    It is looked for in LOSSLAND_BOOK, then above the working directory, then beside the package (an editable install).
    """
    named = os.environ.get("LOSSLAND_BOOK")
    starts = [Path(named).parent] if named else [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]]
    return next((start / "book" for start in starts if (start / "book" / "papers").is_dir()), None)


def quoted(paper: str, table: str, row: str, column: str) -> str:
    """Return a number of a paper as printed there; "not given" for an empty cell, "book not at hand" without its file.

    Args:
        paper: name of a file in `book/papers`, such as "ay20".
        table: such as "Table 1".
        row: such as "Linear".
        column: such as "MNIST test".

    Raises:
        ValueError: for an unknown paper, table, row or column, with the nearest valid one.
    """
    folder = book_folder()
    if folder is None:
        return "book not at hand"
    choose("paper", paper, sorted(file.stem for file in (folder / "papers").glob("*.yml")))
    tables = yaml.safe_load((folder / "papers" / f"{paper}.yml").read_text(encoding="utf-8"))["tables"]
    found = tables[choose("table", table, tables)]
    place = found["columns"].index(choose("column", column, found["columns"]))
    value = found["rows"][choose("row", row, found["rows"])][place]
    return "not given" if value is None else str(value)


def recorded(chapter: str, quantity: str, *, dataset: str | None = None) -> str:
    """Return a quantity of the newest recorded run of a chapter, with device, data and date; "not run" without one.

    Behind the value stands in brackets what is wrong with the record (`faults`), such as "edited by hand".

    Args:
        chapter: folder below `book/results`, such as "02_preserving_distributions".
        quantity: its name in the record.
        dataset: only runs on this data set; None: any.

    Raises:
        ValueError: if a record cannot be read, naming the file.
    """
    runs = [run for run in records(chapter) if quantity in run["values"] and dataset in (None, run["dataset"])]
    if not runs:
        return MISSING
    run = max(runs, key=lambda run: run["date"])
    said = "".join(f" [{fault}]" for fault in faults(run))
    where = f"{run['dataset']}, scale {run['scale']}, on {run['device']}, {run['date'][:10]}"
    return f"{run['values'][quantity]}{said} ({where})"


def records(chapter: str) -> list[dict[str, Any]]:
    """Return the recorded runs of a chapter as they stand in their files, oldest first.

    Raises:
        ValueError: if a record cannot be read, naming the file.
    """
    folder = book_folder()
    files = sorted((folder / "results" / chapter).glob("*.json")) if folder else []
    return sorted((_read(file) for file in files), key=lambda run: run["date"])


def recorded_runs() -> list[dict[str, Any]]:
    """Return every recorded run of the book in the order of chapters and files.

    Returns:
        What the file holds, and beside it `file`, its name, and `faults`: those of `faults`, and "the chapter has
        changed since" where the chapter's code is known to be another than the one that made the record.

    Raises:
        ValueError: if a record cannot be read, naming the file.
    """
    folder, found = book_folder(), []
    for file in sorted((folder / "results").glob("*/*.json")) if folder else []:
        run, chapter = _read(file), folder / "chapters" / f"{file.parent.name}.ipynb"
        changed = "code" in run and chapter.is_file() and run["code"] != code_hash(chapter)
        also = ["the chapter has changed since"] if changed else []
        found.append({**run, "file": file.name, "faults": faults(run) + also})
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        [run[key] for key in _KEYS]
        str(run["date"]), run["values"].items()
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"recorded run {file.name} of {file.parent.name} cannot be read: {error!r}") from error
    return run


def faults(run: Mapping[str, Any]) -> list[str]:
    """Return in words why a recorded run is not to be taken as it stands; nothing where it is.

    Args:
        run: what `records` returns.
    """
    made, ours = run["versions"].get("lossland"), installed_version()
    sealed = "checksum" in run
    found = [] if sealed and run["checksum"] == checksum(run) else ["edited by hand" if sealed else "no checksum"]
    if made not in (None, ours):
        found.append(f"made with lossland {made}, this is {ours}")
    return found


def checksum(run: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the sha256 of a recorded run, its own entry `checksum` left out."""
    rest = {key: value for key, value in run.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_hash(chapter: Path) -> str:
    """Return 16 hexadecimal digits of the sha256 of a notebook's code cells."""
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def record(chapter: str, scale: str, dataset: str, values: Mapping[str, str], settings: Mapping[str, Any], *,
           device: str) -> Path | None:
    """Write a run's values with provenance where LOSSLAND_RECORD says; return the file, or None without that variable.

    What LOSSLAND_PROVENANCE holds (JSON: commit, code, ...) goes with it. The file is written whole or not at all.

    Args:
        chapter: such as "02_preserving_distributions".
        scale: of the run.
        dataset: its name.
        values: quantity -> text as the page prints it.
        settings: everything that determines the run: recipe, seeds, widths, grid (JSON values).
        device: where it ran.
    """
    root = os.environ.get("LOSSLAND_RECORD")
    if not root:
        return None
    folder = Path(root) / chapter
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "python": python_version(), "lossland": installed_version()}
    run = {"chapter": chapter, "scale": scale, "dataset": dataset, "device": device, "values": dict(values),
           "settings": dict(settings), "date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}
    known = json.loads(os.environ.get("LOSSLAND_PROVENANCE") or "{}")  # of `make record`
    if "began" in known:  # seconds since 1970, those of interrupted runs taken off
        run["seconds"] = round(time.time() - known.pop("began"), 1)
    if "code_of" in known:
        run["code"] = code_hash(Path(known.pop("code_of")))
    run = json.loads(json.dumps(run | known))  # as it will be read: tuples are lists
    target = folder / f"{scale}-{dataset}.json"
    text = json.dumps({**run, "checksum": checksum(run)}, indent=1, ensure_ascii=False) + "\n"
    write_whole(target, text.encode())
    return target
