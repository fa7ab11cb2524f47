"""Batch-norm statistics: a function of (weights, data), re-estimated where a point is evaluated, never interpolated."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossland.allocation import keep_memory
from lossland.weights import Weights, skeleton

_Norm = nn.modules.batchnorm._NormBase
_NORMS = (_Norm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_RESET = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


def norms(net: nn.Module) -> dict[str, nn.Module]:
    """Return name -> module of the normalisations in `net` that keep running statistics."""
    return {name: module for name, module in net.named_modules()
            if isinstance(module, _Norm) and module.track_running_stats and module.running_mean is not None}


def norm_parameters(net: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that belong to normalisations of any kind: batch, group, layer norm.

    Their scales stay near one, so that the angle between two networks' would say nothing.

    Source: W21 D.3, which leaves those of batch norm out of distances, cosines and the regulariser.
    """
    return frozenset(f"{name}.{part}" for name, module in net.named_modules() if isinstance(module, _NORMS)
                     for part, _ in module.named_parameters(recurse=False))


def statistics(net: nn.Module) -> dict[str, float]:
    """Return name -> value before any data, of the buffers of `net` that are batch-norm statistics."""
    return {f"{name}.{part}": value for name in norms(net) for part, value in _RESET.items()}


def fresh_buffers(net: nn.Module, like: Tensor) -> dict[str, Tensor]:
    """Return a private copy of the buffers of `net` with the running statistics reset (mean 0, variance 1, count 0).

    Args:
        net: any module; buffers that are not batch-norm statistics are copied.
        like: a tensor whose device, and dtype for the statistics, are used.

    Raises:
        ValueError: if such another buffer has no storage (`meta` device).
    """
    ours, buffers = statistics(net), {}
    for name, buffer in net.named_buffers():
        if name in ours:
            dtype = like.dtype if buffer.is_floating_point() else buffer.dtype
            buffers[name] = torch.full(buffer.shape, ours[name], device=like.device).to(dtype)
        elif buffer.is_meta:
            raise ValueError(f"buffer {name!r} of the network has no storage; build the network on a real device")
        else:
            buffers[name] = buffer.detach().clone().to(like.device)
    return buffers


def estimating(net: nn.Module) -> nn.Module:
    """Return a private copy of `net` without storage, in evaluation mode, whose normalisations leave the statistics of
    the batch alone in the buffers that they are given."""
    bare = skeleton(net)
    for module in norms(bare).values():
        module.train()
        module.momentum = 1.0
    return bare


class Estimate:
    """Statistics of one network, added up in float64 over batches, batches weighted by their size.

    Attributes:
        buffers: what `estimating(net)` is called with; it writes the statistics of a batch there.
        names: of the buffers that are estimated.
    """

    def __init__(self, net: nn.Module, like: Tensor) -> None:
        self.buffers = fresh_buffers(net, like)
        self.names = [f"{name}.{part}" for name in norms(net) for part in ("running_mean", "running_var")]
        self._sums = {name: torch.zeros_like(self.buffers[name], dtype=torch.float64) for name in self.names}
        self._seen = 0

    def add(self, images: int) -> None:
        """Add the statistics that a batch of so many images has left in the buffers."""
        for name, total in self._sums.items():
            total += self.buffers[name].double() * images
        self._seen += images

    def result(self) -> dict[str, Tensor]:
        """Return the buffers of the network.

        Raises:
            ValueError: if no image was seen.
        """
        if not self._seen:
            raise ValueError("images must hold at least one image to estimate batch-norm statistics, got none")
        means = {name: (total / self._seen).to(self.buffers[name].dtype) for name, total in self._sums.items()}
        return {**self.buffers, **means}


@torch.no_grad()
@keep_memory()
def refresh(net: nn.Module, weights: Weights, images: Tensor | Iterable[Tensor], *,
            batch_size: int = 1000) -> dict[str, Tensor]:
    """Return buffers for `net` at `weights`, with batch-norm statistics from one full pass over `images`.

    A layer's mean is the average of its batch means, its variance the average of its (unbiased) batch variances,
    batches weighted by their size and added up in float64. While the pass runs, each batch is normalised by its own
    statistics, as in training; dropout is off. Neither `net` nor `weights` changes.

    Args:
        net: the network; without batch norm its buffers are returned unchanged.
        weights: one point of weight space.
        images: (n, ...) prepared inputs, cut into batches of `batch_size`, or an iterable of such batches.
        batch_size: images per batch.

    Raises:
        TypeError: if there is batch norm and no images.
        ValueError: if `images` is empty.

    Source: G18 section 3.3 (statistics from one additional pass), W21 Appendix D.
    """
    estimate = Estimate(net, next(iter(weights.values())))
    if not estimate.names:
        return estimate.buffers
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be given for a network with batch norm ({next(iter(norms(net)))!r}): no weights "
                        "hold its statistics, they are estimated on data, such as task.prepare(task.train.images); "
                        f"got {type(images).__name__}")
    bare = estimating(net)
    for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
        functional_call(bare, (weights, estimate.buffers), (batch,))
        estimate.add(len(batch))
    return estimate.result()
