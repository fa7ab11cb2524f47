"""W21 Proposition A.1: where the loss is convex in the weights, the mean loss of a subspace is convex in its control points."""

import pytest
import torch
from conftest import make_task
from torch import nn

from lossland import families, models
from lossland.evaluation import evaluate
from lossland.weights import mix

TASK = make_task((1, 8, 8))
REGRESSION = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
MLP = models.MLP((1, 8, 8), 3, widths=(6,))


def drawn(net: nn.Module, seed: int, scale: float = 1.0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in net.named_parameters()}


def subspaces(net: nn.Module, kind: str, seed: int, scale: float) -> tuple:
    """Two sets of control points."""
    points = [drawn(net, 10 * seed + i, scale) for i in range(6)]
    if kind == "line":
        return families.line(*points[:2]), families.line(*points[2:4])
    bent = families.bezier(points[0], points[1], ends="free")
    return bent.with_points(points[:3]), bent.with_points(points[3:])


def mean_loss(net: nn.Module, family: families.Family) -> float:
    """Return h, the expectation of Eq. (6), as a mean over 11 positions: convexity holds for any fixed distribution."""
    return evaluate(net, family, TASK, points=[i / 10 for i in range(11)], splits=("train",)).nll.mean()


def gap(net: nn.Module, kind: str, seed: int, share: float, scale: float = 1.0) -> float:
    """Return how far h lies below its chord between two subspaces: >= 0 for convex h."""
    one, two = subspaces(net, kind, seed, scale)
    c = torch.tensor([1 - share, share], dtype=torch.float64)
    between = one.with_points([mix(pair, c) for pair in zip(one.points, two.points, strict=True)])
    return (1 - share) * mean_loss(net, one) + share * mean_loss(net, two) - mean_loss(net, between)


@pytest.mark.parametrize("kind", ["line", "bezier"])
def test_the_mean_loss_of_softmax_regression_is_convex_in_the_control_points(kind):
    gaps = [gap(REGRESSION, kind, seed, share) for seed in range(1, 5) for share in (0.2, 0.5, 0.9)]
    assert min(gaps) > 0


def test_that_of_a_network_with_a_hidden_layer_is_not():
    assert min(gap(MLP, "line", seed, 0.5, scale=0.3) for seed in range(1, 9)) < 0
