"""Benchmark figures: from a RESULT line into a file with provenance, and from there onto the page."""

from __future__ import annotations

import json
import re
import sys

import bench
import provenance
import pytest
import yaml
from chapters import ROOT

BARS = yaml.safe_load((ROOT / "book" / "benchmarks" / "bars.yml").read_text(encoding="utf-8"))
WHERE = {"kind": "cpu", "device": "Some Processor", "threads": 2, "versions": {"python": "3", "torch": "2"},
         "date": "2026-01-02T03:04+00:00", "commit": "abc1234", "seconds": 12.0, "options": []}


def test_figures_come_from_the_last_result_line():
    output = "a table\nRESULT fast ratio=3\nRESULT other ratio=9\nRESULT fast ratio=37.9 diff=8e-08 device=cpu\n"
    assert bench.figures(output, "fast") == {"ratio": 37.9, "diff": 8e-08, "device": "cpu"}


@pytest.mark.parametrize(("output", "message"), [
    ("no line", "fast printed no line `RESULT fast key=value"), ("RESULT fast ratio", r"holds key=value, got \['ratio'\]")])
def test_output_without_figures_is_refused(output, message):
    with pytest.raises(ValueError, match=message):
        bench.figures(output, "fast")


def test_processor_is_named_without_clock_marks_and_host(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz\n", encoding="utf-8")
    monkeypatch.setattr(bench, "Path", lambda name: info)
    assert bench.processor() == "Intel Xeon Platinum 8259CL"


def test_file_says_device_and_carries_a_checksum(tmp_path):
    file = bench.write("fast", {"ratio": 2.0}, WHERE, tmp_path)
    assert file.name == "fast.some-processor.json"
    run = json.loads(file.read_text(encoding="utf-8"))
    assert provenance.provenance(run) == "Some Processor: 2026-01-02, 2 threads, python 3, torch 2, source abc1234, 12 s."
    run["values"]["ratio"] = 3.0
    assert provenance.provenance(run).endswith("[edited by hand].")


def test_a_failing_benchmark_fails_the_command_and_leaves_the_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "book" / "benchmarks").mkdir(parents=True)
    (tmp_path / "benchmarks" / "good.py").write_text("print('RESULT good ratio=2')  # result(\n", encoding="utf-8")
    (tmp_path / "benchmarks" / "bad.py").write_text("raise SystemExit(3)  # result(\n", encoding="utf-8")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "benchmarks", lambda: ["bad", "good"])
    monkeypatch.setattr(bench, "run", lambda name, options, run=bench.run: run(name, options, tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--", "--points", "5"])
    assert bench.main() == 1
    file, = (tmp_path / "book" / "benchmarks").iterdir()
    run = json.loads(file.read_text(encoding="utf-8"))
    assert (run["benchmark"], run["values"], run["options"]) == ("good", {"ratio": 2.0}, ["--points", "5"])
    assert "failed: bad" in capsys.readouterr().err


def test_unknown_benchmark_names_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "path_evaluations"])
    assert bench.main() == 2
    assert "did you mean path_evaluation?" in capsys.readouterr().err


def test_every_benchmark_has_bars_and_a_place_on_the_page():
    page = (ROOT / "book" / "benchmarks.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\{benchmark\} (\w+)", page)) == sorted(BARS)
    assert not set(bench.benchmarks()) - set(BARS)


def test_files_hold_figures_of_benchmarks_that_the_page_knows():
    for file in (ROOT / "book" / "benchmarks").glob("*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))
        assert run["values"].keys() & BARS[run["benchmark"]]["keys"].keys(), file.name


@pytest.mark.parametrize(("value", "bar", "shown"), [
    (37.91, ">= 25", "37.9"), (24.0, ">= 25", "24, misses the bar"), (1.5, "<= 1.4", "1.5, misses the bar"),
    (8.2e-8, None, "8.2e-08"), (6568.0, None, "6,568"), (None, ">= 25", "not run"), (float("nan"), "<= 2", "nan, misses the bar")])
def test_figure_says_whether_it_misses_its_bar(value, bar, shown):
    assert provenance.against(value, bar) == shown


def test_kinds_of_device_without_a_run_are_shown_as_not_run(tmp_path):
    bench.write("fast", {"ratio": 2.0}, WHERE, tmp_path)
    assert [run["device"] for run in provenance.runs_of(tmp_path, "fast", ["cpu", "cuda"])] == ["Some Processor", "GPU"]


def test_tables_of_runs_have_row_headers_and_code():
    made = provenance.table("Figures", ["figure", "CPU"], [["loop / `evaluate`", "3"]])
    assert [spec.get("stub", False) for spec in made.findall(lambda node: node.tagname == "colspec")] == [True, False]
    assert [node.astext() for node in made.findall(lambda node: node.tagname == "literal")] == ["evaluate"]
