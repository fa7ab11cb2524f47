"""The book's own Sphinx extensions and the normalising of notebooks, function by function."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import accessible
import api_reference
import execution_cache
import nbformat
import offline
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from chapters import source_stamp
from PIL import Image
from refresh_notebooks import normalise, small_png


@pytest.fixture()
def package(tmp_path, monkeypatch):
    """Return a folder of two modules that stands for the package."""
    (tmp_path / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "a.py").write_text("from lossland.b import f\n", encoding="utf-8")
    (tmp_path / "b.py").write_text("def f(): return 1\n", encoding="utf-8")
    monkeypatch.setattr(execution_cache, "package_sources", lambda: sorted(tmp_path.rglob("*.py")))
    monkeypatch.setattr(api_reference, "package_sources", lambda: sorted(tmp_path.rglob("*.py")))
    return tmp_path


def test_cache_key_changes_with_the_package(package):
    before = execution_cache.cache_key()
    assert execution_cache.cache_key() == before
    (package / "b.py").write_text("def f(): return 2\n", encoding="utf-8")
    assert execution_cache.cache_key() != before


def test_cache_key_changes_with_the_numbers_that_pages_quote(package, tmp_path):
    (tmp_path / "results" / "02").mkdir(parents=True)
    before = execution_cache.cache_key(tmp_path)
    (tmp_path / "results" / "02" / "laptop.json").write_text("{}", encoding="utf-8")
    assert execution_cache.cache_key(tmp_path) != before


def test_cache_key_changes_with_a_main_version(package, monkeypatch):
    before = execution_cache.cache_key()
    monkeypatch.setattr(execution_cache, "version", lambda name: "0.0.1")
    assert execution_cache.cache_key() != before


def test_api_page_lists_modules_after_what_they_import(package):
    (package / "_private.py").write_text("", encoding="utf-8")
    assert api_reference.in_import_order(api_reference.public_modules()) == ["b", "a"]


@pytest.mark.parametrize(("text", "expected"), [
    ("one `Layer` here", "one ``Layer`` here"),
    ("a list of `Layer`s", r"a list of ``Layer``\ s"),
    ("``already`` so", "``already`` so"),
    ("``value`` is one, or ``value`` itself", "``value`` is one, or ``value`` itself"),
    (":func:`mix` and `x`", ":func:`mix` and ``x``"),
    ("mean |a - b| and `a | b`", r"mean \|a - b\| and ``a | b``"),
])
def test_docstrings_become_restructuredtext(text, expected):
    assert api_reference.literal_and_plain(text) == expected


def test_tables_get_caption_scopes_and_a_frame_for_the_keyboard():
    frame = pd.DataFrame({"t": [0.0, 1.0]}, index=["start", "end"])
    table = BeautifulSoup(accessible.accessible_tables(frame.to_html(), "Along the line"), "html.parser")
    assert table.caption.text == "Along the line"
    assert [cell["scope"] for cell in table.find_all("th")] == ["col", "row", "row"]
    assert table.thead.td is not None
    assert (table.div["tabindex"], table.div["aria-label"]) == ("0", "Along the line")


def test_grouped_headers_say_that_they_head_a_group():
    columns = pd.MultiIndex.from_product([["train", "test"], ["nll", "accuracy"]])
    html = accessible.accessible_tables(pd.DataFrame([[1, 2, 3, 4]], columns=columns).to_html(), None)
    assert html.count('scope="colgroup"') == 2


def test_a_table_that_has_a_frame_gets_no_second_one():
    once = accessible.accessible_tables(pd.DataFrame({"t": [0.0]}).to_html(), "Along the line")
    assert accessible.accessible_tables(once, "Along the line") == once


def test_html_without_a_table_is_left_alone():
    assert accessible.accessible_tables('<svg viewBox="0 0 1 1"></svg>', "c") == '<svg viewBox="0 0 1 1"></svg>'


def test_words_of_the_api_page_s_signatures_stand_without_elements_of_their_own():
    context = {"body": '<span class="n"><span class="pre">t</span></span><span class="p"><span class="pre">:</span></span>'}
    offline.plain_signatures(None, "intro", "", context, None)
    assert "pre" in context["body"]
    offline.plain_signatures(None, "api", "", context, None)
    assert context["body"] == '<span class="n">t</span><span class="p">:</span>'


def test_files_that_no_browser_reads_leave_the_site(tmp_path):
    names = ("a.css", "a.css.map", "font.woff2", "font.ttf", "_static/locales/de.json")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    offline.delete_unread(SimpleNamespace(outdir=tmp_path), None)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.css", "font.woff2"]


def png(size=(300, 200)):
    buffer = io.BytesIO()
    Image.effect_noise(size, 64).convert("RGBA").save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def notebook():
    metadata = {"execution": {}, "tags": ["hide-input"]}
    code = nbformat.v4.new_code_cell("1", id="one", execution_count=3, metadata=metadata)
    code.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="a"),
        nbformat.v4.new_output("stream", name="stdout", text="b"),
        nbformat.v4.new_output("execute_result", data={"image/png": png()}, execution_count=3),
    ]
    return nbformat.v4.new_notebook(cells=[code], metadata={"papermill": {}})


def test_normalised_notebooks_do_not_differ_from_run_to_run():
    result = normalise(notebook(), "stamp")
    cell = result.cells[0]
    assert (cell.execution_count, cell.id, cell.metadata) == (1, "one", {"tags": ["hide-input"]})
    assert [output.get("text") for output in cell.outputs] == ["ab", None]
    assert cell.outputs[1].execution_count == 1
    assert result.metadata.lossland.stamp == "stamp" and "papermill" not in result.metadata
    nbformat.validate(result)


def test_pictures_keep_their_size_and_lose_bytes():
    before = png()
    after = small_png(before)
    assert Image.open(io.BytesIO(base64.b64decode(after))).size == (300, 200)
    assert len(after) < len(before)


def test_stamp_changes_with_code_and_package_but_not_with_outputs(tmp_path):
    book = notebook()
    (tmp_path / "lossland").mkdir()
    stamp = source_stamp(book, tmp_path)
    book.cells[0].outputs = []
    assert source_stamp(book, tmp_path) == stamp
    (tmp_path / "lossland" / "a.py").write_text("x = 1\n", encoding="utf-8")
    changed = source_stamp(book, tmp_path)
    assert changed != stamp
    book.cells[0].source = "2"
    assert source_stamp(book, tmp_path) not in (stamp, changed)
