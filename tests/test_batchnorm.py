import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from lossland.batchnorm import fresh_buffers, norm_parameters, refresh
from lossland.weights import buffers_of, skeleton, weights_of


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 4), nn.BatchNorm1d(4)).double()


IMAGES = torch.randn(25, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_batch_gives_the_batch_statistics_of_every_layer():
    net = network()
    buffers = refresh(net, weights_of(net), IMAGES, batch_size=25)
    first = net[0](IMAGES)
    assert_close(buffers["1.running_mean"], first.mean(0))
    assert_close(buffers["1.running_var"], first.var(0))
    normal = (first - first.mean(0)) / (first.var(0, correction=0) + net[1].eps).sqrt()
    second = net[4](normal.relu())  # dropout off
    assert_close(buffers["5.running_mean"], second.mean(0))
    assert_close(buffers["5.running_var"], second.var(0))


def test_batches_count_by_their_size():
    net = network()
    parts = [refresh(net, weights_of(net), part) for part in IMAGES.split(10)]  # 10, 10 and 5 images
    whole = refresh(net, weights_of(net), IMAGES, batch_size=10)
    for name in ("1.running_mean", "5.running_var"):
        expected = sum(n * part[name] for n, part in zip((10, 10, 5), parts, strict=True)) / 25
        assert_close(whole[name], expected)
    assert_close(whole["1.running_mean"], net[0](IMAGES).mean(0))
    assert_close(refresh(net, weights_of(net), iter(IMAGES.split(10))), whole)


def test_neither_network_nor_weights_change():
    net = network().train()
    weights, before, flags = weights_of(net), buffers_of(net), [m.training for m in net.modules()]
    refresh(net, weights, IMAGES)
    assert_close(buffers_of(net), before, rtol=0, atol=0)
    assert_close(weights_of(net), weights, rtol=0, atol=0)
    assert flags == [m.training for m in net.modules()] and net[1].momentum == 0.1


def test_a_network_without_batch_norm_keeps_its_buffers():
    net = nn.Linear(3, 2)
    net.register_buffer("shift", torch.ones(2))
    assert_close(refresh(net, weights_of(net), torch.randn(4, 3)), {"shift": torch.ones(2)}, rtol=0, atol=0)


def test_refreshed_statistics_normalise_the_outputs_at_evaluation():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    buffers = refresh(net, weights_of(net), IMAGES, batch_size=25)
    out = functional_call(skeleton(net), (weights_of(net), buffers), (IMAGES,))
    assert_close(out.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(out.std(0), torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0)


def test_no_images_and_buffers_without_storage_are_refused():
    net = network()
    with pytest.raises(ValueError, match="at least one image"):
        refresh(net, weights_of(net), [])
    with torch.device("meta"):
        bare = nn.Linear(3, 2)
        bare.register_buffer("shift", torch.ones(2))
    with pytest.raises(ValueError, match="buffer 'shift' of the network has no storage"):
        fresh_buffers(bare, torch.zeros(1))


def test_statistics_without_data_are_refused_and_the_message_says_what_to_pass():
    net = network()
    with pytest.raises(TypeError, match=r"images must be given for a network with batch norm \('1'\): .* such as "
                       r"task.prepare\(task.train.images\); got NoneType"):
        refresh(net, weights_of(net), None)
    dense = nn.Linear(3, 2)
    assert refresh(dense, weights_of(dense), None) == {}


def test_parameters_of_normalisations_are_told_from_all_others():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)),
                        nn.BatchNorm1d(2, affine=False), nn.RMSNorm(2))
    assert norm_parameters(net) == {"1.weight", "1.bias", "2.weight", "2.bias", "3.0.weight", "3.0.bias", "5.weight"}
    assert not norm_parameters(nn.Linear(2, 3))
