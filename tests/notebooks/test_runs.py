"""A chapter runs alone in an empty folder, with other parameters, and refuses what it does not know."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from chapters import ONE_THREAD, chapters, parameter_names, read

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


def given(parameters, chapter):
    """Return papermill's arguments for those of the parameters that the chapter has."""
    names = parameter_names(chapter)
    return ["-y", yaml.safe_dump({name: value for name, value in parameters.items() if name in names})]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_alone_in_an_empty_folder(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, *given({"scale": "tiny", "epochs": FEW.get(chapter.stem, 5), "n_seeds": 3}, chapter))
    assert run.returncode == 0, run.stderr[-4000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([chapter.name, "out.ipynb"])


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_with_other_seeds(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, *given({"scale": "tiny", "seed": 7, "n_seeds": 3}, chapter))
    assert run.returncode == 0, run.stderr[-4000:]
    injected = [cell.source for cell in read(tmp_path / "out.ipynb").cells
                if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "seed = 7" in injected[0]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_one_seed_works_or_is_refused_by_name(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, *given({"scale": "tiny", "epochs": FEW.get(chapter.stem, 5), "n_seeds": 1}, chapter))
    assert run.returncode == 0 or "ValueError: n_seeds" in run.stderr, run.stderr[-4000:]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_wrong_parameter_name_is_refused_with_the_nearest(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, "-p", "epoch", "3")
    assert run.returncode != 0
    assert "did you mean 'epochs'" in run.stderr


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_string_for_a_boolean_is_refused(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, "-r", "progress", "false")
    assert run.returncode != 0
    assert "'progress' must be bool" in run.stderr


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_unknown_scale_is_refused_with_the_nearest(tmp_path, chapter, store):
    run = papermill(tmp_path, chapter, store, "-p", "scale", "laptops")
    assert run.returncode != 0
    assert "did you mean 'laptop'" in run.stderr


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_papermill_explains_the_parameters(chapter):
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(chapter)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [name for name in parameter_names(chapter) if f"{name}:" not in run.stdout]
