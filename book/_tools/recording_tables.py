"""Tables that an unfinished recorded run has computed, for the time after it is killed: evaluation can take hours.

A chapter is deterministic: with the same code, package and parameters its n-th call of `ll.evaluate` asks for the same
table. `keep` runs in the chapter's kernel, before its first cell but for the parameters.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from chapters import ROOT, package_files
from nbformat import NotebookNode


def context(notebook: NotebookNode) -> str:
    """Return 16 hexadecimal digits of the package's source and a notebook's code, its parameters included."""
    digest = hashlib.sha256()
    for path in package_files(ROOT):
        digest.update(path.read_bytes() + b"\0")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
    return digest.hexdigest()[:16]


def cell(folder: Path) -> str:
    """Return the code of the cell that lets a chapter's tables be kept in a folder."""
    tools = str(Path(__file__).resolve().parent)
    return (f"import sys as _sys\n_sys.path.append({tools!r})\nimport recording_tables as _tables\n"
            f"_tables.keep({str(folder)!r})\n_sys.path.remove({tools!r})")


def keep(folder: str) -> None:
    """Let `ll.evaluate` of this process read its tables where they lie in the folder."""
    import lossland

    lossland.evaluate = kept(lossland.evaluate, Path(folder))


def kept(function: Callable[..., pd.DataFrame], folder: Path) -> Callable[..., pd.DataFrame]:
    """Return a function that reads its n-th table from the folder, and where there is none computes and writes it."""
    counter = count()

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> pd.DataFrame:
        file = folder / f"{next(counter):05}.json"
        asked = repr((args[2].fingerprint if len(args) > 2 else "", sorted(options.items(), key=str)))
        known = _read(file, asked)
        if known is None:
            known = function(*args, **options)
            _write(file, asked, known)
        return known

    return wrapped


def _read(file: Path, asked: str) -> pd.DataFrame | None:
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["asked"] != asked:
        return None
    table = pd.DataFrame({name: pd.Series(values, dtype=found["types"][name])
                          for name, values in found["columns"].items()})
    table.attrs.update(found["attrs"])
    return table


def _write(file: Path, asked: str, table: pd.DataFrame) -> None:
    """Write a table, whole or not at all; nothing where it would not come back the same."""
    types = {name: str(kind) for name, kind in table.dtypes.items()}
    columns = {name: table[name].tolist() for name in table}
    try:
        text = json.dumps({"asked": asked, "columns": columns, "types": types, "attrs": table.attrs})
    except TypeError:
        return
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(text, encoding="utf-8")
    if _same(_read(beside, asked), table):
        os.replace(beside, file)
    else:
        beside.unlink()


def _same(one: pd.DataFrame | None, other: pd.DataFrame) -> bool:
    return one is not None and one.equals(other) and list(one.dtypes) == list(other.dtypes) and one.attrs == other.attrs
