"""Normalisation of feature maps by name: batch, group and layer norm, each with a scale and shift per channel."""

from __future__ import annotations

from torch import nn

from lossland.errors import choose

NORMS = ("batch", "group", "layer")

_MOST_GROUPS, _CHANNELS = 32, 4


def groups_of(channels: int) -> int:
    """Return the number of groups of a group norm: as many as divide the channels, at most 32, of 4 channels or more.

    Source: Wu & He 2018 take 32 groups. For maps of few channels the 4 are ours.

    Examples:
        >>> [groups_of(channels) for channels in (3, 16, 24, 64, 256)]
        [1, 4, 6, 16, 32]
    """
    most = max(1, min(_MOST_GROUPS, channels // _CHANNELS))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def channel_norm(kind: str, channels: int) -> nn.Module:
    """Return the normalisation of maps (n, C, H, W) with so many channels.

    Args:
        kind: "batch"; "group": over the channels of a group and all pixels of an image, see `groups_of`; "layer": over
            all channels and pixels of an image, which is a group norm of one group.
        channels: C.

    Raises:
        ValueError: for another kind.

    Source: W21 Appendix D.3 names the three; Ioffe & Szegedy 2015, Wu & He 2018, Ba et al. 2016.
    """
    choose("norm", kind, NORMS)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(1 if kind == "layer" else groups_of(channels),
                                                                         channels)


def check_permutable(net: nn.Module) -> None:
    """Raise if a group norm of `net` has several groups: units that change groups would change the function.

    Raises:
        ValueError: naming the module, and the norms whose units may be permuted.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            raise ValueError(f"layers() needs units that may be permuted: the group norm {name!r} has "
                             f"{module.num_groups} groups, and a channel that moves to another group changes what the "
                             "network computes; train the network with norm='batch' or 'layer' instead")
