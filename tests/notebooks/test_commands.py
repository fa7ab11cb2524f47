"""The commands behind make, each on a book of one chapter: failures are loud, work that is done is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys

import build_edition
import pytest
import run_chapter
from build_book import environment, forget
from build_edition import banner, build, run_all
from chapters import ROOT, find_chapter, read, read_parameters
from papermill import PapermillExecutionError
from recording import edition_minutes
from run_chapter import assign, chosen, execute
from small_book import small_book

TOOLS = ROOT / "book" / "_tools"


def build_small(folder, *flags):
    command = [sys.executable, str(TOOLS / "build_book.py"), "--root", str(folder), *flags]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)


def test_failing_chapter_fails_the_build_and_shows_its_traceback(tmp_path):
    small_book(tmp_path, "raise ValueError('planted failure ' + str(6 * 7))")
    run = build_small(tmp_path)
    assert run.returncode != 0
    assert "ValueError" in run.stdout + run.stderr
    assert "planted failure 42" in run.stdout + run.stderr
    assert "The book is at" not in run.stdout


def test_chapters_executed_side_by_side_are_kept_when_another_fails(tmp_path):
    small_book(tmp_path)
    text = (tmp_path / "book" / "chapters" / "01_small.ipynb").read_text(encoding="utf-8")
    broken = text.replace("print(scale, seed, epochs)", "1 / 0")
    (tmp_path / "book" / "chapters" / "02_broken.ipynb").write_text(broken, encoding="utf-8")
    run = build_small(tmp_path, "--jobs", "2")
    assert run.returncode != 0 and "ZeroDivisionError" in run.stderr
    assert "01_small: " in run.stdout
    assert "01_small: " not in build_small(tmp_path).stdout


def test_sphinx_executes_nothing_itself(tmp_path):
    small_book(tmp_path)
    assert "Executing notebook" not in build_small(tmp_path).stdout


def test_warning_on_stderr_fails_the_strict_build(tmp_path):
    small_book(tmp_path, "import sys\nprint('a planted warning', file=sys.stderr)")
    assert build_small(tmp_path, "--strict").returncode != 0


def test_build_ends_with_seconds_and_address_and_keeps_what_is_done(tmp_path):
    chapter = small_book(tmp_path)
    first = build_small(tmp_path, "--strict")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "chapters/01_small" in first.stdout
    assert first.stdout.rstrip().splitlines()[-1].endswith((tmp_path / "_build" / "html" / "index.html").as_uri())
    assert "01_small: " not in build_small(tmp_path).stdout
    edited = chapter.read_text(encoding="utf-8").replace("seed, epochs)", "seed, epochs, 1)")
    chapter.write_text(edited, encoding="utf-8")
    assert "01_small: " in build_small(tmp_path).stdout


def test_edit_of_a_style_reaches_the_pages_without_executing_anything(tmp_path):
    small_book(tmp_path)
    build_small(tmp_path)
    style = tmp_path / "book" / "_assets" / "book.css"
    style.write_text(style.read_text(encoding="utf-8") + "/* planted */\n", encoding="utf-8")
    assert "01_small: " not in build_small(tmp_path).stdout
    assert "/* planted */" in (tmp_path / "_build" / "html" / "_static" / "book.css").read_text(encoding="utf-8")


def test_fresh_build_forgets_pages_and_executions(tmp_path):
    for name in ("html", ".doctrees", ".jupyter_cache"):
        (tmp_path / "_build" / name).mkdir(parents=True)
    (tmp_path / "_build" / "store").mkdir()
    forget(tmp_path)
    assert [path.name for path in (tmp_path / "_build").iterdir()] == ["store"]


def test_edition_keeps_finished_chapters_and_says_its_parameters_on_every_page(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_book(tmp_path)
    folder = tmp_path / "runs" / "mine"
    assert build(tmp_path, folder, {"scale": "tiny", "seed": 5}) == 0
    page = (folder / "_build" / "html" / "chapters" / "01_small.html").read_text(encoding="utf-8")
    assert "Personal edition of" in page and "scale = tiny, seed = 5" in page
    assert "tiny 5 0" in page
    assert "kept" not in capfd.readouterr().out
    assert build(tmp_path, folder, {"scale": "tiny", "seed": 5}) == 0
    assert "kept" in capfd.readouterr().out
    assert build(tmp_path, folder, {"scale": "tiny", "seed": 6}) == 0
    assert "kept" not in capfd.readouterr().out


def test_edition_goes_on_after_chapters_that_were_cut_off_in_the_middle_of_writing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = small_book(tmp_path)
    shutil.copy(first, first.with_name("02_small.ipynb"))
    made, parameters = tmp_path / "runs" / "mine", {"scale": "tiny"}
    assert all(whole and said != "kept" for _, whole, said in run_all(tmp_path, made, parameters, jobs=2))
    output = made / "book" / "chapters" / "02_small.ipynb"
    output.write_text(output.read_text(encoding="utf-8")[:200], encoding="utf-8")
    said = {name: said for name, _, said in run_all(tmp_path, made, parameters, jobs=1)}
    assert said.pop("02_small") != "kept" and said == {"01_small": "kept"}
    output.with_name("01_small.ipynb").unlink()
    assert [said == "kept" for _, _, said in run_all(tmp_path, made, parameters, jobs=1)] == [False, True]
    assert not list((made / "unfinished").iterdir())


def test_edition_whose_settings_are_not_recorded_has_no_estimate(tmp_path):
    small_book(tmp_path)
    assert edition_minutes(tmp_path, {"scale": "laptop", "dataset": "mnist"}) == {}
    assert edition_minutes(tmp_path, {"scale": "laptop"})["03"] > 0


def test_banner_says_the_scale_first_and_names_chapters():
    text = banner({"seed": 3, "02": {"epochs": 2}, "scale": "tiny", "dataset": "<b>"})
    assert "scale = tiny, seed = 3, dataset = &lt;b&gt;; chapter 02: epochs = 2" in text


def test_edition_with_a_failing_chapter_is_not_rendered(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_book(tmp_path, "assert seed == 0, 'planted failure'")
    assert build(tmp_path, tmp_path / "runs" / "mine", {"scale": "tiny", "seed": 1}) == 1
    assert "planted failure" in capfd.readouterr().err
    assert not (tmp_path / "runs" / "mine" / "_build").exists()


def test_a_run_stops_at_the_failing_cell_and_leaves_the_notebook(tmp_path):
    chapter = small_book(tmp_path, "assert seed == 0, 'planted failure'")
    with pytest.raises(PapermillExecutionError, match="planted failure"):
        execute(chapter, tmp_path / "out.ipynb", {"seed": 1})
    assert (tmp_path / "out.ipynb").is_file()


def test_parameters_go_to_the_chapters_that_have_them(tmp_path):
    chapter = small_book(tmp_path)
    assert assign({"scale": "tiny", "1": {"epochs": 4}}, tmp_path) == {chapter: {"scale": "tiny", "epochs": 4}}


def test_unknown_parameter_names_the_nearest(tmp_path):
    small_book(tmp_path)
    with pytest.raises(ValueError, match=r"unknown parameter 'epoch' \(did you mean epochs\?\)"):
        assign({"epoch": 3}, tmp_path)
    with pytest.raises(ValueError, match=r"unknown parameter 'sed' \(did you mean seed\?\); parameters of 01_small"):
        assign({"01": {"sed": 3}}, tmp_path)


@pytest.mark.parametrize("name", ["1", "01", "01_small", "01_sm", "chapters/01_small.ipynb"])
def test_chapter_is_found_by_number_or_name(tmp_path, name):
    chapter = small_book(tmp_path)
    assert find_chapter(name, tmp_path) == chapter


@pytest.mark.parametrize("name", ["", "7", "small", "nothing.ipynb"])
def test_unknown_chapter_lists_the_chapters(tmp_path, name):
    small_book(tmp_path)
    with pytest.raises(ValueError, match="the chapters are\n  01_small"):
        find_chapter(name, tmp_path)


def test_scale_of_the_command_line_beats_the_file_s(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("scale: gpu\nseed: 3\n", encoding="utf-8")
    assert chosen(None, None) == {"scale": "tiny"}
    assert chosen(None, file) == {"scale": "gpu", "seed": 3}
    assert chosen("tiny", file) == {"scale": "tiny", "seed": 3}


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_parameter_file_must_hold_names_and_values(tmp_path, text):
    (tmp_path / "bad.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="PARAMS must hold lines `name: value`, got a (list|str)"):
        read_parameters(tmp_path / "bad.yml")
    with pytest.raises(ValueError, match="there is no such file"):
        read_parameters(tmp_path / "none.yml")


def test_a_parameter_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "bad.yml").write_text("seed: [1\nfoo", encoding="utf-8")
    with pytest.raises(ValueError, match=r"PARAMS must be a YAML file, got '.*bad.yml', which cannot be read"):
        read_parameters(tmp_path / "bad.yml")


def test_a_scale_that_no_chapter_has_stops_before_anything_runs(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("scale: 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"SCALE must be one of tiny, .*got 'laptp' \(did you mean laptop\?\)"):
        chosen("laptp", None)
    with pytest.raises(ValueError, match="SCALE must be one of tiny, .*got 3"):
        chosen(None, file)


def test_a_chapter_s_section_may_be_empty_but_not_a_single_value(tmp_path):
    small_book(tmp_path)
    (tmp_path / "mine.yml").write_text('seed: 3\n"01":\n', encoding="utf-8")
    assert read_parameters(tmp_path / "mine.yml") == {"seed": 3}
    with pytest.raises(ValueError, match="under the number of a chapter, got 5 under '01'"):
        assign({"01": 5}, tmp_path)


@pytest.mark.parametrize("tool, work, flags", [(build_edition, "build", ()), (run_chapter, "execute", ("1",))])
def test_a_command_that_is_interrupted_says_what_is_kept(monkeypatch, capsys, tool, work, flags):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, work, interrupted)
    monkeypatch.setattr(sys, "argv", ["tool", *flags, "--scale", "tiny"])
    assert tool.main() == 130 and "kept" in capsys.readouterr().err


def test_executed_edition_chapter_carries_its_parameters(tmp_path):
    chapter = small_book(tmp_path)
    execute(chapter, tmp_path / "out.ipynb", {"seed": 9})
    assert read(tmp_path / "out.ipynb").metadata.papermill.parameters == {"seed": 9}
