"""Write the API page: one section per module of the installed package, in the order of the import levels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from execution_cache import package_sources
from sphinx.application import Sphinx

MARKER = "<!-- modules -->"
FROM, PLAIN = r"from\s+(?:lossland)?\.?([\w.]*)\s+import\s+([\w, ]+)", r"import\s+lossland\.([\w.]+)"
IMPORT = re.compile(rf"^\s*(?:{FROM}|{PLAIN})", re.M)


def public_modules() -> dict[str, Path]:
    """Return dotted name -> file of every module without a leading underscore, the package itself left out."""
    sources = package_sources()
    root = min((path.parent for path in sources), key=lambda folder: len(folder.parts))
    found = {}
    for path in sources:
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = path
    return found


def ours_imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the names of our modules that a file imports (`from .x import y`, `from lossland import x`)."""
    names: set[str] = set()
    for source, what, plain in IMPORT.findall(path.read_text(encoding="utf-8")):
        candidates = [source, plain, *(f"{source}.{name.strip()}".strip(".") for name in what.split(","))]
        names.update(name for name in candidates if name in modules)
    return names


def in_import_order(modules: dict[str, Path]) -> list[str]:
    """Return the module names so that each comes after what it imports; alphabetical among equals."""
    waiting = {name: ours_imported(path, modules) - {name} for name, path in modules.items()}
    ordered: list[str] = []
    while waiting:
        free = sorted(name for name, needs in waiting.items() if not needs - set(ordered)) or sorted(waiting)
        ordered.extend(free)
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    return ordered


def section(name: str) -> str:
    """Return the MyST text of one module's section."""
    return f"## `lossland.{name}`\n\n```{{eval-rst}}\n.. automodule:: lossland.{name}\n   :members:\n```\n"


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the modules' sections where the page has its marker."""
    if docname == "api":
        source[0] = source[0].replace(MARKER, "\n".join(section(name) for name in in_import_order(public_modules())))


def literal_and_plain(text: str) -> str:
    """Return docstring text in reStructuredText: `x` becomes a literal, and bars outside literals are bars.

    Our docstrings are written for the terminal, where |a - b| is an absolute value and no substitution.
    """
    text = re.sub(r"(?<![`:\w\\])`(?!`)([^`]+?)`(?![`_])", r"``\1``", text)
    return re.sub(r"(?P<literal>``.+?``)(?P<end>(?=\w))?|\\.|\|", _token, text, flags=re.S)


def _token(match: re.Match[str]) -> str:
    if match["literal"]:
        return match["literal"] + (r"\ " if match["end"] is not None else "")  # "``Layer``s" would not end the literal
    return r"\|" if match[0] == "|" else match[0]


def adapt_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Adapt a docstring in place, before napoleon reads its sections."""
    lines[:] = literal_and_plain("\n".join(lines)).split("\n")


def skip_foreign(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what another package defined, such as the `set` that matplotlib writes into its subclasses."""
    module = getattr(obj, "__module__", None)
    return True if isinstance(module, str) and module.split(".")[0] != "lossland" else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers."""
    app.connect("source-read", fill_page)
    app.connect("autodoc-process-docstring", adapt_docstring, priority=100)
    app.connect("autodoc-skip-member", skip_foreign)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
