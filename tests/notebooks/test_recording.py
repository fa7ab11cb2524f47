"""make record, on a book of one chapter that takes a second: what was cut off goes on, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pandas as pd
import psutil
import pytest
import recording_cluster
import recording_tables
import yaml
from chapters import ROOT, parameters_cell, read
from record import main
from recording import Recording, budget_seconds, data_parameters, listed, outstanding, read_list, spoken
from recording_run import prepared
from small_book import small_book

STEPS = 30
WORK = f"""
import time
import torch
from pathlib import Path
from lossland.records import record
from lossland.store import Store

def make(checkpoint):
    tensors, info = checkpoint.load() or ({{"w": torch.zeros(3, dtype=torch.float64)}}, {{"step": 0}})
    for step in range(info["step"], {STEPS}):
        time.sleep(0.05)
        with Path("steps.txt").open("a") as log:
            log.write(f"{{step}} ")
        tensors = {{"w": tensors["w"] + torch.tensor([1.0, step, step ** 0.5], dtype=torch.float64)}}
        checkpoint.save(tensors, {{"step": step + 1}})
    return tensors

weights = Store().fetch({{"small": 1}}, make).tensors["w"]
record("01_small", scale, dataset, {{"w": str(weights.tolist())}}, {{"steps": {STEPS}}}, device="cpu")
time.sleep(epochs)
"""
LIST = {"speed": {"cpu": 90}, "runs": [{"chapter": "01", "scale": "tiny", "dataset": "digits", "minutes": 0.1},
                                       {"chapter": "01", "scale": "laptop", "dataset": "digits", "minutes": 5},
                                       {"chapter": "01", "scale": "gpu", "dataset": "digits", "minutes": 5, "device": "gpu"},
                                       {"chapter": "09", "scale": "tiny", "dataset": "digits"}]}


@pytest.fixture
def book(tmp_path):
    chapter = small_book(tmp_path, WORK)
    notebook = read(chapter)
    parameters_cell(notebook).source += '\ndataset: str = "digits"  # what the network sees'
    nbformat.write(notebook, chapter)
    (tmp_path / "book" / "record.yml").write_text(yaml.safe_dump(LIST), encoding="utf-8")
    return tmp_path


def command(folder, *flags):
    return [sys.executable, str(ROOT / "book" / "_tools" / "record.py"), "--root", str(folder), "--factor", "1", *flags]


def environment(folder):
    return {**os.environ, "LOSSLAND_STORE": str(folder / "store"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def record(book, monkeypatch, capsys):
    """Return a function that is the command in this process, and gives its exit status, output and errors."""
    def call(*flags):
        monkeypatch.setenv("LOSSLAND_STORE", str(book / "store"))
        monkeypatch.setattr(sys, "argv", command(book, *flags)[1:])
        return main(), *capsys.readouterr()

    return call


def result(folder):
    return json.loads((folder / "book" / "results" / "01_small" / "tiny-digits.json").read_text(encoding="utf-8"))


def uninterrupted():
    sums = [0.0, 0.0, 0.0]
    for step in range(STEPS):
        sums = [sums[0] + 1.0, sums[1] + step, sums[2] + step**0.5]
    return str(sums)


def test_a_run_killed_at_ten_random_moments_ends_like_one_that_was_not(book, record):
    moments = random.Random(8)
    killed = 0
    for number in range(10):
        run = subprocess.Popen(command(book, "--next", "1"), env=environment(book), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.2, 3.0))
        run.send_signal(signal.SIGTERM if number % 3 == 0 else signal.SIGKILL)
        killed += run.wait(timeout=60) != 0
        for file in book.glob("book/results/01_small/tiny-digits.json"):
            assert json.loads(file.read_text(encoding="utf-8"))["values"] == {"w": uninterrupted()}
    status, _, error = record("--next", "1", "--chapter", "1", "--scale", "tiny")
    assert status == 0, error
    assert result(book)["values"] == {"w": uninterrupted()} and killed >= 5
    steps = [int(step) for step in (book / "steps.txt").read_text().split()]
    assert sorted(set(steps)) == list(range(STEPS))
    assert len(steps) <= STEPS + 11  # what is done twice is the step in which the process was killed
    assert not [*book.glob("book/results/*/.*"), *book.glob("runs/record/*/attempt-*")]


def tiny(number):
    return {"chapter": "01", "scale": "tiny", "dataset": f"digits{number}"}


def test_a_lost_worker_s_run_is_made_by_another_and_ends_like_one_that_was_not_lost(book):
    (book / "book" / "record.yml").write_text(yaml.safe_dump({"speed": {"cpu": 90}, "runs": [tiny(1), tiny(2)]}))
    run = subprocess.Popen(command(book, "--workers", "2"), env=environment(book), stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: (book / "steps.txt").is_file())
    os.kill(busy_worker(run.pid), signal.SIGKILL)
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 0, said
    found = [json.loads(file.read_text(encoding="utf-8"))["values"] for file in book.glob("book/results/01_small/tiny-digits*")]
    assert found == [{"w": uninterrupted()}] * 2
    assert "01_small-tiny-digits1: done" in said and "01_small-tiny-digits2: done" in said


def test_workers_need_not_know_the_book_s_tools(tmp_path):
    from distributed.protocol.pickle import dumps

    code = f"import pickle; print(pickle.loads({dumps(recording_cluster.task())!r})('/none', {{}}, '/none', {{}}, False))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
                         env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    assert run.stdout.startswith("/none is not there: all workers must see the repository"), run.stderr


def until(holds, seconds=150):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def busy_worker(pid):
    """Return the process of a worker of a local cluster that has a kernel at work."""
    kernels = [process for process in psutil.Process(pid).children(recursive=True) if "ipykernel" in " ".join(process.cmdline())]
    assert kernels
    return kernels[0].ppid()


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(recording_cluster, "WAIT", 0.5)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 within 0.5 seconds"):
        with recording_cluster.connected("tcp://127.0.0.1:9", None):
            pass


def test_the_list_says_what_is_outstanding_and_how_long_it_takes(record):
    status, said, _ = record()
    assert status == 0
    lines = [line.split() for line in said.splitlines() if "01_small" in line]
    assert lines == [["1", "01_small", "tiny", "digits", "6", "s"], ["2", "01_small", "laptop", "digits", "5", "min"],
                     ["3", "01_small", "gpu", "digits", "needs", "a", "GPU", "(an", "H200:", "5", "min)"]]
    assert "an estimate" in said
    status, _, error = record("--budget", "5s")
    assert status == 3 and "the smallest, 01_small-tiny-digits, takes about 6 s" in error


def test_a_run_that_outlasts_the_budget_is_cut_off_and_goes_on(book, record):
    notebook = read(book / "book" / "chapters" / "01_small.ipynb")
    notebook.cells[-1].source = notebook.cells[-1].source.replace("time.sleep(0.05)", "time.sleep(0.3)")
    nbformat.write(notebook, book / "book" / "chapters" / "01_small.ipynb")
    status, _, error = record("--budget", "7s")
    assert status == 1 and "cut off, because the budget is spent" in error
    assert "that were cut off" in record()[1]
    assert not list(book.glob("book/results/01_small/*.json"))
    assert record("--next", "1")[0] == 0
    assert len((book / "steps.txt").read_text().split()) <= STEPS + 1
    assert result(book)["values"] == {"w": uninterrupted()} and result(book)["seconds"] > 7


def test_a_chapter_that_fails_after_it_has_recorded_leaves_no_result(book, record):
    notebook = read(book / "book" / "chapters" / "01_small.ipynb")
    notebook.cells[-1].source = notebook.cells[-1].source.replace("0.05", "0") + "\nraise ValueError('planted failure')"
    nbformat.write(notebook, book / "book" / "chapters" / "01_small.ipynb")
    status, _, error = record("--next", "1")
    assert status == 1 and "planted failure" in error
    assert not list(book.glob("book/results/01_small/*.json"))
    assert "planted failure" in (book / "runs/record/01_small-tiny-digits/notebook.ipynb").read_text(encoding="utf-8")


def test_runs_that_have_a_result_are_not_outstanding(book):
    assert [run.name for run in outstanding(book)] == [f"01_small-{scale}-digits" for scale in ("tiny", "laptop", "gpu")]
    file = Recording("01_small", "tiny", "digits").result(book)
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert [run.scale for run in outstanding(book)] == ["laptop", "gpu"]


def test_the_list_of_the_book_is_made_of_runs_that_its_chapters_know():
    found = listed(ROOT)
    assert len({run.name for run in found}) == len(found) > 30
    assert {run.device for run in found} == {"cpu", "gpu"} == set(read_list(ROOT)["speed"])
    first = [run.chapter[:2] for run in found[:5]]
    assert first == ["02", "03", "04", "05", "07"] and {run.scale for run in found[:5]} == {"laptop"}


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("8m", 480), ("1h30m", 5400), ("0.5h", 1800)])
def test_a_budget_is_a_time(text, seconds):
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["8", "", "m", "0m", "-3m", "8 minutes", "3m2h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="BUDGET must be a time such as 90s, 8m, 2h or 1h30m, got"):
        budget_seconds(text)


@pytest.mark.parametrize("flags, message", [
    (("--chapter", "7", "--scale", "tiny", "--dataset", "digits"), "CHAPTER must name one chapter"),
    (("--chapter", "1", "--scale", "tiny", "--dataset", "a/mnist.npz"), "DATASET must be a name such as mnist"),
    (("--next", "0"), "NEXT must be a number of runs >= 1, got 0")])
def test_what_cannot_be_made_is_refused_by_name(record, flags, message):
    status, _, error = record(*flags)
    assert status == 2 and message in error


def test_the_file_of_a_data_set_is_preferred_to_its_name(tmp_path):
    assert data_parameters("mnist", None) == {"dataset": "mnist"}
    assert data_parameters("mnist", tmp_path) == {"dataset": "mnist", "data_dir": str(tmp_path)}
    (tmp_path / "mnist.npz").touch()
    assert data_parameters("mnist", tmp_path) == {"dataset": str(tmp_path / "mnist.npz")}


def test_tables_of_a_killed_run_are_read_where_the_same_is_asked_for(tmp_path):
    calls = []

    def evaluate(net, path, task, *, points):
        calls.append(points)
        table = pd.DataFrame({"t": [0.0, 1 / 3], "leg": [0, 1], "split": ["train", "test"], "nll": [0.1, float("nan")]})
        table.attrs["grid"] = points
        return table

    data, other = SimpleNamespace(fingerprint="a"), SimpleNamespace(fingerprint="b")
    first = recording_tables.kept(evaluate, tmp_path)
    tables = [first(None, None, data, points=2), first(None, None, data, points=3)]
    again = recording_tables.kept(evaluate, tmp_path)
    for number, table in enumerate(tables):
        read_again = again(None, None, data, points=2 + number)
        pd.testing.assert_frame_equal(read_again, table, check_exact=True)
        assert read_again.attrs == table.attrs
    assert calls == [2, 3]
    anew = recording_tables.kept(evaluate, tmp_path)
    anew(None, None, data, points=5)
    anew(None, None, other, points=3)
    assert calls == [2, 3, 5, 3]


def test_tables_are_kept_for_one_source_and_one_set_of_parameters(book):
    run = Recording("01_small", "tiny", "digits")
    folders = {name: prepared(run, book, {"dataset": name}).cells[3].source for name in ("a", "b")}
    assert "recording_tables" in folders["a"] and folders["a"] != folders["b"]
    assert prepared(run, book, {"dataset": "a"}).cells[3].source == folders["a"]


def test_seconds_are_spoken_in_the_unit_that_fits():
    assert [spoken(s) for s in (40, 720, 12600, 400000)] == ["40 s", "12 min", "3.5 h", "4.6 days"]
