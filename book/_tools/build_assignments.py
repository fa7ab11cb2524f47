"""Make the students' versions of the assignments: without solutions and hidden tests, into book/assignments/release.

    python book/_tools/build_assignments.py [--course FOLDER]
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from chapters import ROOT

COURSE = ROOT / "book" / "assignments"


def build(course: Path = COURSE) -> dict[str, float]:
    """Make release/ and the gradebook of a course anew; marks that are in the gradebook stay.

    Returns:
        Name of each assignment -> points.

    Raises:
        ValueError: the folder holds no course, or an assignment that nbgrader refuses; the message has its reasons.
    """
    from nbgrader.api import Gradebook
    from nbgrader.apps import NbGraderAPI
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config.loader import PyFileConfigLoader

    # nbgrader calls a program that is installed beside it.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    course = course.resolve()
    if not (course / "nbgrader_config.py").is_file():
        raise ValueError(f"course must be a folder with nbgrader_config.py and source/, got {course}")
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.CourseDirectory.root = str(course)
    api = NbGraderAPI(CourseDirectory(config=config), config=config)
    api.log.setLevel(logging.ERROR)
    points = {}
    for name in sorted(path.name for path in (course / "source").iterdir() if path.is_dir()):
        done = api.generate_assignment(name, force=True, create=True)
        if not done["success"]:
            raise ValueError(f"assignment {name}:\n{done.get('log') or done.get('error')}")
        with Gradebook(api.coursedir.db_url) as gradebook:
            points[name] = gradebook.find_assignment(name).max_score
    return points


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--course", type=Path, default=COURSE, help="folder with nbgrader_config.py and source/")
    course = parser.parse_args().course
    try:
        points = build(course)
    except (ImportError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, most in points.items():
        print(f"  {name}: {most:g} points")
    print(f"The students' versions are in {course / 'release'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
