"""Random mixtures of the weights of some networks: one coefficient for all weights, for each layer, or for each one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lossland.ensembles.averaging import AVERAGES, averaged
from lossland.ensembles.scores import checked_members, outputs
from lossland.errors import choose
from lossland.evaluation.scoring import Stateless, Sums, check_task
from lossland.tasks import Split, Task
from lossland.weights import Weights, by_module

KINDS = ("global", "layerwise", "per-weight")


def random_coefficients(kind: str, like: Weights, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the coefficients of a random mixture of m networks: parameter name -> (m, ...) float64 with sum 1.

    They are uniform on the simplex of m networks; for two of them alpha ~ U([0, 1]) and 1 - alpha.

    Args:
        kind: "global": one draw for all weights; "layerwise": one for each module that has parameters; "per-weight":
            one for each number.
        like: weights of one of the networks.
        count: m.
        generator: on the CPU.

    Returns:
        Tensors of shape (m, 1, ..., 1); per weight, m times the weight's own shape.

    Raises:
        ValueError: for another kind.

    Source: W21 appendix H.

    Examples:
        >>> found = random_coefficients("layerwise", {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}, 2,
        ...                             torch.Generator().manual_seed(0))
        >>> found["a.weight"].shape, torch.equal(found["a.weight"].flatten(), found["a.bias"].flatten())
        (torch.Size([2, 1, 1]), True)
    """
    choose("kind", kind, KINDS)

    def draw(*shape: int) -> Tensor:
        parts = torch.empty(count, *shape, dtype=torch.float64).exponential_(generator=generator)
        return parts / parts.sum(0)

    if kind == "per-weight":
        return {name: draw(*tensor.shape) for name, tensor in like.items()}
    groups = by_module(like).values() if kind == "layerwise" else [list(like)]
    drawn = {name: one for names in groups for one in [draw()] for name in names}
    return {name: drawn[name].reshape(-1, *[1] * tensor.ndim) for name, tensor in like.items()}


def mixture(networks: Sequence[Weights], coefficients: Mapping[str, Tensor]) -> Weights:
    """Return the network sum_i alpha_i w_i, with coefficients of its own for every parameter.

    Args:
        networks: m weights.
        coefficients: parameter name -> (m, ...), which broadcast with the parameter.
    """
    mixed = {}
    for name, first in networks[0].items():
        c = coefficients[name].to(first)
        mixed[name] = c[0] * first
        for i, weights in enumerate(networks[1:], 1):
            mixed[name] = mixed[name].addcmul_(c[i], weights[name])
    return mixed


def _candidates(networks: Sequence[Weights], kinds: Sequence[str], draws: int,
                seed: int) -> Iterator[tuple[str, int, Weights]]:
    """Yield what it is called, its number from 1, and the weights of every network that is scored."""
    yield from (("alone", number, weights) for number, weights in enumerate(networks, 1))
    equal = torch.full((len(networks),), 1 / len(networks), dtype=torch.float64)
    yield "average", 1, mixture(networks, {name: equal.reshape(-1, *[1] * x.ndim) for name, x in networks[0].items()})
    for kind in kinds:
        generator = torch.Generator().manual_seed(seed)
        for number in range(1, draws + 1):
            yield kind, number, mixture(networks, random_coefficients(kind, networks[0], len(networks), generator))


@torch.no_grad()
def mixtures(net: nn.Module, networks: Sequence[Weights], task: Task, *, kinds: Sequence[str] = KINDS, draws: int = 10,
             seed: int = 0, split: str = "test", average: str = "logits", progress: bool = False) -> pd.DataFrame:
    """Return how good random mixtures of the weights of some networks are, beside their average and their ensemble.

    Batch-norm statistics are re-estimated on the training split for every network.

    Args:
        net: the network.
        networks: m weights, two or more: `branches`.
        task: the data.
        kinds: of mixtures: "global", "layerwise", "per-weight"; (): none.
        draws: mixtures of each kind.
        seed: of the mixtures.
        split: of the task.
        average: what the ensemble averages: "logits" (W21) or "probabilities".
        progress: show a line.

    Returns:
        One row per network: what ("alone", "average", "ensemble" or the kind), number (from 1), nll [nats], accuracy,
        ece. The mean of `accuracy` over the rows of one kind is Eq. (18). `attrs`: task, split, average, networks.

    Raises:
        ValueError: for fewer than two networks, networks that do not belong to `net`, draws < 1, an unknown kind.
        FloatingPointError: if a loss is NaN or infinite.

    Source: W21 appendix H, Eq. (18) and Fig. 21; for more than two networks Eq. (18) with the simplex for [0, 1].
    """
    check_task(net, task)
    networks = list(checked_members(net, networks))
    if len(networks) < 2:
        raise ValueError(f"networks must hold at least two to be mixed, got {len(networks)}")
    if isinstance(kinds, str) or draws < 1:
        raise ValueError(f"kinds must be a sequence such as ('global',) and draws >= 1, got {kinds!r} and {draws}")
    kinds = [choose("kinds", kind, KINDS) for kind in kinds]
    choose("average", average, AVERAGES)
    part, function, alone, rows = task.split(split), Stateless(net, task), [], []
    total = len(networks) + 1 + draws * len(kinds)
    bar = tqdm(_candidates(networks, kinds, draws, seed), "mixtures", total, disable=not progress)
    for what, number, weights in bar:
        logits = outputs(function, weights, part)
        alone += [logits] if what == "alone" else []
        rows.append({"what": what, "number": number, **_scores(logits, part, f"{what} {number}, split {split!r}")})
    together = _scores(averaged(alone, average), part, f"the ensemble, split {split!r}")
    rows.insert(len(networks), {"what": "ensemble", "number": 1, **together})
    table = pd.DataFrame(rows)
    table.attrs.update(task=task.name, split=split, average=average, networks=len(networks))
    return table


def _scores(logits: Tensor, split: Split, name: str) -> dict[str, float]:
    sums = Sums.zeros(1)
    sums.add(torch.tensor([0]), logits[None], split.labels.flatten())
    if not sums.nll.isfinite().all():
        raise FloatingPointError(f"the loss is NaN or infinite for {name}")
    return {key: float(values[0]) for key, values in sums.columns(split.labels.numel()).items()}
