"""Run a script in each of torchrun's processes; the training that it asks for they share (`lossland.parallel`).

Started like this::

    torchrun --standalone --nproc-per-node 2 -m lossland.torchrun train.py
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed

from lossland.parallel import Ranks, ranks


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun has started, each on a GPU of its own where there are enough.

    Raises:
        RuntimeError: torchrun has not started this process.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        raise RuntimeError("this process was not started by torchrun: torchrun --standalone --nproc-per-node 2 "
                           "-m lossland.torchrun SCRIPT.py")
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    own = there >= int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if own:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if own else "gloo")
    try:
        yield ranks()
    finally:
        distributed.destroy_process_group()


def main() -> None:
    """Run the script that the command line names, in each of torchrun's processes."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit("torchrun --standalone --nproc-per-node 2 -m lossland.torchrun SCRIPT.py [ARGUMENTS]: "
                         f"SCRIPT.py must be a file, got {sys.argv[1:2]}")
    del sys.argv[0]
    with joined():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
