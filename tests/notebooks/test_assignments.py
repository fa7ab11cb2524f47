"""The assignments: right answers get all points, blank ones none, and wrong ones lose the points that they should."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest
from build_assignments import build
from chapters import ROOT
from classroom import ASSIGNMENTS, COURSE, about, cells, mark, source
from planted_answers import PLANTED, Wrong

pytestmark = pytest.mark.xdist_group("classroom")
every_assignment = pytest.mark.parametrize("name", ASSIGNMENTS)
STUB = "this cell is still empty"


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course with nothing but what is in the repository, and its students' versions."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(COURSE / "source", folder / "source")
    text = (COURSE / "nbgrader_config.py").read_text(encoding="utf-8")
    assert "60, 180, 5" in text
    (folder / "nbgrader_config.py").write_text(text.replace("60, 180, 5", "30, 150, 10"), encoding="utf-8")
    assert build(folder) == dict.fromkeys(ASSIGNMENTS, 20)
    return folder


def answered(notebook: nbformat.NotebookNode, wrong: Wrong) -> str:
    """Return the code of a solution cell with a mistake in it."""
    right = cells(notebook, "solution")[wrong.cell].source
    assert not wrong.old or right.count(wrong.old) >= 1, f"{wrong.what}: {wrong.old!r} is not in the answer any more"
    return right.replace(wrong.old, wrong.new) if wrong.old else wrong.new


def rounds(name: str) -> list[list[Wrong]]:
    """Return the wrong answers in groups of at most one for each cell, which are tried together: parts do not depend on each other."""
    by_cell: dict[str, list[Wrong]] = {}
    for wrong in PLANTED[name]:
        by_cell.setdefault(wrong.cell, []).append(wrong)
    return [[wrong for wrong in some if wrong] for some in zip_longest(*by_cell.values())]


@every_assignment
def test_reference_solution_gets_all_points(name):
    notebook = source(name)
    found = mark(notebook, pictures=True)
    assert not found.lost
    assert found.points == sum(about(cell)["points"] for cell in cells(notebook, "test").values()) == 16


@every_assignment
def test_blank_gets_nothing(name, course):
    blank = {key: cell.source for key, cell in cells(source(name, course, "release"), "solution").items()}
    assert all(STUB in code for code in blank.values())
    found = mark(source(name), blank)
    assert found.points == 0 and set(found.lost) == set(cells(source(name), "test"))


@every_assignment
def test_wrong_answers_lose_their_points_and_no_others(name):
    notebook = source(name)
    points = {key: about(cell)["points"] for key, cell in cells(notebook, "test").items()}
    for group in rounds(name):
        found = mark(notebook, {wrong.cell: answered(notebook, wrong) for wrong in group})
        expected = {test for wrong in group for test in wrong.loses}
        assert set(found.lost) == expected, [wrong.what for wrong in group]
        assert found.points == 16 - sum(points[test] for test in expected)


@every_assignment
def test_hidden_tests_catch_what_the_visible_ones_let_pass(name, course):
    notebook, handed_out = source(name), source(name, course, "release")
    for group in rounds(name):
        right = {key: cell.source for key, cell in cells(notebook, "solution").items()}
        found = mark(handed_out, {**right, **{wrong.cell: answered(notebook, wrong) for wrong in group}})
        for wrong in group:
            assert bool(set(wrong.loses) & set(found.lost)) == wrong.seen, wrong.what


@every_assignment
def test_every_test_is_failed_by_some_wrong_answer(name):
    caught = {test for wrong in PLANTED[name] for test in wrong.loses}
    assert caught == set(cells(source(name), "test")) - ({"test_prediction"} - caught)
    assert len(PLANTED[name]) >= 3 and any(not wrong.seen for wrong in PLANTED[name])


@every_assignment
def test_students_version_holds_no_solution_and_no_hidden_test(name, course):
    notebook, text = source(name), (course / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    handed_out = "\n".join(cell.source for cell in source(name, course, "release").cells)
    assert not re.search("BEGIN|END|HIDDEN|SOLUTION|Marks", text)
    for cell in notebook.cells:
        for kind in ("SOLUTION", "HIDDEN TESTS"):
            for region in re.findall(rf"### BEGIN {kind}\n(.*?)\s*### END {kind}", cell.source, re.DOTALL):
                assert region.strip() and region.strip() not in handed_out
    (written,) = cells(notebook, "written").values()
    assert written.source not in handed_out and "*Your answer here.*" in handed_out


@every_assignment
def test_notebooks_are_well_formed(name):
    notebook = source(name)
    nbformat.validate(notebook)
    ours = [about(cell) for cell in notebook.cells if about(cell)]
    assert len({cell["grade_id"] for cell in ours}) == len(ours) and all(cell["schema_version"] == 3 for cell in ours)
    assert all(about(cell)["locked"] != about(cell)["solution"] for cell in notebook.cells if about(cell) and cell.cell_type == "code")
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert all(about(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert len(cells(notebook, "test")) >= 7 and len(cells(notebook, "written")) == 1
    assert "<summary>" in str(notebook) or name == "06_predict_then_measure"


@every_assignment
def test_cells_that_students_see_are_short(name, course):
    for cell in source(name, course, "release").cells:
        assert cell.cell_type != "code" or cell.source.count("\n") < 15, about(cell)["grade_id"]


def commands() -> list[str]:
    """Return the six commands of the page for teachers."""
    text = (ROOT / "book" / "teach.md").read_text(encoding="utf-8")
    return re.search(r"## Six commands.*?```bash\n(.*?)```", text, re.DOTALL).group(1).splitlines()


def in_trouble(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a notebook with all that can go wrong: a syntax error, a loop, an edited test, deleted cells."""
    by_name = {about(cell).get("grade_id"): cell for cell in notebook.cells}
    by_name["coupling"].source = "def forward(u, s, m:\n    return u"
    by_name["inverse"].source = "import time\nwhile True:\n    time.sleep(1)"
    by_name["swaps"].source = "def swaps(order):\n    return []"
    by_name["test_swaps"].source = "pass"
    gone = ("setup", "swap_point", "test_swap_arrives")
    notebook.cells = [cell for cell in notebook.cells if about(cell).get("grade_id") not in gone]
    return notebook


def ends_its_kernel(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a right notebook but for two cells: one leaves, in a test the other falls over dead."""
    answers = cells(notebook, "solution")
    answers["coupling"].source += "\n\nexit()"
    answers["partners"].source = "def partners(x, y):\n    import os\n    os._exit(1)"
    return notebook


def test_teachers_page_from_the_first_command_to_the_grades(course):
    """Ada is right, Kim has every trouble but one part right, Mia's kernel ends twice, Lou's file is no notebook."""
    name = "02_maps_and_swaps"
    archive = course / "downloaded" / name / "archive"
    archive.mkdir(parents=True)
    nbformat.write(source(name), archive / f"ada_{name}.ipynb")
    nbformat.write(in_trouble(source(name)), archive / f"Kim Ito_4711_assignsubmission_file_{name}.ipynb")
    nbformat.write(ends_its_kernel(source(name)), archive / f"Mia_Öz_{name} (1).ipynb")
    (archive / f"lou_{name}.ipynb").write_text("no notebook", encoding="utf-8")
    steps = [command.replace("01_clouds", name) for command in commands()]
    assert (steps[0], steps[3]) == ("make assignments", "jupyter lab") and len(steps) == 6
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "JUPYTER_PREFER_ENV_PATH": "1"}
    for step in (1, 2, 4, 5):
        run = subprocess.run(steps[step].split(), cwd=course, env=environment, capture_output=True, text=True, timeout=600, check=False)
        failed = re.findall(r"There was an error processing assignment '.*' for student '(.*)'", run.stderr)
        assert (run.returncode, failed) == ((1, ["lou"]) if step == 2 else (0, [])), run.stderr[-3000:]
        if step == 2:
            mark_by_hand(course, name, "ada", 3.5)
    with (course / "grades.csv").open(encoding="utf-8") as file:
        grades = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file) if row["assignment"] == name}
    assert grades == {"ada": 19.5, "Kim Ito": 3, "Mia_Öz": 9, "lou": 0}
    page = (course / "feedback" / "Kim Ito" / name / f"{name}.html").read_text(encoding="utf-8")
    assert "after the swaps every unit is in its place" in page and "SyntaxError" in page
    assert "this cell ended the kernel" in (course / "feedback" / "Mia_Öz" / name / f"{name}.html").read_text(encoding="utf-8")
    assert "well done" in (course / "feedback" / "ada" / name / f"{name}.html").read_text(encoding="utf-8")


def mark_by_hand(course: Path, name: str, student: str, points: float) -> None:
    """Do what a teacher does in the formgrader."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        (written,) = cells(source(name), "written")
        grade = gradebook.find_grade(written, name, name, student)
        assert grade.needs_manual_grade
        grade.manual_score, grade.needs_manual_grade = points, False
        gradebook.find_comment(written, name, name, student).manual_comment = "well done"
        gradebook.db.commit()


def test_make_has_the_command():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^assignments:.*##.*\n\t\$\(PY\) book/_tools/build_assignments.py$", text, re.MULTILINE)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone of the repository")
def test_what_the_commands_make_stays_out_of_the_repository():
    made = ["release/01_clouds/01_clouds.ipynb", "downloaded/01_clouds/archive/ada_01_clouds.ipynb", "gradebook.db",
            "downloaded/01_clouds/extracted/ada_01_clouds.ipynb", "submitted/ada/01_clouds/01_clouds.ipynb", "grades.csv",
            "autograded/ada/01_clouds/01_clouds.ipynb", "feedback/ada/01_clouds/01_clouds.html", "gradebook.db-journal"]
    names = [f"book/assignments/{name}" for name in made]
    run = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.split() == names
    kept = subprocess.run(["git", "check-ignore", "-q", "book/assignments/source/01_clouds/01_clouds.ipynb"], cwd=ROOT, check=False)
    assert kept.returncode == 1


def test_folder_without_a_course_is_refused(tmp_path):
    with pytest.raises(ValueError, match="course must be a folder with nbgrader_config.py and source/, got"):
        build(tmp_path)
