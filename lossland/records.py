"""Numbers that a page did not compute itself: quoted from a paper, or recorded by an earlier run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

import torch
import yaml

from lossland.errors import choose

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
    return f"{run['values'][quantity]} ({run['dataset']}, scale {run['scale']}, on {run['device']}, {run['date'][:10]})"


def records(chapter: str) -> list[dict[str, Any]]:
    """Return the recorded runs of a chapter, oldest first.

    Raises:
        ValueError: if a record cannot be read, naming the file.
    """
    folder, found = book_folder(), []
    for file in sorted((folder / "results" / chapter).glob("*.json")) if folder else []:
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            found.append({key: run[key] for key in _KEYS})
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"recorded run {file.name} of {chapter} cannot be read: {error!r}") from error
    return sorted(found, key=lambda run: run["date"])


def record(chapter: str, scale: str, dataset: str, values: Mapping[str, str], settings: Mapping[str, Any], *,
           device: str) -> Path | None:
    """Write a run's values with provenance where LOSSLAND_RECORD says; return the file, or None without that variable.

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
    run = {"chapter": chapter, "scale": scale, "dataset": dataset, "device": device, "values": dict(values),
           "settings": dict(settings), "date": datetime.now(UTC).isoformat(timespec="seconds"),
           "versions": {"torch": torch.__version__, "python": python_version()}}
    target = folder / f"{scale}-{dataset}.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, target)
    return target
