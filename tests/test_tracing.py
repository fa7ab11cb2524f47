from collections.abc import Callable

import pytest
import torch
from test_layers import NETWORKS, built
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lossland import models
from lossland.layers import Layer, axes, free_axes, gather, permute, scatter, unit_count, verify
from lossland.tracing import trace
from lossland.units import Piece, elementwise, pieces, tensor_name
from lossland.weights import buffers_of, weights_of


torchvision = pytest.importorskip("torchvision")
vision = torchvision.models


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(), dtype=torch.float64)


def dealt(net: nn.Module, layers: list[Layer]) -> set[frozenset[Piece]]:
    """Which entries belong together: what a layer list says, whatever its axes are called."""
    state = {**weights_of(net), **buffers_of(net)}
    found = axes(layers)
    return {frozenset(pieces(state, *found[axis])) for axis in free_axes(layers)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_traced_list_of_our_networks_is_equivalent_to_their_own(name):
    net, _ = built(name)
    traced = trace(net, images(2, *NETWORKS[name][0]))
    assert dealt(net, traced) == dealt(net, net.layers())
    assert {layer.module for layer in traced} == {layer.module for layer in net.layers()}
    assert len(free_axes(traced)) == len(axes(net.layers()))
