"""Hidden units as samples of a distribution: what AY20 moves and matches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lossland.errors import choose
from lossland.layers import Layer, axes, gather, scatter
from lossland.weights import Weights, check_match


def pooled_centre(a: Weights, b: Weights, layers: Sequence[Layer], *, samples: str = "butterfly") -> Weights:
    """Return the arc centre mu: per coordinate, the mean over the pooled units of both networks.

    Every unit gets the same mu. A tensor outside all samples (the output bias of a one-hidden-layer network) is a pool
    of two rows, itself in `a` and in `b`; its mu is their mean, and an arc about it is the straight segment in warped
    time.

    Args:
        a, b: the two ends.
        layers: the network's layers.
        samples: "butterfly": a unit is [row | bias | column], for networks with one hidden layer; "rows": the rows
            [weight | bias | normalisation] of every layer, the output layer's included.

    Returns:
        Weights; every unit's slice equals the pooled mean.

    Raises:
        ValueError: if the ends differ in names or shapes, or butterflies of several unit axes would overlap.

    Source: AY20 Eq. (6), mu = E X = E Y; pooling over both networks as in the released settings.
    """
    check_match(a, b)
    choose("samples", samples, ("butterfly", "rows"))
    centre = {name: (a[name] + b[name]) / 2 for name in a}
    if samples == "butterfly":
        groups = list(axes(layers).values())
        if len(groups) != 1:
            raise ValueError(f"samples='butterfly' needs one hidden layer, got unit axes {sorted(axes(layers))}; "
                             "use samples='rows'")
    else:
        groups = [((layer,), ()) for layer in layers]
    for writers, readers in groups:
        pool = torch.cat([gather(a, writers, readers), gather(b, writers, readers)])
        centre = scatter(centre, pool.mean(0).expand(len(pool) // 2, -1).contiguous(), writers, readers)
    return centre
