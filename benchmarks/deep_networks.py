"""AY20's methods on deep networks: moments of every layer of VGG16, and what points of a path share.

Moments: the inputs of every layer at one network and A's own outputs, over all patches of 32x32 images, in a process of
its own, whose peak memory is what is reported. On a CPU fewer images are run and the time is extrapolated to 50,000,
which is said in the output, and the peak memory is that of the run.

Path: one leg per stage, on which a layer goes from A to B and the next one is refit, as `connect(..., scheme="adjust")`
builds them. `evaluate` stands against networks that are computed from the images on, every one of which costs the same:
they are run at every eighth t, and the time is extrapolated; all batches at once, as `predict` runs them, and in the small
batches that `evaluate` chooses on a CPU, which are faster by themselves. All alternate, four legs at a time, so that a
drift of the machine's speed meets them alike. `multiply_adds_ratio` is what sharing can save at most, counted instead of
measured: all networks in full against the layers behind the one that moves.

Batch norm: PreResNet20's statistics, from training images, at the points of a segment, on which everything moves, and of
such a staged path, whose points share what lies in front of the layer that moves, statistics included. The plain way is
one pass of its own at each point (the staged path: at every eighth), in the usual layout of images and in that of
`evaluate`, channels last; the difference of the two ratios is the layout, the rest is sharing. Few test images are scored,
so that nearly all the time is the statistics'; `norms_diff` is of their losses.

Mixing: 784-2000-2000-10 at 61 points of a segment. `mix_share` is the share of `evaluate`'s time in which weights are
mixed, `dense_limit` its time / that of the matrix products that nobody can avoid: twice the first layer, once per point the
other two (run at every eighth point). What is above 1 is all that a kernel could win that fuses mixing, ReLU and head.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure import interleaved, median, peak_gib, result, table, where
from benchmarks.path_evaluation import random_task
from lossland import features
from lossland.allocation import keep_memory
from lossland.ensembles.costs import multiply_adds
from lossland.evaluation import evaluate
from lossland.features import Target
from lossland.models import MLP, build, initial_weights
from lossland.paths import Mix, Path, linear_basis, segment
from lossland.evaluation.scoring import BATCH, Stateless, Sums, batches
from lossland.tasks import Task
from lossland.weights import Weights

SHAPE, IMAGES = (3, 32, 32), 50_000


def draws(net: nn.Module, device: str) -> tuple[Weights, Weights]:
    """Return two draws of the weights of a network."""
    return tuple(initial_weights(net, torch.Generator().manual_seed(seed), device=device) for seed in (1, 2))


def all_moments(channels: int, images: int, device: str) -> tuple[float, float, float]:
    """Return seconds, peak memory of this process [GiB] and what it had before any moment [GiB]."""
    # float32 or float64 products, as 50,000 images would have them
    features._PLENTY *= images / IMAGES
    net = build("vgg16", SHAPE, 10, channels=channels)
    a, b = draws(net, device)
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


def compared(net: nn.Module, path: Path, t: Tensor, every: int, plain: Mapping[str, tuple[Task, int]],
             repeats: int) -> tuple[dict[str, float], float]:
    """Return the seconds of `evaluate` and of recomputing at all t, name by name, and the largest difference [nats].

    Args:
        net: the network.
        path: the path.
        t: where it is evaluated.
        every: networks are recomputed at every such t.
        plain: name -> task and images per batch of a recomputation; the first one's task is that of `evaluate`.
        repeats: how often.
    """
    some, (task, _) = t[::every], next(iter(plain.values()))
    ways = {name: lambda _, one=one, size=size: recomputed(net, path, one, some, size) for name, (one, size) in plain.items()}
    seconds, found = interleaved({
        "evaluate": lambda _: evaluate(net, path, task, points=t, splits=("test",)), **ways}, repeats)
    ours = found["evaluate"][0].set_index("t").nll
    difference = max(abs(ours[one] - nll) for name in plain for one, nll in zip(some.tolist(), found[name][0], strict=True))
    share = len(t) / len(some)
    return {name: median(spent) * (share if name in plain else 1) for name, spent in seconds.items()}, difference


def prefixes(net: nn.Module, path: Path, task: Task, args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Return the seconds of a staged path of VGG16, name by name, and the largest difference [nats]."""
    spent, difference = dict.fromkeys(("evaluate", "large", "small"), 0.0), 0.0
    for start in range(0, len(path.legs), 4):
        part = Path(path.legs[start : start + 4])
        seconds, gap = compared(net, part, part.grid(args.per_leg), 8,
                                {"large": (task, BATCH), "small": (task, args.small)}, args.repeats)
        spent, difference = {name: spent[name] + seconds[name] for name in spent}, max(difference, gap)
    return spent, difference


def statistics(args: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Return rows of the table and figures: batch-norm statistics at the points of a path."""
    net = build("preresnet20", SHAPE, 10)
    ends, task = draws(net, args.device), random_task(args.norm_images, 4, SHAPE, args.device)
    images = task.train.images.contiguous(memory_format=torch.channels_last)
    plain = {"plain": (task, BATCH), "last": (replace(task, train=replace(task.train, images=images)), BATCH)}
    rows, figures, differences = [], {}, []
    for name, path, points, every in (("segment", segment(*ends), 13, 1), ("staged", staged(net, *ends), args.norm_points, 8)):
        t = path.grid(points)
        seconds, gap = compared(net, path, t, every, plain, args.repeats)
        differences.append(gap)
        figures[f"norms_{name}"] = seconds["plain"] / seconds["evaluate"]
        figures[f"norms_{name}_layout"] = seconds["last"] / seconds["evaluate"]
        rows += [{"what": f"batch norm, {name}, {len(t)} points, {args.norm_images} images: {way}",
                  "seconds": f"{spent:.2f}", "memory [GiB]": "-"} for way, spent in seconds.items()]
    return rows, figures | {"norms_diff": max(differences)}


@torch.no_grad()
def mixing(args: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Return rows of the table and figures: weights of a dense network with two hidden layers, mixed at 61 points."""
    with torch.device("meta"):
        net = MLP((1, 28, 28), 10, widths=(2000, 2000))
    path, task = segment(*draws(net, args.device)), random_task(10, args.dense_images, (1, 28, 28), args.device)
    t, spent, original = path.grid(61), [], Mix.mixed

    def timed(leg: Mix, coefficients: Tensor) -> Weights:
        start = time.perf_counter()
        found = original(leg, coefficients)
        spent.append(time.perf_counter() - start)
        return found

    start = time.perf_counter()
    with patch.object(Mix, "mixed", timed):
        evaluate(net, path, task, points=t, splits=("test",))
    whole = time.perf_counter() - start
    batches, some, times = task.prepare(task.test.images).flatten(1).split(BATCH), t[::8], [0.0, 0.0]
    for once, points in enumerate((torch.tensor([0.0, 1.0]), some)):
        for weights in map(path.point, points.tolist()):
            layers = list(zip(*(iter(weights.values()),) * 2, strict=True))  # (weight, bias) of three layers
            for batch in batches:
                hidden = batch.new_ones(len(batch), 2000)
                start = time.perf_counter()
                if once:
                    linear(linear(hidden, *layers[1]), *layers[2])
                else:
                    linear(batch, *layers[0])
                times[once] += time.perf_counter() - start
    products = times[0] + times[1] * len(t) / len(some)
    name, parts = f"784-2000-2000-10, {len(t)} points, {args.dense_images} images", {
        "evaluate": whole, "mixing weights": sum(spent), "products": products}
    rows = [{"what": f"{name}: {what}", "seconds": f"{seconds:.2f}", "memory [GiB]": "-"} for what, seconds in parts.items()]
    return rows, {"mix_share": sum(spent) / whole, "dense_limit": whole / products}


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
    parser.add_argument("--norm-images", type=int, default=500, help="on which batch-norm statistics are estimated")
    parser.add_argument("--norm-points", type=int, default=12, help="points on each leg of PreResNet20's staged path")
    parser.add_argument("--dense-images", type=int, default=10_000, help="of the dense network")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only-moments", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_moments:
        print(*all_moments(args.channels, args.images, args.device))
        return
    seconds, gib, before = in_a_fresh_process(args)
    net = build("vgg16", SHAPE, 10, channels=args.channels)
    task, path = random_task(10, args.test, SHAPE, args.device), staged(net, *draws(net, args.device))
    spent, difference = prefixes(net, path, task, args)
    shared, large, small = spent.values()
    with keep_memory():  # for everything that is compared
        (norm_rows, norms), (mix_rows, mixes) = statistics(args), mixing(args)
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
        *norm_rows, *mix_rows,
    ]))
    print(result("deep_networks", moments_seconds=whole, moments_gb=gib * 2**30 / 1e9, moments_images=args.images,
                 prefix_ratio=large / shared, prefix_ratio_small_batches=small / shared,
                 multiply_adds_ratio=most(net), prefix_diff=difference, points=points, **norms, **mixes, device=args.device))


if __name__ == "__main__":
    main()
