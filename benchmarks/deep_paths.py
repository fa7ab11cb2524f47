"""The loss along one leg of deep networks: Chebyshev nodes against a plain loop over t.

Networks: VGG16 (AY20's, without batch norm) and PreResNet20 with batch norm, both of the papers' widths. The leg is the
segment between two networks that were trained for a few steps on images of CIFAR-10's shape whose classes can be told.
PreResNet20: two random draws, trained as a whole. VGG16: two draws that share 0.95 of their variance, as runs do that share
their first epochs, and the last layer trained alone, because without normalisation a few steps teach the rest nothing. Both
losses change along the leg by tenths of nats. It is an easy leg, the smoothest of four kinds that were tried: with 0.7 in
common the estimated error was 8.5e-2. (Between independent draws VGG16's loss leaps within a tenth of the leg from its ends
to a plateau; there nodes are doubled, and the ratio was not measured.) The number of nodes is the smallest that keeps 1e-3 on
2000 images of that leg; errors there: 9 nodes 1.7e-3, 11 9.9e-4, 13 7.0e-4, 17 3.8e-4.

Legs that people evaluate are rougher. A VGG16 of 8 channels in its first block, trained by two seeds for 8 epochs on 3,000
images of CIFAR-10 (re-encoded as JPEG; nll 1.7 and a third right on test images), a segment between them that rises to 2.5
and a Bezier curve that rises to 2.1; the largest error of the polynomial at 61 t on 3,000 test images [nats]:

    nodes                                        9       11      13      17      25      33
    segment                                      6.6e-2  2.6e-2  1.6e-2  3.5e-3  5.8e-4  3.7e-4
    Bezier curve, one bend, 5 epochs             6.2e-3  3.7e-3  1.6e-3  8.7e-4  6.4e-4  4.0e-4

So 1e-3 takes 17 nodes on the curve and 25 on the segment, which leaves 61 / 17 = 3.6 and 61 / 25 = 2.4 times what one
point is faster: with 1.2 to 1.3 in float32 neither reaches 6, with 2.1 in bfloat16 (61 points of VGG16: 27 and 13 minutes)
the curve would, at an error of bfloat16's own of 5e-4 (1,000 images). PreResNet20 of 8 channels, trained likewise, on 600
test images and statistics of 600 others, which make its curves rougher than 10,000 would:

    nodes                                        9       11      13      17      25      33
    segment                                      4.0e-2  2.6e-2  1.4e-2  3.4e-3  1.3e-3  7.8e-4
    Bezier curve, one bend, 4 epochs             9.8e-3  6.8e-3  4.6e-3  1.7e-3  5.6e-4  9.4e-4

Plain loop: 61 equidistant t; float32, images prepared once and kept in memory, in the usual layout; at each t the weights
are mixed into a module, batch-norm statistics are reset and re-estimated in one pass over the training images, and the test
images are scored. Some of its t are run, in the batches that are faster of those asked for; its time is extrapolated to 61.

`ratio`: plain loop / `evaluate(points=61, nodes=...)`, which does the same work at the nodes and interpolates between them; it
is run in full between points of the plain loop. VGG16: 11 nodes in float32, because bfloat16 alone moves its loss by about
1e-3. PreResNet20: 17 nodes in bfloat16, the comparison with float32 at three t on 1000 images (`bfloat16_error`) included.
`float32_ratio`, `bfloat16_ratio`: with as many nodes, extrapolated from `evaluate` at the t that the plain loop has run.

`diff`: of that curve, without doubling of nodes, from `evaluate`'s at all 61 t in float32, both on fewer images (column
dense), training images for batch norm included: fewer images make the curve rougher, so that all of them would give less.
`diff_at`: of `evaluate` in float32 from the plain loop at the t that it has run, on all images; with batch norm it has the
plain loop's other batches in it, whose own statistics normalise while statistics are estimated.

`evaluate` keeps freed memory for the next request while it runs (`lossland.allocation`); the plain loop runs as the C library
likes it, in the fastest of the batch sizes asked for. A pass of VGG16 over 1024 images, median of three, per image: 1.81 ms in
batches of 64, 4.24 ms in batches of 1000; with memory kept for the plain loop, too, 1.80 and 1.76 ms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import avg_pool2d, cross_entropy, linear

from benchmarks.measure import median, result, table, where
from lossland.evaluation import evaluate
from lossland.families import point
from lossland.models import build, initial_weights
from lossland.paths import Path, segment
from lossland.tasks import Split, Task
from lossland.training import Recipe, fit
from lossland.weights import Weights, skeleton

SHAPE, POINTS = (3, 32, 32), 61
WAYS = {"vgg16": (11, None), "preresnet20": (17, "bfloat16")}  # nodes and precision with which 1e-3 is kept
RECIPE = Recipe(epochs=3, lr=0.05, batch_size=32, schedule="constant")  # of PreResNet20
SHARED = 0.95  # of the variance of VGG16's weights: what its two ends have in common


def patterned_task(train: int, test: int, device: str) -> Task:
    """Return images of ten patterns under noise: classes that are learnt in a few steps, and not without errors."""
    g = torch.Generator().manual_seed(0)
    patterns = avg_pool2d(torch.rand(10, 3, 32, 32, generator=g), 5, 1, 2)
    splits = []
    for n in (train, test):
        labels = torch.randint(0, 10, (n,), generator=g)
        noise = torch.randn(n, *SHAPE, generator=g)
        splits.append(Split((128 + 300 * (patterns[labels] - 0.5) + 50 * noise).clamp(0, 255).byte(), labels))
    return Task(name="patterns", train=splits[0], test=splits[1], validation=None, classes=10, scale=255.0,
                mean=(0.5,) * 3, std=(0.25,) * 3, fingerprint="patterns").to(device)


def end(model: str, task: Task, images: int, seed: int) -> tuple[nn.Module, Weights]:
    """Return a network and its weights: He's draws, then a few steps of training, for VGG16 of its last layer alone."""
    net = build(model, SHAPE, 10, **({"dropout": 0.0} if model == "vgg16" else {}))
    weights, common = (initial_weights(net, torch.Generator().manual_seed(number), scheme="kaiming-normal",
                                       device=str(task.train.labels.device)) for number in (seed, 0))
    some = task.subset(train=images)
    if model != "vgg16":
        return net, fit(net, point(weights), some, RECIPE, seed=seed).family.points[0]
    weights = {name: SHARED**0.5 * common[name] + (1 - SHARED) ** 0.5 * tensor for name, tensor in weights.items()}
    return net, {**weights, **last_layer(net, weights, some)}


def last_layer(net: nn.Module, weights: Weights, task: Task) -> Weights:
    """Return the last layer that a softmax regression on the features of the training images gives."""
    seen: list[Tensor] = []
    bare, name = skeleton(net), f"head.{len(net.head) - 1}"
    bare.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for images in task.prepare(task.train.images).split(64):
            functional_call(bare, weights, (images,))
    features = torch.cat(seen)
    head = [torch.zeros_like(weights[f"{name}.{part}"]).requires_grad_() for part in ("weight", "bias")]
    optimiser = torch.optim.LBFGS(head, max_iter=30)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = cross_entropy(linear(features, *head), task.train.labels) + 1e-2 * head[0].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return {f"{name}.weight": head[0].detach(), f"{name}.bias": head[1].detach()}


class PlainLoop:
    """What a careful user would write."""

    def __init__(self, model: str, path: Path, task: Task) -> None:
        self.device, self.path = task.train.labels.device, path
        self.module = build(model, SHAPE, 10).to_empty(device=self.device)
        self.train, self.test = (task.prepare(split.images) for split in (task.train, task.test))
        self.labels = task.test.labels
        self.norms = [part for part in self.module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]

    @torch.no_grad()
    def __call__(self, t: float, batch: int, few: int | None = None) -> float:
        """Return the test nll [nats] at t; `few`: on some images only."""
        self.module.load_state_dict(self.path.point(t), strict=False)
        if self.norms:
            self.module.train()
            for norm in self.norms:
                norm.reset_running_stats()
                norm.momentum = None  # the average over batches
            for images in self.train[:few].split(batch):
                self.module(images)
        self.module.eval()
        losses = [cross_entropy(self.module(images), labels, reduction="sum")
                  for images, labels in zip(self.test[:few].split(batch), self.labels[:few].split(batch), strict=True)]
        return float(sum(losses)) / len(self.labels[:few])


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call takes, and what it returns."""
    start = time.perf_counter()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def nll(frame: pd.DataFrame) -> pd.Series:
    """Return the losses of a table by t."""
    return frame.set_index("t").nll


def compared(model: str, images: int, dense: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the figures of one model: seconds of whole curves, differences [nats]."""
    task = patterned_task(args.train, images, args.device)
    (net, a), (_, b) = (end(model, task, args.steps_on, seed) for seed in (1, 2))
    path, some = segment(a, b), torch.linspace(0.2, 0.6, args.plain_points, dtype=torch.float64).tolist()
    plain = PlainLoop(model, path, task)
    batch = min(args.batches, key=lambda size: seconds(lambda: plain(0.5, size, few=1000))[0])
    count, precision = WAYS[model]
    how = dict(points=POINTS, nodes=count, splits=("test",), precision=precision)
    spent = [seconds(lambda t=t: plain(t, batch)) for t in some[::2]]
    ours, curve = seconds(lambda: evaluate(net, path, task, **how))
    spent += [seconds(lambda t=t: plain(t, batch)) for t in some[1::2]]
    times, tables = zip(*(seconds(lambda p=p: evaluate(net, path, task, points=some, splits=("test",), precision=p))
                          for p in (None, "bfloat16")), strict=True)
    gaps = [abs(nll(tables[0])[t] - value) for t, (_, value) in zip(some[::2] + some[1::2], spent, strict=True)]
    few = dict(splits=("test",), images=dense, statistics=dense)
    whole = nll(evaluate(net, path, task, points=POINTS, **few))
    by_nodes = nll(evaluate(net, path, task, **how | few, tolerance=float("inf")))
    losses = nll(curve)
    points = curve.attrs["nodes"]
    return {"batch": batch, "plain": median([one for one, _ in spent]) * POINTS, "ours": ours,
            "float32": times[0] / len(some) * points, "bfloat16": times[1] / len(some) * points, "nodes": points,
            "start": losses.iloc[0], "top": losses.max(), "end": losses.iloc[-1], "estimate": curve.nll_error.max(),
            "diff": float((whole - by_nodes[whole.index]).abs().max()), "diff_at": max(gaps),
            "bfloat16_error": tables[1].attrs["bfloat16_error"], "images": images, "dense": dense}


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vgg-images", type=int, default=10_000, help="test images of VGG16")
    parser.add_argument("--resnet-images", type=int, default=10_000, help="test images of PreResNet20")
    parser.add_argument("--train", type=int, default=5000, help="training images, on which batch-norm statistics are estimated")
    parser.add_argument("--vgg-dense", type=int, default=3000, help="images of the curve that is evaluated at every t")
    parser.add_argument("--resnet-dense", type=int, default=1500)
    parser.add_argument("--plain-points", type=int, default=2, help="t of the plain loop that are run")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 1000], help="of the plain loop; the faster is taken")
    parser.add_argument("--steps-on", type=int, default=256, help="images on which the ends are trained")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    found = {"vgg": compared("vgg16", args.vgg_images, args.vgg_dense, args),
             "resnet": compared("preresnet20", args.resnet_images, args.resnet_dense, args)}
    print(where(), f"{POINTS} points of one leg; the plain loop extrapolated from {args.plain_points} of them; differences "
          "from the curve at all points on fewer images (column dense)")
    print(table([{"network": name, **{key: f"{value:.4g}" for key, value in each.items()}} for name, each in found.items()]))
    keys = {f"{name}_{key}": value for name, each in found.items() for key, value in
            {"ratio": each["plain"] / each["ours"], "diff": each["diff"], "float32_ratio": each["plain"] / each["float32"],
             "bfloat16_ratio": each["plain"] / each["bfloat16"], "bfloat16_error": each["bfloat16_error"], "nodes": each["nodes"], "images": each["images"]}.items()}
    print(result("deep_paths", **keys, device=args.device))


if __name__ == "__main__":
    main()
