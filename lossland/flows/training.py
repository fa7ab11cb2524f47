"""Training of flows: by maximum likelihood, or through the loss of the networks on the path (AY20's Bijection)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from lossland.batchnorm import fresh_buffers, norms
from lossland.flows.maps import Flow
from lossland.layers import axes, gather, scatter
from lossland.paths import arc_basis
from lossland.sampling import stream_seed
from lossland.tasks import Task
from lossland.training import Checkpoint
from lossland.weights import Weights, check_finite, check_match, from_vector, mix, skeleton, to_vector

VERSION = 1  # of the numbers this training produces: raised whenever the same settings would give another flow

Objective = Callable[[Flow, torch.Generator], Tensor]


@dataclass(frozen=True)
class FlowFit:
    """What the training of a flow returns.

    Attributes:
        flow: the trained flow.
        history: one row per `every` steps: step, lr, loss [nats, mean over these steps], seconds, and "held out"
            [nats] where units were held out.
    """

    flow: Flow
    history: pd.DataFrame


class FlowDiverged(FloatingPointError):
    """A loss or parameter became NaN or infinite.

    Attributes:
        step: the step whose loss it was, or the last of its block.
        loss: that loss [nats].
        fit: the last state in which everything was finite, and the history up to it.
    """

    def __init__(self, step: int, loss: float, lr: float, fit: FlowFit) -> None:
        last = fit.history["step"].iloc[-1] if len(fit.history) else 0
        super().__init__(f"training of the flow diverged: loss {loss:g} or a parameter NaN or infinite at step {step} "
                         f"(lr {lr:g}); `.fit` holds the last finite state, the one after step {last}")
        self.step, self.loss, self.fit = step, loss, fit


class _Descent:
    """Adam on one flat vector of parameters, with a learning rate that falls to zero along a cosine; resumable."""

    def __init__(self, flow: Flow, lr: float, steps: int) -> None:
        self.flow, self.lr, self.steps, self.step = flow, lr, steps, 0
        self.theta = to_vector(flow.weights).clone().requires_grad_()
        self.adam = torch.optim.Adam([self.theta], lr=lr)
        self.moments = {name: torch.zeros_like(self.theta, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        self.history: list[dict[str, float]] = []

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Continue from a checkpoint that holds something."""
        if checkpoint and (saved := checkpoint.load()):
            tensors, info = saved
            self.step, self.history = info["step"], list(info["history"])
            with torch.no_grad():
                self.theta.copy_(tensors["theta"])
            for name, moment in self.moments.items():
                moment.copy_(tensors[name])
        self.adam.state[self.theta] = {"step": torch.tensor(float(self.step)), **self.moments}

    def save(self, checkpoint: Checkpoint | None) -> None:
        """Keep everything that changes."""
        if checkpoint:
            tensors = {"theta": self.theta.detach(), **self.moments}
            checkpoint.save(tensors, {"step": self.step, "history": self.history})

    def state(self) -> FlowFit:
        """Return flow and history as they are now."""
        weights = {name: view.clone() for name, view in from_vector(self.theta.detach(), self.flow.weights).items()}
        return FlowFit(self.flow.with_weights(weights), pd.DataFrame(self.history))

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return self.lr * (1 + math.cos(math.pi * self.step / self.steps)) / 2

    def block(self, objective: Objective, size: int, seed: int, clip: float) -> dict[str, float]:
        """Make `size` steps; return their row of the history.

        Raises:
            FlowDiverged: with the state before the block.
        """
        before, started, losses = self.state(), time.perf_counter(), []
        for _ in range(size):
            generator = torch.Generator().manual_seed(stream_seed(seed, self.step))
            self.adam.param_groups[0]["lr"] = rate = self.rate()
            flow = self.flow.with_weights(from_vector(self.theta, self.flow.weights))
            loss = objective(flow, generator)
            self.adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([self.theta], clip)
            self.adam.step()
            self.step += 1
            losses.append(loss.detach())
        values = torch.stack(losses)
        if not bool(values.isfinite().all() & self.theta.isfinite().all()):
            bad = int((~values.isfinite()).int().argmax()) if not bool(values.isfinite().all()) else size - 1
            raise FlowDiverged(self.step - size + bad + 1, float(values[bad]), self.lr, before)
        return {"step": self.step, "lr": rate, "loss": float(values.mean()), "seconds": time.perf_counter() - started}


def _minimise(flow: Flow, objective: Objective, held_out: Tensor | None, *, steps: int, lr: float, seed: int,
              every: int, clip: float, progress: bool, checkpoint: Checkpoint | None, title: str) -> FlowFit:
    for name, value in (("steps", steps), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    for name, value in (("lr", lr), ("clip", clip)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    descent = _Descent(flow, lr, steps)
    descent.restore(checkpoint)
    with tqdm(total=steps, initial=descent.step, desc=title, unit="step", disable=not progress) as bar:
        while descent.step < steps:
            size = min(every, steps - descent.step)
            row = descent.block(objective, size, seed, clip)
            if held_out is not None:
                with torch.no_grad():
                    row["held out"] = -float(descent.state().flow.log_density(held_out).mean())
            descent.history.append(row)
            descent.save(checkpoint)
            bar.set_postfix(loss=f"{row['loss']:.4f}")
            bar.update(size)
    return descent.state()


def fit_likelihood(flow: Flow, units: Tensor, *, steps: int = 1000, lr: float = 1e-3, batch: int = 256, seed: int = 0,
                   held_out: Tensor | None = None, every: int = 50, clip: float = 1e3, progress: bool = False,
                   checkpoint: Checkpoint | None = None) -> FlowFit:
    """Return the flow under which the units are most likely: AY20's *Flow*. The flow given does not change.

    Adam with a learning rate that falls to zero along a cosine. A flow of many parameters learns the units of a small
    set V
    by heart: watch "held out" in the history.

    Args:
        flow: where to start; `realnvp` and `iaf` start at the Gaussian with the covariance of their units.
        units: (n, D) all units of the networks in V.
        steps: of training.
        lr: largest learning rate.
        batch: units per step, drawn with replacement.
        seed: of the batches.
        held_out: (m, D) units of other networks, scored after every block of steps; nothing is learned from them.
        every: steps per row of the history and per checkpoint.
        clip: largest l2 norm of a gradient.
        progress: show a line.
        checkpoint: saved to after every block of steps, and continued from where it holds something.

    Raises:
        ValueError: for units of another dimension, NaN or infinite ones, or numbers that are not positive.
        FlowDiverged: if the loss or a parameter becomes NaN or infinite, with step, loss and the last finite state.

    Source: AY20 section 3.3, Flow.
    """
    check_finite({"units": units}, "units")
    rows = flow.checked(units, "units")

    def objective(trial: Flow, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(rows), (batch,), generator=generator).to(rows.device)
        return -trial.log_density(rows[pick]).mean()

    return _minimise(flow, objective, held_out, steps=steps, lr=lr, seed=seed, every=every, clip=clip,
                     progress=progress, checkpoint=checkpoint, title=f"{flow.settings['kind']} likelihood")


def fit_bijection(flow: Flow, net: nn.Module, networks: Sequence[Weights], task: Task, *, t: str | float = "uniform",
                  steps: int = 1000, lr: float = 1e-3, batch: int = 128, seed: int = 0, every: int = 50,
                  clip: float = 1.0, progress: bool = False, checkpoint: Checkpoint | None = None) -> FlowFit:
    """Return the flow whose paths between the networks of V have the lowest training loss: AY20's *Bijection*.

    Each step draws two different networks A and B of V, a t and a batch of training images, and descends on the
    cross-entropy of psi(t, A, B). Parameters outside the units (the output bias) are on the straight segment, as on a
    path of `connect`.

    Args:
        flow: where to start.
        net: the networks' skeleton: one hidden layer, no batch norm.
        networks: V, at least two; their units move as butterflies.
        task: its training split is used.
        t: "uniform" (t ~ U(0, 1)), or a fixed number such as 0.5.
        steps, lr, seed, every, clip, progress, checkpoint: as for `fit_likelihood`.
        batch: images per step.

    Raises:
        ValueError: for fewer than two networks, several hidden layers, batch norm, units of another dimension, or t
        outside
            [0, 1].
        FlowDiverged: if the loss or a parameter becomes NaN or infinite, with step, loss and the last finite state.

    Source: AY20 Eq. (8), and the variant at t = 0.5 below it.
    """
    groups = list(axes(net.layers()).values())
    if len(networks) < 2 or len(groups) != 1 or norms(net):
        raise ValueError(f"fit_bijection needs at least two networks of one hidden layer without batch norm, got "
                         f"{len(networks)} networks with {len(groups)} hidden unit axes")
    if not (t == "uniform" or (isinstance(t, (int, float)) and 0 <= t <= 1)):
        raise ValueError(f"t must be 'uniform' or a number in [0, 1], got {t!r}")
    for i, weights in enumerate(networks):
        check_match(networks[0], weights, ("networks[0]", f"networks[{i}]"))
        check_finite(weights, f"networks[{i}]")
    units = torch.stack([flow.checked(gather(weights, *groups[0]), "networks") for weights in networks])  # (m, n, D)
    bare, buffers, split = skeleton(net), fresh_buffers(net, units), task.split("train")

    def objective(trial: Flow, generator: torch.Generator) -> Tensor:
        i, j = torch.randperm(len(networks), generator=generator)[:2].tolist()
        s = torch.rand((), generator=generator) if t == "uniform" else torch.tensor(float(t))
        pick = torch.randint(len(split), (batch,), generator=generator).to(units.device)
        noise, _ = trial.to_noise(torch.cat([units[i], units[j]]))
        cos, sin, _ = arc_basis(s).tolist()
        moved = trial.to_units(cos * noise[: units.shape[1]] + sin * noise[units.shape[1] :])
        point = scatter(mix((networks[i], networks[j]), torch.stack([1 - s, s])), moved, *groups[0])
        images = task.prepare(split.images[pick], units.dtype)
        return cross_entropy(functional_call(bare, (point, buffers), (images,)), split.labels[pick])

    return _minimise(flow, objective, None, steps=steps, lr=lr, seed=seed, every=every, clip=clip, progress=progress,
                     checkpoint=checkpoint, title=f"{flow.settings['kind']} bijection")
