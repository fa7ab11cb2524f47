"""Linear layers and convolutions as linear maps of rows: a convolution's rows are the patches that it sees."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, unfold

PATCHES = (None, 4)


def is_linear_map(module: nn.Module) -> bool:
    """Say whether a module is a linear map whose inputs are understood: a linear layer or a 2-D convolution."""
    return isinstance(module, (nn.Linear, nn.Conv2d))


def groups_of(module: nn.Module) -> int:
    """Return the number of independent linear maps that a module consists of: the groups of a convolution."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def rows_of(module: nn.Module, inputs: Tensor, patches: int | None = None) -> Tensor:
    """Return the features (groups, samples, D) of a linear or convolutional module's inputs.

    Args:
        module: its weight, flattened, is (groups * C, D).
        inputs: (..., D) of a linear module, (b, channels, H, W) of a convolution, whose samples are patches.
        patches: None: all of them; 4: two by two patches of every map, half a map apart.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1]).clone()
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    maps = pad(inputs, module._reversed_padding_repeated_twice, mode=mode)  # which knows padding="same", too
    stride = module.stride
    if patches:
        halves = [side // 2 // step * step for side, step in zip(inputs.shape[2:], stride, strict=True)]
        stride = tuple(max(step, half) for step, half in zip(stride, halves, strict=True))
    found = unfold(maps, module.kernel_size, module.dilation, 0, stride)  # (b, groups * D, positions)
    if patches:
        sides = [(side - gap * (taps - 1) - 1) // step + 1 for side, gap, taps, step in
                 zip(maps.shape[2:], module.dilation, module.kernel_size, stride, strict=True)]
        found = found.unflatten(2, sides)[:, :, :2, :2].flatten(2)
    return found.transpose(1, 2).reshape(-1, module.groups, found.shape[1] // module.groups).transpose(0, 1)
