"""The tables of the papers, cell by cell: what is printed, what a recorded run gave, what this run gave.

Each table in `book/papers/<paper>.yml` may have a list `sources`: which recorded quantity stands beside which cell.

    sources:
      - chapter: 05_weight_adjustment       # folder below book/results
        dataset: mnist                      # only runs on it; left out: any
        rows: [IAF flow]                    # left out: all rows
        columns: {MNIST test: "{row} 2000 test"}  # column -> quantity; also {column}, and {head}, {tail}: around ", "
        names: {end points: the two ends}   # row -> what {row} is to be; left out: itself
        comparable: "shape only: learned from 10 networks, not 16"

The first source that has a value fills a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from lossland.errors import choose
from lossland.records import MISSING, book_folder, recorded
from lossland.tables import Folds, results_table

Run = Mapping[tuple[str, str, str], str]
"""(table, row, column) -> what this run gave, as text."""


def printed(paper: str) -> dict[str, Any]:
    """Return the tables of a paper: name -> unit, columns, rows, sources.

    Args:
        paper: name of a file in `book/papers`, such as "ay20".

    Raises:
        ValueError: for an unknown paper, or where there is no book.
    """
    folder = book_folder()
    if folder is None:
        raise ValueError("the folder book must be at hand: run in a checkout, or set LOSSLAND_BOOK to it")
    choose("paper", paper, sorted(file.stem for file in (folder / "papers").glob("*.yml")))
    tables: dict[str, Any] = yaml.safe_load((folder / "papers" / f"{paper}.yml").read_text(encoding="utf-8"))["tables"]
    return tables


def cells(paper: str, table: str, run: Run | None = None, *, like: str = "shape only") -> pd.DataFrame:
    """Return one row per number that a table prints.

    Args:
        paper: such as "ay20".
        table: such as "Table 1".
        run: what this run gave.
        like: whether this run is comparable, as in `tables.results_table`: for cells that have no recorded run.

    Returns:
        Columns row, column, paper (as printed), recorded and run ("not run" where missing), comparable: that of the
        recorded run where there is one, else of this run, else "no: not run".

    Raises:
        ValueError: for an unknown paper or table; a source or a cell of `run` that names a row or column which the
            table does not have.
    """
    tables = printed(paper)
    return _cells(tables[choose("table", table, tables)], _here(run, table), like)


def side_by_side(paper: str, run: Run | None = None, *, like: str = "shape only",
                 tables: Sequence[str] | None = None) -> Folds:
    """Return a paper's tables, each behind a line that says how many of its cells have been run.

    Args:
        paper: such as "ay20".
        run: what this run gave.
        like: whether this run is comparable, where there is no recorded run.
        tables: names; None: all.

    Raises:
        ValueError: as `cells`.
    """
    known, folds = printed(paper), {}
    for name in known if tables is None else tables:
        table = known[choose("table", name, known)]
        found = _cells(table, _here(run, name), like)
        filled = {what: int((found[what] != MISSING).sum()) for what in ("recorded", "run")}
        line = f"{name}: {len(found)} cells, {filled['recorded']} recorded, {filled['run']} in this run"
        rows = [{"quantity": f"{row}, {column}", "paper": there, "recorded": told, "run": own, "comparable": comparable}
                for row, column, there, told, own, comparable in found.itertuples(index=False)]
        folds[line] = results_table(rows, caption=f"{name} ({table['unit']})")
    return Folds(folds)


def _here(run: Run | None, table: str) -> dict[tuple[str, str], str]:
    return {(row, column): text for (name, row, column), text in (run or {}).items() if name == table}


def _cells(table: Mapping[str, Any], run: Mapping[tuple[str, str], str], like: str) -> pd.DataFrame:
    for row, column in run:
        choose("row of run", row, table["rows"])
        choose("column of run", column, table["columns"])
    lines = []
    for row, values in table["rows"].items():
        for column, value in zip(table["columns"], values, strict=True):
            if value is not None:
                told, comparable = _beside(table, row, column)
                own = run.get((row, column), MISSING)
                if told == MISSING and own != MISSING:
                    comparable = like
                lines.append({"row": row, "column": column, "paper": str(value), "recorded": told, "run": own,
                              "comparable": comparable})
    return pd.DataFrame(lines)


def _beside(table: Mapping[str, Any], row: str, column: str) -> tuple[str, str]:
    """Return a recorded value with its provenance, and whether it is comparable."""
    for source in table.get("sources", ()):
        for named in (*source.get("rows", ()), *source.get("names", ())):
            choose("row of a source", named, table["rows"])
        for named in source["columns"]:
            choose("column of a source", named, table["columns"])
        if row not in source.get("rows", table["rows"]) or column not in source["columns"]:
            continue
        name = source.get("names", {}).get(row, row)
        head, _, tail = name.partition(", ")
        quantity = source["columns"][column].format(row=name, column=column, head=head, tail=tail)
        told = recorded(source["chapter"], quantity, dataset=source.get("dataset"))
        if told != MISSING:
            return told, source["comparable"]
    return MISSING, "no: not run"
