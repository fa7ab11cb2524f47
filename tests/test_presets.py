"""Parameters of a chapter are refused under a wrong name, type or scale; the nearest valid one is named."""

import math
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lossland.errors import choose
from lossland.presets import at_scale, check_parameters

KNOWN = {"scale": str, "seed": int, "rate": float, "progress": bool, "widths": list[int], "data_dir": "str | None"}
GOOD = {"scale": "tiny", "seed": 1, "rate": 0.5, "progress": False, "widths": [10, 20], "data_dir": None}


def namespace(**changes: object) -> dict[str, object]:
    """A namespace as a kernel has it after the parameters cell, with some values changed or added."""
    kernel = {"__name__": "__main__", "In": ["", "x"], "Out": {}, "_ih": [], "_i1": "x", "get_ipython": print,
              "math": math, "check_parameters": check_parameters}
    return {**kernel, **GOOD, **changes, "__annotations__": dict(KNOWN)}


def test_parameters_of_a_kernel_namespace_pass() -> None:
    space = namespace()
    check_parameters(space)
    assert {name: space[name] for name in GOOD} == GOOD


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown parameter 'sed' \(did you mean 'seed'\?\); parameters of chapter 1: "
                                         r"scale, seed, rate, progress, widths, data_dir"):
        check_parameters(namespace(sed=3), chapter="chapter 1")


@pytest.mark.parametrize("value", ["x", 0, 1.5, None, [1], {"a": 1}, True])
def test_every_kind_of_value_papermill_injects_is_seen(value: object) -> None:
    with pytest.raises(ValueError, match="unknown parameter 'zzz'; parameters of this chapter"):
        check_parameters(namespace(zzz=value))


def test_every_unknown_name_is_listed() -> None:
    with pytest.raises(ValueError, match=r"unknown parameters 'sed' .*, 'scal' \(did you mean 'scale'"):
        check_parameters(namespace(sed=3, scal="tiny"))


@pytest.mark.parametrize(("name", "value", "says"), [
    ("seed", "1", r"'seed' must be int, got '1' \(str\)"),
    ("seed", 1.0, r"'seed' must be int, got 1.0 \(float\)"),
    ("seed", True, r"'seed' must be int, got True \(bool\)"),
    ("seed", None, r"'seed' must be int, got None \(NoneType\)"),
    ("rate", "fast", "'rate' must be float"),
    ("progress", 1, r"'progress' must be bool, got 1 \(int\)$"),
    ("progress", "false", r"got 'false' \(str\): papermill's -p makes a string of it, use -y '\{progress: false\}'"),
    ("progress", "True", r"use -y '\{progress: true\}'"),
    ("widths", "10", r"'widths' must be list\[int\], got '10'"),
    ("widths", [10, "20"], r"'widths' must be list\[int\]"),
    ("widths", [True], r"'widths' must be list\[int\]"),
    ("data_dir", 3, r"'data_dir' must be str \| None, got 3"),
])
def test_wrong_type_is_refused(name: str, value: object, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        check_parameters(namespace(**{name: value}))


def test_int_passes_for_float_and_none_where_the_annotation_says_so() -> None:
    check_parameters(namespace(rate=1, data_dir="here", widths=[]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="'rate' must be finite"):
        check_parameters(namespace(rate=value))


def test_unknown_scale_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"scale must be one of 'tiny', 'laptop', 'gpu', 'paper'; got 'tinny' "
                                         r"\(did you mean 'tiny'\?\)"):
        check_parameters(namespace(scale="tinny"))
    with pytest.raises(ValueError, match="scale must be one of 'small'; got 'tiny'"):
        check_parameters(namespace(), scales=["small"])


def test_missing_value_and_missing_annotations_are_refused() -> None:
    with pytest.raises(ValueError, match="parameter 'depth' has no value"):
        check_parameters(GOOD, known={**KNOWN, "depth": int})
    with pytest.raises(ValueError, match="must hold annotated parameters"):
        check_parameters({"seed": 1})


def test_unsupported_annotation_is_refused() -> None:
    with pytest.raises(TypeError, match="annotation of parameter 'seed' must be one of str, int.* got complex"):
        check_parameters({"seed": 1}, known={"seed": complex})


def test_running_the_cell_again_accepts_later_names_but_still_checks_types() -> None:
    space = namespace()
    check_parameters(space)
    space["rows"] = 5
    check_parameters(space)
    space["seed"] = "1"
    with pytest.raises(TypeError, match="'seed' must be int"):
        check_parameters(space)


@pytest.mark.parametrize(("name", "value"), [("rate", -0.5), ("seed", -1), ("widths", [4, -8])])
def test_a_negative_number_is_refused_since_zero_means_from_the_scale(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' must be >= 0, got {re.escape(repr(value))}"):
        check_parameters(namespace(**{name: value}))


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_check_works_in_a_plain_script(future: str) -> None:
    script = (f"{future}epochs: int = 0  # comment\nwidths: list[int] = [1]\nfrom lossland.presets import "
              "check_parameters\n{injected}check_parameters(globals())\nprint('passed')")
    good, bad = (subprocess.run([sys.executable, "-c", script.replace("{injected}", injected)], capture_output=True,
                                text=True) for injected in ("", "epoch = 3\n"))
    assert good.stdout == "passed\n", good.stderr
    assert "unknown parameter 'epoch' (did you mean 'epochs'?)" in bad.stderr


NOTEBOOK = """
epochs: int = 0  # 0: from the scale
rate: float = 0.1
progress: bool = False
"""


@pytest.mark.parametrize(("injected", "says"), [
    ({}, None),
    ({"epochs": 3, "rate": 1, "progress": True}, None),
    ({"epoch": 3}, r"unknown parameter 'epoch' \(did you mean 'epochs'\?\)"),
    ({"progress": "false"}, r"use -y '\{progress: false\}'"),
])
def test_check_works_in_a_notebook_run_by_papermill(tmp_path, injected: dict, says: str | None) -> None:
    papermill, nbformat = pytest.importorskip("papermill"), pytest.importorskip("nbformat")
    cells = [nbformat.v4.new_code_cell(NOTEBOOK, metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("from lossland.presets import check_parameters\ncheck_parameters(globals())"),
             nbformat.v4.new_code_cell("rows = 5\ncheck_parameters(globals())")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")

    def execute() -> None:
        papermill.execute_notebook(str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), injected,
                                   progress_bar=False)

    if says is None:
        execute()
        assert (tmp_path / "out.ipynb").exists()
    else:
        with pytest.raises(papermill.PapermillExecutionError, match=says):
            execute()


@dataclass(frozen=True)
class Settings:
    """Settings of a made-up chapter."""

    epochs: int
    wide: bool = True


def test_zero_and_none_come_from_the_scale_and_false_is_a_value() -> None:
    scales = {"tiny": Settings(3), "laptop": Settings(30)}
    assert at_scale(scales, "tiny", epochs=0, wide=None) == Settings(3)
    assert at_scale(scales, "laptop", epochs=5, wide=False) == Settings(5, wide=False)
    assert scales["laptop"] == Settings(30)


def test_unknown_scale_or_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"scale must be one of 'tiny'; got 'tin' \(did you mean 'tiny'\?\)"):
        at_scale({"tiny": Settings(3)}, "tin")
    with pytest.raises(ValueError, match=r"setting must be one of 'epochs', 'wide'; got 'epoch' .*'epochs'"):
        at_scale({"tiny": Settings(3)}, "tiny", epoch=0)


def test_choose_returns_the_value_and_names_no_far_choice() -> None:
    assert choose("move", "arc", ("linear", "arc")) == "arc"
    with pytest.raises(ValueError, match=r"move must be one of 'linear', 'arc'; got 'zzz'$"):
        choose("move", "zzz", ("linear", "arc"))
    with pytest.raises(ValueError, match=r"bins must be one of 10, 20; got None$"):
        choose("bins", None, (10, 20))
