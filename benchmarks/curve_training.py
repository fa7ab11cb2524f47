"""Training a curve with one bend and fixed ends against training one network: time per epoch, and memory.

Three loops take turns in short blocks, and each block's curve is divided by the same block's single network, so that a
drift of the machine's speed meets both alike; the medians of these ratios are printed. The loops are `fit` of a Bezier
curve, `fit` of a single network, and a plain loop with torch.optim.SGD over batches of the same size. The first epoch
of a block touches new memory and is not counted. On a CPU it is processor time that is read: others on the machine
count only as far as they slow its memory down. The C library is told to keep freed memory: left to itself it gives the
largest results of a step back to the system and fetches them again, or not, by the chance of what lies behind them;
for 3conv3fc that is 0 to 55 ms of a step of 145, in each of the three loops.

Memory is the growth of the process while it trains, in units of the network's own size, without pages of files: a
system that has put idle pages of torch's libraries aside would add to it when they come back. The loops are `fit` of a
single network and of a curve, and torch.optim.SGD.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.measure import interleaved, median, ratio, result, table, where
from benchmarks.path_evaluation import random_task
from lossland.allocation import keep_memory
from lossland.batchnorm import fresh_buffers
from lossland.families import Family, bezier, point
from lossland.models import build, initial_weights
from lossland.schedules import Recipe
from lossland.tasks import Task
from lossland.training import fit
from lossland.weights import Weights, count, skeleton

EPOCHS = 3  # per block; the first is not counted
PROCESSES = 3  # whose growth is measured
LOOPS = ("plain", "single", "curve")
WIDEST = (1, 28, 28), 10  # image and classes of the network whose memory is measured: 24 million weights
WIDE = {"mlp": {"width": 7550}}  # 6 million weights on 28 x 28 images
CASES = {  # key of the result: (model, sizes, image, batches per epoch)
    "overhead": ("3conv3fc", {}, (3, 32, 32), 4),
    "overhead_preresnet": ("preresnet20", {}, (3, 32, 32), 2),
    "mlp_overhead": ("mlp", WIDE["mlp"], (1, 28, 28), 12),
}


def starts(net: nn.Module, device: str) -> list[Weights]:
    """Return two initial networks."""
    return [initial_weights(net, torch.Generator().manual_seed(seed), device=device) for seed in (1, 2)]


class Clock:
    """A checkpoint that keeps nothing but the times at which it is saved to."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, []

    def load(self) -> None:
        """Return None: every run starts anew."""

    def save(self, *_: object) -> None:
        """Read the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() if self.device.type == "cuda" else time.process_time())

    def epoch(self) -> float:
        """Return the median time of an epoch."""
        return median([after - before for before, after in pairwise(self.times)])


def fit_seconds(net: nn.Module, family: Family, task: Task, recipe: Recipe) -> float:
    """Return the seconds of one epoch of `fit`."""
    clock = Clock(task.train.images.device)
    fit(net, family, task, recipe, checkpoint=clock)
    return clock.epoch()


def plain_seconds(net: nn.Module, weights: Weights, task: Task, recipe: Recipe) -> float:
    """Return the seconds of one epoch of a loop with torch's own optimiser."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    bare, buffers = skeleton(net).train(), fresh_buffers(net, next(iter(weights.values())))
    optimiser = torch.optim.SGD(theta.values(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    clock = Clock(task.train.images.device)
    for epoch in range(recipe.epochs):
        order = torch.Generator().manual_seed(epoch)
        total = torch.zeros((), device=clock.device)
        for images, labels in task.batches("train", batch_size=recipe.batch_size, generator=order):
            optimiser.zero_grad()
            loss = cross_entropy(functional_call(bare, (theta, buffers), (images,)), labels)
            loss.backward()
            optimiser.step()
            total += loss.detach()
        clock.save()
    return clock.epoch()


def ratios(model: str, sizes: dict[str, int], shape: tuple[int, int, int], batches: int, repeats: int,
           device: str) -> dict[str, float]:
    """Return medians over blocks: curve and fit of one network to each other and to the plain loop, and seconds."""
    net = build(model, shape, 10, **sizes)
    a, b = starts(net, device)
    task = random_task(128 * batches, 10, shape, device)
    recipe = Recipe(epochs=EPOCHS, lr=1e-3, weight_decay=1e-4, schedule="constant")
    sampled = Recipe(epochs=EPOCHS, lr=1e-3, weight_decay=1e-4, schedule="constant", decay_on="sampled")
    candidates: dict[str, Callable[[int], float]] = {
        "single": lambda _: fit_seconds(net, point(a), task, recipe),
        "curve": lambda _: fit_seconds(net, bezier(a, b), task, sampled),
        "plain": lambda _: plain_seconds(net, a, task, recipe),
    }
    _, seconds = interleaved(candidates, repeats)

    return {"weights": count(a), **{name: median(taken) for name, taken in seconds.items()},
            "ratio": ratio(seconds["curve"], seconds["single"]), "to plain": ratio(seconds["curve"], seconds["plain"]),
            "single to plain": ratio(seconds["single"], seconds["plain"])}


def growth(kind: str, device: str) -> float:
    """Return how many network sizes a process grows by while it trains; run it in a process of its own."""
    net = build("mlp", *WIDEST, width=30_000)
    a, b = starts(net, device)
    recipe = Recipe(epochs=2, lr=1e-3, batch_size=16, weight_decay=1e-4, decay_on="sampled")
    if kind == "plain":
        return grown(lambda task: plain_seconds(net, a, task, recipe), count(a), device)
    family = point(a) if kind == "single" else bezier(a, b)
    return grown(lambda task: fit(net, family, task, recipe), count(a), device)


def grown(train: Callable[[Task], object], weights: int, device: str) -> float:
    """Return how many times the size of so many weights this process grows by while it trains on a few images."""
    task = random_task(32, 10, WIDEST[0], device)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train(task)
        return (torch.cuda.max_memory_allocated() - before) / (4 * weights)
    small = build("mlp", *WIDEST, width=2)
    fit(small, point(starts(small, device)[0]), task, Recipe(epochs=2, lr=1e-3, batch_size=16))  # what a first run loads
    before, seen, done = own_bytes(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    train(task)
    done.set()
    watcher.join()
    return (max(seen) - before) / (4 * weights)


def own_bytes() -> int:
    """Return the resident memory of this process without pages of files (Linux)."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * resource.getpagesize()


def memory(device: str) -> dict[str, float]:
    """Return the growth of each loop: medians over processes of their own."""
    command = [sys.executable, "-m", "benchmarks.curve_training", "--device", device, "--growth"]
    return {kind: median([float(subprocess.run([*command, kind], check=True, capture_output=True, text=True).stdout)
                          for _ in range(PROCESSES)]) for kind in LOOPS}


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--growth", choices=LOOPS, help="print the growth of this process and stop")
    args = parser.parse_args()
    if args.growth:
        print(growth(args.growth, args.device))
        return
    with keep_memory():  # for everything that is compared
        found = {key: ratios(*CASES[key], args.repeats, args.device) for key in args.only}
    grown = memory(args.device)
    print(where())
    print(table([{"what": f"{CASES[key][0]}, batch 128, images {CASES[key][2]}", "weights": f"{one['weights']:,}",
                  **{f"{name} [s/epoch]": f"{one[name]:.3f}" for name in LOOPS},
                  "curve / single": f"{one['ratio']:.3f}", "curve / plain": f"{one['to plain']:.3f}",
                  "single / plain": f"{one['single to plain']:.3f}"} for key, one in found.items()]))
    print("memory in network sizes: " + ", ".join(f"{kind} {grown[kind]:.2f}" for kind in LOOPS))
    print(result("curve_training", **{key: one["ratio"] for key, one in found.items()},
                 **{f"{key}_to_plain": one["to plain"] for key, one in found.items()},
                 extra_memory=grown["curve"] - grown["single"], extra_memory_to_plain=grown["curve"] - grown["plain"],
                 blocks=args.repeats, device=args.device))


if __name__ == "__main__":
    main()
