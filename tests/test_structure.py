"""The shape of the package: who may import whom, sizes, public names, words that must not occur."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lossland"

LEVELS = [
    ["errors", "scalars", "files", "devices", "sampling", "products", "workers", "parallel", "allocation"],
    ["image_files", "torchrun"],
    ["weights", "kernels", "store", "presets", "sources", "texts", "splits", "targets", "schedules",
     "tables", "records", "least_squares", "patches", "bases", "units", "normalisation"],
    ["layers", "tasks", "paths", "metrics", "recording", "checkpoints", "batchnorm",
     "published"],
    ["residual", "recurrent", "neurons", "families", "corruptions", "layout", "initial"],
    ["models", "features", "tracing", "flat", "identity", "draws", "regularisers", "requests"],
    ["adjust", "legs", "descent", "refit"],
    ["archive", "stages", "evaluation", "training"],
    ["flows", "recipes", "planes", "pairwise", "search", "connectors", "summaries", "ensembles"],
    ["many", "connect", "learned", "branching", "early_stopping", "robustness", "subspaces"],
    ["figures", "integral", "__init__"],
]
"""A module imports only from lower levels, never from its own; `__init__` alone may import from all."""

BANNED_CODE = {
    r"\bpickle\b|(?<!safetensors \. )\btorch \. load\b": "a pickle, which runs what it loads",
    r"\bprint\s*\(": "a print: return the text, or use tqdm",
    r"\bexcept\s*:|\bexcept\s+(Base)?Exception\b": "a broad except",
}
"""Looked for in code only: a docstring may say that no pickle is read."""

BANNED = {
    r"torch\.manual_seed|np\.random\.seed|random\.seed\(|seed_all": "a global seed",
    r"\.cuda\(": "a device that the caller did not choose",
    r"NotImplementedError": "a stub",
    r"\bTODO\b|\bFIXME\b|\bXXX\b": "a note to oneself",
    r"tqdm\.(auto|notebook)": "a widget that loads scripts from the network",
}
PUBLIC_NAMES = 40
LINES, WIDTH, BODY, POSITIONAL = 300, 120, 40, 5

FILES = sorted(PACKAGE.rglob("*.py"))
NAMED = [pytest.param(path, id=path.relative_to(PACKAGE).as_posix()) for path in FILES]


def module_of(path: Path) -> str:
    """Return the name that LEVELS uses: the first part below the package, `kernels` for all its files."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def level_of(module: str) -> int:
    found = [number for number, names in enumerate(LEVELS) if module in names]
    assert found, f"lossland/{module} has no level: give it one in LEVELS of {Path(__file__).name}"
    return found[0]


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the modules of ours that a file imports, `kernels.reference` as `kernels`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] if "." in alias.name else "__init__"
                        for alias in node.names if alias.name.split(".")[0] == "lossland")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *(node.module.split(".") if node.module else [])]
            if parts and parts[0] == "lossland":
                yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def code_of(text: str) -> str:
    """Return Python text without its comments and strings, one line a statement."""
    left_out = (tokenize.COMMENT, tokenize.STRING, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join(token.string for token in tokens if token.type not in left_out)


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function from its `def`, its docstring left out."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return total
    return total - ((first.end_lineno or first.lineno) - first.lineno + 1)


@pytest.mark.parametrize("path", NAMED)
def test_modules_import_only_from_lower_levels(path):
    module = module_of(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    others = set(imported(tree, ("lossland", *path.relative_to(PACKAGE).parent.parts))) - {module}
    above = {other for other in others if level_of(other) >= level_of(module)}
    assert not above or module == "__init__", f"lossland/{module} is on level {level_of(module)} and imports {above}"


def test_the_import_reader_sees_every_form():
    text = ("import lossland.tasks\nfrom lossland import paths\nfrom .weights import mix\n"
            "from lossland.kernels.reference import f")
    assert set(imported(ast.parse(text), ("lossland",))) == {"tasks", "paths", "weights", "kernels"}


@pytest.mark.parametrize("path", NAMED)
def test_files_are_short_and_narrow(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES
    assert not [number for number, line in enumerate(lines, 1) if len(line) > WIDTH], f"lines over {WIDTH} letters"


@pytest.mark.parametrize("path", NAMED)
def test_functions_do_one_thing(path):
    long = {function.name: body_lines(function) for function in functions(path) if body_lines(function) > BODY}
    assert not long


@pytest.mark.parametrize("path", NAMED)
def test_functions_take_few_positional_arguments(path):
    many = []
    for function in functions(path):
        named = [a.arg for a in function.args.posonlyargs + function.args.args if a.arg not in ("self", "cls")]
        many += [function.name] if len(named) > POSITIONAL else []
    assert not many


@pytest.mark.parametrize("path", NAMED)
def test_everything_is_annotated(path):
    bare = []
    for function in functions(path):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        named = [argument for argument in arguments if argument.arg not in ("self", "cls")]
        if function.returns is None or any(argument.annotation is None for argument in named):
            bare.append(function.name)
    assert not bare


@pytest.mark.parametrize("path", NAMED)
def test_no_banned_word(path):
    text = path.read_text(encoding="utf-8")
    found = {why: match[0] for pattern, why in BANNED.items() if (match := re.search(pattern, text, re.M))}
    found |= {why: match[0] for pattern, why in BANNED_CODE.items() if (match := re.search(pattern, code_of(text)))}
    assert not found


@pytest.mark.parametrize("line", ["import pickle", "torch.load(path)", "print(1)", "try: f()\nexcept Exception: g()"])
def test_the_word_reader_finds_banned_code(line):
    assert any(re.search(pattern, code_of(f'"""No pickle."""\n{line}\n')) for pattern in BANNED_CODE)
    assert not any(re.search(pattern, code_of('"""No pickle, no torch.load(x)."""\n')) for pattern in BANNED_CODE)


@pytest.mark.parametrize("path", NAMED)
def test_public_names_of_a_module_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    kinds = (ast.FunctionDef, ast.ClassDef)
    bare = [node.name for node in tree.body
            if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not bare


def test_no_file_is_called_utils_or_helpers():
    assert not [path for path in FILES if re.search(r"util|helper|manager|misc|common", path.stem)]


def test_public_names_are_few_sorted_and_there():
    package = importlib.import_module("lossland")
    names = package.__all__
    assert len(names) <= PUBLIC_NAMES
    assert len(set(names)) == len(names)
    assert not [name for name in names if not hasattr(package, name)]


def test_public_callables_say_what_they_return():
    package = importlib.import_module("lossland")
    objects = {name: getattr(package, name) for name in package.__all__}
    ours = {name: value for name, value in objects.items() if inspect.isclass(value) or inspect.isroutine(value)}
    assert not [name for name, value in ours.items() if not (inspect.getdoc(value) or "").strip()]
