"""Re-run one chapter with other parameters, through papermill, into runs/.

    python book/_tools/run_chapter.py 02 --scale laptop --params mine.yml

The file holds lines `name: value`; `"02": {width: 500}` addresses one chapter, and the other chapters' are passed over.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from chapters import ROOT, chapters, find_chapter, nearest, parameter_names, read_parameters
from recording_checks import check_scale

SCALE = "tiny"


def refuse_unknown(parameters: dict[str, Any], known: list[str], where: str) -> None:
    """Raise ValueError for a parameter that nothing declares, naming the nearest one."""
    for name in parameters:
        if name not in known:
            listed = ", ".join(known)
            raise ValueError(f"unknown parameter {name!r}{nearest(name, known)}; parameters of {where}: {listed}")


def chosen(scale: str | None, params: Path | None) -> dict[str, Any]:
    """Return the parameters of a run: the file's, with the scale of the command line, else the file's, else tiny.

    Raises:
        ValueError: a file without parameters, or a scale that no chapter has.
    """
    parameters = read_parameters(params)
    check_scale(scale := scale or parameters.get("scale", SCALE))
    return {**parameters, "scale": scale}


def assign(parameters: dict[str, Any], root: Path) -> dict[Path, dict[str, Any]]:
    """Return chapter -> its parameters: those of the shared ones that it has, and those addressed to it.

    Raises:
        ValueError: a parameter that no chapter has, or one addressed to a chapter that lacks it.
    """
    if wrong := [name for name, value in parameters.items() if name.isdigit() and not isinstance(value, dict)]:
        raise ValueError("PARAMS must hold lines `name: value` under the number of a chapter, got "
                         f"{parameters[wrong[0]]!r} under {wrong[0]!r}")
    known = {path: parameter_names(path) for path in chapters(root)}
    shared = {name: value for name, value in parameters.items() if not isinstance(value, dict)}
    refuse_unknown(shared, sorted({name for names in known.values() for name in names}), "the book")
    result = {path: {name: shared[name] for name in names if name in shared} for path, names in known.items()}
    for name, own in parameters.items():
        if isinstance(own, dict):
            path = find_chapter(name, root)
            refuse_unknown(own, known[path], path.stem)
            result[path].update(own)
    return result


def execute(chapter: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run a chapter with these parameters in the present folder; what is done so far is always on disk.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the error shows the cell and its traceback.
    """
    import papermill

    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(str(chapter), str(output), parameters=parameters, kernel_name="python3",
                               progress_bar=sys.stderr.isatty(), log_output=False)


def main() -> int:
    """Run the chapter that the command line names."""
    from papermill import PapermillExecutionError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", help="its number or the beginning of its name")
    parser.add_argument("--scale", help=f"tiny, laptop, gpu or paper (default: the file's, else {SCALE})")
    parser.add_argument("--params", type=Path, help="YAML file of parameters")
    arguments = parser.parse_args()
    try:
        chapter = find_chapter(arguments.chapter)
        parameters = assign(chosen(arguments.scale, arguments.params), ROOT)[chapter]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    suffix = f"-{arguments.params.stem}" if arguments.params else ""
    output = ROOT / "runs" / f"{chapter.stem}-{parameters['scale']}{suffix}.ipynb"
    print(f"running {chapter.stem} with {parameters}", flush=True)
    try:
        execute(chapter, output, parameters)
    except PapermillExecutionError as error:
        print(f"{error}\nThe run stopped there; see {output}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was trained is kept, and {output} holds what was shown so far", file=sys.stderr)
        return 130
    print(f"The executed chapter is {output.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
