"""Execute the chapters at scale tiny in place and save their outputs in a form that can be compared.

    python book/_tools/refresh_notebooks.py [--all] [--jobs N] [CHAPTER ...]

Only chapters whose source stamp is out of date are run, unless --all is given. A failing chapter is left as it was.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nbformat
from chapters import ONE_THREAD, find_chapter, notebooks, read, source_stamp
from execute_chapters import workers
from nbformat import NotebookNode
from PIL import Image

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PASSING = ("execution", "ExecuteTime", "collapsed", "scrolled", "trusted", "papermill")
COLOURS = 128


def small_png(data: str) -> str:
    """Return a base64 PNG with at most 128 colours and no metadata, the same picture to the eye."""
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(ground, picture).convert("RGB")
    buffer = io.BytesIO()
    flat.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii") + "\n"


def normalise_output(output: NotebookNode, count: int) -> NotebookNode:
    """Return an output with its cell's number and with a small picture."""
    if "execution_count" in output:
        output["execution_count"] = count
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = small_png(data["image/png"])
    return output


def merged_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return the outputs with neighbouring pieces of one stream joined."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last is not None and output.output_type == "stream" == last.output_type and output.name == last.name:
            last["text"] += output["text"]
        else:
            merged.append(output)
    return merged


def normalise(notebook: NotebookNode, stamp: str) -> NotebookNode:
    """Return the notebook with nothing in it that changes from run to run, and with its source stamp."""
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key not in PASSING}
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count  # nbval takes a cell with outputs and no number for one that was not run
        cell.outputs = [normalise_output(output, count) for output in merged_streams(cell.outputs)]
    kept = {key: value for key, value in notebook.metadata.items() if key not in ("papermill", "widgets")}
    ours = {"kernelspec": KERNEL, "language_info": {"name": "python"}, "lossland": {"stamp": stamp}}
    notebook.metadata = {**kept, **ours}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.from_dict(notebook)


def is_stamped(path: Path) -> bool:
    """Say whether a chapter's outputs come from the present source."""
    notebook = read(path)
    return notebook.metadata.get("lossland", {}).get("stamp") == source_stamp(notebook)


def refresh(path: Path) -> float:
    """Execute a chapter, save it and return the seconds it took.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the file is left as it was.
    """
    from nbclient import NotebookClient

    notebook = read(path)
    stamp = source_stamp(notebook)
    started = time.monotonic()
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    seconds = time.monotonic() - started
    partial = path.with_suffix(".partial")
    nbformat.write(normalise(notebook, stamp), partial)
    partial.replace(path)
    return seconds


def attempt(path: Path) -> tuple[str, bool]:
    """Refresh a chapter; return a line that says how it went, and whether it went through."""
    from nbclient.exceptions import CellExecutionError

    try:
        return f"{path.stem}: {refresh(path):.1f} s, {path.stat().st_size / 1e3:.0f} kB", True
    except CellExecutionError as error:
        return f"{path.stem}: {error}", False


def main() -> int:
    """Refresh the chapters that need it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", help="numbers or names (default: all of the book)")
    parser.add_argument("--all", action="store_true", help="also those whose stamp is up to date")
    parser.add_argument("--jobs", type=int, help="chapters executed at a time (default: one per core, at most 4)")
    arguments = parser.parse_args()
    os.environ.update(ONE_THREAD)
    waiting = []
    for path in [find_chapter(name, among=notebooks()) for name in arguments.chapters] or notebooks():
        if is_stamped(path) and not arguments.all:
            print(f"{path.stem}: up to date")
        else:
            waiting.append(path)
    if not waiting:
        return 0
    failed = 0
    with ProcessPoolExecutor(min(arguments.jobs or workers(), len(waiting)), mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(attempt, path) for path in waiting]):
            said, whole = done.result()
            failed += not whole
            print(said, file=sys.stdout if whole else sys.stderr, flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
