import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from lossland import models
from lossland.batchnorm import fresh_buffers
from lossland.flat import dropout_seed
from lossland.layers import verify
from lossland.normalisation import channel_norm
from lossland.weights import count, skeleton



def preresnet(blocks: int, stages: tuple[int, ...] = (16, 32, 64)) -> int:
    """Weights of a residual network for 3 channels and 10 classes: two 3 x 3 convolutions a block, a norm before each."""
    total, wide = 9 * 3 * stages[0], stages[0]
    for units in stages:
        for _ in range(blocks):
            total += 9 * wide * units + 9 * units**2 + 2 * wide + 2 * units + (wide * units if wide != units else 0)
            wide = units
    return total + 2 * wide + (wide + 1) * 10


PAPER_SIZES = [  # name, inputs, parameters, where the number comes from
    ("mlp", (1, 28, 28), 784 * 2000 + 2000 + 2000 * 10 + 10, "AY20: 2000 units"),
    ("fc3", (3, 32, 32), 3072 * 6144 + 6144 * 2000 + 2000 * 10, "AY20 Table 4: 6144-2000, no biases"),
    ("fc7", (3, 32, 32), 3072 * 6144 + 6144 * 2000 + 2000 * 1000 + 3 * 1000**2 + 1000 * 10, "AY20 Table 4"),
    ("conv2fc1", (3, 32, 32), 32 * (75 + 1) + 64 * (800 + 1) + 3136 * 10 + 10, "AY20: 3136 neurons"),
    ("cresnet20", (3, 32, 32), 272_464, "W21's released network"),
    ("3conv3fc", (3, 32, 32), 32 * 76 + 64 * 801 + 128 * 1601 + 1153 * 1000 + 1001 * 1000 + 10_010, "G18: K = 1"),
    ("wrn28x10", (3, 32, 32), 36_479_194, "Zagoruyko & Komodakis: 36.5 million"),
    ("resnet164", (3, 32, 32), 1_703_258, "He et al.: 1.7 million"),
    ("resnet50", (3, 224, 224), 25_557_032 - 990 * 2049, "torchvision: 25,557,032 for 1000 classes"),
    ("wide_resnet50_2", (3, 224, 224), 68_883_240 - 990 * 2049, "torchvision: 68,883,240 for 1000 classes"),
    ("vgg16", (3, 32, 32), 14_714_688 + 2 * 513 * 512 + 513 * 10, "the 13 convolutions of VGG16; dense layers of 512"),
    *((name, (3, 32, 32), preresnet(blocks), f"three stages of {blocks} blocks with pre-activation")
      for name, blocks in (("preresnet20", 3), ("preresnet110", 18), ("resnet158", 26))),
]


@pytest.mark.parametrize("name, inputs, parameters, source", PAPER_SIZES)
def test_default_sizes_are_the_papers(name, inputs, parameters, source):
    assert sum(p.numel() for p in models.build(name, inputs, 10).parameters()) == parameters, source


@pytest.mark.parametrize("name, weights, shortcuts", [("resnet158", 158, 2), ("resnet164", 164, 3), ("wrn28x10", 26, 3)])
def test_residual_networks_have_the_layers_of_their_names(name, weights, shortcuts):
    layers = models.build(name, (3, 32, 32), 10).layers()  # WRN-28 has 28 convolutions, shortcuts included
    found = sum(layer.module.endswith("shortcut") for layer in layers)
    assert (len(layers) - found, found) == (weights, shortcuts)


@pytest.mark.parametrize("factor, units", [(0.3, 300), (0.5, 500), (0.8, 800), (1.0, 1000)])
def test_the_width_factor_scales_the_dense_layers_alone(factor, units):
    net = models.build("3conv3fc", (3, 32, 32), 10, factor=factor)
    assert [layer.out_features for layer in net.head] == [units, units, 10]
    assert [conv.out_channels for conv in net.convs] == [32, 64, 128]


def test_dropout_of_vgg16_is_the_papers_unless_asked_otherwise():
    rates = [models.build("vgg16", (1, 8, 8), 10, channels=2, **more).dropout.p for more in ({}, {"dropout": 0.1})]
    assert rates == [0.5, 0.1]


@pytest.mark.parametrize("pre", [True, False])
def test_bottlenecks_permute_with_and_without_pre_activation(pre):
    net = models.ResNet((3, 8, 8), 5, blocks=2, channels=2, bottleneck=True, pre_activation=pre)
    assert verify(net, net.layers(), torch.randn(2, 3, 8, 8)) < 1e-9
    sizes = [block.conv2.stride for block in net.blocks]
    assert sizes == [(1, 1), (1, 1), (2, 2), (1, 1), (2, 2), (1, 1)]


NORMED = [("conv2fc1", {"channels": (8, 12)}), ("cresnet20", {"blocks": 1, "channels": 8}),
          ("preresnet20", {"blocks": 1, "channels": 8}), ("resnet164", {"blocks": 1, "channels": 8})]


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("name, sizes", NORMED)
def test_units_of_normalised_networks_may_be_permuted(name, sizes, norm):
    net = models.build(name, (1, 8, 8), 5, norm=norm, **sizes)
    assert verify(net, net.layers(), torch.randn(2, 1, 8, 8)) < 1e-9
    kind = nn.BatchNorm2d if norm == "batch" else nn.GroupNorm
    named = [each for layer in net.layers() for each in (layer.norm, layer.pre_norm) if each]
    assert named and all(type(net.get_submodule(each)) is kind for each in named)


@pytest.mark.parametrize("name, sizes", NORMED)
def test_group_norm_of_several_groups_is_refused_with_the_reason(name, sizes):
    net = models.build(name, (1, 8, 8), 5, norm="group", **sizes)
    with pytest.raises(ValueError, match="has [0-9]+ groups, and a channel that moves to another group changes"):
        net.layers()
    # The reason is true: the layers of the same network with layer norm do not describe this one.
    with pytest.raises(ValueError, match="must leave the outputs unchanged"):
        verify(net, models.build(name, (1, 8, 8), 5, norm="layer", **sizes).layers(), torch.randn(2, 1, 8, 8))


def test_norms_average_over_what_their_names_say():
    maps = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for norm, over in (("batch", (0, 2, 3)), ("layer", (1, 2, 3))):
        out = channel_norm(norm, 8).double()(maps)
        assert_close(out.mean(over), torch.zeros_like(out.mean(over)))
        assert_close(out.var(over, correction=0), torch.ones_like(out.mean(over)), rtol=1e-3, atol=0)
    out = channel_norm("group", 8).double()(maps).unflatten(1, (2, 4))
    assert_close(out.mean((2, 3, 4)), torch.zeros(6, 2, dtype=torch.float64))


def test_dropout_drops_inputs_of_the_output_layer_in_training_alone():
    for name, sizes in (("conv2fc1", {"channels": (2, 3)}), ("cresnet20", {"blocks": 1, "channels": 2})):
        net = models.build(name, (1, 8, 8), 5, norm="layer", dropout=0.5, **sizes)
        weights = models.initial_weights(net, torch.Generator().manual_seed(0))
        images, bare = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)), skeleton(net)
        plain, again = (functional_call(bare, weights, (images,)) for _ in range(2))
        seen = []
        last = bare.head[-1] if name == "conv2fc1" else bare.linear
        last.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        with dropout_seed(0, torch.device("cpu")):
            noisy = functional_call(bare.train(), weights, (images,))
        assert torch.equal(plain, again) and not torch.equal(plain, noisy)
        assert 0.45 < float((seen[0] == 0).float().mean()) < 0.7  # half of them, and some are 0 behind a ReLU


def test_networks_of_torchvision_are_its_own_and_draw_nothing_from_the_global_generator():
    from torchvision.models import resnet50, wide_resnet50_2

    state = torch.get_rng_state()
    for name, theirs in (("resnet50", resnet50), ("wide_resnet50_2", wide_resnet50_2)):
        ours = models.build(name, (3, 64, 64), 7)
        with torch.device("meta"):
            assert repr(theirs(num_classes=7)) == repr(ours)
    assert torch.equal(state, torch.get_rng_state())
    net = models.build("resnet50", (3, 64, 64), 7, norm="layer", width=4)
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with pytest.raises(ValueError, match="must have 3 channels, got 1"):
        models.build("resnet50", (1, 64, 64), 7)
    with pytest.raises(ValueError, match="norm must be one of 'batch', 'group', 'layer'; got 'none'"):
        models.build("resnet50", (3, 64, 64), 7, norm="none")


def test_norm_and_dropout_are_checked():
    with pytest.raises(ValueError, match="norm must be one of 'batch', 'group', 'layer'; got 'bath' .did you mean 'batch'"):
        models.build("cresnet20", (1, 8, 8), 5, norm="bath")
    with pytest.raises(ValueError, match="norm must be one of 'none', 'batch', 'group', 'layer'; got 'instance'"):
        models.build("conv2fc1", (1, 8, 8), 5, norm="instance")
    with pytest.raises(TypeError, match="norm must be of the kind of 'none', got True"):
        models.build("conv2fc1", (1, 8, 8), 5, norm=True)
    with pytest.raises(ValueError, match="dropout"):
        models.build("cresnet20", (1, 8, 8), 5, dropout=1.5)


def test_networks_without_norm_and_dropout_are_described_as_before():
    # `repr` is part of the key under which the store keeps what is trained.
    parts = {"conv2fc1": ["convs", "pool", "head", "dropout"], "cresnet20": ["conv", "norm", "blocks", "linear"]}
    for name, children in parts.items():
        net = models.build(name, (3, 16, 16), 10)
        assert [each for each, _ in net.named_children()] == children, name
        assert repr(net) == repr(models.build(name, (3, 16, 16), 10, dropout=0.0))
    assert [conv.bias is None for conv in models.build("conv2fc1", (3, 16, 16), 10).convs] == [False, False]
    assert isinstance(models.build("cresnet20", (3, 16, 16), 10).norm, nn.BatchNorm2d)


def test_preresnet110_has_110_weight_layers_and_two_shortcuts():
    layers = models.build("preresnet110", (3, 32, 32), 10).layers()
    assert len(layers) == 110 + 2 and sum(layer.module.endswith("shortcut") for layer in layers) == 2


@pytest.mark.parametrize("name, inputs", [("vgg16", (3, 32, 32)), ("vgg16", (1, 8, 8)), ("cresnet20", (1, 8, 8)),
                                          ("conv2fc1", (1, 8, 8)), ("3conv3fc", (1, 8, 8)), ("wrn28x10", (1, 8, 8)),
                                          ("resnet164", (3, 9, 9)), ("preresnet20", (3, 32, 32)), ("fc5", (1, 8, 8))])
def test_networks_run_on_small_and_large_images(name, inputs):
    sizes = {"conv2fc1": {"channels": (2, 3)}, "3conv3fc": {"channels": (2, 3, 4), "width": 4}, "fc5": {"first": 4, "second": 4, "rest": 4}}.get(name, {"channels": 2})
    net = models.build(name, inputs, 7, **sizes)
    weights = models.initial_weights(net, torch.Generator().manual_seed(0))
    images = torch.randn(2, *inputs)
    outputs = functional_call(skeleton(net), (weights, fresh_buffers(net, images)), (images,))
    assert outputs.shape == (2, 7) and bool(outputs.isfinite().all())


def test_initial_weights_have_the_stated_distributions():
    net = models.build("conv2fc1", (3, 32, 32), 10)
    drawn = models.initial_weights(net, torch.Generator().manual_seed(0))
    assert_close(drawn["convs.1.weight"].std(), torch.tensor(math.sqrt(2 / (64 * 25))), rtol=0.02, atol=0)
    assert drawn["convs.0.bias"].abs().max() == 0
    bound = 1 / math.sqrt(3136)
    assert 0.99 * bound < drawn["head.0.weight"].abs().max() <= bound
    assert_close(drawn["head.0.weight"].std(), torch.tensor(bound / math.sqrt(3)), rtol=0.02, atol=0)


def test_initial_weights_of_stored_networks_have_not_changed():
    # What is in a store was drawn so: a change here would make old end points another network's.
    sums = {"mlp": 112.83591, "conv2fc1": 1657.55552, "cresnet20": 15415.90719, "preresnet20": 15320.51149,
            "vgg16": 271284.80708}
    for name, total in sums.items():
        net = models.build(name, (3, 16, 16), 10, **({"width": 7} if name == "mlp" else {}))
        drawn = models.initial_weights(net, torch.Generator().manual_seed(3))
        assert_close(sum(float(tensor.double().abs().sum()) for tensor in drawn.values()), total, rtol=1e-7, atol=0)


def test_initial_weights_depend_on_the_generator_alone():
    net = models.build("mlp", (1, 8, 8), 10, width=5)
    state = torch.get_rng_state()
    first, again, other = (models.initial_weights(net, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["linear.0.weight"], other["linear.0.weight"])
    assert torch.equal(state, torch.get_rng_state())
    assert count(first) == 64 * 5 + 5 + 50 + 10


def test_a_module_whose_initialisation_is_unknown_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError, match="Odd at '0'"):
        models.initial_weights(nn.Sequential(Odd()), torch.Generator())


def test_bad_choices_name_the_nearest_valid_one():
    with pytest.raises(ValueError, match="did you mean 'vgg16'"):
        models.build("vgg", (3, 32, 32), 10)
    with pytest.raises(ValueError, match="at least 7 x 7 pixels"):
        models.build("conv2fc1", (1, 6, 6), 10)
    with pytest.raises(ValueError, match="widths"):
        models.build("mlp", (1, 8, 8), 10, width=0)
    with pytest.raises(ValueError, match="size of 'mlp' must be one of 'width'; got 'widht' \\(did you mean 'width'"):
        models.build("mlp", (1, 8, 8), 10, widht=3)
    with pytest.raises(TypeError, match="width must be of the kind of 2000, got '8' \\(str\\)"):
        models.build("mlp", (1, 8, 8), 10, width="8")
    with pytest.raises(ValueError, match="at least one unit, got 0.0001 \\* 1000"):
        models.build("3conv3fc", (1, 8, 8), 10, factor=1e-4)
