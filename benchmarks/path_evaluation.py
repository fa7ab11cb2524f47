"""Evaluating paths of one-hidden-layer networks against a plain loop over t, and against what cannot be avoided.

Images are random with MNIST's share of set pixels (19 %); all ways read the same uint8 tensors in memory and do the same
work: nll, hits and calibration histogram of every t on both splits. The loop is cut into parts that alternate with whole
runs of `evaluate`, so that a drift of the machine's speed meets both alike; on all but the first shape only some of its
parts are run, and its time is extrapolated.

Keys: `ratio` plain loop / `evaluate` in float32 on a segment, `t1001` its time at T = 1001 / time at T, `limit` time /
that of the float32 products of the images with the two first layers alone (by oneDNN, as `evaluate` does them),
`cifar_ratio` on images of CIFAR-10's shape, `arc_ratio` and `bezier_ratio` on curves through three points, all in
float32. `lowp_ratio` plain loop / `evaluate` as it is unless told: first layers by bytes of the weights, where the
processor has them, else bfloat16; `bfloat16_ratio` in bfloat16; each with its largest change of nll, `_diff`, against
float32. `lowp_cifar_ratio` the same on CIFAR-10's shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path as File

import pandas as pd
import torch
from torch.func import functional_call

from benchmarks.measure import interleaved, median, peak_gib, ratio, result, table, where
from lossland.evaluation import evaluate
from lossland.evaluation.scoring import batches
from lossland.kernels import class_scores
from lossland.models import MLP, build, initial_weights
from lossland.paths import Path, arc, bezier, segment
from lossland.products import bytes_pay, packed, product
from lossland.tasks import Split, Task
from lossland.weights import Weights, skeleton

Scores = dict[tuple[float, str], tuple[float, float]]
_PASS = 2000  # images of a product


def random_task(train: int, test: int, shape: tuple[int, int, int], device: str) -> Task:
    """Return uint8 images with MNIST's share of set pixels, and random labels."""
    g = torch.Generator().manual_seed(0)
    splits = []
    for n in (train, test):
        pixels = torch.randint(1, 256, (n, *shape), generator=g, dtype=torch.uint8)
        pixels *= torch.rand(n, *shape, generator=g) < 0.19
        splits.append(Split(pixels, torch.randint(0, 10, (n,), generator=g)))
    channels = shape[0]
    task = Task(name="random", train=splits[0], test=splits[1], validation=None, classes=10, scale=255.0, mean=(0.0,) * channels,
                std=(1.0,) * channels, augment="none", note="random pixels", fingerprint="random")
    return task.to(device)


@torch.no_grad()
def plain_loop(net: torch.nn.Module, path: Path, task: Task, ts: torch.Tensor) -> Scores:
    """Return (t, split) -> (nll, accuracy): one full forward pass per t, batches of 1000 from memory."""
    bare, scores = skeleton(net), {}
    for t in ts.tolist():
        weights = path.point(t)
        for name in ("train", "test"):
            split = task.split(name)
            nll = hits = 0.0
            for images, labels in batches(task, split, 1000, torch.float32):
                logits = functional_call(bare, (weights, {}), (images,))
                a, b, _ = class_scores(logits[None], labels)
                nll, hits = nll + a[0], hits + b[0]
            scores[t, name] = float(nll) / len(split), float(hits) / len(split)
    return scores


@torch.no_grad()
def products_alone(points: list[Weights], task: Task) -> None:
    """Multiply the prepared images of both splits with the first layers of the points."""
    weights = [packed(point["linear.0.weight"]) for point in points]
    for name in ("train", "test"):
        for images, _ in batches(task, task.split(name), _PASS, torch.float32):
            flat = packed(images.flatten(1))
            for weight in weights:
                product(flat, weight)


def network(shape: tuple[int, int, int], width: int, device: str) -> tuple[MLP, list[Weights]]:
    """Return a network and three points: four times initial weights, so that logits are as large as trained ones'."""
    net = build("mlp", shape, 10, width=width)
    return net, [{key: 4 * value for key, value in initial_weights(net, torch.Generator().manual_seed(seed), device=device).items()}
                 for seed in (1, 2, 3)]


def extra_memory(net: MLP, path: Path, task: Task, points: int) -> float:
    """Return by how many MiB resident memory rises during `evaluate`, what is compiled left out; NaN if unknown."""
    evaluate(net, path, task.subset(100, 100), points=points)
    status, reset = File("/proc/self/status"), File("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")

    def kib(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    reset.write_text("5")  # the peak starts anew
    before = kib("VmRSS")
    evaluate(net, path, task, points=points)
    return (kib("VmHWM") - before) / 1024


def compare(what: str, net: MLP, path: Path, task: Task, args: argparse.Namespace, *, parts: int = 3,
            more: dict[str, object] | None = None) -> tuple[dict[str, float], dict[str, list[float]], list[dict[str, str]]]:
    """Return figures, seconds and rows of the table of `evaluate` on a path, against three of so many parts of the loop."""
    def ours(precision: str | None) -> Callable[[int], pd.DataFrame]:
        return lambda i: evaluate(net, path, task, points=args.points, precision=precision)

    t = torch.arange(args.points, dtype=torch.float64) / (args.points - 1)
    evaluate(net, path, task.subset(100, 100), points=args.points)  # what is compiled at the first call
    seconds, results = interleaved({
        "loop": lambda i: plain_loop(net, path, task, t[i::parts]),
        "evaluate": ours("float32"), "lowp": ours(None if bytes_pay() and args.device == "cpu" else "bfloat16"),
        **({"bfloat16": ours("bfloat16"), **more} if more else {}),
    }, 3)
    loop = {key: value for part in results["loop"] for key, value in part.items()}
    full = results["evaluate"][-1]
    at = full.set_index(["t", "split"])
    nll = max(abs(at.loc[key, "nll"] - value[0]) for key, value in loop.items())
    accuracy = max(abs(at.loc[key, "accuracy"] - value[1]) for key, value in loop.items())
    share = len(loop) / 2 / args.points  # of the points, both splits each
    loop_s, figures, rows = sum(seconds["loop"]) / share, {"nll": nll, "accuracy": accuracy}, []
    for name, front in (("evaluate", ""), ("lowp", "lowp_"), ("bfloat16", "bfloat16_"))[: 3 if more else 2]:
        found, took = results[name][-1], median(seconds[name])
        figures |= {f"{front}ratio": loop_s / took, f"{front}seconds": took,
                    f"{front}diff": float((found.nll - full.nll).abs().max())}
        rows.append({"what": f"{what} ({found.attrs['way']}, {found.attrs['product']})", "T": str(args.points),
                     "shape": f"{task.train.images[0].numel()}-{args.width}-10, {len(task.train) + len(task.test)} images",
                     "seconds": f"{took:.2f}", "plain loop": f"{loop_s:.1f}" + ("" if share == 1 else f" (from {share:.0%})"),
                     "ratio": f"{loop_s / took:.1f}", "change of nll": f"{figures[f'{front}diff']:.1e}"})
    return figures, seconds, rows


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=61)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--images", type=int, nargs=2, default=(60_000, 10_000))
    parser.add_argument("--cifar", type=int, nargs=2, default=(50_000, 10_000), help="images of CIFAR-10's shape; 0 0: none")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 28, 28))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    task = random_task(*args.images, tuple(args.shape), args.device)
    net, ends = network(tuple(args.shape), args.width, args.device)
    straight = segment(*ends[:2])
    memory = extra_memory(net, straight, task, args.points)
    main_, seconds, rows = compare("segment", net, straight, task, args, more={
        "dense": lambda i: evaluate(net, straight, task, points=1001, precision="float32"),
        "products": lambda i: products_alone(ends[:2], task)})
    curves = {}
    for what, path in (("arc", arc(*ends)), ("bezier", bezier(ends))):
        curves[what], _, more = compare(what, net, path, task, args, parts=12)
        rows += more
    keys = {}
    if min(args.cifar) > 0:
        del task
        wide = random_task(*args.cifar, (3, 32, 32), args.device)
        net, ends = network((3, 32, 32), args.width, args.device)
        cifar, _, more = compare("segment", net, segment(*ends[:2]), wide, args, parts=12)
        keys = {"cifar_ratio": cifar["ratio"], "lowp_cifar_ratio": cifar["lowp_ratio"]}
        rows += more
    print(where())
    print(table(rows))
    print(f"T = 1001: {median(seconds['dense']):.2f} s; the two products alone: {median(seconds['products']):.2f} s; "
          f"extra memory {memory:.0f} MiB")
    print(result("path_evaluation", ratio=main_["ratio"], t1001=ratio(seconds["dense"], seconds["evaluate"]),
                 limit=ratio(seconds["evaluate"], seconds["products"]), **keys, arc_ratio=curves["arc"]["ratio"],
                 bezier_ratio=curves["bezier"]["ratio"],
                 **{key: main_[key] for key in ("lowp_ratio", "lowp_diff", "bfloat16_ratio", "bfloat16_diff")}, max_diff=max(main_["nll"], main_["accuracy"]), nll_diff=main_["nll"],
                 accuracy_diff=main_["accuracy"], seconds=main_["seconds"], extra_mib=memory, peak_gib=peak_gib(),
                 device=args.device))


if __name__ == "__main__":
    main()
