"""A site that is whole and small: nothing that no browser reads, and no page that an edit of the assets or extensions left behind."""

from __future__ import annotations

import hashlib
import re
import shutil
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


def delete_unread(app: Sphinx, error: Exception | None) -> None:
    """Delete the theme's maps, which browsers fetch only for developers, old forms of its fonts, and its translations."""
    for pattern in ("*.map", "*.ttf"):
        for path in Path(app.outdir).rglob(pattern):
            path.unlink()
    shutil.rmtree(Path(app.outdir) / "_static" / "locales", ignore_errors=True)


def plain_signatures(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Take out of the API page the elements around every word of a signature, a third of it, that nothing styles."""
    if pagename == "api" and "body" in context:
        context["body"] = re.sub(r'<span class="(?:pre|p|w)">([^<]*)</span>', r"\1", context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the settings and the handlers."""
    app.add_config_value("book_assets", "", "html", str)
    app.add_config_value("book_extensions", "", "env", str)
    app.connect("config-inited", note_sources)
    app.connect("html-page-context", plain_signatures)
    app.connect("build-finished", delete_unread)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
