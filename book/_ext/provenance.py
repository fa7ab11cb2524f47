"""Tables about runs that pages show at build time: benchmark figures, recorded runs, and the versions of this build."""

from __future__ import annotations

import json
import operator
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from execution_cache import MAIN
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from lossland.records import faults, recorded_runs

MISSING = "not run"
KINDS = {"cpu": "CPU", "cuda": "GPU"}
COMPARE = {">=": operator.ge, "<=": operator.le}
TOOLS = ("jupyter-book", "sphinx", "myst-nb", "papermill")
Run = Mapping[str, Any]


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> nodes.table:
    """Return a table with a caption; the first cell of a row heads it."""
    result = nodes.table("", nodes.title("", caption), classes=["colwidths-auto", "runs"])
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1, stub=not number) for number in range(len(head))), cols=len(head))
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    result += group
    return result


def _row(cells: Sequence[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *_inline(cell))) for cell in cells))


def _inline(text: str) -> list[nodes.Node]:
    """Return text in which `x` is code."""
    parts = text.split("`")
    return [nodes.literal(part, part) if number % 2 else nodes.Text(part) for number, part in enumerate(parts) if part]


def against(value: Any, bar: str | None) -> str:
    """Return a figure as the page shows it, with a word where it misses its bar."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    sign, _, bound = (bar or "").partition(" ")
    missed = bar is not None and not COMPARE[sign](value, float(bound))
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}") + (", misses the bar" if missed else "")


def runs_of(folder: Path, name: str, kinds: Sequence[str]) -> list[Run]:
    """Return a benchmark's runs, one per device, and an empty one for each kind of device on which there is none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}.*.json"))]
    missing = [kind for kind in kinds if kind not in [run["kind"] for run in found]]
    return [*found, *({"device": KINDS[kind], "values": {}} for kind in missing)]


def provenance(run: Run) -> str:
    """Return in a sentence what a benchmark's figures depend on, and what is wrong with them."""
    options = f", options {' '.join(run['options'])}" if run.get("options") else ""
    wrong = "".join(f" [{fault}]" for fault in faults(run))
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("python", "torch"))
    return (f"{run['device']}: {run['date'][:10]}, {run['threads']} threads, {versions}, source {run['commit'] or 'unknown'}, "
            f"{run['seconds']:.0f} s{options}{wrong}.")


class Benchmark(SphinxDirective):
    """`{benchmark} NAME`: the latest figures of a benchmark on every device, beside its bars."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table, and a line about each run."""
        folder, name = Path(self.env.srcdir) / "benchmarks", self.arguments[0]
        one = yaml.safe_load((folder / "bars.yml").read_text(encoding="utf-8"))[name]
        runs = runs_of(folder, name, one["devices"])
        rows = [[what["meaning"], *(against(run["values"].get(key), what.get("bar")) for run in runs),
                 what.get("bar", "none").replace(">=", "≥").replace("<=", "≤"), f"`{key}`"] for key, what in one["keys"].items()]
        said = [nodes.paragraph("", provenance(run), classes=["provenance"]) for run in runs if run["values"]]
        return [table(one["shape"], ["figure", *(run["device"] for run in runs), "bar", "key"], rows), *said]


class RecordedRuns(SphinxDirective):
    """`{recorded-runs}`: every recorded run, where it comes from, and whether it may be taken as it stands."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [[run["chapter"], run["file"].removesuffix(".json"), run["date"][:10], run["device"],
                 "; ".join(run["faults"]) or "as it was written",
                 ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
                 f"{run['seconds'] / 60:.0f}" if "seconds" in run else "not known", run.get("commit") or "not known"] for run in recorded_runs()]
        head = ["chapter", "run", "date", "device", "state", "made with", "minutes", "source"]
        return [table("Recorded runs", head, rows)]


class Versions(SphinxDirective):
    """`{versions}`: what this build of the book was made with."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [["Python", platform.python_version()]]
        for name in ("lossland", *MAIN, *TOOLS):
            try:
                rows.append([name, version(name)])
            except PackageNotFoundError:
                rows.append([name, "not installed"])
        return [table(f"Versions in this build of {datetime.now(UTC):%d %B %Y}", ["package", "version"], rows)]


def read_again(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Name the pages that show what Sphinx does not watch."""
    return [name for name in ("benchmarks", "status") if name in env.found_docs]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("benchmark", Benchmark)
    app.add_directive("recorded-runs", RecordedRuns)
    app.add_directive("versions", Versions)
    app.connect("env-get-outdated", read_again)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
