"""All pairs of networks, and planes, of one-hidden-layer networks: what sharing first-layer products saves.

Keys: `pairs_ratio` one `evaluate` for each pair (timed on one, times their number) / all pairs together, on segments;
`pair_seconds` of all together for one pair; `arcs_ratio` the same on arcs about pooled centres; `plane_ratio` a plane of
21 x 21 cells as it was evaluated before, column by column, three float32 products and a loop over the cells / `plane`.
Differences: the largest change of nll.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.measure import interleaved, median, peak_gib, result, table, where
from benchmarks.path_evaluation import random_task
from lossland.evaluation import evaluate
from lossland.evaluation.dense import one_hidden
from lossland.evaluation.first_layers import FirstLayers
from lossland.evaluation.scoring import Sums
from lossland.evaluation.sharing import Job, score_jobs
from lossland.models import MLP, build, initial_weights
from lossland.neurons import pooled_centre
from lossland.pairwise import Between, pairs
from lossland.paths import Path, arc, segment
from lossland.planes import _Grid, plane
from lossland.tasks import Task
from lossland.weights import Weights


def all_pairs(net: MLP, networks: list[Weights], task: Task, path: Between, points: int) -> tuple[float, float, float]:
    """Return the seconds of all pairs, those of one `evaluate`, and the largest difference of their nll."""
    pairs(net, networks[:2], task.subset(100, 100), path=path, points=points)  # what is compiled at the first call
    one, splits = path(*networks[:2]), ("train",)
    seconds, results = interleaved({
        "one": lambda i: evaluate(net, one, task, points=points, splits=splits),
        "all": lambda i: pairs(net, networks, task, path=path, points=points, splits=splits) if i == 1 else None}, 3)
    found = results["all"][1]
    return seconds["all"][1], median(seconds["one"]), float((found.nll[:points] - results["one"][0].nll).abs().max())


@torch.no_grad()
def plane_before(net: MLP, three: list[Weights], task: Task, cells: int) -> torch.Tensor:
    """Return nll (cells * cells,) column by column: three products, then a loop over the cells."""
    grid, dense = _Grid.through(three, cells, 0.2), one_hidden(net)
    totals = {"train": Sums.zeros(len(grid.spots))}
    for rows in torch.arange(len(grid.spots)).split(grid.column):
        first = FirstLayers(task, [dense.layer(dense.first, point) for point in three], "float32")
        job = Job.of(dense, (totals, rows, grid.coefficients[rows]), [dense.second(point) for point in three], list)
        score_jobs(task, first, [job], lambda n: None)
    return totals["train"].nll / len(task.train)


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--plane-images", type=int, default=6_000)
    parser.add_argument("--points", type=int, default=61)
    parser.add_argument("--cells", type=int, default=21)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    task = random_task(args.images, 100, (1, 28, 28), args.device)
    net = build("mlp", (1, 28, 28), 10, width=args.width)
    networks = [{key: 4 * value for key, value in initial_weights(net, torch.Generator().manual_seed(seed),
                                                                  device=args.device).items()}
                for seed in range(args.networks)]

    def arcs(a: Weights, b: Weights) -> Path:
        return arc(a, b, pooled_centre(a, b, net.layers()))

    rows, figures = [], {}
    few = networks[: max(3, args.networks // 2)]
    for what, path, some in (("pair", segment, networks), ("arc", arcs, few)):
        together, alone, diff = all_pairs(net, some, task, path, args.points)
        count = len(some) * (len(some) - 1) // 2
        figures |= {f"{what}s_ratio": count * alone / together, f"{what}_seconds": together / count, f"{what}s_diff": diff}
        rows.append({"what": f"{count} {what}s, {args.images} images", "together": f"{together:.2f} s",
                     "alone": f"{count * alone:.2f} s (from one)", "ratio": f"{count * alone / together:.2f}"})
    small = random_task(args.plane_images, 100, (1, 28, 28), args.device)
    three = dict(zip("abc", networks[:3], strict=True))
    seconds, results = interleaved({
        "before": lambda i: plane_before(net, networks[:3], small, args.cells),
        "plane": lambda i: plane(net, three, small, cells=args.cells)}, 3)
    before, now = median(seconds["before"]), median(seconds["plane"])
    diff = float((torch.tensor(results["plane"][0].nll) - results["before"][0]).abs().max())
    rows.append({"what": f"plane, {args.cells} x {args.cells} cells, {args.plane_images} images", "together": f"{now:.2f} s",
                 "alone": f"{before:.2f} s", "ratio": f"{before / now:.2f}"})
    print(where())
    print(table(rows))
    print(result("pairs_and_planes", **figures, plane_ratio=before / now, plane_diff=diff, peak_gib=peak_gib(),
                 device=args.device))


if __name__ == "__main__":
    main()
