"""Temperatures: confidence made to fit, on images that neither trained the network nor judge it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lossland.ensembles.scores import checked_members, outputs
from lossland.evaluation.scoring import Stateless, check_task
from lossland.metrics import nll
from lossland.targets import flatten
from lossland.tasks import Split, Task
from lossland.weights import Weights

RANGE = (0.05, 20.0)
"""Temperatures that are looked at: the best one of a network that gets every image right is 0."""

_STEPS = 60  # of Newton's method and halving together; a dozen is usual


@torch.no_grad()
def best_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature T at which `nll(scores / T, labels)` is smallest.

    The loss is convex in 1 / T; the minimum is found to rounding, by Newton's method between bounds. Dividing by a
    temperature never changes which class comes first.

    Args:
        scores: (n, C) logits of a network, or averaged scores of an ensemble [nats]; (n, C, L) for words.
        labels: (n,) classes of images that neither trained the network nor will judge it; (n, L) words.

    Returns:
        T in `RANGE`; one of its ends where the loss goes on falling: the lower one for scores that are all right, the
        upper one for scores that are worse than a guess. Above 1: the scores were too confident.

    Raises:
        TypeError, ValueError: as `metrics.nll`; scores that are NaN or infinite.

    Source: Guo et al. 2017, section 4.2, which G18 section 4.3 takes.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 1])  # three of four right: a confidence of 3/4 would be honest
        >>> scores = 6 * torch.tensor([[1.0, 0.0]]).expand(4, 2)
        >>> round(6 / best_temperature(scores, labels), 6) == round(math.log(3), 6)
        True
    """
    scores, labels = flatten(scores, labels)
    nll(scores, labels)  # its checks
    if not scores.isfinite().all():
        raise ValueError("scores must be finite, got NaN or infinite ones")
    scores = scores.double()
    scores = scores - scores.amax(-1, keepdim=True)
    chosen = scores.gather(-1, labels.to(scores.device)[:, None]).mean()
    low, high = 1 / RANGE[1], 1 / RANGE[0]  # of 1 / T
    if _slope(scores, chosen, low)[0] >= 0:
        return RANGE[1]
    if _slope(scores, chosen, high)[0] <= 0:
        return RANGE[0]
    inverse = min(max(1.0, low), high)
    for _ in range(_STEPS):
        slope, bend = _slope(scores, chosen, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / bend if bend > 0 else low
        before, inverse = inverse, step if low < step < high else math.sqrt(low * high)
        if abs(inverse - before) <= 1e-14 * inverse:
            break
    return 1 / inverse


def _slope(scores: Tensor, chosen: Tensor, inverse: float) -> tuple[float, float]:
    """Return first and second derivative of the loss of `inverse * scores` with respect to `inverse`."""
    share = (inverse * scores).softmax(-1)
    mean = (share * scores).sum(-1)
    bend = (share * (scores - mean[:, None]).square()).sum(-1).mean()
    return float(mean.mean() - chosen), float(bend)


def held_out(task: Task, split: str) -> Split:
    """Return the split on which temperatures may be fitted.

    Raises:
        ValueError: for another one than the validation split, or a task without.
    """
    if split in ("test", "train"):
        why = {"test": "a temperature fitted on the test split has seen the labels that it is judged by",
               "train": "networks know the training images by heart and are too sure of them"}[split]
        raise ValueError(f"split must be 'validation', got {split!r}: {why}; train on task.hold_out(0.1), which has "
                         "one")
    return task.split(split)


def held_out_logits(net: nn.Module, members: Iterable[Weights], task: Task, split: str) -> tuple[Tensor, Tensor]:
    """Return the logits (m, N, C) of the members on the validation split, float64, and the labels (N,)."""
    check_task(net, task)
    part, function = held_out(task, split), Stateless(net, task)
    logits = [outputs(function, weights, part) for weights in checked_members(net, members)]
    return torch.stack(logits), part.labels.flatten()


@torch.no_grad()
def global_temperature(net: nn.Module, members: Iterable[Weights], task: Task, *, split: str = "validation") -> float:
    """Return the one temperature for all members with which their mean loss on the validation split is smallest.

    For a single network pass `[weights]`. The members are calibrated each for itself; the average of calibrated members
    is not sure enough, and `best_temperature(predict_members(..., split="validation"), labels)` tells by how much.

    Args:
        net: the network.
        members: weights of one member after the other; their logits on the validation split are kept.
        task: with a validation split (`load_task(..., validation=0.1)`, or `Task.hold_out`) on which the members were
            not trained.
        split: the validation split; others are refused.

    Returns:
        T in `RANGE`, for `member_scores(..., temperatures=T)`.

    Raises:
        ValueError: for another split, a task without a validation split, or members as `member_scores`.

    Source: Guo et al. 2017.
    """
    logits, labels = held_out_logits(net, members, task, split)
    return best_temperature(logits.flatten(0, 1), labels.repeat(len(logits)))


@torch.no_grad()
def point_temperatures(net: nn.Module, members: Iterable[Weights], task: Task, *, split: str = "validation",
                       losses: Sequence[float] | None = None) -> list[float]:
    """Return one temperature per member: a factor, the same for all, times the member's loss.

    Networks in the middle of a curve have the accuracy of its ends and a larger loss: they are too confident. Their
    logits are multiplied by a factor that is inversely proportional to the loss. That one factor is what is fitted.

    Args:
        net: the network.
        members: weights of one member after the other, points of a curve say; their logits on the validation split are
            kept.
        task: with a validation split on which the members were not trained.
        split: the validation split; others are refused.
        losses: one per member, of any split (G18: "the pattern of loss, shared across train and test sets"); None: the
            loss on the validation split.

    Returns:
        Temperatures [> 0], for `member_scores(..., temperatures=...)`; the geometric mean of all lies in `RANGE`.

    Raises:
        ValueError: for another split, a task without a validation split, members as `member_scores`, losses that are
            not positive or not one per member.

    Source: G18 section 4.3 ("temperature scaling [...] inversely proportional to the loss").
    """
    logits, labels = held_out_logits(net, members, task, split)
    return loss_temperatures(logits, labels, losses)


def loss_temperatures(logits: Tensor, labels: Tensor, losses: Sequence[float] | None = None) -> list[float]:
    """Return the temperatures of `point_temperatures` for logits (m, N, C) with labels (N,)."""
    values = nll(logits, labels) if losses is None else torch.as_tensor(losses, dtype=torch.float64).to(logits.device)
    if values.shape != logits.shape[:1] or not (values.isfinite() & (values > 0)).all():
        raise ValueError(f"losses must be positive, one for each of the {len(logits)} members, got {values.tolist()}")
    relative = values / values.log().mean().exp()
    cooled = (logits / relative[:, None, None]).flatten(0, 1)
    factor = best_temperature(cooled, labels.repeat(len(logits)))
    return (factor * relative).tolist()
