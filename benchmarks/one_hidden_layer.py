"""AY20's methods for one pair of one-hidden-layer networks: transport with all its swaps, and weight adjustment.

Images are random with MNIST's shape and sparsity. Transport: matching and the whole path, every swap at its middle and
its end, against one plain pass over the same images. `swaps_ratio`: all swaps against one such pass for each of them, a
forward pass of a network in the middle of a swap, whose time is extrapolated from a few of them. Adjustment: all knots against NumPy's float32 pseudo-inverse of the
feature matrix at one knot, times the number of knots. What is compared alternates, so that a drift of the machine's
speed meets both alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from benchmarks.measure import interleaved, median, peak_gib, ratio, result, table, where
from benchmarks.path_evaluation import random_task
from lossland.adjust import adjusted
from lossland.connect import connect
from lossland.evaluation import evaluate
from lossland.kernels import class_scores
from lossland.models import build, initial_weights
from lossland.paths import Path, segment
from lossland.evaluation.scoring import batches
from lossland.tasks import Task
from lossland.weights import Weights, skeleton


@torch.no_grad()
def plain_pass(net: nn.Module, weights: Weights, task: Task) -> float:
    """Return the training nll [nats] of one network: a full forward pass, batches of 1000 from memory."""
    bare, total = skeleton(net), torch.zeros(1, dtype=torch.float64)
    for images, labels in batches(task, task.train, 1000, torch.float32):
        nll, _, _ = class_scores(functional_call(bare, (weights, {}), (images,))[None], labels)
        total += nll.cpu()
    return float(total) / len(task.train)


def hidden(weights: Weights, task: Task) -> Iterator[Tensor]:
    """Yield the hidden features (b, n) of the training images, batch by batch."""
    for images, _ in batches(task, task.train, 1000, torch.float32):
        yield linear(images.flatten(1), weights["linear.0.weight"], weights["linear.0.bias"]).relu_()


def transport(net: nn.Module, ends: tuple[Weights, Weights], task: Task, points: int) -> dict[str, object]:
    """Return seconds of the parts, the table of the path, and the path."""
    start = time.perf_counter()
    path = connect(net, *ends, matching="ot")
    matched = time.perf_counter()
    leg = (path.locate(torch.linspace(0, 1, points))[0] == 0).sum()
    evaluate(net, path, task, points=torch.linspace(0, 0.499, int(leg)), splits=("train",))
    walked = time.perf_counter()
    swaps = evaluate(net, path, task, points=(1 + path.legs[1].knots()) / 2, splits=("train",))
    done = time.perf_counter()
    return {"matching": matched - start, "transport leg": walked - matched, "swaps": done - walked, "path": path, "table": swaps}


def pseudo_inverse(path_point: Weights, a: Weights, task: Task) -> float:
    """Return the relative residual of AY20 Eq. (10) at one knot, by NumPy's float32 pseudo-inverse."""
    features = torch.cat(list(hidden(path_point, task))).cpu().numpy()  # (N, n)
    head = a["linear.1.weight"].cpu().numpy()
    target = np.concatenate([batch.cpu().numpy() @ head.T for batch in hidden(a, task)])  # (N, C)
    solved = np.linalg.pinv(features) @ target
    return float(np.linalg.norm(features @ solved - target) / np.linalg.norm(target))


def middles(path: Path, count: int) -> list[Weights]:
    """Return networks in the middle of so many swaps, evenly spread."""
    swaps = torch.linspace(0, path.legs[1].count - 1, count).round() + 0.5
    return [path.point(float(1 + s / path.legs[1].count) / 2) for s in swaps]


def largest_difference(net: nn.Module, run: dict[str, object], task: Task) -> float:
    """Return the largest |nll| by which ten points of the swaps differ from networks that were built and run."""
    rows = run["table"].iloc[1 :: max(1, len(run["table"]) // 10)]
    return max(abs(row.nll - plain_pass(net, run["path"].point(row.t), task)) for row in rows.itertuples())


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--points", type=int, default=61, help="of the path; half of them lie on the transport leg")
    parser.add_argument("--knots", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    task = random_task(args.images, 10, (1, 28, 28), args.device)
    net = build("mlp", (1, 28, 28), 10, width=args.width)
    # Four times the initial weights: logits as large as those of a trained network
    a, b = ({key: 4 * value for key, value in initial_weights(net, torch.Generator().manual_seed(seed), device=args.device).items()}
            for seed in (1, 2))
    straight, peaks = segment(a, b), []

    def adjust(_: int) -> float:
        path = adjusted(net, straight, a, b, task, knots=args.knots)
        peaks.append(peak_gib())  # of the whole process; the first is taken before any pseudo-inverse
        return float(path.knots.residual.iloc[args.knots // 2])

    middle = straight.point(args.knots // 2 / (args.knots - 1))
    wa, residuals = interleaved({"adjusted": adjust, "pinv": lambda _: pseudo_inverse(middle, a, task)}, args.repeats)
    halfway = middles(connect(net, a, b, matching="ot"), args.repeats)
    ot, runs = interleaved({"pass": lambda i: plain_pass(net, halfway[i], task), "ot": lambda _: transport(net, (a, b), task, args.points)},
                           args.repeats)
    one_pass, whole, each = median(ot["pass"]), median(ot["ot"]), median(wa["pinv"])
    seconds, count = [run["swaps"] for run in runs["ot"]], runs["ot"][0]["path"].legs[1].count
    naive = [count * one for one in ot["pass"]]
    rows = [{"what": "one plain pass", "seconds": one_pass, "passes": 1.0}]
    rows += [{"what": f"OT: {part}", "seconds": (s := median([run[part] for run in runs["ot"]])), "passes": s / one_pass}
             for part in ("matching", "transport leg", "swaps")]
    rows += [{"what": f"all swaps one by one (from {args.repeats})", "seconds": median(naive), "passes": float(count)},
             {"what": f"OT: all, {count} swaps", "seconds": whole, "passes": whole / one_pass},
             {"what": f"WA: {args.knots} knots", "seconds": median(wa["adjusted"]), "passes": median(wa["adjusted"]) / one_pass},
             {"what": "pseudo-inverse, one knot", "seconds": each, "passes": each / one_pass}]
    print(where(), f"784-{args.width}-10, {args.images} images; pseudo-inverse extrapolated from 1 to {args.knots} knots")
    print(table([{key: value if isinstance(value, str) else f"{value:.2f}" for key, value in row.items()} for row in rows]))
    print(f"all swaps one by one: extrapolated from {args.repeats} to {count} networks; scored here by "
          f"{runs['ot'][0]['table'].attrs['way']!r}")
    print(result("one_hidden_layer", swaps_ratio=ratio(naive, seconds), swaps_passes=whole / one_pass, swaps_diff=largest_difference(net, runs["ot"][0], task),
                 wa_ratio=args.knots * each / median(wa["adjusted"]), wa_gb=peaks[0], wa_residual=residuals["adjusted"][0],
                 pinv_residual=residuals["pinv"][0], device=args.device))


if __name__ == "__main__":
    main()
