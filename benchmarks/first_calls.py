"""What starting costs: importing the package, the first call of a compiled kernel, and the first call of later processes.

Each figure comes from processes of their own, the kernels' with a cache of their own, and is processor time (user and
system), which other work on the machine changes less than the clock; the clock is in the table.

Keys: `import_s` `import lossland` with torch, after a first import that wrote byte code; `first_s` the slowest first
call of a kernel, numba's import and compilation included; `later_s` the slowest where what was compiled is read from
disk; `torch_s` `import torch` alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import median, result, table, where

_TIMED = """
import sys, time
start, clock = time.process_time(), time.perf_counter()
{0}
if sys.argv[1:]:
    start, clock = time.process_time(), time.perf_counter()
    {1}
print(time.process_time() - start, time.perf_counter() - clock)
"""

_ARGUMENTS = """
import torch
from lossland import kernels
one, labels = torch.ones(20, 8), torch.zeros(20, dtype=torch.int64)
s = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
head, bias = one[:3], one[0, :3]
def path(c): return kernels.path_scores([one] * c.shape[1], c, [head] * c.shape[1], [bias] * c.shape[1], labels)
"""

KERNELS = {
    "segment": "path(torch.cat([1 - s, s], 1))",
    "curve": "path(torch.cat([(1 - s) ** 2, 2 * s * (1 - s), s**2], 1))",
    "swaps": "kernels.swap_scores(one[:, :3].T, one.T, head, (torch.tensor([[0, 1]]), s[3]), labels)",
    "class scores": "kernels.class_scores(one[None, :, :3], labels)",
}


def seconds(code: str, call: str = "", *, cache: str = "") -> tuple[float, float]:
    """Return processor time and clock of code, or of a call behind it, in a process of its own."""
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    run = subprocess.run([sys.executable, "-c", _TIMED.format(code, call or "pass"), *(["call"] if call else [])],
                         env=environment, capture_output=True, text=True, check=True)
    processor, clock = map(float, run.stdout.split()[-2:])
    return processor, clock


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    start = time.perf_counter()
    seconds("import lossland")  # writes byte code
    figures = {what: [seconds(f"import {what}") for _ in range(args.repeats)] for what in ("torch", "lossland")}
    for name, call in KERNELS.items():
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for when in ("first", "later"):
                    figures.setdefault(f"{when} call: {name}", []).append(seconds(_ARGUMENTS, call, cache=cache))
    rows = [{"what": what, **{name: f"{median(list(values)):.2f}" for name, values in
                              zip(("processor", "clock"), zip(*both, strict=True), strict=True)}}
            for what, both in figures.items()]
    slowest = {when: max(median([one for one, _ in both]) for what, both in figures.items() if what.startswith(when))
               for when in ("first", "later")}
    print(where(), f"({time.perf_counter() - start:.0f} s)")
    print(table(rows))
    print(result("first_calls", import_s=median([one for one, _ in figures["lossland"]]), first_s=slowest["first"],
                 later_s=slowest["later"], torch_s=median([one for one, _ in figures["torch"]])))


if __name__ == "__main__":
    main()
