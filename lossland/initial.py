"""Initial weights: drawn from a generator, module by module, by a named scheme."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lossland.errors import choose
from lossland.weights import Weights

SCHEMES = ("ay20", "kaiming-normal")
_Conv = nn.modules.conv._ConvNd
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def initial_weights(net: nn.Module, generator: torch.Generator, *, device: torch.device | str = "cpu",
                    dtype: torch.dtype = torch.float32, scheme: str = "ay20") -> Weights:
    """Return freshly drawn weights for `net`; the global random state is not touched.

    "ay20": linear layers U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default; convolutions normal with variance
    2 / fan_out (He), bias 0. "kaiming-normal": linear layers and convolutions normal with variance 2 / fan_in, bias 0.
    In both: normalisations weight 1, bias 0; embeddings N(0, 1); recurrent layers U(-1/sqrt(h), 1/sqrt(h)) for h hidden
    units, PyTorch's default.

    Args:
        net: network made of such modules; it may live on the `meta` device.
        generator: CPU generator; the same draw on every device.
        device: where the weights go.
        dtype: of the weights; drawn in float32 first, so that precisions share one draw.
        scheme: "ay20" or "kaiming-normal".

    Raises:
        ValueError: for an unknown scheme.
        TypeError: for a module with parameters of its own that is none of these; train such a network from weights that
            you pass yourself.

    Source: AY20's released settings; W21 section 3 (Kaiming normal: He et al. 2015, Eq. (10)) and Appendix D.
    """
    choose("scheme", scheme, SCHEMES)
    drawn: Weights = {}
    for name, module in net.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            value = torch.empty(parameter.shape)
            if scheme == "kaiming-normal" and isinstance(module, (nn.Linear, _Conv)):
                _draw_kaiming(value, part, generator)
            else:
                _draw(value, module, part, name, generator)
            drawn[f"{name}.{part}" if name else part] = value.to(device=device, dtype=dtype)
    return {key: drawn[key] for key, _ in net.named_parameters()}


def _draw_kaiming(value: Tensor, part: str, generator: torch.Generator) -> None:
    if part == "weight":
        value.normal_(0, math.sqrt(2 / math.prod(value.shape[1:])), generator=generator)  # (out, fan_in of one unit)
    else:
        value.zero_()


def _draw(value: Tensor, module: nn.Module, part: str, name: str, generator: torch.Generator) -> None:
    if isinstance(module, (nn.Linear, nn.RNNBase)):
        bound = 1 / math.sqrt(module.in_features if isinstance(module, nn.Linear) else module.hidden_size)
        value.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, _Conv):
        fan_out = module.out_channels * math.prod(module.kernel_size) / module.groups
        value.normal_(0, math.sqrt(2 / fan_out), generator=generator) if part == "weight" else value.zero_()
    elif isinstance(module, _NORMS):
        value.fill_(1.0 if part == "weight" else 0.0)
    elif isinstance(module, nn.Embedding):
        value.normal_(generator=generator)
    else:
        raise TypeError(f"initial_weights knows linear, convolution, normalisation, embedding and recurrent "
                        f"modules, got {type(module).__name__} at {name!r}; pass initial weights yourself")
