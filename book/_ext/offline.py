"""A site that is whole and small: no source maps, and no page that an edit of the assets or extensions left behind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def digest(folder: Path) -> str:
    """Return 16 hexadecimal digits of the names and contents of the files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256(b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in files)).hexdigest()[:16]


def note_sources(app: Sphinx, config: Config) -> None:
    """Put what Sphinx does not watch into its settings: a changed setting renews the pages."""
    config.book_assets = digest(Path(app.srcdir) / "_assets")
    config.book_extensions = digest(Path(__file__).parent)


def delete_source_maps(app: Sphinx, error: Exception | None) -> None:
    """Delete the theme's maps, a third of the site, which browsers fetch only for developers."""
    for path in Path(app.outdir).rglob("*.map"):
        path.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the settings and the handlers."""
    app.add_config_value("book_assets", "", "html", str)
    app.add_config_value("book_extensions", "", "env", str)
    app.connect("config-inited", note_sources)
    app.connect("build-finished", delete_source_maps)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
