"""What training hands its state to, and what takes networks out of it: protocols that others fulfil."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from lossland.weights import Weights


class Checkpoint(Protocol):
    """Where an interrupted training run continues from; the store's checkpoints are of this kind."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and facts saved last, or None."""

    def save(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Keep tensors and facts, replacing the ones before."""


class Collector(Protocol):
    """What takes networks out of a training run at chosen iterations; its state is part of the checkpoint."""

    def wants(self, iteration: int) -> bool:
        """Return whether the weights after this iteration, counted from 1, are to be taken."""

    def take(self, weights: Weights, row: dict[str, float]) -> None:
        """Look at the weights, which are views of memory that training goes on writing to: copy what is kept.

        Args:
            weights: finite, on the task's device.
            row: iteration, epoch (a fraction: iterations / batches per epoch), lr, seconds of training so far.
        """

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values from which `restore` goes on."""

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Become the collector that `save` described; called once, before training goes on."""
