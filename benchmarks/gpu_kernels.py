"""The GPU kernels against the best expression in torch and against the roofline of the card they run on.

The roofline is measured in the same run: bytes (read and written) of a large copy, operations of large matrix products.
A kernel's floor is the longer of the bytes that it must move and of the operations that it must do at these rates; its
share is floor / time. Times are medians of CUDA events, with the second-level cache overwritten before each. Images are
random with MNIST's share of set pixels.

Keys: `path_ms`, `dense_ms` a segment of 784-2000-10 on 70,000 images by `evaluate`, T = 61 and 1001; `roofline` share of
the fused kernel as `evaluate` uses it; `many_ratio` 16 networks 784-2000-10, one after the other / together; `K_ms`,
`K_share`, `K_torch` (best torch / ours) of every kernel K; `K_diff` difference of its nll from float64 [nats].

    python -m benchmarks.gpu_kernels --device cuda     # some three minutes
    python -m benchmarks.gpu_kernels --device cpu      # tiny shapes in triton's interpreter: does it all run?
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import interleaved, median, ratio, result, table, where
from benchmarks.path_evaluation import network, random_task
from lossland.bases import linear_basis
from lossland.evaluation import evaluate
from lossland.kernels import reference
from lossland.many import fit_many
from lossland.models import build, initial_weights
from lossland.paths import segment
from lossland.schedules import Recipe

FLUSH = 256 * 2**20  # bytes: several times the second-level cache
AHEAD = 16  # times: about a millisecond, in which the host starts what is timed, so that no gap is


@dataclass(frozen=True)
class Case:
    """A kernel with what it is measured against.

    Attributes:
        name: of the keys.
        shape: in words.
        ours: runs the kernel.
        others: name -> the same in torch.
        moved: bytes that must be read and written.
        done: unit -> operations that it must do.
        nll: from our result, what is compared with `exact` [nats a network and image]; None: nothing is.
        exact: in float64.
    """

    name: str
    shape: str
    ours: Callable[[], Any]
    others: dict[str, Callable[[], Any]]
    moved: float
    done: dict[str, float]
    nll: Callable[[Any], Tensor] | None = None
    exact: Tensor | None = None


def timed(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median time of a run in milliseconds, after one that compiles."""
    start = time.perf_counter()
    run()
    if device == "cpu":
        return 1e3 * (time.perf_counter() - start)
    flush, times = torch.empty(FLUSH, dtype=torch.int8, device=device), []
    for _ in range(repeats):
        for _ in range(AHEAD):
            flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times)


def ceilings(device: str, size: int, repeats: int) -> dict[str, float]:
    """Return bytes per millisecond of a copy, and operations per millisecond of products of size x size matrices."""
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=g).to(device) for _ in range(2))
    found, wide = {}, left.repeat(8, 1)
    found["bytes"] = 2 * wide.nbytes / timed(lambda: wide.clone(), device, repeats)
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = left.to(dtype), right.to(dtype)
        found[name] = 2 * size**3 / timed(lambda a=a, b=b: a @ b, device, repeats)
    torch.backends.cuda.matmul.allow_tf32 = before
    return found


def one_point(points: tuple[Tensor, Tensor], c: Tensor, head: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return nll, hits and histogram of one t in torch, to be compiled: `reference.class_scores` is the rest."""
    hidden = (c[0] * points[0] + c[1] * points[1]).relu()
    return reference.class_scores((hidden @ head.T + bias)[None], labels)


def path_cases(args: argparse.Namespace, compiled: Callable[..., Any]) -> Iterator[Case]:
    """Yield the fused kernel in all its precisions."""
    from lossland.kernels import _triton

    n, images, classes, points = args.width, sum(args.images), 10, args.points
    g = torch.Generator().manual_seed(1)
    whole = torch.randn(images, 2 * n, generator=g).to(args.device)
    features = list(whole.split(n, 1))
    heads = [torch.randn(classes, n, generator=g).to(args.device) * (2 / n) ** 0.5 for _ in range(2)]
    biases = [torch.randn(classes, generator=g).to(args.device) for _ in range(2)]
    labels = torch.randint(classes, (images,), generator=g).to(args.device)
    c = linear_basis(torch.linspace(0, 1, points, dtype=torch.float64))
    some = slice(0, min(images, 4000))
    exact = reference.path_scores([f[some].double() for f in features], c, [h.double() for h in heads],
                                  [b.double() for b in biases], labels[some])[0] / some.stop

    def by_point() -> list[Any]:
        rows = c.to(args.device, torch.float32)
        return [compiled(one_point)(tuple(features), row, row[0] * heads[0] + row[1] * heads[1],
                                    row[0] * biases[0] + row[1] * biases[1], labels) for row in rows]

    triples = points * images * n
    products = 2 * classes * triples
    for name, low, passes in (("ieee", "float32", 1), ("tf32x3", "tf32", 3), ("tf32", "tf32", 1), ("bfloat16", "bfloat16", 1)):
        kind = torch.bfloat16 if name == "bfloat16" else torch.float32
        z, w, b = ([one.to(kind) for one in part] for part in (list(whole.to(kind).split(n, 1)), heads, biases))
        how = {"precision": "ieee" if name == "bfloat16" else name}
        done = {"float32": 4 * triples} if low != "float32" else {}
        others = {"loop": lambda: reference.path_scores(features, c, heads, biases, labels), "compiled": by_point}
        yield Case(f"fused_{name}", f"T {points}, N {images}, n {n}, C {classes}",
                   lambda z=z, w=w, b=b, how=how: _triton.path_scores(z, c, w, b, labels, **how),
                   others if name == "ieee" else {}, whole.nbytes * kind.itemsize / 4 + 18 * points * images,
                   done | {low: passes * products + (4 * triples if low == "float32" else 0)},
                   lambda _, z=z, w=w, b=b, how=how: _triton.path_scores([f[some] for f in z], c, w, b, labels[some], **how)[0] / some.stop,
                   exact)


def other_cases(args: argparse.Namespace, compiled: Callable[..., Any]) -> Iterator[Case]:
    """Yield class scores of few and of many classes, swaps, and mixtures of control points."""
    from lossland.kernels import _triton_scores as ours

    g = torch.Generator().manual_seed(2)
    images = args.images[0]
    for name, points, classes in (("class10", args.points, 10), ("class1000", max(1, args.points // 30), 1000)):
        logits = torch.randn(points, images, classes, generator=g).to(args.device)
        labels = torch.randint(classes, (images,), generator=g).to(args.device)
        yield Case(name, f"T {points}, N {images}, C {classes}", lambda x=logits, y=labels: ours.class_scores(x, y),
                   {"torch": lambda x=logits, y=labels: reference.class_scores(x, y),
                    "compiled": lambda x=logits, y=labels: compiled(reference.class_scores)(x, y)}, logits.nbytes, {})
    z, head = torch.randn(args.width, images, generator=g).to(args.device), torch.randn(10, args.width, generator=g).to(args.device)
    pairs, labels = torch.randint(args.width, (args.width, 2), generator=g).to(args.device), labels % 10
    rest, u = head @ z.relu(), torch.full((args.width,), 0.5, device=args.device)
    yield Case("swaps", f"T {args.width}, N {images}, C 10", lambda: ours.swap_scores(rest, z, head, (pairs, u), labels),
               {"torch": lambda: reference.swap_scores(rest, z, head, (pairs, u), labels)}, z.nbytes + rest.nbytes,
               {"float32": 55 * args.width * images})
    for k in (2, 3):
        w, c = torch.randn(k, 800 * args.width, generator=g).to(args.device), torch.rand(args.points, k, generator=g).to(args.device)
        yield Case(f"mix{k}", f"T {args.points}, k {k}, P {w.shape[1]}", lambda w=w, c=c: ours.mix(w, c),
                   {"torch": lambda w=w, c=c: c @ w}, (k + args.points) * w.shape[1] * 4, {})


def measured(case: Case, rates: dict[str, float], args: argparse.Namespace) -> tuple[dict[str, str], dict[str, float]]:
    """Return a row of the table and the keys of a case."""
    ms = timed(case.ours, args.device, args.repeats)
    others = {name: timed(other, args.device, max(1, args.repeats // 4)) for name, other in case.others.items()
              if args.compile or name != "compiled"}
    floors = {"bytes": case.moved / rates["bytes"], **{unit: count / rates[unit] for unit, count in case.done.items()}}
    limit = max(floors, key=floors.__getitem__)
    keys = {f"{case.name}_ms": ms, f"{case.name}_share": floors[limit] / ms}
    if others:
        keys[f"{case.name}_torch"] = min(others.values()) / ms
    if case.nll is not None:
        keys[f"{case.name}_diff"] = float((case.nll(None) - case.exact).abs().max())
    row = {"kernel": case.name, "shape": case.shape, "ms": f"{ms:.3f}", "floor": f"{floors[limit]:.3f} ({limit})",
           "share": f"{floors[limit] / ms:.2f}", "torch": ", ".join(f"{name} {value:.3f}" for name, value in others.items()),
           "nll diff": f"{keys[f'{case.name}_diff']:.1e}" if case.nll is not None else ""}
    return row, keys


def paths(args: argparse.Namespace) -> dict[str, float]:
    """Return milliseconds of `evaluate` on a segment at T points and at 1001, or ten times as many."""
    task = random_task(*args.images, (1, 28, 28), args.device)
    net, ends = network((1, 28, 28), args.width, args.device)
    straight, found = segment(*ends[:2]), {}
    for key, points in (("path_ms", args.points), ("dense_ms", 1001 if args.device == "cuda" else 10 * args.points)):
        way = evaluate(net, straight, task, points=points).attrs["way"]
        if args.device == "cuda" and way != "triton":
            raise RuntimeError(f"evaluate went the way {way!r}, not the kernels'")
        seconds, _ = interleaved({key: lambda _, points=points: evaluate(net, straight, task, points=points)}, args.repeats // 4 + 1)
        found[key] = 1e3 * median(seconds[key])
    return found


def many(args: argparse.Namespace) -> dict[str, float]:
    """Return how long 16 networks take one after the other, in terms of together: an epoch each, in turn."""
    images = min(args.images[0], 12_800)
    task = random_task(images, 100, (1, 28, 28), args.device)
    net = build("mlp", (1, 28, 28), 10, width=args.width)
    starts = [initial_weights(net, torch.Generator().manual_seed(seed), device=args.device) for seed in range(16)]
    recipe = Recipe(epochs=1, lr=0.05, batch_size=128)
    ways = {way: lambda _, way=way: fit_many(net, starts, task, recipe, range(16), way=way) for way in ("one by one", "together")}
    interleaved(ways, 1)
    seconds, _ = interleaved(ways, 3 if args.device == "cuda" else 1)
    return {"many_ratio": ratio(seconds["one by one"], seconds["together"]), "many_seconds": median(seconds["together"])}


@torch.no_grad()
def kernels(args: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Return the table and the keys of all kernels, and the ceilings."""
    known: dict[Callable[..., Any], Callable[..., Any]] = {}

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return known.setdefault(function, torch.compile(function) if args.compile else function)

    rates = ceilings(args.device, 8192 if args.device == "cuda" else 256, args.repeats)
    rows, keys = [], {"copy_tbs": rates["bytes"] / 1e9, **{f"{name}_tflops": rates[name] / 1e9 for name in ("float32", "tf32", "bfloat16")}}
    for cases in (path_cases, other_cases):
        for case in cases(args, compiled):
            row, more = measured(case, rates, args)
            rows.append(row)
            keys |= more
    return rows, keys


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--points", type=int, help="t on a path (61)")
    parser.add_argument("--width", type=int, help="hidden units (2000)")
    parser.add_argument("--images", type=int, nargs=2, help="training and test images (60000 10000)")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    args = parser.parse_args()
    tiny = args.device == "cpu"
    if not tiny and not torch.cuda.is_available():
        print("There is no CUDA device here: --device cpu tries the kernels in triton's interpreter, on tiny shapes.")
        return
    if tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        args.compile, args.repeats = False, 1
    args.points, args.width = args.points or (2 if tiny else 61), args.width or (6 if tiny else 2000)
    args.images = args.images or ((40, 10) if tiny else (60_000, 10_000))
    rows, keys = kernels(args)
    keys = {**paths(args), "roofline": keys["fused_ieee_share"], **many(args), **keys}
    print(f"{where()}{', interpreted' if tiny else ''}; copies {keys['copy_tbs']:.2f} TB/s, products "
          f"{keys['float32_tflops']:.1f} (float32), {keys['tf32_tflops']:.0f} (tf32), {keys['bfloat16_tflops']:.0f} (bfloat16) TFLOP/s")
    print(table(rows))
    print(result("gpu_kernels", **keys, device=args.device))


if __name__ == "__main__":
    main()
