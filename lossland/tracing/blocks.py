"""What modules with weights do to unit labels: dense and convolutional ones, normalisations, attention, embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lossland.tracing.labels import Label, Ledger, Record, Run, Value, fix, plain, unify
from lossland.tracing.operations import RULES, Call, Rule, new_units

_Norm = nn.modules.batchnorm._NormBase


def _own(call: Call, part: str) -> str:
    return f"{call.path}.{part}" if call.path else part


def _dense(ledger: Ledger, call: Call, weight: str, bias: str | None) -> Value:
    value = call.first
    record = ledger.weight(weight, bias, value.labels[-1], new_units(call.result.shape[-1]))
    ledger.absorb(record, value)
    return Value(call.result, (*value.labels[:-1], record.writes), writer=record)


def _convolved(ledger: Ledger, call: Call, names: tuple[str, str | None], *, groups: int,
               transposed: bool = False) -> Value:
    value, channels = call.first, call.result.shape[1]
    label, spatial = value.labels[1], value.labels[2:]
    fix(*spatial)
    if groups > 1 and groups == value.shape[1] and not transposed:
        label, record = _depthwise(ledger, names[0], label, channels // groups)
    else:
        record = ledger.weight(*names, label, new_units(channels), dim=int(transposed))
        ledger.absorb(record, value)
        if groups > 1:
            fix(label, record.writes)
        label = record.writes
    return Value(call.result, (value.labels[0], label, *[None] * len(spatial)), writer=record)


def _depthwise(ledger: Ledger, weight: str, label: Label, times: int) -> tuple[Label, Record]:
    """Return the label of the outputs, `times` for each unit in turn."""
    if label is None or any(run.axis is None for run in label):
        record = ledger.weight(weight, weight.removesuffix("weight") + "bias", None, new_units(times))
        fix(label, record.writes)
        return record.writes, record
    label = tuple(Run(run.axis, run.size * times) for run in label)
    record = ledger.each(weight.removesuffix(".weight"), label)
    return record.writes, record


def _normed(ledger: Ledger, call: Call, module: str, dims: tuple[int, ...], *, groups: int = 1) -> Value:
    value = call.first
    label = value.labels[dims[0]]
    fix(*(value.labels[dim] for dim in dims[1:]))
    if groups not in (1, value.shape[dims[0]]):
        fix(label)
    return Value(call.result, value.labels, norm=ledger.normalise(module, value, label))


def _bare_norm(ledger: Ledger, call: Call) -> Value:
    """A normalisation without numbers of its own."""
    return Value(call.result, call.first.labels)


def _attention(ledger: Ledger, call: Call) -> tuple[Value, Value | None]:
    module, path = call.module, str(call.path)
    assert isinstance(module, nn.MultiheadAttention)
    if module.in_proj_weight is None or module.bias_k is not None:
        raise LookupError("attention with keys of another width or with a bias among the keys")
    query, key, value = call.values[:3]
    heads, size = module.num_heads, module.head_dim
    score, content = ([new_units(size) for _ in range(heads)] for _ in range(2))
    rows = tuple(run for label in (*score, *score, *content) for run in label or ())
    reads = unify(unify(query.labels[-1], key.labels[-1]), value.labels[-1])
    record = ledger.weight(f"{path}.in_proj_weight", None, reads, rows)
    record.module, record.names = f"{path}.in_proj", tuple(
        f"{path}.{kind}{i}" for kind in ("score", "score", "value") for i in range(heads))
    ledger.absorb(record, query)
    held = record.writes[2 * heads :] if record.writes else None
    out = ledger.weight(f"{path}.out_proj.weight", f"{path}.out_proj.bias", held, new_units(module.embed_dim))
    result, scores = call.result
    return (Value(result, (*query.labels[:-1], out.writes), writer=out),
            plain(scores) if isinstance(scores, Tensor) else None)


def _embedding(ledger: Ledger, call: Call) -> Value:
    record = ledger.weight(_own(call, "weight"), None, None, new_units(call.result.shape[-1]), dim=1)
    return Value(call.result, (*call.first.labels, record.writes), writer=record)


def _prelu(ledger: Ledger, call: Call) -> Value:
    value, module = call.first, call.module
    assert isinstance(module, nn.PReLU)
    label = value.labels[1] if len(value.shape) > 1 else None
    if module.num_parameters == 1:
        ledger.each(str(call.path), label, tensors=()) if label else ledger.enter("parameter", _own(call, "weight"))
    else:
        label = ledger.each(str(call.path), label).writes
    return Value(call.result, (*value.labels[:1], label, *value.labels[2:]), norm=value.norm)


def _linear_module(ledger: Ledger, call: Call) -> Value:
    return _dense(ledger, call, _own(call, "weight"), _own(call, "bias"))


def _conv_module(ledger: Ledger, call: Call) -> Value:
    module = call.module
    assert isinstance(module, nn.modules.conv._ConvNd)
    return _convolved(ledger, call, (_own(call, "weight"), _own(call, "bias")), groups=module.groups,
                      transposed=module.transposed)


def _norm_module(ledger: Ledger, call: Call) -> Value:
    module, rank = call.module, len(call.first.shape)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        dims = tuple(range(rank - len(module.normalized_shape), rank))
        return (_normed(ledger, call, str(call.path), dims) if module.elementwise_affine else _bare_norm(ledger, call))
    if isinstance(module, nn.GroupNorm):
        if not module.affine and module.num_groups in (1, module.num_channels):
            return _bare_norm(ledger, call)
        return _normed(ledger, call, str(call.path), (1,), groups=module.num_groups)
    assert isinstance(module, _Norm)
    if not module.affine and not module.track_running_stats:
        return _bare_norm(ledger, call)
    return _normed(ledger, call, str(call.path), (1,))


def _functional(ledger: Ledger, call: Call) -> Value:
    """Linear maps, convolutions and normalisations called as functions, with parameters for weights."""
    value, *given = call.values
    names = [one.parameter for one in given]
    if None in names or not names:
        raise LookupError("weights that are computed in the forward pass")
    weight, bias = str(names[0]), names[1] if len(names) > 1 else None
    if call.name == "linear":
        return _dense(ledger, call, weight, bias)
    if call.name.startswith("conv"):
        groups = call.get(6, "groups", 1)
        return _convolved(ledger, call, (weight, bias), groups=groups, transposed=False)
    module = weight.removesuffix(".weight")
    if call.name in ("layer_norm", "rms_norm") and {weight, bias} <= {f"{module}.weight", f"{module}.bias", None}:
        rank = len(value.shape)
        return _normed(ledger, call, module, tuple(range(rank - len(given[0].shape), rank)))
    raise LookupError("a normalisation with parameters that are not called weight and bias")


def _rule(name: str) -> Rule:
    def rule(ledger: Ledger, call: Call) -> Any:
        return RULES[name](ledger, call)

    return rule


_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Threshold, nn.Identity,
    nn.modules.dropout._DropoutNd)
_POOLS = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd)
MODULES: dict[tuple[type[nn.Module], ...], Rule] = {
    (nn.Linear,): _linear_module, (nn.modules.conv._ConvNd,): _conv_module,
    (_Norm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm): _norm_module, (nn.MultiheadAttention,): _attention,
    (nn.Embedding,): _embedding, (nn.PReLU,): _prelu, _ACTIVATIONS: _rule("relu"), _POOLS: _rule("pad"),
    (nn.Flatten, nn.Unflatten): _rule("reshape"), (nn.Softmax, nn.LogSoftmax): _rule("softmax"),
    (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle): _rule("roll"),
}
FUNCTIONS = frozenset({"linear", "conv1d", "conv2d", "conv3d", "layer_norm", "rms_norm", "batch_norm", "group_norm"})
CONSTANTS = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zeros", "ones",
                       "arange"})


def rule_of(module: nn.Module) -> Rule | None:
    """Return what is known of a kind of module; None: nothing, or it computes its weights."""
    if parametrize.is_parametrized(module):
        return None
    return next((rule for kinds, rule in MODULES.items() if isinstance(module, kinds)), None)


def applied(ledger: Ledger, call: Call) -> Any:
    """Return the values that an operation gives.

    Raises:
        LookupError: if it is not known what it does to units, saying what is not known.
    """
    rule = rule_of(call.module) if call.module is not None else RULES.get(call.name)
    if rule is not None:
        for value in call.values if call.name not in ("matmul", "bmm") else call.values[:1]:
            if value.parameter:
                ledger.parameter(value)
        return rule(ledger, call)
    if call.name in FUNCTIONS:
        return _functional(ledger, call)
    values, has_weights = call.values, call.module is not None and any(True for _ in call.module.parameters())
    unlabelled = all(label is None for value in values for label in value.labels)
    if call.name in CONSTANTS or (unlabelled and not has_weights and not any(value.parameter for value in values)):
        return _all_plain(call.result)
    raise LookupError(f"{call.name}")


def _all_plain(result: Any) -> Any:
    if isinstance(result, Tensor):
        return plain(result)
    return type(result)(_all_plain(one) for one in result) if isinstance(result, (tuple, list)) else result
