"""Every chapter has the same skeleton, so that papermill, nbval, screen readers and teachers can rely on it."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest
from chapters import chapters, notebooks, parameters_cell, read, source_stamp, tags

NOTEBOOKS = [pytest.param(path, id=path.stem) for path in notebooks()]
PARAMETERS = {
    "scale": "str", "seed": "int", "n_seeds": "int", "dataset": "str", "data_dir": "str", "device": "str",
    "epochs": "int", "progress": "bool",
}
TAGS = {
    "parameters", "nbval-check-output", "hide-input", "hide-output", "hide-cell", "remove-input", "remove-output",
    "remove-cell", "remove-stdout", "full-width", "margin",
}
ROOTS = "home|root|tmp|Users|usr|opt|var|mnt|work|content|data|private"
ABSOLUTE = re.compile(rf"(?<![\w.:/<~-])/(?:{ROOTS})/|\b[A-Z]:\\\\?\w")
KILOBYTES, CODE_LINES, ALT_LETTERS = 300, 15, 25


@pytest.fixture(params=NOTEBOOKS)
def path(request):
    return request.param


@pytest.fixture(params=NOTEBOOKS[:len(chapters())])
def chapter(request):
    """Return a notebook with parameters; other pages have none."""
    return read(request.param)


@pytest.fixture()
def notebook(path):
    return read(path)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [(cell, output) for cell in code_cells(notebook) for output in cell.outputs]


def has_picture(output):
    return any(mime.startswith("image/") for mime in output.get("data", {}))


def pictured(notebook):
    """Return the cells that show a picture."""
    return [cell for cell in code_cells(notebook) if any(has_picture(output) for output in cell.outputs)]


def test_the_book_has_chapters():
    assert chapters()


def test_parameters_are_typed_assigned_and_commented(chapter):
    cell = parameters_cell(chapter)
    comments = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(cell.source).readline)
                if token.type == tokenize.COMMENT and token.string.strip("# ")}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.AnnAssign), f"line {statement.lineno}: must be `name: type = value  # comment`"
        assert statement.value is not None
        assert statement.end_lineno == statement.lineno
        assert statement.lineno in comments


def test_parameters_are_plain_json(chapter):
    for statement in ast.parse(parameters_cell(chapter).source).body:
        value = ast.literal_eval(statement.value)
        assert isinstance(value, (str, int, float, bool, list)) or value is None


def test_shared_parameters_have_their_names_and_types(chapter):
    declared = {statement.target.id: ast.unparse(statement.annotation)
                for statement in ast.parse(parameters_cell(chapter).source).body}
    assert {name: declared.get(name) for name in PARAMETERS} == PARAMETERS


def test_default_scale_is_tiny_on_embedded_data(chapter):
    values = {statement.target.id: ast.literal_eval(statement.value)
              for statement in ast.parse(parameters_cell(chapter).source).body}
    expected = {"scale": "tiny", "dataset": "digits", "device": "auto", "progress": False}
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("path", NOTEBOOKS[:len(chapters())])
def test_papermill_can_explain_the_parameters(path):
    from papermill import inspect_notebook

    declared = [statement.target.id for statement in ast.parse(parameters_cell(read(path)).source).body]
    explained = inspect_notebook(str(path))
    assert list(explained) == declared
    assert not [name for name, entry in explained.items() if not entry["help"] or entry["inferred_type_name"] == "None"]


def test_parameters_are_checked_before_anything_uses_them(chapter):
    cells = code_cells(chapter)
    after = cells[cells.index(parameters_cell(chapter)) + 1]
    assert "check_parameters(" in after.source


def test_cell_ids_are_given_by_hand(notebook):
    names = [cell.get("id", "") for cell in notebook.cells]
    assert len(set(names)) == len(names)
    assert not [name for name in names if not re.fullmatch(r"[a-z][a-z0-9-]{0,63}", name)]
    assert not [name for name in names if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", name) and re.search(r"\d", name)]


def test_cells_are_short(notebook):
    long = {cell.id: len(cell.source.splitlines()) for cell in code_cells(notebook)}
    assert not {name: lines for name, lines in long.items() if lines > CODE_LINES}


def test_tags_are_known(notebook):
    assert not {tag for cell in notebook.cells for tag in tags(cell)} - TAGS


def test_figures_have_caption_name_and_alternative_text(notebook):
    bare = []
    for cell in pictured(notebook):
        mystnb = cell.metadata.get("mystnb", {})
        figure, alt = mystnb.get("figure", {}), mystnb.get("image", {}).get("alt", "")
        if not figure.get("caption") or not figure.get("name") or len(alt) < ALT_LETTERS or alt == figure["caption"]:
            bare.append(cell.id)
    assert not bare


def test_figure_names_are_unique_and_a_cell_shows_one_figure(notebook):
    cells = pictured(notebook)
    names = [cell.metadata.mystnb.figure.name for cell in cells]
    assert len(set(names)) == len(names)
    assert not [cell.id for cell in cells if sum(map(has_picture, cell.outputs)) > 1]


def test_tables_have_captions(notebook):
    bare = [cell.id for cell, output in outputs(notebook)
            if "<table" in (html := "".join(output.get("data", {}).get("text/html", "")))
            and "<caption" not in html and not cell.metadata.get("mystnb", {}).get("table", {}).get("caption")]
    assert not bare


def test_no_absolute_path_is_in_a_chapter(notebook):
    texts = {cell.id: cell.source for cell in notebook.cells}
    for cell, output in outputs(notebook):
        data = {mime: text for mime, text in output.get("data", {}).items() if not mime.startswith("image/png")}
        texts[cell.id] += "\n" + output.get("text", "") + "\n".join(map(str, data.values()))
    stripped = {name: re.sub(r"data:[\w/+;=-]+,[A-Za-z0-9+/=]+", "", text) for name, text in texts.items()}
    assert not {name: match[0] for name, text in stripped.items() if (match := ABSOLUTE.search(text))}


def test_checked_cells_have_outputs(notebook):
    checked = [cell for cell in code_cells(notebook) if "nbval-check-output" in tags(cell)]
    assert checked
    assert not [cell.id for cell in checked if not cell.outputs]


def test_outputs_hold_no_widget_no_warning_no_error_no_address(notebook):
    faults = []
    for cell, output in outputs(notebook):
        widget = any("widget" in mime or "javascript" in mime for mime in output.get("data", {}))
        stderr = output.output_type == "error" or output.get("name") == "stderr"
        text = output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))
        faults += [cell.id] if widget or stderr or re.search(r"\bat 0x[0-9a-f]+", text) else []
    assert not faults


def test_outputs_are_normalised(notebook):
    passing = {"execution", "ExecuteTime", "papermill"}
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert not [cell.id for cell, output in outputs(notebook)
                if output.get("execution_count", cell.execution_count) != cell.execution_count]
    assert not [cell.id for cell in notebook.cells if passing & set(cell.metadata)]
    assert notebook.metadata.kernelspec.name == "python3"


def test_outputs_come_from_the_present_source(path, notebook):
    stamp = notebook.metadata.get("lossland", {}).get("stamp")
    assert stamp == source_stamp(notebook), f"the outputs of {path.stem} are out of date: run `make notebooks`"


def test_file_is_small(path):
    assert path.stat().st_size < KILOBYTES * 1000
