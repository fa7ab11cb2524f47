"""environment.yml, pyproject.toml and constraints.txt say the same."""

from __future__ import annotations

import re
import sys
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
LINES = [line for line in CONSTRAINTS if line and line[0] != "#"]
PINNED = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LINES if "==" in line}
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]


def test_constraints_are_exact_versions_and_nothing_else():
    assert not [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)]
    assert len(PINNED) == len(LINES)


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(requirement):
    pinned = PINNED.get(canonicalize_name(requirement.name))
    assert pinned is not None
    assert requirement.specifier.contains(pinned, prereleases=True)


def test_conda_installs_this_project_with_the_same_pins():
    pip = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", f"-e .[{','.join(sorted(EXTRAS))}]"]


def test_conda_and_the_project_agree_about_python():
    python = next(entry for entry in CONDA if isinstance(entry, str) and entry.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])


def test_conda_names_no_other_library():
    named = {re.split(r"[<>=!~ ]", entry)[0] for entry in CONDA if isinstance(entry, str)}
    assert named <= {"python", "pip", "make"}


def test_version_of_the_package_is_the_project_s():
    text = (ROOT / "lossland" / "__init__.py").read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "([^"]+)"', text, re.M)[1] == PROJECT["version"]


def test_everything_installed_is_pinned():
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("this Python is not the .venv that `make` installs")
    # Not sys.path: setuptools puts a folder of its own copies there, once something has imported it.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    installed = {canonicalize_name(found.name): found.version.split("+")[0] for found in distributions(path=folders)}
    ours = {name: found for name, found in installed.items() if name not in ("pip", "lossland")}
    assert not {name: found for name, found in ours.items() if PINNED.get(name) != found}
