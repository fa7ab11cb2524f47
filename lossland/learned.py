"""Flows that are trained once and then read from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lossland.devices import device_name
from lossland.errors import choose
from lossland.flows import Flow, FlowDiverged, fit_bijection, fit_likelihood, restored
from lossland.flows.training import VERSION
from lossland.layers import axes, gather
from lossland.store import Checkpoint, Store
from lossland.tasks import Task
from lossland.weights import Weights

LOSSES = ("likelihood", "bijection")


@dataclass(frozen=True)
class Learned:
    """A trained flow and how it went.

    Attributes:
        flow: the flow after the last step, or the last finite state of a training that diverged.
        history: one row per block of steps, as in `FlowFit`.
        diverged: such as "diverged at step 31"; None where training stayed finite.
        seconds: that training took, interrupted runs included.
    """

    flow: Flow
    history: pd.DataFrame
    diverged: str | None
    seconds: float


def units_of(net: nn.Module, networks: Sequence[Weights]) -> Tensor:
    """Return the hidden units (n, D) of all networks, one below the other: what a flow learns from.

    Raises:
        ValueError: unless the networks have one hidden layer.
    """
    groups = list(axes(net.layers()).values())
    if len(groups) != 1:
        raise ValueError(f"net must have one hidden layer, got {len(groups)} hidden unit axes")
    return torch.cat([gather(weights, *groups[0]) for weights in networks])


def learned_flow(start: Flow, loss: str, net: nn.Module, networks: Sequence[Weights], task: Task, *,
                 name: Mapping[str, Any], held_out: Sequence[Weights] = (), seed: int = 0, store: Store | None = None,
                 progress: bool = False, **how: Any) -> Learned:
    """Return the trained flow, read from the store where this very flow has been trained before.

    A training that diverges is kept as well: its last finite state, and where it stopped. A run that was cut off goes
    on from its last block of steps.

    Args:
        start: where to start; made from the units of `networks`.
        loss: "likelihood" (`fit_likelihood`) or "bijection" (`fit_bijection`).
        net: the networks' skeleton, with one hidden layer.
        networks: the set V.
        task: data; a bijection uses its training split.
        name: JSON values that determine `networks`, `held_out` and `start`'s initial weights, such as model, sizes,
            seeds and recipe.
        held_out: networks whose units are scored in the history of a likelihood; nothing is learned from them.
        seed: of training.
        store: where to look and keep; None: the default store.
        progress: show a line.
        **how: further arguments of the training, such as steps and lr (JSON values).

    Raises:
        ValueError: for an unknown loss, several hidden layers, or what the training refuses.
    """
    choose("loss", loss, LOSSES)
    device = task.train.images.device
    facts = {"flow": dict(start.settings), "loss": loss, "how": how, "seed": seed, "version": VERSION, **name,
             "task": task.fingerprint, "device": device.type}

    def make(checkpoint: Checkpoint) -> dict[str, Tensor]:
        again = {"checkpoint": checkpoint, "progress": progress, "seed": seed, **how}
        try:
            if loss == "bijection":
                done = fit_bijection(start, net, networks, task, **again)
            else:
                scored = units_of(net, held_out) if held_out else None
                done = fit_likelihood(start, units_of(net, networks), held_out=scored, **again)
        except FlowDiverged as error:
            done, checkpoint.record["diverged"] = error.fit, f"diverged at step {error.step}"
        checkpoint.record.update(rows=done.history.to_dict("records"), device=device_name(device))
        return done.flow.tensors()

    entry = (store or Store()).fetch(facts, make)
    flow = restored(start.settings, {key: tensor.to(start.centre) for key, tensor in entry.tensors.items()})
    rows = pd.DataFrame(entry.record["rows"])
    return Learned(flow, rows, entry.record.get("diverged"), entry.record["seconds"])
