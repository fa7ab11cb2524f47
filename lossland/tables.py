"""Tables of the book: real captions and headers in HTML, aligned text in a terminal, never an empty cell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch import Tensor

from lossland.errors import choose, did_you_mean

COLUMNS = {  # key of a row: (heading, what stands where nothing is known)
    "quantity": ("quantity (paper, table, cell)", ""),
    "paper": ("paper", "not given"),
    "recorded": ("recorded run", "not run"),
    "run": ("this run", "not run"),
    "comparable": ("comparable?", ""),
}
COMPARABLE = ("yes", "shape only", "no")

# One listener for the whole head, as an attribute: it works where inserted scripts do not run. What is no number in a
# column of numbers comes last, whichever way round.
_SORT = (
    "const b=event.target.closest('button');if(!b)return;"
    "const h=b.parentNode,u=h.getAttribute('aria-sort')!=='ascending',"
    "y=h.closest('table').tBodies[0],v=r=>{const s=r.cells[h.cellIndex].textContent.trim();"
    "return[r,s,parseFloat(s.replace(/,/g,''))]};for(const o of h.parentNode.cells)o.setAttribute('aria-sort','none');"
    "h.setAttribute('aria-sort',u?'ascending':'descending');const d=(p,q)=>isNaN(p)?0:p-q;"
    "[...y.rows].map(v).sort((p,q)=>isNaN(p[2])-isNaN(q[2])||(u?1:-1)*(d(p[2],q[2])||p[1].localeCompare(q[1])))"
    ".forEach(r=>y.append(r[0]))"
).replace("&", "&amp;")
_BUTTON = "all:unset;cursor:pointer;font-weight:bold;text-decoration:underline dotted;min-height:24px;outline:revert"
_ARROWS = (
    "<style>.sortable tbody *{white-space:nowrap}.sortable th[aria-sort=ascending] button::after{content:' \\25b2'}"
    ".sortable th[aria-sort=descending] button::after{content:' \\25bc'}</style>"
)


@dataclass(frozen=True)
class Table:
    """A table that shows itself: HTML with caption and headers, Markdown, or aligned text.

    Attributes:
        caption: What the table holds.
        columns: One heading per column.
        rows: Cells as text; the first `headers` of each row are headings of the row.
        headers: How many.
        sortable: Whether a click on a heading, or the enter or space key, sorts the rows by it, and a second one turns
            them round. This needs neither kernel nor network; without JavaScript the rows stay as they are.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    headers: int = 1
    sortable: bool = False

    def _repr_html_(self) -> str:
        # "dataframe" is the class that the book's theme styles, in the dark as well. The frame scrolls on a phone, and
        # can be reached by the keyboard to do so.
        head = "".join(self._heading(escape(name)) for name in self.columns)
        body = "".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        caption = escape(self.caption)
        style, kind, listen = (_ARROWS, " sortable", f' onclick="{_SORT}"') if self.sortable else ("", "", "")
        return (
            f'{style}<div style="overflow-x:auto" tabindex="0" role="group" aria-label="{caption}">'
            f'<table class="dataframe{kind}">'
            f'<caption style="caption-side:top;text-align:left">{caption}</caption>'
            f"<thead{listen}><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _heading(self, name: str) -> str:
        if not self.sortable:
            return f'<th scope="col">{name}</th>'
        return f'<th scope="col" aria-sort="none"><button type="button" style="{_BUTTON}">{name}</button></th>'

    def _cells(self, row: tuple[str, ...]) -> str:
        first = "".join(f'<th scope="row" style="text-align:left">{escape(cell)}</th>' for cell in row[: self.headers])
        # A line that ends between a mean and its deviation is hard to read.
        cells = (escape(cell).replace(" ± ", "&nbsp;±&nbsp;") for cell in row[self.headers :])
        return first + "".join(f"<td>{cell}</td>" for cell in cells)

    def _repr_markdown_(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.caption}**\n\n{text}\n"

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        texts.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.caption, "", *(text.rstrip() for text in texts)])


@dataclass(frozen=True)
class Folds:
    """Several tables, each behind a line that opens it: without a kernel, by mouse or keyboard.

    Attributes:
        tables: Line -> table.
    """

    tables: Mapping[str, Table]

    def _repr_html_(self) -> str:
        return "".join(f"<details><summary>{escape(line)}</summary>{one._repr_html_()}</details>"
                       for line, one in self.tables.items())

    def __repr__(self) -> str:
        return "\n".join(self.tables)


def mean_sd(
    values: ArrayLike | Tensor | None, percent: bool = True, *, digits: int | None = None, alone: str = "one run",
) -> str:
    """Return "97.1 ± 0.3": mean and standard deviation (n - 1) over repeats.

    Args:
        values: One number per repeat (seed, pair); fractions where `percent`. None or empty: nothing was run.
        percent: Print hundredths; the unit belongs in the heading.
        digits: Decimals; 1 for per cent and 3 otherwise unless given.
        alone: What stands in brackets behind a single value; "": nothing, where the caption says it.

    Returns:
        "mean ± deviation"; "mean (one run)" for a single value; "not run" for none.

    Raises:
        ValueError: NaN or infinite values, digits < 0.

    Example:
        >>> mean_sd([0.968, 0.971, 0.974])
        '97.1 ± 0.3'
    """
    if values is None:
        return COLUMNS["run"][1]
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float).ravel()
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite, got {array[~np.isfinite(array)][0]} among {array.size}")
    digits = (1 if percent else 3) if digits is None else digits
    if digits < 0:
        raise ValueError(f"digits must be >= 0, got {digits}")
    if not array.size:
        return COLUMNS["run"][1]
    array = array * 100 if percent else array
    mean = f"{array.mean():.{digits}f}"
    return f"{mean} ± {array.std(ddof=1):.{digits}f}" if array.size > 1 else f"{mean} ({alone})" if alone else mean


def results_table(rows: Iterable[Mapping[str, Any]], *, caption: str) -> Table:
    """Return the table that ends a chapter: paper, recorded run and this run side by side.

    Args:
        rows: One mapping per quantity: `quantity` (with paper, table and cell), `paper`, `recorded`, `run` (text,
            numbers, or left out where there is nothing) and `comparable`: "yes", "shape only" or "no", a reason may
            follow after a colon.
        caption: What is compared, with seeds, grid, scale and device.

    Returns:
        A table that displays itself; missing numbers read "not given" (paper) or "not run".

    Raises:
        ValueError: No rows, an empty caption or quantity, an unknown key, an unknown answer in `comparable`.
    """
    lines = []
    for number, row in enumerate(rows):
        unknown = [key for key in row if key not in COLUMNS]
        if unknown:
            near = did_you_mean(unknown[0], COLUMNS)
            raise ValueError(f"rows[{number}] must have keys among {', '.join(COLUMNS)}, got {unknown[0]!r}{near}")
        line = tuple(_cell(row.get(key), missing) for key, (_, missing) in COLUMNS.items())
        if not line[0]:
            raise ValueError(f"rows[{number}] must name its quantity, got {row.get('quantity')!r}")
        choose(f"rows[{number}]['comparable']", line[-1].partition(":")[0], COMPARABLE)
        lines.append(line)
    return _table(caption, tuple(heading for heading, _ in COLUMNS.values()), lines, 1)


def table(frame: pd.DataFrame, *, caption: str, missing: str = "not run", digits: int = 4,
          sortable: bool = False) -> Table:
    """Return any table in the accessible form of the book.

    Args:
        frame: Its index becomes the headings of the rows, or, where it merely counts, the first column.
        caption: What the table holds, units included.
        missing: What stands in place of NaN and None.
        digits: Significant digits of floats.
        sortable: Whether readers can sort the rows by a click on a heading.

    Returns:
        A table that displays itself.

    Raises:
        ValueError: No rows or columns, an empty caption or an empty `missing`.
    """
    if not missing.strip():
        raise ValueError(f"missing must be a text that is not empty, got {missing!r}")
    counting = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    flat = frame if counting else frame.reset_index()
    columns = tuple(", ".join(map(str, filter(None, name))) if isinstance(name, tuple) else str(name) for name in flat)
    rows = [tuple(_cell(value, missing, digits) for value in row) for row in flat.itertuples(index=False, name=None)]
    return _table(caption, columns, rows, 1 if counting else frame.index.nlevels, sortable)


def _table(caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], headers: int,
           sortable: bool = False) -> Table:
    if not caption.strip():
        raise ValueError(f"caption must be a text that is not empty, got {caption!r}")
    if not rows or not columns:
        raise ValueError(f"a table must have rows and columns, got {len(rows)} x {len(columns)}")
    return Table(caption, columns, tuple(rows), headers, sortable)


def _cell(value: Any, missing: str, digits: int = 4) -> str:
    if isinstance(value, (list, tuple, dict, set, np.ndarray, Tensor)):
        raise ValueError(f"cells must be text or single numbers (see mean_sd), got {type(value).__name__}")
    if pd.isna(value):
        return missing
    if isinstance(value, (float, np.floating)):
        return f"{value:.{digits}g}"
    return str(value).strip() or missing
