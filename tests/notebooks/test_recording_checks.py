"""What make record is asked for is checked before anything runs, in make's names; what fails is told in a few lines."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pytest
import recording
import recording_run
import yaml
from chapters import ROOT, parameters_cell, read
from record import main
from recording import Recording
from recording_checks import check_data, check_scale
from small_book import small_book

LIST = {"speed": {"cpu": 90}, "runs": [{"chapter": "01", "scale": "tiny", "dataset": "digits", "minutes": 0.1},
                                       {"chapter": "01", "scale": "laptop", "dataset": "mnist", "minutes": 5}]}


@pytest.fixture
def book(tmp_path):
    chapter = small_book(tmp_path, "from pathlib import Path\nPath('ran').touch()\nraise ValueError('planted failure')")
    notebook = read(chapter)
    parameters_cell(notebook).source += '\ndataset: str = "digits"  # what the network sees'
    nbformat.write(notebook, chapter)
    (tmp_path / "book" / "record.yml").write_text(yaml.safe_dump(LIST), encoding="utf-8")
    return tmp_path


@pytest.fixture
def record(book, monkeypatch, capsys):
    """Return a function that is the command in this process, and gives its exit status, output and errors."""
    def call(*flags):
        monkeypatch.setenv("LOSSLAND_STORE", str(book / "store"))
        monkeypatch.setenv("LOSSLAND_DATA", str(book / "data"))
        monkeypatch.setattr(sys, "argv", ["record.py", "--root", str(book), "--factor", "1", *flags])
        return main(), *capsys.readouterr()

    return call


NAMED = ("--chapter", "1", "--scale", "tiny", "--dataset")


@pytest.mark.parametrize("flags, message", [
    (("--scale", "big"), "SCALE must be one of tiny, laptop, gpu, paper, got 'big'"),
    (("--chapter", "1", "--scale", "papre", "--dataset", "digits"), "got 'papre' (did you mean paper?)"),
    (("--dataset", "minst"), "nothing in the list matches DATASET=minst (did you mean mnist?); `make record` shows the list"),
    (("--chapter", "1", "--scale", "gpu"), "nothing in the list matches CHAPTER=1 SCALE=gpu; `make record` shows"),
    ((*NAMED, "digitz"), "DATASET must be one of digits, mnist, fashion-mnist, cifar10, cifar100, pydoc, or the name of a folder"),
    ((*NAMED, "mnist"), "DATASET=mnist needs torchvision's folder MNIST in"),
    ((*NAMED, "cifar10", "--data-dir", "none"), "DATA_DIR must hold cifar10.npz or torchvision's folder cifar-10-batches-py, got"),
    ((*NAMED, "digits", "--device", "gpuu"), "DEVICE: device must be 'auto' or one of those that are there (cpu"),
    (("--budget=-5m",), "BUDGET must be a time such as 90s, 8m, 2h or 1h30m, got '-5m'"),
    (("--next=a",), "NEXT must be a number of runs >= 1, got a"),
    (("--next=-1",), "NEXT must be a number of runs >= 1, got -1"),
    (("--workers=2", "--budget=8m"), "BUDGET is for runs one after the other on this machine: for WORKERS and SCHEDULER say NEXT"),
    (("--workers=two",), "WORKERS must be a number of processes >= 1, got two")])
def test_what_cannot_be_is_refused_in_one_line_before_anything_runs(book, record, flags, message):
    status, _, error = record(*flags)
    assert status == 2 and message in error
    assert error.count("\n") == 1 and not (book / "ran").exists()


def test_make_hands_on_values_that_begin_with_a_dash():
    values = {"NEXT": "-1", "BUDGET": "-5m", "CHAPTER": "-c", "SCALE": "-s", "DATASET": "-d", "DATA_DIR": "-f", "DEVICE": "-v",
              "SCHEDULER": "-a", "WORKERS": "-w"}
    run = subprocess.run(["make", "-n", "record", "PY=python", *(f"{name}={value}" for name, value in values.items())], cwd=ROOT,
                         capture_output=True, text=True, check=True,
                         env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")})
    assert all(f'="{value}"' in run.stdout for value in values.values())


def test_data_are_looked_for_where_chapters_look_for_them(tmp_path):
    for dataset in ("digits", "pydoc"):
        check_data(dataset, None, tmp_path)
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "cifar10.npz").touch()
    (tmp_path / "my-images").mkdir()
    for dataset in ("mnist", "cifar10", "my-images"):
        check_data(dataset, tmp_path, ROOT)
    check_scale(None)


def test_a_list_of_which_all_is_recorded_says_so(book, record):
    file = Recording("01_small", "laptop", "mnist").result(book)
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    status, said, _ = record("--dataset", "mnist")
    assert status == 0 and "none: all of them are recorded" in said


def test_a_run_whose_data_are_missing_fails_without_a_start(book, record):
    status, _, error = record("--next", "1", "--dataset", "mnist")
    assert status == 1 and error.startswith("01_small-laptop-mnist: DATASET=mnist needs torchvision's folder MNIST in")
    assert not (book / "ran").exists()


def test_a_failed_chapter_shows_the_end_of_its_error_without_colours(book, record):
    status, _, error = record(*NAMED, "digits")
    assert status == 1 and error.rstrip().endswith("ValueError: planted failure")
    assert "\x1b" not in error and error.count("\n") <= recording_run.LINES + 3
    assert "runs/record/01_small-tiny-digits/notebook.ipynb" in error


def test_the_speed_is_that_of_the_best_of_short_tests(monkeypatch):
    """Other work slows down all tests but one."""
    clock = iter([moment for test in range(16) for moment in (test, test + (0.1 if test == 9 else 0.5))])
    monkeypatch.setattr(recording.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(recording.time, "sleep", lambda seconds: None)
    assert recording.speed("cpu") == pytest.approx(30)
