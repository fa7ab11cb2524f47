"""The compiled kernels on a CPU against the plain torch that specifies them, on one thread, and what is not compiled.

Class scores: logits of T networks, N images and C classes. Swaps: half-done swaps of a network 784-2000-10, the
products with its first layer left out. Other activations than ReLU, which stay in torch: a point of a path of networks
784-2000-10 in tiles that fit into cache, against a plain pass. Mixing control points: torch's `lerp` into given memory
reads and writes as fast as a copy does, so that nothing is compiled for it.

Keys: `scores_10`, `scores_100`, `scores_1000` class scores, reference / kernel at so many classes; `swaps` reference /
kernel; `swaps_diff` their largest difference in nll; `tanh`, `gelu`, `silu` plain pass / a point of the path; `mix`
mixing's share of a copy's rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from benchmarks.measure import interleaved, median, ratio, result, table, where
from lossland import kernels
from lossland.kernels import reference

SHAPES = {10: (16, 4000), 100: (16, 1000), 1000: (4, 1000)}
ACTIVATIONS = {"tanh": torch.tanh, "gelu": gelu, "silu": silu}


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def against(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Return the median ratio of the times of two functions, and the median seconds of both."""
    first(), second()  # what is compiled at the first call
    seconds, _ = interleaved({"first": lambda _: first(), "second": lambda _: second()}, repeats)
    return ratio(seconds["first"], seconds["second"]), median(seconds["first"]), median(seconds["second"])


def class_scores(classes: int, repeats: int) -> tuple[float, float, float]:
    """Compare class scores."""
    points, images = SHAPES[classes]
    logits, labels = 3 * draw(points, images, classes), torch.arange(images) % classes
    return against(lambda: reference.class_scores(logits, labels), lambda: kernels.class_scores(logits, labels),
                   repeats)


def swaps(count: int, repeats: int) -> tuple[float, float, float, float]:
    """Compare swaps, and return the largest difference of their losses, too."""
    z, head, labels = draw(2000, 2096), draw(10, 2000, seed=1) / 2000**0.5, torch.arange(2096) % 10
    moves = torch.arange(2 * count).reshape(-1, 2) % 2000, torch.full((count,), 0.5)
    args = head @ z.relu(), z, head, moves, labels
    found = kernels.swap_scores(*args)[0] - reference.swap_scores(*args)[0]
    both = against(lambda: reference.swap_scores(*args), lambda: kernels.swap_scores(*args), repeats)
    return *both, float(found.abs().max()) / 2096


def activation(name: str, points: int, repeats: int) -> tuple[float, float, float]:
    """Compare a plain pass of a network with a point of a path."""
    act, images, weight = ACTIVATIONS[name], draw(2096, 784), draw(2000, 784) / 28
    features, heads, biases = draw(2, 2096, 2000), draw(2, 10, 2000, seed=1) / 2000**0.5, draw(2, 10)
    c, labels = torch.linspace(0, 1, points)[:, None], torch.arange(2096) % 10
    args = list(features), torch.cat([1 - c, c], 1), list(heads), list(biases), labels
    whole, plain, ours = against(
        lambda: kernels.class_scores(linear(act(linear(images, weight)), heads[0])[None], labels),
        lambda: kernels.path_scores(*args, activation=act), repeats)
    return points * whole, plain, ours / points


def mixing(weights: int, repeats: int) -> tuple[float, float, float]:
    """Return the rate of mixing two points as a share of a copy's, and both in GB/s."""
    a, b, into = draw(weights), draw(weights, seed=1), torch.empty(weights)
    _, mixed, copied = against(lambda: torch.lerp(a, b, 0.3, out=into), lambda: into.copy_(a), repeats)
    rates = 3 * a.nbytes / mixed / 1e9, 2 * a.nbytes / copied / 1e9
    return rates[0] / rates[1], *rates


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, keys = [], {}

    def note(key: str, what: str, found: tuple[float, float, float], unit: float = 1e3) -> None:
        keys[key] = found[0]
        rows.append({"what": what, "first": f"{found[1] * unit:.3f}", "second": f"{found[2] * unit:.3f}",
                     "ratio": f"{found[0]:.2f}"})

    for classes, (points, images) in SHAPES.items():
        note(f"scores_{classes}", f"class scores ({points}, {images}, {classes}), torch / compiled [ms]",
             class_scores(classes, args.repeats))
    *found, difference = swaps(400, args.repeats)
    note("swaps", "400 swaps of 2096 images, torch / compiled [ms]", tuple(found))
    for name in ACTIVATIONS:
        note(name, f"{name}: a plain pass / a point of a path, 2096 images [ms]",
             activation(name, 61, min(args.repeats, 3)))
    note("mix", "mixing two points of 15 million weights / a copy [GB/s]", mixing(15_000_000, args.repeats), 1)
    print(where())
    print(table(rows))
    print(result("cpu_kernels", **keys, swaps_diff=difference))


if __name__ == "__main__":
    main()
