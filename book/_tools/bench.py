"""Run benchmarks and keep their figures for the book's page.

    python book/_tools/bench.py [--device cuda] [NAME ...] [-- OPTION ...]

Writes book/benchmarks/NAME.DEVICE.json from the line `RESULT NAME key=value ...`. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chapters import ROOT, nearest

from lossland.files import write_whole
from lossland.records import checksum

ON_GPU = ("gpu_kernels",)
MARKS = re.compile(r"\((R|TM|C)\)|\b(CPU|Processor|with .* Graphics)\b|@.*|\d+-Core", re.I)


def benchmarks(root: Path = ROOT) -> list[str]:
    """Return the names of the benchmarks."""
    found = (path for path in (root / "benchmarks").glob("*.py") if "result(" in path.read_text(encoding="utf-8"))
    return sorted(path.stem for path in found if path.stem != "measure")


def processor() -> str:
    """Return the maker's name of the processor, without clock and marks."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return " ".join(MARKS.sub(" ", named[1] if named else platform.machine()).split())


def figures(output: str, name: str) -> dict[str, float | str]:
    """Return key -> value of the line `RESULT NAME ...` in a benchmark's output.

    Raises:
        ValueError: there is no such line, or a part of it is not `key=value`.
    """
    lines = [line for line in output.splitlines() if line.startswith(f"RESULT {name} ")]
    if not lines:
        raise ValueError(f"{name} printed no line `RESULT {name} key=value ...`")
    parts = [part.partition("=") for part in lines[-1].split()[2:]]
    if wrong := [key for key, sign, value in parts if not (sign and value)]:
        raise ValueError(f"{name}: a RESULT line holds key=value, got {wrong}")
    return {key: _number(value) for key, _, value in parts}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def provenance(kind: str, root: Path = ROOT) -> dict[str, Any]:
    """Return what figures depend on beside the code: device, threads, versions, date, commit (+: with changes)."""
    import torch

    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "lossland", "benchmarks"], check=False).returncode
    device = processor() if kind == "cpu" else torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numba", "lossland")}}
    return {"kind": kind, "device": device, "threads": torch.get_num_threads(), "versions": versions,
            "date": datetime.now(UTC).isoformat(timespec="minutes"), "commit": commit + "+" * bool(commit and changed)}


def write(name: str, values: dict[str, float | str], where: dict[str, Any], folder: Path) -> Path:
    """Write a benchmark's figures with their provenance and return the file."""
    run = {"benchmark": name, **where, "values": values}
    slug = re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")
    target = folder / f"{name}.{slug}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(target, (json.dumps({**run, "checksum": checksum(run)}, indent=1, ensure_ascii=False) + "\n").encode())
    return target


def run(name: str, options: list[str], root: Path = ROOT) -> str:
    """Run a benchmark, show what it prints as it comes, and return it.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    lines = []
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return "".join(lines)


def main() -> int:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="benchmarks (default: all that this device can run)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where they run")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments, options = parser.parse_args(given[:end]), given[end + 1:]
    known = benchmarks()
    if wrong := [name for name in arguments.names if name not in known]:
        print(f"ONLY must name benchmarks, got {wrong[0]!r}{nearest(wrong[0], known)}: {', '.join(known)}", file=sys.stderr)
        return 2
    names = arguments.names or [name for name in known if arguments.device == "cuda" or name not in ON_GPU]
    failed = []
    for name in names:
        print(f"\n{name} ...", flush=True)
        started = time.monotonic()
        try:
            device = [] if arguments.device == "cpu" else ["--device", arguments.device]
            where = provenance("cuda" if name in ON_GPU else arguments.device)
            values = figures(run(name, [*device, *options]), name)
        except (subprocess.CalledProcessError, ValueError, RuntimeError, AssertionError) as error:
            failed.append(name)
            print(error, file=sys.stderr, flush=True)
            continue
        where |= {"seconds": round(time.monotonic() - started, 1), "options": options}
        print(f"written to {write(name, values, where, ROOT / 'book' / 'benchmarks').relative_to(ROOT)}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}; their earlier figures stay", file=sys.stderr)
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
