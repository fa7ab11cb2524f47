import pytest
import torch
from torch.testing import assert_close

from lossland import models
from lossland.layers import axes, gather, permute
from lossland.neurons import pooled_centre
from lossland.paths import arc


def pair(name: str = "mlp", **sizes):
    net = models.build(name, (1, 4, 4), 3, **sizes)
    return net, *(models.initial_weights(net, torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))


def test_every_unit_gets_the_pooled_mean():
    net, a, b = pair(width=5)
    mu = pooled_centre(a, b, net.layers())
    (writers, readers), = axes(net.layers()).values()
    pool = torch.cat([gather(a, writers, readers), gather(b, writers, readers)])
    assert_close(gather(mu, writers, readers), pool.mean(0).expand(5, -1))
    assert_close(mu["linear.1.bias"], (a["linear.1.bias"] + b["linear.1.bias"]) / 2)


def test_the_centre_does_not_depend_on_the_order_of_units_or_ends():
    net, a, b = pair(width=5)
    mu = pooled_centre(a, b, net.layers())
    shuffled = permute(a, net.layers(), {"hidden0": torch.tensor([3, 1, 4, 0, 2])})
    assert_close(pooled_centre(shuffled, b, net.layers()), mu)
    assert_close(pooled_centre(b, a, net.layers()), mu)


def test_rows_pool_every_layer_on_its_own():
    net, a, b = pair("fc3", first=5, second=4)
    mu = pooled_centre(a, b, net.layers(), samples="rows")
    expected = torch.cat([a["linear.1.weight"], b["linear.1.weight"]]).mean(0)
    assert_close(mu["linear.1.weight"], expected.expand(4, -1))
    assert_close(arc(a, b, mu).point(1.0), b, rtol=0, atol=0)


def test_overlapping_butterflies_and_unknown_samples_are_refused():
    net, a, b = pair("fc3", first=5, second=4)
    with pytest.raises(ValueError, match="needs one hidden layer, got unit axes \\['hidden0', 'hidden1'\\]; use samples='rows'"):
        pooled_centre(a, b, net.layers())
    with pytest.raises(ValueError, match="did you mean 'rows'"):
        pooled_centre(a, b, net.layers(), samples="row")
