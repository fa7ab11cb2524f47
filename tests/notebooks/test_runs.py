"""A chapter runs alone in an empty folder, with other parameters, and refuses what it does not know."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from chapters import ONE_THREAD, chapters, parameter_names, parameters_cell, read
from click.testing import CliRunner
from papermill.cli import papermill as command_line

# A chapter's runs go to one worker: the later ones find what the first one trained in that worker's store.
CHAPTERS = [pytest.param(path, id=path.stem, marks=pytest.mark.xdist_group(path.stem)) for path in chapters()]
SECONDS = 400
FEW = {"11_midpoints": 8}  # epochs; six of them for the checkpoints of its averages, other chapters take 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store of trained weights that no other run has touched."""
    return tmp_path_factory.mktemp("store")


def papermill(folder, chapter, store, *arguments):
    """Copy a chapter into a folder and run the copy there, in an environment that does not know the repository."""
    shutil.copy(chapter, folder / chapter.name)
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", chapter.name, "out.ipynb",
         *arguments],
        cwd=folder, env={**known, **ONE_THREAD, "LOSSLAND_STORE": str(store), "JUPYTER_PREFER_ENV_PATH": "1"},
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)


def given(chapter, n_seeds):
    """Return papermill's arguments for other seeds and epochs, as far as the chapter has such parameters."""
    parameters = {"scale": "tiny", "seed": 7, "n_seeds": n_seeds, "epochs": FEW.get(chapter.stem, 5)}
    names = parameter_names(chapter)
    return ["-y", yaml.safe_dump({name: value for name, value in parameters.items() if name in names})]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_alone_in_an_empty_folder_with_other_seeds_and_epochs(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, *given(chapter, 3))
    assert run.returncode == 0, run.stderr[-4000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([chapter.name, "out.ipynb"])
    injected = [cell.source for cell in read(tmp_path / "out.ipynb").cells
                if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "seed = 7" in injected[0]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_one_seed_works_or_is_refused_by_name(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, *given(chapter, 1))
    assert run.returncode == 0 or "ValueError: n_seeds" in run.stderr, run.stderr[-4000:]


REFUSED = [pytest.param("epoch", 3, "did you mean 'epochs'", id="wrong name"),
           pytest.param("progress", "false", "'progress' must be bool", id="string for a boolean"),
           pytest.param("scale", "laptops", "did you mean 'laptop'", id="unknown scale")]


@pytest.mark.parametrize("name, value, words", REFUSED)
def test_papermill_shows_what_a_chapter_refuses(tmp_path, name, value, words, store):
    run = papermill(tmp_path, chapters()[0], store, "-y", yaml.safe_dump({name: value}))
    assert run.returncode != 0
    assert words in run.stderr


@pytest.mark.parametrize("name, value, words", REFUSED)
@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_wrong_parameters_are_refused_before_anything_starts(chapter, name, value, words):
    cells = [cell for cell in read(chapter).cells if cell.cell_type == "code"]
    start = cells.index(parameters_cell(read(chapter)))
    known = {"__name__": "__main__"}
    for cell in cells[: start + 1]:
        exec(cell.source, known)
    known[name] = value
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        exec(cells[start + 1].source, known)


@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_papermill_explains_the_parameters(chapter):
    shown = CliRunner().invoke(command_line, ["--help-notebook", str(chapter)])
    assert shown.exit_code == 0
    assert not [name for name in parameter_names(chapter) if f"{name}:" not in shown.output]
