"""Re-run every chapter with your parameters and render a personal edition of the book.

    python book/_tools/build_edition.py --scale laptop --params mine.yml --name mine

A parameter goes to every chapter that has it; `"02": {width: 500}` in the file goes to chapter 02 alone. Chapters that
are already done with the same source and the same parameters are kept, so an interrupted edition goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import html
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import yaml
from build_book import render
from chapters import ROOT, read, source_stamp
from run_chapter import SCALE, assign, chosen, execute


def is_done(output: Path, mark: dict[str, Any]) -> bool:
    """Say whether a chapter was executed to its end with this source and these parameters."""
    return output.is_file() and read(output).metadata.get("lossland", {}).get("edition") == mark


def run_one(chapter: Path, output: Path, parameters: dict[str, Any], root: Path) -> str:
    """Execute a chapter unless it is done, and return what happened."""
    mark = {"stamp": source_stamp(read(chapter), root), "parameters": parameters}
    if is_done(output, mark):
        return "kept"
    started = time.monotonic()
    execute(chapter, output, parameters)
    notebook = read(output)
    notebook.metadata["lossland"] = {"edition": mark}
    nbformat.write(notebook, output)
    return f"{time.monotonic() - started:.1f} s"


def _listed(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())


def banner(parameters: dict[str, Any]) -> str:
    """Return the HTML that stands on top of every page of an edition."""
    shared = {name: value for name, value in parameters.items() if not isinstance(value, dict)}
    own = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    listed = "; ".join([_listed({"scale": None, **shared}), *(f"chapter {name}: {_listed(own[name])}" for name in own)])
    date = datetime.date.today().isoformat()
    return f'<p class="edition">Personal edition of {date}: {html.escape(listed)}</p>'


def lay_out(root: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Copy the book's pages beside the executed chapters and write the edition's configuration."""
    skip = shutil.ignore_patterns("chapters", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(root / "book", folder / "book", ignore=skip, dirs_exist_ok=True)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config["execute"] = {**config["execute"], "execute_notebooks": "off"}
    config["html"] = {**config["html"], "announcement": banner(parameters)}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    (folder / "_config.yml").write_text(text, encoding="utf-8")


def build(root: Path, folder: Path, parameters: dict[str, Any]) -> int:
    """Run what is not done, then render; return an exit code. A failing chapter does not stop the others."""
    from papermill import PapermillExecutionError

    failed = []
    for chapter, own in assign(parameters, root).items():
        print(f"{chapter.stem} with {own} ...", flush=True)
        try:
            print(f"  {run_one(chapter, folder / 'book' / 'chapters' / chapter.name, own, root)}", flush=True)
        except PapermillExecutionError as error:
            failed.append(chapter.stem)
            print(error, file=sys.stderr)
    if failed:
        print(f"no edition was rendered, because these chapters failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    lay_out(root, folder, parameters)
    return render(folder)


def main() -> int:
    """Build the edition that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds book/ and _config.yml")
    parser.add_argument("--scale", help=f"tiny, laptop, gpu or paper (default: the file's, else {SCALE})")
    parser.add_argument("--params", type=Path, help="YAML file of parameters")
    parser.add_argument("--name", help="folder below runs/ (default: the scale and the file's name)")
    arguments = parser.parse_args()
    try:
        parameters = chosen(arguments.scale, arguments.params)
        suffix = f"-{arguments.params.stem}" if arguments.params else ""
        folder = arguments.root / "runs" / (arguments.name or f"{parameters['scale']}{suffix}")
        code = build(arguments.root, folder, parameters)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if code == 0:
        print(f"\nThe edition is at {(folder / '_build' / 'html' / 'index.html').as_uri()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
