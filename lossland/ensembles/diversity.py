"""How different the members of an ensemble are: in what they predict, and in their weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lossland.batchnorm import norm_parameters
from lossland.ensembles.scores import checked_members, outputs
from lossland.evaluation.scoring import Stateless, check_task
from lossland.metrics import total_variation
from lossland.tasks import Task
from lossland.weights import Weights, distance, inner

_BLOCK = 16  # members compared with one another at a time


def _table(values: Tensor) -> pd.DataFrame:
    names = pd.RangeIndex(1, len(values) + 1, name="member")
    return pd.DataFrame(values.cpu().numpy(), index=names, columns=names.rename("other"))


def disagreements(classes: Tensor) -> Tensor:
    """Return the fractions (m, m) float64 of the n images on which two of m networks name different classes.

    Args:
        classes: (m, n) the class that each network names.

    Raises:
        ValueError: for another shape, or nothing in it.

    Examples:
        >>> disagreements(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 2], [0, 0, 0, 2]]))
        tensor([[0.0000, 0.2500, 0.5000],
                [0.2500, 0.0000, 0.5000],
                [0.5000, 0.5000, 0.0000]], dtype=torch.float64)
    """
    if classes.ndim != 2 or not classes.numel():
        raise ValueError(f"classes must have shape (m, n) with m, n >= 1, got {tuple(classes.shape)}")
    rows = [(some[:, None] != classes).sum(-1) for some in classes.split(_BLOCK)]
    return torch.cat(rows).double() / classes.shape[1]


@torch.no_grad()
def disagreement(net: nn.Module, members: Iterable[Weights], task: Task, *, split: str = "test") -> pd.DataFrame:
    """Return how often two members name different classes: a symmetric table with zeros on its diagonal.

    One pass per member, one of them in memory at a time; only the classes they name are kept. Of two networks with
    accuracies p and q it is at least |p - q| and at most 2 - p - q.

    Args:
        net: the network.
        members: weights of one member after the other.
        task: the data.
        split: of the task.

    Returns:
        (m, m) fractions of the images (of a text, of the words); index "member" and columns "other" count from 1.

    Raises:
        TypeError, ValueError: as `member_scores`.

    Source: the diversity that G18 sections 4.3 and 5 argue with; the measure is that of Fort et al. 2019.
    """
    check_task(net, task)
    part, function = task.split(split), Stateless(net, task)
    named = [outputs(function, weights, part).argmax(-1) for weights in checked_members(net, members)]
    return _table(disagreements(torch.stack(named)))


def distances(members: Iterable[Weights]) -> pd.DataFrame:
    """Return the l2 distances between all pairs of members: a symmetric table with zeros on its diagonal.

    Members of a sequence that makes them when asked, such as networks in a store, are asked for m (m + 1) / 2 times,
    and two are in memory at a time; those of a generator are all kept.

    Args:
        members: weights.

    Returns:
        (m, m); index "member" and columns "other" count from 1.

    Raises:
        TypeError: if members is one network.
        ValueError: for no members, or members of different networks.

    Source: G18 section 5 (about 7 between members of FGE, 40 between snapshots).
    """
    if isinstance(members, (dict, nn.Module)):
        raise TypeError(f"members must be several weights, got {type(members).__name__}")
    known = members if isinstance(members, Sequence) else list(members)
    if not len(known):
        raise ValueError("members must hold at least one network, got none")
    found = torch.zeros(len(known), len(known), dtype=torch.float64)
    for i in range(len(known) - 1):
        one = known[i]
        for j in range(i + 1, len(known)):
            found[i, j] = found[j, i] = distance(one, known[j])
    return _table(found)


@torch.no_grad()
def end_statistics(net: nn.Module, a: Weights, b: Weights, task: Task, *, split: str = "test") -> dict[str, float]:
    """Return how far two networks are from each other: in what they predict, in their weights, and in direction.

    Weights of normalisation layers count in neither distance of weights. Batch-norm statistics are re-estimated for
    both networks.

    Args:
        net: the network.
        a, b: weights: the ends of a learned line, or two independently trained networks.
        task: the data.
        split: on which predictions are compared.

    Returns:
        tv: total variation distance of the softmax outputs, the mean over images [fraction]; l2: Euclidean distance of
        the weights; cosine: cosine *distance* 1 - cos of the angle between them, 0 for one direction, 1 for orthogonal
        ones, 2 for opposite ones.

    Raises:
        TypeError, ValueError: as `member_scores`; weights of which nothing is left without normalisation layers.

    Source: W21 appendix E and Fig. 17. What is left out: W21 D.3, which says so of Figs. 3 and 15; Fig. 17 is silent.
    """
    check_task(net, task)
    part, function, left_out = task.split(split), Stateless(net, task), norm_parameters(net)
    p, q = (outputs(function, weights, part).softmax(-1) for weights in checked_members(net, (a, b)))
    one, other = ({name: x.double() for name, x in weights.items() if name not in left_out} for weights in (a, b))
    lengths = [inner(weights, weights) ** 0.5 for weights in (one, other)]
    if not all(lengths):
        raise ValueError("a and b must have weights that are not zero besides those of normalisation layers, "
                         f"got norms {lengths}")
    # Half the squared distance of unit vectors is 1 - cos, without its rounding where the two are nearly one.
    units = ({name: x / length for name, x in weights.items()}
             for weights, length in zip((one, other), lengths, strict=True))
    return {"tv": float(total_variation(p, q)), "l2": distance(one, other), "cosine": distance(*units) ** 2 / 2}
