"""A book of one chapter, made in a temporary folder with the real configuration and extensions."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
from chapters import ROOT

TOC = "format: jb-book\nroot: intro\nchapters:\n  - file: chapters/01_small\n"
PARAMETERS = 'scale: str = "tiny"  # size of the run\nseed: int = 0  # seed of the first run\nepochs: int = 0  # epochs'


def small_book(folder: Path, code: str = "print(scale, seed, epochs)") -> Path:
    """Write the book below a folder and return its chapter."""
    skip = shutil.ignore_patterns("chapters", "__pycache__", "*.md", "_toc.yml")
    shutil.copytree(ROOT / "book", folder / "book", ignore=skip)
    shutil.copy(ROOT / "_config.yml", folder)
    (folder / "book" / "_toc.yml").write_text(TOC, encoding="utf-8")
    (folder / "book" / "intro.md").write_text("# A small book\n\nOne chapter.\n", encoding="utf-8")
    title = nbformat.v4.new_markdown_cell("# Small", id="title")
    parameters = nbformat.v4.new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]})
    cells = [title, parameters, nbformat.v4.new_code_cell(code, id="work")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    chapter = folder / "book" / "chapters" / "01_small.ipynb"
    chapter.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), chapter)
    return chapter
