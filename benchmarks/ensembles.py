"""Fast Geometric Ensembling against plain training: time per epoch; and the cost of one more member.

Two loops take turns in short blocks, and each block's FGE is divided by the same block's plain `fit`, so that a drift
of the machine's speed meets both alike; the medians of these ratios are printed. Both train the same network on the
same batches; FGE has a learning rate per iteration and writes a member to the store in every cycle of two epochs. That
is part of its time, and weighs more here than in a real epoch of hundreds of batches. The first epoch of a block
touches new memory and is not counted, nor is the one behind it: cycles are counted whole. On a CPU it is processor time
that is read. A third loop stands for noise: plain `fit` again.

A member's cost: how much longer `member_scores` takes with two members than with one, in units of a plain pass over the
same images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from benchmarks.curve_training import Clock, starts
from benchmarks.measure import interleaved, median, ratio, result, table, where
from benchmarks.path_evaluation import random_task
from lossland.ensembles import member_scores
from lossland.ensembles.members import Keeper
from lossland.evaluation.scoring import BATCH, batches
from lossland.families import point
from lossland.kernels import class_scores
from lossland.models import build
from lossland.schedules import Recipe, batches_per_epoch, member_iterations
from lossland.store import Store
from lossland.tasks import Task
from lossland.training import Collector, fit
from lossland.weights import Weights, count, skeleton, to_vector

EPOCHS = 4  # per block; times are those of whole cycles of two epochs
CASES = {  # key of the result: (model, sizes, image, batches per epoch)
    "fge_overhead": ("3conv3fc", {}, (3, 32, 32), 6),
    "fge_overhead_preresnet": ("preresnet20", {}, (3, 32, 32), 2),
}


class Cycles(Clock):
    """A clock that is read after every epoch and counts whole cycles: a member falls into one epoch of two."""

    def epoch(self) -> float:
        """Return the median over cycles of the time of an epoch."""
        return median([(self.times[i + 2] - self.times[i]) / 2 for i in range(1, len(self.times) - 2, 2)])


def seconds(net: nn.Module, start: Weights, task: Task, recipe: Recipe, collect: Collector | None = None) -> float:
    """Return the seconds of one epoch."""
    clock = Cycles(task.train.images.device)
    fit(net, point(start), task, recipe, checkpoint=clock, collect=collect)
    return clock.epoch()


def fge_seconds(net: nn.Module, start: Weights, task: Task, recipe: Recipe) -> float:
    """Return the seconds of one epoch of the run that `fge` makes, its members written to a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        iterations = member_iterations(recipe, batches_per_epoch(recipe, len(task.train)))
        return seconds(net, start, task, recipe, Keeper(Store(folder), {"benchmark": 1}, to_vector(start), iterations))


def ratios(model: str, sizes: dict[str, int], shape: tuple[int, int, int], per_epoch: int, repeats: int,
           device: str) -> dict[str, float]:
    """Return medians over blocks: FGE / plain, plain / plain, and the seconds of each."""
    net = build(model, shape, 10, **sizes)
    start, _ = starts(net, device)
    task = random_task(128 * per_epoch, 10, shape, device)
    plain = Recipe(epochs=EPOCHS, lr=1e-3, weight_decay=1e-4, schedule="constant")
    cyclic = Recipe(epochs=EPOCHS, lr=1e-3, lr_low=1e-5, weight_decay=1e-4, schedule="triangular", cycle=2)
    candidates: dict[str, Callable[[int], float]] = {
        "plain": lambda _: seconds(net, start, task, plain),
        "fge": lambda _: fge_seconds(net, start, task, cyclic),
        "again": lambda _: seconds(net, start, task, plain),
    }
    _, found = interleaved(candidates, repeats)

    return {"weights": count(start), "plain": median(found["plain"]), "fge": median(found["fge"]),
            "ratio": ratio(found["fge"], found["plain"]), "noise": ratio(found["again"], found["plain"])}


def now(device: torch.device) -> float:
    """Return the time: of the wall on a GPU, of the processor on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() if device.type == "cuda" else time.process_time()


@torch.no_grad()
def plain_pass(net: nn.Module, weights: Weights, task: Task) -> float:
    """Return the seconds of one pass over both splits that adds up losses and hits, batches from memory."""
    device = task.train.images.device
    bare, started = skeleton(net), now(device)
    for name in ("train", "test"):
        total = 0.0
        for images, labels in batches(task, task.split(name), BATCH, torch.float32):
            nll, _, _ = class_scores(functional_call(bare, (weights, {}), (images,))[None], labels)
            total += float(nll[0])
    return now(device) - started


def member_seconds(net: nn.Module, members: list[Weights], task: Task) -> float:
    """Return the seconds of `member_scores`."""
    device = task.train.images.device
    started = now(device)
    member_scores(net, members, task)
    return now(device) - started


def passes(repeats: int, device: str, images: int = 2000) -> dict[str, float]:
    """Return medians: the seconds of a plain pass, those of one more member, and their ratio block by block."""
    net = build("3conv3fc", (3, 32, 32), 10)
    members, task = starts(net, device), random_task(images, images // 4, (3, 32, 32), device)
    _, found = interleaved({"pass": lambda _: plain_pass(net, members[0], task),
                            "one": lambda _: member_seconds(net, members[:1], task),
                            "two": lambda _: member_seconds(net, members, task)}, repeats)
    more = [two - one for two, one in zip(found["two"], found["one"], strict=True)]
    return {"pass": median(found["pass"]), "more": median(more), "ratio": median(more) / median(found["pass"])}


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    found = {key: ratios(*CASES[key], args.repeats, args.device) for key in args.only}
    member = passes(args.repeats, args.device)
    print(where())
    if found:
        print(table([{"what": f"{CASES[key][0]}, batch 128, images {CASES[key][2]}", "weights": f"{one['weights']:,}",
                      "plain [s/epoch]": f"{one['plain']:.3f}", "FGE [s/epoch]": f"{one['fge']:.3f}",
                      "FGE / plain": f"{one['ratio']:.3f}", "plain / plain": f"{one['noise']:.3f}"}
                     for key, one in found.items()]))
    print(f"one more member of 3conv3fc: {member['more']:.3f} s, a plain pass {member['pass']:.3f} s")
    print(result("ensembles", **{key: one["ratio"] for key, one in found.items()},
                 **{key.replace("overhead", "noise"): one["noise"] for key, one in found.items()},
                 member_passes=member["ratio"], blocks=args.repeats, device=args.device))


if __name__ == "__main__":
    main()
