"""Evaluating a straight path of a one-hidden-layer network against a plain loop over t.

Images are random with MNIST's shape and sparsity (19 % of the pixels are set); both ways read the same uint8 tensors in
memory and do the same work: nll, hits and calibration histogram of every t on both splits. The loop is cut into thirds
that alternate with whole runs of `evaluate`, so that a drift of the machine's speed meets both alike.
"""

from __future__ import annotations

import argparse

import torch
from torch.func import functional_call

from benchmarks.measure import interleaved, median, peak_gib, result, table, where
from lossland.evaluation import evaluate
from lossland.kernels import class_scores
from lossland.models import build, initial_weights
from lossland.paths import segment
from lossland.evaluation.scoring import batches
from lossland.tasks import Split, Task
from lossland.weights import Weights, skeleton


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
def plain_loop(net: torch.nn.Module, ends: tuple[Weights, Weights], task: Task, ts: torch.Tensor) -> dict[tuple[float, str], tuple[float, float]]:
    """Return (t, split) -> (nll, accuracy): one full forward pass per t, batches of 1000 from memory."""
    bare, path, scores = skeleton(net), segment(*ends), {}
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


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=61)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--images", type=int, nargs=2, default=(60_000, 10_000))
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 28, 28))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    task = random_task(*args.images, tuple(args.shape), args.device)
    net = build("mlp", tuple(args.shape), 10, width=args.width)
    # Four times the initial weights: logits as large as those of a trained network
    ends = tuple({key: 4 * value for key, value in initial_weights(net, torch.Generator().manual_seed(seed), device=args.device).items()}
                 for seed in (1, 2))
    t = torch.arange(args.points, dtype=torch.float64) / (args.points - 1)
    before = peak_gib()
    evaluate(net, segment(*ends), task, points=args.points)
    memory = peak_gib() - before
    seconds, results = interleaved({
        "plain loop over t": lambda i: plain_loop(net, ends, task, t[i::3]),
        "evaluate": lambda i: evaluate(net, segment(*ends), task, points=args.points),
    }, 3)
    loop = {key: value for part in results["plain loop over t"] for key, value in part.items()}
    ours = results["evaluate"][-1].set_index(["t", "split"])
    nll_diff = max(abs(ours.loc[key, "nll"] - value[0]) for key, value in loop.items())
    hits_diff = max(abs(ours.loc[key, "accuracy"] - value[1]) for key, value in loop.items())
    loop_s, ours_s = sum(seconds["plain loop over t"]), median(seconds["evaluate"])
    shape = f"{task.train.images[0].numel()}-{args.width}-10, T={args.points}, {sum(args.images)} images"
    print(where())
    print(table([
        {"what": "plain loop over t", "shape": shape, "seconds": f"{loop_s:.2f}", "ratio": "1", "extra memory [GiB]": "-"},
        {"what": f"evaluate ({results['evaluate'][0].attrs['way']})", "shape": shape, "seconds": f"{ours_s:.2f}",
         "ratio": f"{loop_s / ours_s:.1f}", "extra memory [GiB]": f"{memory:.2f}"},
    ]))
    print(result("path_evaluation", ratio=loop_s / ours_s, max_diff=max(nll_diff, hits_diff), nll_diff=nll_diff,
                 accuracy_diff=hits_diff, seconds=ours_s, peak_gib=peak_gib(), device=args.device))


if __name__ == "__main__":
    main()
