"""Forward passes of networks that differ in a few tensors: what the other tensors decide is computed once per batch.

The first pass over a batch is recorded, operation by operation. An operation that no moving tensor reaches is left out
of later passes; what later operations need of its result is kept. An operation that is linear in moving parameters, on
inputs that stay, is computed for the k points that members are mixtures of, and its results are mixed. This sees tensor
operations, not modules: networks need no layer list, and skip connections, in-place operations and normalisations are
nothing special.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from lossland.weights import mix

_aten = torch.ops.aten
_LINEAR = {  # operation -> the arguments whose product it is, and the one that is added
    _aten.mm.default: ((0, 1), ()), _aten.addmm.default: ((1, 2), (0,)), _aten.convolution.default: ((0, 1), (2,)),
}
_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)  # values reach Python


class Diverged(RuntimeError):
    """A pass took another way through the network than the recorded one."""


@dataclass
class _Step:
    """What later passes do in the place of an operation."""

    operation: Any
    outputs: list[Any] | None = None  # stand in for the results of an operation that is left out
    form: Any = None  # in which the results come; None: one result as it is
    given: dict[int, Tensor] = field(default_factory=dict)  # arguments that later passes do not have
    restored: dict[int, Tensor] = field(default_factory=dict)  # memory of arguments that are written to
    parts: list[Tensor] | None = None  # results at the k points, to be mixed


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _memory(tensor: Tensor) -> Tensor:
    """Return all the memory that a tensor is a view of."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def _written(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    found = []
    for i, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [x for x in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(x, Tensor)]
    return found


def _terms(operation: Any, factor: Tensor) -> int:
    """Return how many products a number of the result is the sum of: `factor` is (inner, outer) or a kernel."""
    return factor[0].numel() if operation is _aten.convolution.default else len(factor)


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would import the whole compiler, which takes seconds, and nothing here is compiled


class Recording(_Mode):
    """The first pass over a batch; `again` gives later ones.

    Args:
        moving: tensors that differ from pass to pass.
        leaves: parameters among them, each with its values at the k points; none: nothing is mixed.
        coefficients: (k,) of the first pass.
        private: tensors that the pass may write to, such as running statistics.
        limit: bytes of results at the k points that may be kept.
        least: multiply-adds per number of a result below which it is computed anew instead of mixed.

    Attributes:
        mixes: whether results at the k points are kept.
        bytes: of what is kept for later passes.
        largest: bytes of the largest result of an operation, views left out.
    """

    def __init__(self, moving: Iterable[Tensor], *, leaves: Sequence[tuple[Tensor, Sequence[Tensor]]] = (),
                 coefficients: Tensor | None = None, private: Iterable[Tensor] = (),
                 limit: float = math.inf, least: float = 0) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.safe, self.mixes, self.skipped, self.bytes, self.largest = True, False, 0, 0, 0
        self._moving = {_place(x) for x in moving}
        self._leaves = {_place(first): (first, values) for first, values in leaves}
        assert len(self._leaves) == len(leaves), "moving parameters must not share memory"
        self._coefficients, self._limit, self._least = coefficients, limit, least
        self._private = {_place(x) for x in private}
        self._born: set[int] = set()  # memory of this pass
        self._made: set[int] = set()  # of it, what later passes do not have
        self._kept: dict[int, list[tuple[_Step, int]]] = defaultdict(list)

    def moves(self, tensor: Tensor) -> bool:
        """Say whether a tensor depends on a moving one."""
        return _place(tensor) in self._moving

    def lost(self, tensor: Tensor) -> bool:
        """Say whether later passes do not compute a tensor."""
        return _place(tensor) in self._made

    def again(self, coefficients: Tensor | None = None, *, poison: bool = False) -> Replay:
        """Return a later pass; with `poison`, values that were left out are NaN instead of arbitrary."""
        return Replay(self.steps, coefficients, poison)

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        flat, spec = tree_flatten((args, kwargs))
        tensors = {i: x for i, x in enumerate(flat) if isinstance(x, Tensor)}
        if any(x.layout is not torch.strided for x in tensors.values()):
            self.safe = False
            return operation(*args, **kwargs)
        written = _written(operation, args, kwargs)
        reached = any(self.moves(x) for x in tensors.values())
        self.safe &= all(_place(x) in self._born | self._private for x in written)
        self.safe &= torch.Tag.nondeterministic_seeded not in operation.tags
        self.safe &= not (reached and any(tag in operation.tags for tag in _READS))
        step = _Step(operation)
        self.steps.append(step)
        if reached:
            self._keep(step, tensors, written)
        for x in written:
            self._detach(_place(x))
        out = self._mixed(step, flat, spec, tensors) if reached else None
        out = operation(*args, **kwargs) if out is None else out
        old = {_place(x) for x in tensors.values()}
        results = (x for x in tree_flatten(out)[0] if isinstance(x, Tensor))
        self.largest = max([self.largest, *(x.nbytes for x in results if _place(x) not in old)])
        (self._mark if reached else self._skip)(step, out, flat, tensors, written)
        return out

    def _keep(self, step: _Step, tensors: dict[int, Tensor], written: list[Tensor]) -> None:
        for i, x in tensors.items():
            if not self.lost(x):
                continue
            if any(x is one for one in written):
                step.restored[i] = _memory(x).clone()
                self.bytes += step.restored[i].nbytes
            else:
                step.given[i] = x
                self.bytes += 0 if _place(x) in self._kept else x.untyped_storage().nbytes()
                self._kept[_place(x)].append((step, i))

    def _detach(self, place: int) -> None:
        """What was kept of this memory stays as it is when the memory is written to."""
        for step, i in self._kept.pop(place, []):
            step.given[i] = step.given[i].clone()

    def _mixed(self, step: _Step, flat: list[Any], spec: Any, tensors: dict[int, Tensor]) -> Tensor | None:
        factors, addends = _LINEAR.get(step.operation, ((), ()))
        moved = [i for i, x in tensors.items() if self.moves(x)]
        if not all(i in (*factors, *addends) and _place(tensors[i]) in self._leaves for i in moved):
            return None
        if not factors or sum(i in factors for i in moved) > 1:
            return None
        if _terms(step.operation, flat[factors[1]]) < self._least:
            return None
        count = len(next(iter(self._leaves.values()))[1])
        first = self._at(step, flat, spec, moved, 0)
        if self.bytes + count * first.nbytes > self._limit:
            return None
        step.parts = [first, *(self._at(step, flat, spec, moved, j) for j in range(1, count))]
        self.bytes, self.mixes = self.bytes + count * first.nbytes, True
        for i in step.given:  # no longer needed
            self._kept[_place(tensors[i])].remove((step, i))
            if not self._kept[_place(tensors[i])]:
                del self._kept[_place(tensors[i])]
                self.bytes -= tensors[i].untyped_storage().nbytes()
        step.given = {}
        return _mix(step.parts, self._coefficients)

    def _at(self, step: _Step, flat: list[Any], spec: Any, moved: list[int], j: int) -> Tensor:
        """Return the result of a linear operation at point j."""
        changed = list(flat)
        for i in moved:
            first, values = self._leaves[_place(flat[i])]
            offset = flat[i].storage_offset() - first.storage_offset() + values[j].storage_offset()
            changed[i] = values[j].as_strided(flat[i].shape, flat[i].stride(), offset)
        args, kwargs = tree_unflatten(changed, spec)
        return step.operation(*args, **kwargs)

    def _mark(self, step: _Step, out: Any, flat: list[Any], tensors: dict[int, Tensor], written: list[Tensor]) -> None:
        """Note what an operation reached by a moving tensor has made."""
        old = {_place(x) for x in tensors.values()}
        wrote = {_place(x) for x in written}
        self._moving |= wrote
        self._made -= wrote
        for x in tree_flatten(out)[0]:
            if isinstance(x, Tensor):
                self.safe &= not (_place(x) in old and not self.moves(x))
                self._born |= {_place(x)} - old
                self._moving.add(_place(x))
                self._made.discard(_place(x))
        # Statistics are written by operations whose schema does not say so.
        self._moving |= self._private & old

    def _skip(self, step: _Step, out: Any, flat: list[Any], tensors: dict[int, Tensor], written: list[Tensor]) -> None:
        """Note what stands in for the results of an operation that no moving tensor reaches."""
        old = {_place(x): i for i, x in tensors.items()}
        results, form = tree_flatten(out)
        places = [_place(x) for x in results if isinstance(x, Tensor)]
        if places and not written and all(place in old for place in places):
            return  # a view: made again, so that what shares memory goes on sharing it
        self.skipped += 1
        step.outputs, step.form = [], None if len(results) == 1 and results[0] is out else form
        for x in results:
            same = [i for i, y in tensors.items() if x is y]
            if same or not isinstance(x, Tensor):
                step.outputs.append(_Argument(same[0]) if same else x)
                continue
            self.safe &= _place(x) not in old
            step.outputs.append(_Blank(tuple(x.shape), x.stride(), x.dtype, x.device))
            self._born.add(_place(x))
            self._made.add(_place(x))
            self._moving.discard(_place(x))


@dataclass(frozen=True)
class _Argument:
    number: int

    def stand_in(self, arguments: Sequence[Any], poison: bool) -> Tensor:
        return arguments[self.number]


@dataclass(frozen=True)
class _Blank:
    """A tensor that is handed around and never read."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def stand_in(self, arguments: Sequence[Any], poison: bool) -> Tensor:
        blank = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        if poison and blank.is_floating_point():
            blank.fill_(torch.nan)
        return blank


def _mix(parts: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    used = coefficients.nonzero()[:, 0].tolist() or [0]
    return mix([{"": parts[i]} for i in used], coefficients[used])[""]


class Replay(_Mode):
    """A later pass over a recorded batch."""

    def __init__(self, steps: Sequence[_Step], coefficients: Tensor | None, poison: bool) -> None:
        super().__init__()
        self._steps, self._coefficients, self._poison = iter(steps), coefficients, poison

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        step = next(self._steps, None)
        if step is None or step.operation is not operation:
            raise Diverged(f"a later pass called {operation} where the recorded one called {step and step.operation}")
        if step.parts is not None:
            return _mix(step.parts, self._coefficients)
        kwargs = kwargs or {}
        if step.outputs is not None:
            return self._stand_in(step, args, kwargs)
        if not step.restored and not step.given:
            return operation(*args, **kwargs)
        flat, spec = tree_flatten((args, kwargs))
        for i, x in step.restored.items():
            _memory(flat[i]).copy_(x)
        for i, x in step.given.items():
            flat[i] = x
        args, kwargs = tree_unflatten(flat, spec)
        return operation(*args, **kwargs)

    def _stand_in(self, step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Taking arguments apart costs more than most operations that are left out: only where one is handed on.
        handed_on = any(isinstance(x, _Argument) for x in step.outputs)
        flat = tree_flatten((args, kwargs))[0] if handed_on else ()
        found = [x.stand_in(flat, self._poison) if isinstance(x, (_Argument, _Blank)) else x for x in step.outputs]
        return found[0] if step.form is None else tree_unflatten(found, step.form)
