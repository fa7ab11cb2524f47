"""What starting costs, in processor time, which other work on the machine changes little: benchmarks/first_calls.py."""

import os
import subprocess
import sys
from pathlib import Path

HEAVY = {"numba", "scipy", "sklearn", "ot", "torchvision", "triton", "dask", "IPython", "torch._dynamo", "torch._inductor"}

_IMPORT = """
import sys, time
import torch
torch_s = time.process_time()
before = set(sys.modules)
import lossland
print(torch_s, time.process_time() - torch_s, *(set(sys.modules) - before))
"""

_CALLS = """
import sys, time
import torch
from lossland import kernels
assert "numba" not in sys.modules
start = time.process_time()
s = torch.linspace(0, 1, 20, dtype=torch.float64)
one, labels = torch.ones(4, 3), torch.arange(4) % 3
kernels.path_scores([one] * 2, torch.stack([1 - s, s], 1), [one] * 2, [one[:, 0]] * 2, labels)
kernels.swap_scores(one[:, :3].T, one.T, one[:3], (torch.tensor([[0, 1]]), s[3:4]), labels)
kernels.class_scores(one[None], labels)
from lossland.kernels import _cpu, _tally
every = (_cpu.sweep_two, _tally.swaps, _tally.scores)
print(time.process_time() - start, *(sum(function.stats.cache_hits.values()) for function in every))
"""


def said(code: str, **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # as users start it
    run = subprocess.run([sys.executable, "-c", code], env={**inherited, "OMP_NUM_THREADS": "1", **environment},
                         capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_importing_the_package_takes_little_more_than_torch():
    """Measured: 0.7 s beside torch's 1.4, so 2.1 s of at most 2.5."""
    torch_s, ours, *modules = said(_IMPORT)
    assert not HEAVY & set(modules)
    assert float(ours) < 1.2 * float(torch_s)


def test_kernels_compile_in_seconds_and_later_processes_read_what_was_kept(tmp_path: Path):
    """Measured: 4 s for the largest kernel alone, 6 for three, and 0.9 to read them, most of it numba's own start."""
    first, later = (said(_CALLS, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first[1:] == ["0", "0", "0"] and later[1:] == ["1", "1", "1"]
    assert float(first[0]) < 20 and float(later[0]) < 3
