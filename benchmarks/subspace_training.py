"""Training a line or a simplex of six networks against training one network: time per step, and memory.

Four loops take turns step by step, in an order drawn anew each round, so that a drift of the machine's speed meets all
alike: the steps of `fit` for a line and for a simplex with beta = 1 (W21 Algorithm 1) and for a single network, and a
plain step of torch.optim.SGD. A round gives a ratio of each subspace to each of the other two; their medians are
printed. On a CPU it is processor time that is read. At a batch of 128 the images hide what the weights cost; at 16 it
shows. What `fit` does once an epoch (distances of the control points) is left out here, as an epoch of CIFAR-10 has 391
batches, or 3125: it is printed by itself.

Memory is the growth of a process while it trains a network of 24 million weights, as in `benchmarks.curve_training`,
less that of a single network, in units of the network's own size: a line needs one more control point and its momentum.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.curve_training import PROCESSES, WIDEST, grown
from benchmarks.measure import median, ratio, result, table, where
from benchmarks.path_evaluation import random_task
from lossland.allocation import keep_memory
from lossland.batchnorm import fresh_buffers
from lossland.descent import Run, State, step
from lossland.draws import Draws
from lossland.families import Family
from lossland.flat import FlatNetwork
from lossland.layout import Layout
from lossland.models import build
from lossland.regularisers import apart
from lossland.schedules import Recipe
from lossland.subspaces import start
from lossland.tasks import Task
from lossland.training import fit
from lossland.weights import Weights, count, skeleton, to_vector

IMAGE = (3, 32, 32)
BATCHES = (128, 16)
SUBSPACES = {"line": ("line", None), "simplex6": ("simplex", 6)}  # key of the result: kind and control points
GROWN = {"single": ("point", None), "line": ("line", None), "simplex3": ("simplex", 3)}
WARM = 3  # rounds that are not counted
Step = Callable[[], object]


def recipe_of(kind: str, batch_size: int) -> Recipe:
    """Return W21's settings at a learning rate so low that random images do no harm."""
    return Recipe(epochs=1, lr=1e-3, batch_size=batch_size, weight_decay=1e-4, beta=0.0 if kind == "point" else 1.0)


def subspace_step(net: nn.Module, family: Family, task: Task, recipe: Recipe) -> tuple[Step, Callable[[], float]]:
    """Return a step of `fit`, and a function that returns the seconds of what it does once an epoch."""
    layout = Layout.of(net, family.points[0], norms_last=recipe.beta > 0)
    run = Run(family, task, "train", recipe, 0, layout)
    points = torch.stack([to_vector({name: point[name] for name in layout.like}) for point in family.points])
    state = State(points, list(range(len(points))), torch.zeros_like(points))
    networks = [FlatNetwork(net, layout.like, points, recipe.precision)]
    draws = Draws(family, recipe, layout, seed=0, epoch=0)
    batch = next(iter(task.batches("train", batch_size=recipe.batch_size)))

    def once() -> float:
        before = now(points.device)
        if len(points) > 1:
            apart(list(points), layout.weights)
        return now(points.device) - before

    return lambda: step(state, networks, run, batch, draws.next(1), lr=recipe.lr), once


def plain_step(net: nn.Module, weights: Weights, task: Task, recipe: Recipe) -> Step:
    """Return a step of a loop with torch's own optimiser."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    bare, buffers = skeleton(net).train(), fresh_buffers(net, next(iter(weights.values())))
    optimiser = torch.optim.SGD(theta.values(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    images, labels = next(iter(task.batches("train", batch_size=recipe.batch_size)))
    total = torch.zeros((), device=images.device)

    def one() -> None:
        optimiser.zero_grad()
        loss = cross_entropy(functional_call(bare, (theta, buffers), (images,)), labels)
        loss.backward()
        optimiser.step()
        total.add_(loss.detach())

    return one


def now(device: torch.device) -> float:
    """Return processor time [s], on a GPU the clock's after all work there is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def ratios(batch_size: int, rounds: int, device: str) -> dict[str, float]:
    """Return medians over rounds: seconds per step, and ratios of the subspaces to single network and plain loop."""
    net, task = build("cresnet20", IMAGE, 10), random_task(batch_size, 1, IMAGE, device)
    one = start(net, "point", seed=1, device=device)
    steps = {"plain": plain_step(net, one.points[0], task, recipe_of("point", batch_size))}
    once = {}
    for name, (kind, points) in {"single": ("point", None), **SUBSPACES}.items():
        family = start(net, kind, points=points, seed=1, device=device)
        steps[name], once[name] = subspace_step(net, family, task, recipe_of(kind, batch_size))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for _ in range(WARM + rounds):
        for name in order.sample(list(steps), len(steps)):
            before = now(task.train.images.device)
            steps[name]()
            seconds[name].append(now(task.train.images.device) - before)
    seconds = {name: taken[WARM:] for name, taken in seconds.items()}
    found = {name: median(taken) for name, taken in seconds.items()}
    for name in SUBSPACES:
        found |= {f"{name} / {other}": ratio(seconds[name], seconds[other]) for other in ("plain", "single")}
        found[f"{name} once"] = median([once[name]() for _ in range(WARM)])
    return found


def growth(kind: str, device: str) -> float:
    """Return how many network sizes a process grows by while it trains; run it in a process of its own."""
    net = build("mlp", *WIDEST, width=30_000)
    shape, points = GROWN[kind]
    family = start(net, shape, points=points, seed=1, device=device)
    return grown(lambda task: fit(net, family, task, recipe_of(shape, 16)), count(family.points[0]), device)


def memory(device: str) -> dict[str, float]:
    """Return the growth of each loop: medians over processes of their own."""
    command = [sys.executable, "-m", "benchmarks.subspace_training", "--device", device, "--growth"]
    return {kind: median([float(subprocess.run([*command, kind], check=True, capture_output=True, text=True).stdout)
                          for _ in range(PROCESSES)]) for kind in GROWN}


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", nargs="*", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--growth", choices=GROWN, help="print the growth of this process and stop")
    args = parser.parse_args()
    if args.growth:
        print(growth(args.growth, args.device))
        return
    with keep_memory():  # for everything that is compared
        found = {size: ratios(size, args.rounds, args.device) for size in args.batch_sizes}
    more = memory(args.device)
    print(where())
    print(table([{"batch": size, **{name if "/" in name else f"{name} [ms]": f"{value if '/' in name else 1000 * value:.3f}"
                                    for name, value in one.items()}} for size, one in found.items()]))
    print("memory in network sizes: " + ", ".join(f"{kind} {value:.2f}" for kind, value in more.items()))
    bars = {f"{name}_overhead{end}{'' if size == 128 else f'_{size}'}": one[f"{name} / {other}"]
            for size, one in found.items() for other, end in (("plain", ""), ("single", "_to_single"))
            for name in SUBSPACES}
    print(result("subspace_training", **bars,
                 **{f"{kind}_extra_memory": more[kind] - more["single"] for kind in GROWN if kind != "single"},
                 rounds=args.rounds, device=args.device))


if __name__ == "__main__":
    main()
