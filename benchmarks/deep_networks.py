"""AY20's methods on deep networks: moments of every layer of VGG16, and a staged path that reuses its prefix.

Moments: the inputs of every layer at one network and A's own outputs, over all patches of 32x32 images, in a process of
its own, whose peak memory is what is reported. On a CPU fewer images are run and the time is extrapolated to 50,000,
which is said in the output, and the peak memory is that of the run.

Path: one leg per stage, on which a layer goes from A to B and the next one is refit, as `connect(..., scheme="adjust")`
builds them. `evaluate` stands against networks that are computed from the images on, every one of which costs the same:
they are run at every eighth t, and the time is extrapolated; all batches at once, as `predict` runs them, and in the small
batches that `evaluate` chooses on a CPU, which are faster by themselves. All alternate, four legs at a time, so that a
drift of the machine's speed meets them alike. `multiply_adds_ratio` is what sharing can save at most, counted instead of
measured: all networks in full against the layers behind the one that moves.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from torch import nn

from benchmarks.measure import interleaved, median, peak_gib, result, table, where
from benchmarks.path_evaluation import random_task
from lossland import features
from lossland.ensembles.costs import multiply_adds
from lossland.evaluation import evaluate
from lossland.features import Target
from lossland.models import build, initial_weights
from lossland.paths import Mix, Path, linear_basis
from lossland.evaluation.scoring import BATCH, Stateless, Sums, batches
from lossland.tasks import Task
from lossland.weights import Weights

SHAPE, IMAGES = (3, 32, 32), 50_000


def networks(channels: int, device: str) -> tuple[nn.Module, tuple[Weights, Weights]]:
    """Return VGG16 and two draws of its weights."""
    net = build("vgg16", SHAPE, 10, channels=channels)
    return net, tuple(initial_weights(net, torch.Generator().manual_seed(seed), device=device) for seed in (1, 2))


def all_moments(channels: int, images: int, device: str) -> tuple[float, float, float]:
    """Return seconds, peak memory of this process [GiB] and what it had before any moment [GiB]."""
    # float32 or float64 products, as 50,000 images would have them
    features._PLENTY *= images / IMAGES
    net, (a, b) = networks(channels, device)
    task = random_task(images, 10, SHAPE, device)
    target, before, start = Target(net, a, task), peak_gib(), time.perf_counter()
    for layer in net.layers():
        target.moments([b], [layer.module])
    if torch.cuda.is_available() and device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30, 0.0
    return time.perf_counter() - start, peak_gib(), before


def in_a_fresh_process(args: argparse.Namespace) -> list[float]:
    """Return the numbers of `all_moments`, measured in a new interpreter."""
    command = [sys.executable, "-m", "benchmarks.deep_networks", "--only-moments", "--channels", str(args.channels),
               "--images", str(args.images), "--device", args.device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in done.stdout.split()]


def staged(net: nn.Module, a: Weights, b: Weights) -> Path:
    """Return a path of one leg per layer: it becomes B's, and the next one is replaced by something else first."""
    names = [layer.module for layer in net.layers()]
    legs, now = [], a
    for k, name in enumerate(names):
        moving = {key: b[key] for key in a if key.startswith(f"{name}.")}
        refit = {f"{names[k + 1]}.weight": 0.9 * a[f"{names[k + 1]}.weight"]} if k + 1 < len(names) else {}
        legs.append(Mix((now, {**now, **moving, **refit}), linear_basis))
        now = legs[-1].points[1]
    return Path(tuple(legs))


@torch.no_grad()
def recomputed(net: nn.Module, path: Path, task: Task, t: torch.Tensor, size: int) -> list[float]:
    """Return the test nll [nats] at each t: every network runs from the images on, `size` images at a time."""
    function, sums = Stateless(net, task), Sums.zeros(len(t))
    for row, one in enumerate(t.tolist()):
        weights = path.point(one)
        buffers = function.buffers(weights)
        for images, labels in batches(task, task.test, size, torch.float32):
            sums.add(torch.tensor([row]), function(weights, buffers, images)[None], labels)
    return (sums.nll / len(task.test)).tolist()


def compared(net: nn.Module, part: Path, task: Task, args: argparse.Namespace) -> tuple[list[float], float]:
    """Return the seconds of `evaluate`, of recomputing in its batches and in large ones, and the largest difference."""
    t = part.grid(args.per_leg)
    some = t[::8]
    seconds, found = interleaved({
        "evaluate": lambda _: evaluate(net, part, task, points=t, splits=("test",)),
        "small": lambda _: recomputed(net, part, task, some, args.small),
        "large": lambda _: recomputed(net, part, task, some, BATCH),
    }, args.repeats)
    ours = found["evaluate"][0].set_index("t").nll
    difference = max(abs(ours[one] - nll) for name in ("small", "large")
                     for one, nll in zip(some.tolist(), found[name][0], strict=True))
    share = len(t) / len(some)
    return [median(seconds["evaluate"]), *(median(seconds[name]) * share for name in ("small", "large"))], difference


def most(net: nn.Module) -> float:
    """Return how many times the multiply-adds of the layers behind the moving one, over all legs, are those of all layers."""
    each = list(multiply_adds(net, net.layers(), SHAPE).values())
    return len(each) * sum(each) / sum(sum(each[k + 1 :]) for k in range(len(each)))


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=64, help="of the first block of VGG16")
    parser.add_argument("--images", type=int, default=500, help="of the moments")
    parser.add_argument("--test", type=int, default=128, help="images on which the path is evaluated")
    parser.add_argument("--small", type=int, default=32, help="images per batch of the recomputation in small batches")
    parser.add_argument("--per-leg", type=int, default=45, help="points on each of the 16 legs: four on each of the eleven pieces of a stage")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only-moments", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_moments:
        print(*all_moments(args.channels, args.images, args.device))
        return
    seconds, gib, before = in_a_fresh_process(args)
    net, ends = networks(args.channels, args.device)
    task, path = random_task(10, args.test, SHAPE, args.device), staged(net, *ends)
    spent, difference = [0.0] * 3, 0.0
    for start in range(0, len(path.legs), 4):
        part, gap = compared(net, Path(path.legs[start : start + 4]), task, args)
        spent, difference = [x + y for x, y in zip(spent, part, strict=True)], max(difference, gap)
    shared, small, large = spent
    points, whole = len(path.grid(args.per_leg)), seconds * IMAGES / args.images
    print(where(), f"VGG16 with {args.channels} channels; moments extrapolated from {args.images} to {IMAGES} images")
    print(table([
        {"what": f"moments of 16 layers, {args.images} images", "seconds": f"{seconds:.1f}", "memory [GiB]": f"{gib:.2f}"},
        {"what": "process before them", "seconds": "-", "memory [GiB]": f"{before:.2f}"},
        {"what": f"moments, {IMAGES} images (extrapolated)", "seconds": f"{whole:.0f}", "memory [GiB]": f"{gib:.2f}"},
        {"what": f"path, {points} points, {args.test} images: evaluate",
         "seconds": f"{shared:.1f}", "memory [GiB]": "-"},
        {"what": f"the same, every network recomputed, batches of {min(BATCH, args.test)} (extrapolated)",
         "seconds": f"{large:.1f}", "memory [GiB]": "-"},
        {"what": f"the same, batches of {args.small} (extrapolated)", "seconds": f"{small:.1f}", "memory [GiB]": "-"},
    ]))
    print(result("deep_networks", moments_seconds=whole, moments_gb=gib * 2**30 / 1e9, moments_images=args.images,
                 prefix_ratio=large / shared, prefix_ratio_small_batches=small / shared,
                 multiply_adds_ratio=most(net), prefix_diff=difference, points=points, device=args.device))


if __name__ == "__main__":
    main()
