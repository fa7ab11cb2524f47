"""Memory that is kept for the next request while networks run."""

import copy
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from lossland import allocation, batchnorm, evaluation, families, paths, training
from lossland.allocation import keep_memory

GLIBC = allocation._library()


class Told:
    """A C library that remembers what it was told."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}
        self.trims = 0

    def mallopt(self, option: int, value: int) -> None:
        self.options[option] = value

    def malloc_trim(self, pad: int) -> None:
        self.trims += 1


PAGES = """
import resource
from pathlib import Path

import torch

from lossland import allocation

BYTES = 64 * 2**20  # above what glibc takes from memory that it has
allocation._LONG = -1


def faults():  # new pages that the system has to clear for ten large tensors after each other
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():  # bytes of memory that this process has from the system
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


fresh, before = faults(), resident()
assert fresh >= 10 * BYTES // 2**21, fresh  # pages have 4 KiB, or 2 MiB where the system joins them
with allocation.keep_memory():
    with allocation.keep_memory():
        faults()
    again, kept = faults(), resident() - before
# A request may not fit into what one like it has left, once something small lies behind that.
assert again < fresh / 3, (again, fresh)
assert kept > 0.8 * BYTES, kept
assert resident() - before < 0.2 * BYTES, resident() - before
"""


@pytest.mark.skipif(GLIBC is None, reason="not glibc, or told how to allocate")
def test_pages_are_used_again_inside_and_handed_back_at_the_end():
    # In a process of its own, where nothing else comes and goes.
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_come_back_at_the_end_of_the_outermost_one_even_after_an_error(monkeypatch):
    monkeypatch.setattr(allocation, "_LONG", 1e9)
    library = Told()
    with pytest.raises(KeyError), keep_memory(lambda: library):
        with keep_memory(lambda: library):
            pass
        assert library.options == allocation._KEEPING
        raise KeyError
    assert library.options == allocation._USUAL and library.trims == 0


def test_long_ones_hand_back_what_was_kept(monkeypatch):
    monkeypatch.setattr(allocation, "_LONG", -1)
    library = Told()
    keep_memory(lambda: library)(lambda: None)()  # as a decorator
    assert library.trims == 1


def test_threads_do_not_end_each_others():
    library, inside, leave = Told(), threading.Event(), threading.Event()

    def hold() -> None:
        with keep_memory(lambda: library):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    with keep_memory(lambda: library):
        pass
    assert library.options == allocation._KEEPING
    leave.set()
    thread.join()
    assert library.options == allocation._USUAL


def test_the_time_of_the_first_block_counts_not_of_the_last(monkeypatch):
    monkeypatch.setattr(allocation, "_LONG", 5)
    library = Told()
    times = iter([0.0, 9.0])
    monkeypatch.setattr(allocation.time, "monotonic", lambda: next(times, 9.0))
    first, second = keep_memory(lambda: library), keep_memory(lambda: library)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert library.trims == 0
    second.__exit__(None, None, None)
    assert library.trims == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_starts_anew(monkeypatch):
    library = Told()
    monkeypatch.setattr(allocation, "_library", lambda: library)
    block = keep_memory(lambda: library)
    block.__enter__()
    allocation._blocks.lock.acquire()  # as another thread may have it
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # ends a child that waits for the lock
        right = [library.options == allocation._USUAL]
        with keep_memory(lambda: library):
            right += [allocation._blocks.count == 1, library.options == allocation._USUAL | allocation._KEEPING]
        block.__exit__(None, None, None)  # of the parent
        right += [allocation._blocks.count == 0, library.options == allocation._USUAL]
        os._exit(0 if all(right) else 1)
    allocation._blocks.lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert allocation._blocks.count == 1
    block.__exit__(None, None, None)


@pytest.mark.parametrize("name, value", [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=3")])
def test_what_the_user_has_chosen_stays(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert allocation._library() is None
    before = allocation._blocks.count
    with keep_memory():
        assert allocation._blocks.count == before


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_stay_as_they_are(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    assert allocation._library() is None


class Watching(nn.Module):
    """A network that notes whether memory is kept while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.seen: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(allocation._blocks.count > 0)
        return self.head(self.norm(self.first(images.flatten(1))))


@pytest.mark.skipif(GLIBC is None, reason="not glibc, or told how to allocate")
@pytest.mark.parametrize("run", [
    lambda net, w, task: training.fit(net, families.point(w), task, training.Recipe(epochs=1, lr=0.1, batch_size=32)),
    lambda net, w, task: evaluation.evaluate(net, paths.segment(w, {name: 2 * value for name, value in w.items()}), task),
    lambda net, w, task: evaluation.predict(net, w, task),
    lambda net, w, task: batchnorm.refresh(net, w, task.prepare(task.train.images)),
], ids=["training", "a path", "one network", "batch-norm statistics"])
def test_memory_is_kept_while_networks_run(run, task, monkeypatch):
    net = Watching()
    seen = net.seen
    monkeypatch.setattr(Watching, "__deepcopy__", lambda self, memo: copied(self, memo, seen), raising=False)
    run(net, {name: p.detach().clone() for name, p in net.named_parameters()}, task)
    assert seen == {True} and allocation._blocks.count == 0


def copied(net: nn.Module, memo: dict, seen: set[bool]) -> nn.Module:
    """Return a copy that notes what it sees in the same place."""
    memo[id(seen)] = seen
    new = net.__class__.__new__(net.__class__)
    new.__dict__.update(copy.deepcopy(net.__dict__, memo))
    return new
