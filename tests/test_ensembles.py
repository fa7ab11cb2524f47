"""Ensembles on a shared backbone, against full passes, independent networks and exact cases."""

import pytest
import torch
from conftest import make_task
from torch import nn
from torch.nn.functional import linear, log_softmax, relu
from torch.testing import assert_close

from lossland import ensembles, metrics, models
from lossland.ensembles import heads, weight_adjusted
from lossland.ensembles import averaged, ensemble_cost, independent, running_average, wa_ensemble
from lossland.ensembles.backbones import cuts
from lossland.evaluation import predict
from lossland.layers import Layer
from lossland.tracing import trace
from lossland.weights import weights_of

SHAPE = (1, 8, 8)
TASK = make_task(SHAPE)
NETS = {
    "fc3": lambda: models.MLP(SHAPE, 3, widths=(9, 7), bias=False),
    "mlp": lambda: models.MLP(SHAPE, 3, widths=(9, 8, 7)),
    "conv2fc1": lambda: models.Conv2FC1(SHAPE, 3, channels=(3, 4)),
    "vgg16": lambda: models.VGG16(SHAPE, 3, channels=2),
    "preresnet": lambda: models.ResNet(SHAPE, 3, blocks=2, channels=3, pre_activation=True, bias=True),
    "resnet": lambda: models.ResNet(SHAPE, 3, blocks=1, channels=3),
}


def drawn(net: nn.Module, count: int = 3, dtype: torch.dtype = torch.float64) -> list[dict]:
    """Networks with biases and normalisations that are not the defaults of an initialisation."""
    found = []
    for seed in range(1, count + 1):
        generator = torch.Generator().manual_seed(seed)
        weights = models.initial_weights(net, generator, dtype=dtype)
        found.append({name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator, dtype=dtype)
                      if tensor.ndim == 1 else tensor for name, tensor in weights.items()})
    return found


def outputs(net: nn.Module, members: list[dict], split: str = "test") -> torch.Tensor:
    return torch.stack([predict(net, weights, TASK, split) for weights in members])


# Averages


def test_probabilities_are_averaged_in_logarithms():
    logits = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(averaged(logits).exp(), logits.softmax(-1).mean(0))
    assert_close(averaged(logits, "logits"), logits.mean(0))


@pytest.mark.parametrize("average", ensembles.AVERAGES)
def test_every_running_average_is_that_of_the_members_so_far(average):
    logits = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for count, scores in enumerate(running_average(logits, average), 1):
        assert_close(scores, averaged(logits[:count], average))
    assert count == 4


def test_a_probability_that_rounds_to_zero_keeps_a_finite_loss():
    logits = torch.tensor([[[0.0, 500.0]], [[0.0, 500.0]]])
    assert_close(metrics.nll(averaged(logits), torch.tensor([0])), torch.tensor(500.0))


def test_half_precision_is_averaged_in_float32():
    assert averaged([torch.ones(2, 3).half()]).dtype == torch.float32


def test_members_are_asked_for_one_after_the_other():
    asked = []

    def members():
        for number in range(3):
            asked.append(number)
            yield torch.zeros(1, 2)

    found = running_average(members())
    next(found)
    assert asked == [0]


def test_an_average_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="average must be one of 'probabilities', 'logits'; got 'logit'.*'logits'"):
        averaged([torch.zeros(1, 2)], "logit")
    net = NETS["fc3"]()
    with pytest.raises(ValueError, match="average must be one of"):
        independent(net, drawn(net), TASK).predict(TASK, average="weights")
    with pytest.raises(ValueError, match="at least one member"):
        averaged([])


# The shared backbone against full passes


@pytest.mark.parametrize("average", ensembles.AVERAGES)
@pytest.mark.parametrize("name", NETS)
def test_a_shared_backbone_gives_what_full_passes_of_all_members_give(name, average):
    net = NETS[name]()
    for n in cuts(net.layers()):
        found = wa_ensemble(net, drawn(net), TASK, n=n)
        assert_close(found.predict(TASK, average=average), averaged(outputs(net, found.members), average))


@pytest.mark.parametrize("name", NETS)
def test_adjusting_all_layers_is_the_independent_ensemble(name):
    net = NETS[name]()
    members, layers = drawn(net), net.layers()
    found, alone = wa_ensemble(net, members, TASK, n=len(layers)), independent(net, members, TASK)
    assert torch.equal(found.predict(TASK), alone.predict(TASK))
    assert_close(alone.predict(TASK), averaged(outputs(net, members)))
    assert found.cost(SHAPE).in_networks == alone.cost(SHAPE).stored_networks == 3
    assert not len(found.fits)


def test_the_backbone_runs_once_for_all_members(monkeypatch):
    net, calls = NETS["vgg16"](), []
    found = wa_ensemble(net, drawn(net), TASK, n=3)
    features = weight_adjusted.Backbone.features
    monkeypatch.setattr(weight_adjusted.Backbone, "features", lambda self, w, b, x: calls.append(len(x)) or
                        features(self, w, b, x))
    found.predict(TASK)
    assert calls == [len(TASK.test)]


def test_batches_of_images_change_nothing(monkeypatch):
    net = NETS["conv2fc1"]()
    members = drawn(net)
    whole = wa_ensemble(net, members, TASK, n=2)
    expected = whole.predict(TASK), whole.scores(TASK)
    for module, name, value in ((weight_adjusted, "_BATCH", 7), (heads, "_BLOCK", 11)):
        monkeypatch.setattr(module, name, value)
    parts = wa_ensemble(net, members, TASK, n=2)
    assert_close(parts.predict(TASK), expected[0])
    assert_close(torch.tensor(parts.scores(TASK).nll), torch.tensor(expected[1].nll))
    assert_close(torch.tensor(parts.fits.residual), torch.tensor(whole.fits.residual))


def test_members_share_the_tensors_of_the_backbone_by_identity():
    net = NETS["preresnet"]()
    found = wa_ensemble(net, drawn(net), TASK)
    for member, buffers in zip(found.members[1:], found.buffers[1:], strict=True):
        own = {name for name, tensor in member.items() if tensor is not found.members[0][name]}
        assert own == {"linear.weight", "linear.bias"}
        assert all(tensor is found.buffers[0][name] for name, tensor in buffers.items() if "norm" in name)


def test_an_ensemble_shows_itself_without_its_numbers():
    net = NETS["preresnet"]()
    shown = repr(wa_ensemble(net, drawn(net), TASK))
    assert "n=1" in shown and "tensor(" not in shown


# Adjusted heads


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("net", [models.MLP(SHAPE, 3, widths=(30, 25, 40)),
                                 models.Conv2FC1(SHAPE, 3, channels=(30, 40))], ids=["mlp", "conv2fc1"])
def test_with_more_units_than_samples_a_head_gives_the_members_own_outputs(net, n):
    few = make_task(SHAPE, train=6)
    members = drawn(net)
    found = wa_ensemble(net, members, few, n=n, ridge=1e-13)
    for ours, own in zip(found.members, members, strict=True):
        assert_close(predict(net, ours, few, "train"), predict(net, own, few, "train"), rtol=0, atol=1e-6)
    assert (found.fits.residual < 1e-6).all()


def test_stages_of_a_residual_network_are_fitted_exactly_where_units_outnumber_patches():
    net, few = models.ResNet((1, 4, 4), 3, blocks=1, channels=40, pre_activation=True, bias=True), make_task(train=6)
    found = wa_ensemble(net, drawn(net, 2), few, n=4, ridge=1e-13)  # a 3x3 convolution and a shortcut read the stream
    assert sorted(found.fits.module) == ["blocks.2.conv1", "blocks.2.shortcut"]
    assert (found.fits.residual < 1e-6).all()


def test_the_output_layer_is_the_pseudo_inverse_of_the_paper():
    net = models.MLP(SHAPE, 3, widths=(9,))
    members = drawn(net, 4)
    found = wa_ensemble(net, members, TASK, ridge=1e-12)
    x = TASK.prepare(TASK.train.images, torch.float64).flatten(1)
    features = [relu(linear(x, w["linear.0.weight"], w["linear.0.bias"])).T for w in members]
    for k in (1, 2, 3):
        expected = members[k]["linear.1.weight"] @ features[k] @ torch.linalg.pinv(features[0])
        assert_close(found.members[k]["linear.1.weight"], expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(found.members[k]["linear.1.bias"], members[k]["linear.1.bias"])
        gap = members[k]["linear.1.weight"] @ features[k] - expected @ features[0]
        residual = float(gap.norm() / (members[k]["linear.1.weight"] @ features[k]).norm())
        assert found.fits.residual[k - 1] == pytest.approx(residual, rel=1e-6)


def test_groups_of_a_convolution_are_solved_one_by_one():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, groups=2, padding=1)
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.b(self.a(x).relu()).relu().mean((2, 3)))

        def layers(self):
            return [Layer("a", None, "x"), Layer("b", "x", "y", fixed=True), Layer("out", "y", None)]

    net = Grouped()
    members = drawn(net, 2)
    own = wa_ensemble(net, [members[0], members[0]], TASK, n=2, ridge=1e-13)
    expected = predict(net, members[0], TASK, "train")
    assert_close(own.predict(TASK, "train", average="logits"), expected, rtol=0, atol=1e-6)
    assert 0.001 < float(wa_ensemble(net, members, TASK, n=2).fits.residual[0]) < 1


def test_a_second_copy_of_the_base_is_the_base():
    net = NETS["vgg16"]()
    base = drawn(net, 1)[0]
    for n in (1, 3, 5):
        found = wa_ensemble(net, [base, base], TASK, n=n, ridge=1e-12)
        assert_close(found.predict(TASK), averaged([predict(net, base, TASK)]), rtol=1e-6, atol=1e-6)


def test_a_larger_ridge_fits_less():
    net = NETS["fc3"]()
    found = [wa_ensemble(net, drawn(net), TASK, ridge=ridge).fits.residual[0] for ridge in (1e-9, 1e-2, 1.0)]
    assert found == sorted(found) and found[0] < found[-1]


def test_few_patches_of_every_image_are_enough_for_a_system():
    net = NETS["conv2fc1"]()
    some, every = (wa_ensemble(net, drawn(net), TASK, n=2, patches=patches).fits.residual for patches in (4, None))
    assert (some != every).all()
    with pytest.raises(ValueError, match="patches must be one of"):
        wa_ensemble(net, drawn(net), TASK, n=2, patches=3)


def test_one_member_is_the_base_itself():
    net = NETS["preresnet"]()
    base = drawn(net, 1)[0]
    found = wa_ensemble(net, [base], TASK)
    assert all(tensor is base[name] for name, tensor in found.members[0].items())
    assert_close(found.predict(TASK, average="logits"), predict(net, base, TASK))
    assert found.cost(SHAPE).in_networks == 1


def test_the_order_of_the_members_matters_for_the_base_alone():
    net = NETS["fc3"]()
    a, b, c, d = drawn(net, 4)
    for n in (1, 2):
        one, other = (wa_ensemble(net, [a, *rest], TASK, n=n) for rest in ((b, c, d), (d, b, c)))
        assert_close(one.predict(TASK), other.predict(TASK), rtol=1e-6, atol=1e-6)
        assert_close(one.members[1], other.members[2], rtol=1e-6, atol=1e-6)
    swapped = wa_ensemble(net, [b, a, c, d], TASK, n=2)
    assert float((swapped.predict(TASK) - one.predict(TASK)).abs().max()) > 1e-3


# Tables, costs, one matrix


def test_scores_are_those_of_the_first_members():
    net = NETS["preresnet"]()
    found = wa_ensemble(net, drawn(net, 4), TASK, n=1)
    table = found.scores(TASK, splits=("test",)).set_index("members")
    for count in (1, 2, 4):
        scores = averaged(outputs(net, found.members[:count]))
        labels = TASK.test.labels
        assert table.nll[count] == pytest.approx(float(metrics.nll(scores, labels)))
        assert table.accuracy[count] == pytest.approx(float(metrics.accuracy(scores, labels)))
        assert table.ece[count] == pytest.approx(float(metrics.ece(scores.exp(), labels)))


@pytest.mark.parametrize("name", NETS)
def test_the_averaged_matrix_gives_the_mean_of_the_logits(name):
    net = NETS[name]()
    found = wa_ensemble(net, drawn(net), TASK)
    single = found.averaged()
    assert_close(predict(net, single, TASK), found.predict(TASK, average="logits"))
    output = f"{net.layers()[-1].module}."
    assert all(tensor is found.members[0][name] for name, tensor in single.items() if not name.startswith(output))


@pytest.mark.parametrize("n", [2, 3])
def test_only_the_output_layer_can_be_one_matrix(n):
    net = NETS["fc3"]()
    with pytest.raises(ValueError, match=f"shares all layers but the output layer.*got n={n} of 3"):
        wa_ensemble(net, drawn(net), TASK, n=n).averaged()


def test_costs_add_up_by_hand():
    net = models.MLP(SHAPE, 3, widths=(9, 7))
    cost = wa_ensemble(net, drawn(net, 3), TASK, n=2).cost(SHAPE)
    assert (cost.backbone, cost.head) == (64 * 9, 9 * 7 + 7 * 3)
    assert (cost.backbone_parameters, cost.head_parameters) == (64 * 9 + 9, 9 * 7 + 7 + 7 * 3 + 3)
    assert cost.multiply_adds == 64 * 9 + 3 * (9 * 7 + 7 * 3)


@pytest.mark.parametrize("name", NETS)
def test_costs_count_every_distinct_tensor_once(name):
    net = NETS[name]()
    for n in cuts(net.layers()):
        found = wa_ensemble(net, drawn(net), TASK, n=n)
        distinct = {id(tensor): tensor.numel() for member in found.members for tensor in member.values()}
        assert found.cost(SHAPE).parameters == sum(distinct.values())


def test_costs_need_no_weights():
    cost = ensemble_cost(models.build("vgg16", (3, 32, 32), 10), (3, 32, 32), n=3, members=7)
    assert cost.head == 512 * 512 + 512 * 512 + 512 * 10
    assert cost.backbone_parameters == 14_714_688  # of torchvision's vgg16 in front of its classifier
    with pytest.raises(ValueError, match="members must be >= 1, got 0"):
        ensemble_cost(NETS["fc3"](), SHAPE, n=1, members=0)


# What is refused


@pytest.mark.parametrize("n", [0, 4])
def test_an_n_out_of_range_names_the_layers(n):
    net = NETS["fc3"]()
    with pytest.raises(ValueError, match=rf"1 \(linear.2\), 2 \(linear.1\), 3 \(linear.0\), .*got {n}"):
        wa_ensemble(net, drawn(net), TASK, n=n)


def test_members_of_another_shape_are_named():
    net, other = NETS["fc3"](), models.MLP(SHAPE, 3, widths=(9, 6), bias=False)
    with pytest.raises(ValueError, match=r"members\[1\] must fit the network: 'linear.1.weight'"):
        wa_ensemble(net, [*drawn(net, 1), *drawn(other, 1)], TASK)


def test_bad_members_are_named():
    net = NETS["fc3"]()
    with pytest.raises(ValueError, match="at least one network, got none"):
        independent(net, [], TASK)
    with pytest.raises(TypeError, match="members must be several weights, .* for a single network, got dict"):
        wa_ensemble(net, drawn(net, 1)[0], TASK)
    bad = drawn(net, 2)
    bad[1]["linear.0.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"members\[1\] must be finite"):
        wa_ensemble(net, bad, TASK)


def test_a_layer_that_cannot_be_adjusted_is_named():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(8, 4), nn.Conv1d(8, 3, 1), nn.Linear(12, 3)

        def forward(self, x):
            return self.out(self.b(self.a(x[:, 0])).flatten(1))

        def layers(self):
            return [Layer("a", None, "x"), Layer("b", "x", "y"), Layer("out", "y", None)]

    net = Line()
    with pytest.raises(TypeError, match="'b' must be a linear or 2-D convolutional module.*Conv1d"):
        wa_ensemble(net, drawn(net, 2), TASK, n=2)


def test_an_infinite_loss_names_split_and_members():
    net = NETS["fc3"]()
    found = independent(net, drawn(net), TASK)
    found.members[1]["linear.2.weight"].fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="loss on 'test' is NaN or infinite from 2 members on"):
        found.scores(TASK, splits=("test",))


def test_a_network_of_torchvision_is_cut_and_adjusted():
    torchvision = pytest.importorskip("torchvision")
    few = make_task((3, 32, 32), train=12, test=5)
    net = torchvision.models.mobilenet_v3_small(num_classes=3)
    layers = trace(net, few.prepare(few.train.images[:2]))
    members = [{key: tensor * (1 + 0.1 * seed) for key, tensor in weights_of(net).items()} for seed in range(2)]
    found = wa_ensemble(net, members, few, n=2, layers=layers)
    assert list(found.fits.module) == ["classifier.0"]
    expected = torch.stack([predict(net, weights, few) for weights in found.members])
    assert_close(found.predict(few, average="logits"), expected.mean(0), rtol=1e-4, atol=1e-5)


def test_a_network_without_a_list_of_layers_is_traced():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3))
    members, layers = drawn(net, dtype=torch.float32), [Layer("1", None, "x"), Layer("3", "x", None)]
    for make in (wa_ensemble, independent):
        assert_close(make(net, members, TASK).predict(TASK), make(net, members, TASK, layers=layers).predict(TASK))
    assert ensemble_cost(net, SHAPE, n=1, members=2) == ensemble_cost(net, SHAPE, n=1, members=2, layers=layers)


def test_a_network_of_the_users_own_is_served_by_its_layers():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 3))
    members = [{name: tensor + 0.1 * seed for name, tensor in weights_of(net).items()} for seed in range(3)]
    layers = [Layer("1", None, "x"), Layer("3", "x", None)]
    found = wa_ensemble(net, members, TASK, layers=layers)
    expected = torch.stack([log_softmax(predict(net, weights, TASK), -1).exp() for weights in found.members]).mean(0)
    assert_close(found.predict(TASK).exp(), expected, rtol=1e-5, atol=1e-6)
