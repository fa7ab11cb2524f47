"""Data-parallel training on several GPUs, or processes, of one machine.

This runs an ordinary script in two processes::

    torchrun --standalone --nproc-per-node 2 -m lossland.torchrun train.py

Training that the script asks for (`ll.endpoints`, `ll.trained`, `training.fit`, ...) is then shared: every process has
the same batches, positions on the curve and augmentation from the same seed, works on its part of each batch, and the
gradient at the sampled point, one vector whatever the number of control points, is added up by one all-reduce. All else
the processes compute each for themselves. Within processes that torchrun has started,
`torch.distributed.init_process_group` alone has the same effect.

The sum over a batch is the one of a single process up to rounding. Not the same are batch norm, whose statistics are
those of a process's part of the batch, and dropout, which has a stream for every process. Such runs have entries of
their own in the store: the number of processes belongs to the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed

E = TypeVar("E")  # an entry of a store


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together.

    Attributes:
        rank: 0 to size - 1; 0 writes what is kept.
        size: number of processes; 1: alone.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """Return which of a batch's images are this process's: neighbours, as many for each as can be.

        Processes get two images or none, so that batch norm has a variance.

        Examples:
            >>> [Ranks(rank, 3).share(10) for rank in range(3)]
            [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
            >>> [Ranks(rank, 3).share(5) for rank in range(3)]
            [slice(0, 3, None), slice(3, 5, None), slice(5, 5, None)]
        """
        parts = max(1, min(self.size, count // 2))
        bounds = [part * (count // parts) + min(part, count % parts) for part in range(parts + 1)]
        start, stop = (bounds[min(place, parts)] for place in (self.rank, self.rank + 1))
        return slice(start, stop)


def ranks() -> Ranks:
    """Return this process's place: that of torch.distributed's default group where there is one, else alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()


class Network(Protocol):
    """What a gradient is taken of: `flat.FlatNetwork`."""

    sums: Tensor  # (P + 2,) the gradient, and room for loss and hits

    def clear(self) -> None:
        """Set the gradient to zero."""

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Work out the gradient of the mean loss; return loss and hits."""


def shared_loss(network: Network, images: Tensor, labels: Tensor, where: Ranks) -> tuple[Tensor, Tensor]:
    """Work out the gradient of the mean loss over a batch, each process on its share; return loss and hits of all.

    One all-reduce adds up gradient, loss and hits.
    """
    if where.size == 1:
        return network.loss(images, labels)
    mine = where.share(len(images))
    if mine.start == mine.stop:
        network.clear()
        network.sums.zero_()
    else:
        loss, hits = network.loss(images[mine], labels[mine])
        network.sums[-2], network.sums[-1] = loss, 0
        network.sums.mul_((mine.stop - mine.start) / len(images))
        network.sums[-1] = hits
    distributed.all_reduce(network.sums)
    return network.sums[-2].clone(), network.sums[-1].round().to(torch.int64)


class ReadOnly:
    """A checkpoint that is read as another one is, and never written: that of the processes with a rank above 0."""

    def __init__(self, checkpoint: Any) -> None:
        self.record: dict[str, Any] = {}
        self.load = checkpoint.load

    def save(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Do nothing: rank 0 writes the same."""


def fetched(fetch: Callable[[Callable[[Any], Any]], E], find: Callable[[], E], make: Callable[[Any], Any],
            checkpoint: Callable[[], Any]) -> E:
    """Return an entry of the store that all processes ask for; where there is none, they make it together.

    Args:
        fetch: rank 0 gets the entry by it, and makes it if it has to.
        find: the others read it by it afterwards.
        make: what is run by all at once, with a checkpoint.
        checkpoint: of the unfinished entry, for the others to read.
    """
    place, asked = ranks(), []

    def together(own: Any) -> Any:
        asked.append(_told(True))
        return make(own)

    if place.rank == 0:
        entry = fetch(together)
        if not asked:
            _told(False)
        _told(True)  # it is written
        return entry
    if _told(False):
        make(ReadOnly(checkpoint()))
    _told(False)
    return find()


def _told(said: bool) -> bool:
    """Return what rank 0 says, when all have come here."""
    on_gpu = distributed.get_backend() == "nccl"
    flag = torch.tensor([float(said)], device="cuda" if on_gpu else "cpu")
    distributed.broadcast(flag, 0)
    return bool(flag.item())
