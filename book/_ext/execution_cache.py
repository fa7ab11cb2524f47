"""Re-execute every chapter whose code, package or main versions changed; record how long each took.

jupyter-cache looks at the cells of a notebook only, so an edit of the package would go unnoticed. Here the package's
source and the main versions are hashed into the cache's path. Sphinx sees a changed setting and reads every page again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

MAIN = ("torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "numba", "POT", "nflows")


def package_sources() -> list[Path]:
    """Return the Python files of the installed package `lossland`, sorted."""
    spec = find_spec("lossland")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package lossland is not installed: run `make book`, or pip install -e .")
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def cache_key(book: Path | None = None) -> str:
    """Return 16 hexadecimal digits: package, main versions, and the numbers that pages quote from `book`."""
    digest = hashlib.sha256(f"python {sys.version_info[:2]}\n".encode())
    for name in MAIN:
        try:
            digest.update(f"{name} {version(name)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{name} missing\n".encode())
    sources = package_sources()
    for path in sources:
        digest.update(path.relative_to(sources[0].parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    for path in sorted([*book.glob("papers/*.yml"), *book.glob("results/*/*.json")]) if book else []:
        digest.update(path.relative_to(book).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder(build: Path, book: Path) -> Path:
    """Return the cache, below the build's folder, that belongs to this package and these versions."""
    return build / ".jupyter_cache" / cache_key(book)


def set_cache_path(app: Sphinx, config: Config) -> None:
    """Point myst-nb at that cache."""
    config.nb_execution_cache_path = str(cache_folder(Path(app.outdir).parent, Path(app.srcdir)))


def write_timings(app: Sphinx, error: Exception | None) -> None:
    """Write `_build/timings.json`: chapter -> seconds of its last execution."""
    if error is not None:
        return
    metadata: dict[str, dict[str, Any]] = getattr(app.env, "nb_metadata", {})
    runs = {name: data["exec_data"] for name, data in metadata.items() if data.get("exec_data")}
    timings = {name: {"seconds": run["runtime"], "finished": run["mtime"]} for name, run in sorted(runs.items())}
    (Path(app.outdir).parent / "timings.json").write_text(json.dumps(timings, indent=1) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the two handlers."""
    app.connect("config-inited", set_cache_path)
    app.connect("build-finished", write_timings)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
