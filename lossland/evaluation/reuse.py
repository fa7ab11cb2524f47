"""Networks that are mixtures of k points, evaluated batch by batch: see `recording` for what their passes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossland.recording import Diverged, Recording
from lossland.weights import Weights

Call = Callable[[Weights, dict[str, Tensor], Tensor], Tensor]
PROBE = 4  # images on which it is tried out whether passes can share work


@dataclass(frozen=True)
class Member:
    """A network: a mixture of k points, with the buffers that belong to it."""

    weights: Weights
    buffers: dict[str, Tensor]
    coefficients: Tensor


@dataclass(frozen=True)
class Cost:
    """Bytes per image of passes over the same images.

    Attributes:
        shares: whether they share work.
        mixes: whether results at the k points are part of it.
        apart: kept for later passes without products at the k points.
        mixed: kept with them.
        largest: of the largest result of an operation.
    """

    shares: bool
    mixes: bool
    apart: float
    mixed: float
    largest: float


@dataclass(frozen=True)
class Span:
    """Networks that are mixtures of k points, as a function of member and images.

    Attributes:
        call: (weights, buffers, images) -> outputs.
        points: parameter name -> its values at the k points, for parameters that move.
        moving: names of all tensors that differ between members, buffers included.
        private: whether a pass writes to the member's buffers.
        limit: bytes of results at the k points that may be kept for one batch.
        least: multiply-adds per number from which results at the k points are kept and mixed.
    """

    call: Call
    points: Mapping[str, Sequence[Tensor]]
    moving: frozenset[str]
    private: bool = False
    limit: float = math.inf
    least: float = 0

    def record(self, member: Member, images: Tensor, *, mixed: bool = True) -> tuple[Recording, Tensor]:
        """Return the recorded pass and its outputs; with `mixed`, linear operations are computed at the k points."""
        named = {**member.weights, **member.buffers}
        leaves = [(member.weights[name], values) for name, values in self.points.items()] if mixed else []
        recording = Recording([named[name] for name in self.moving], leaves=leaves, coefficients=member.coefficients,
                              private=member.buffers.values() if self.private else (),
                              limit=self.limit, least=self.least)
        with recording:
            outputs = self.call(member.weights, member.buffers, images)
        return recording, outputs

    def probe(self, first: Member, second: Member, images: Tensor) -> Cost:
        """Return whether passes share work, and the size of what they keep and compute.

        They cannot where the way through the network depends on moving values, or inputs are written to; and whether a
        later pass gives the same outputs to the last bit is tried out on a few images.
        """
        images = images[:PROBE]
        recording, outputs = self.record(first, images.clone(), mixed=False)
        mixed = recording
        if shares := recording.safe and self._repeats(recording, outputs, second, images):
            mixed = self.record(first, images)[0]
            shares = bool(mixed.bytes or recording.lost(outputs))
        apart, both = ((one.bytes * shares + images.nbytes) / len(images) for one in (recording, mixed))
        return Cost(shares, shares and mixed.mixes, apart, both, max(1, mixed.largest) / len(images))

    def _repeats(self, recording: Recording, outputs: Tensor, member: Member, images: Tensor) -> bool:
        """Say whether a later pass gives what one of its own gives; what the recording left out is NaN in it."""
        try:
            with recording.again(poison=True):
                found = self.call(member.weights, member.buffers, images)
        except (Diverged, ValueError, IndexError):  # what a network says to numbers that are not there
            return False
        return recording.lost(outputs) or torch.equal(found, self.call(member.weights, member.buffers, images))


class Batch:
    """One batch of images under many members of a span."""

    def __init__(self, span: Span, images: Tensor, *, shared: bool) -> None:
        self.span, self.images, self.shared = span, images, shared
        self.recording: Recording | None = None
        self._constant: Tensor | None = None

    def __call__(self, member: Member) -> Tensor:
        """Return the outputs of a member."""
        if not self.shared:
            return self.span.call(member.weights, member.buffers, self.images.clone())  # a network may write into it
        if self.recording is None:
            self.recording, outputs = self.span.record(member, self.images)
            self._constant = outputs if self.recording.lost(outputs) else None
            return outputs
        if self._constant is not None:
            return self._constant
        try:
            with self.recording.again(member.coefficients):
                return self.span.call(member.weights, member.buffers, self.images)
        except Diverged:  # a branch that the images of the trial did not take
            self.shared = False
            return self(member)
