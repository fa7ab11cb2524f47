from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from conftest import Memory, make_task
from lossland import batchnorm
from lossland.batchnorm import refresh
from lossland.families import point
from lossland.flat import dropout_seed
from lossland.identity import described
from lossland.integral import Integral, averaged, integral_subspace
from lossland.models import MLP, Conv2FC1, initial_weights
from lossland.recipes import network
from lossland.sampling import stream_seed
from lossland.store import Store
from lossland.subspaces import start
from lossland.training import Recipe, fit
from lossland.weights import at, skeleton

FAST = Recipe(epochs=3, lr=0.05, batch_size=16, precision="float64", weight_decay=1e-3)
IMAGES = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def drawn(net: nn.Module, seed: int = 0):
    return initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64)


def f(integral, weights, alpha, images=IMAGES):
    class At(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = skeleton(integral)

        def forward(self, images):
            return self.inner.integrand(images, torch.tensor(alpha, dtype=torch.float64))

    given = {**weights, **batchnorm.fresh_buffers(integral, images)}
    return functional_call(At(), {f"inner.{name}": tensor for name, tensor in given.items()}, (images,))


def end(net, integral, weights):
    return functional_call(skeleton(net), integral.family(weights).points[-1], (IMAGES,))


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, images):
        return self.linear(images.flatten(1))


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 0.7])
def test_for_a_linear_network_f_is_the_ensemble_at_every_alpha(epsilon):
    integral = Integral(Linear(), epsilon=epsilon)
    weights = drawn(integral)
    for alpha in (0.0, 0.3, 1.0):
        assert_close(f(integral, weights, alpha), end(Linear(), integral, weights))
    assert_close(averaged(integral, weights, IMAGES, nodes=1), end(Linear(), integral, weights))


@pytest.mark.parametrize("kind", ["line", "bezier"])
def test_the_integral_of_the_derivative_is_the_last_network_for_every_network(kind):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3))
    integral = Integral(net, kind=kind, epsilon=0.0)
    weights = drawn(integral)
    assert_close(averaged(integral, weights, IMAGES, nodes=40), end(net, integral, weights), rtol=1e-10, atol=1e-10)


def test_the_integral_of_finite_differences_is_that_of_two_means():
    # g(P(0)) + mean of g over [1, 1 + epsilon] - mean over [0, epsilon]; tanh is smooth, so quadrature is exact
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3))
    integral = Integral(net, epsilon=0.1)
    weights = drawn(integral)
    path = integral.family(weights).path()
    steps = (torch.arange(200, dtype=torch.float64) + 0.5) / 200 * 0.1
    first, last = path.legs[0].points

    def mean(start):
        total = 0
        for s in (start + steps).tolist():
            total += functional_call(skeleton(net), {k: (1 - s) * first[k] + s * last[k] for k in first}, (IMAGES,))
        return total / len(steps)

    expected = functional_call(skeleton(net), first, (IMAGES,)) + mean(1.0) - mean(0.0)
    assert_close(averaged(integral, weights, IMAGES, nodes=40), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected, end(net, integral, weights), atol=1e-3)


def test_the_difference_tends_to_the_derivative():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3))
    weights = drawn(Integral(net))
    exact = f(Integral(net, epsilon=0.0), weights, 0.4)
    gaps = [float((f(Integral(net, epsilon=e), weights, 0.4) - exact).abs().max()) for e in (0.1, 0.01, 0.001)]
    assert gaps[1] < 0.2 * gaps[0] and gaps[2] < 0.2 * gaps[1] and gaps[2] > 0


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["line", "bezier"])
def test_the_gradient_at_every_control_point_is_that_of_equation_17(kind, epsilon):
    net = MLP((1, 4, 4), 3, widths=(6,))
    integral = Integral(net, kind=kind, epsilon=epsilon)
    weights = {name: tensor.requires_grad_() for name, tensor in drawn(integral).items()}
    labels, alpha = torch.arange(7) % 3, 0.4
    found = torch.autograd.grad(cross_entropy(f(integral, weights, alpha), labels), list(weights.values()))
    points = integral.family({name: tensor.detach() for name, tensor in weights.items()}).points
    points = [{name: tensor.detach().clone().requires_grad_() for name, tensor in each.items()} for each in points]

    def g(a):
        c = [1 - a, a] if kind == "line" else [(1 - a) ** 2, 2 * a * (1 - a), a**2]
        mixed = {name: sum(x * each[name] for x, each in zip(c, points, strict=True)) for name in points[0]}
        return functional_call(skeleton(net), mixed, (IMAGES,))

    # Central differences stand for the derivative; ReLU is linear so near.
    ahead, behind, step = (alpha + epsilon, alpha, epsilon) if epsilon else (alpha + 1e-6, alpha - 1e-6, 2e-6)
    loss = cross_entropy(g(0.0) + (g(ahead) - g(behind)) / step, labels)
    expected = torch.autograd.grad(loss, [tensor for each in points for tensor in each.values()])
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if epsilon else {"rtol": 1e-5, "atol": 1e-7}
    for name, one, other in zip(weights, found, expected, strict=True):
        assert_close(one, other, **tolerance, msg=name)


def test_control_points_are_drawn_independently_and_the_network_given_stays():
    net = Conv2FC1((1, 8, 8), 3, channels=(2, 3), norm="batch").eval()
    before = [parameter.clone() for parameter in net.parameters()]
    integral = Integral(net)
    weights = initial_weights(integral, torch.Generator().manual_seed(1))
    first, last = integral.family(weights).points
    assert not torch.equal(first["convs.0.weight"], last["convs.0.weight"])
    assert all(map(torch.equal, before, net.parameters())) and not net.training
    assert set(first) == {name for name, _ in net.named_parameters()}


def test_evaluation_is_that_of_the_last_control_point_with_its_own_statistics():
    net = Conv2FC1((1, 8, 8), 3, channels=(2, 3), norm="batch")
    integral = Integral(net)
    weights, images = drawn(integral), torch.randn(9, 1, 8, 8, dtype=torch.float64)
    buffers = refresh(integral, weights, images)
    assert all(name.startswith("points.1.norms.") for name in buffers)
    last = integral.family(weights).points[-1]
    plain = functional_call(skeleton(net), (last, refresh(net, last, images)), (images,))
    assert_close(functional_call(skeleton(integral), (weights, buffers), (images,)), plain)


def test_batch_norm_and_constants_of_the_network_are_there_in_training():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(16, 3, dtype=torch.float64), nn.BatchNorm1d(3, dtype=torch.float64)
            self.register_buffer("shift", torch.full((3,), 5.0, dtype=torch.float64))

        def forward(self, images):
            return self.norm(self.linear(images.flatten(1))) + self.shift

    integral = Integral(Shifted())
    weights = drawn(integral)
    out = f(integral, weights, 0.2)  # norms of all three passes see the batch alone: their means vanish, 5 stays
    assert_close(out.mean(0), torch.full((3,), 5.0, dtype=torch.float64))
    assert "points.0.shift" not in batchnorm.fresh_buffers(integral, out)
    done = fit(integral, point(weights), make_task(), FAST)
    assert done.history.loss.iloc[-1] < done.history.loss.iloc[0]


def test_training_goes_on_from_a_checkpoint_to_the_same_bits(task):
    integral = Integral(network(task, "mlp", width=6))
    begin = point(drawn(integral))
    whole = fit(integral, begin, task, FAST, seed=3)
    memory = Memory(fail_after=2)
    with pytest.raises(InterruptedError):
        fit(integral, begin, task, FAST, seed=3, checkpoint=memory)
    memory.fail_after = None
    resumed = fit(integral, begin, task, FAST, seed=3, checkpoint=memory)
    assert_close(resumed.family.points[0], whole.family.points[0], rtol=0, atol=0)
    assert_close(resumed.history.loss.tolist(), whole.history.loss.tolist(), rtol=0, atol=0)


def test_one_step_of_training_is_sgd_on_equation_17(task):
    recipe = replace(FAST, epochs=1, batch_size=96, momentum=0.0, weight_decay=0.0, schedule="constant")
    net = network(task, "mlp", width=6)
    integral = Integral(net)
    begin = drawn(integral)
    done = fit(integral, point(begin), task, recipe, seed=3).family.points[0]
    images, labels = next(task.batches("train", batch_size=96, dtype=torch.float64))
    with dropout_seed(stream_seed(3, 0, 2), torch.device("cpu")):
        alpha = float(torch.rand((), dtype=torch.float64))
    weights = {name: tensor.clone().requires_grad_() for name, tensor in begin.items()}
    loss = cross_entropy(f(integral, weights, alpha, images), labels)
    for (name, tensor), pull in zip(weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True):
        assert_close(done[name], tensor.detach() - recipe.lr * pull, msg=name)


def test_a_trained_subspace_is_read_from_the_store_and_learns(task, tmp_path):
    recipe, store = replace(FAST, epochs=12, lr=0.02), Store(tmp_path)
    family = integral_subspace(task, "mlp", seed=1, recipe=recipe, store=store, width=8)
    again = integral_subspace(task, "mlp", seed=1, recipe=recipe, store=store, width=8)
    other = integral_subspace(task, "mlp", seed=1, recipe=recipe, store=store, width=8, epsilon=0.2)
    assert family.kind == "line" and len(family.points) == 2
    assert_close(again.points, family.points, rtol=0, atol=0)
    assert not torch.equal(other.points[1]["linear.0.weight"], family.points[1]["linear.0.weight"])
    split = task.test
    assert integral_subspace(task, "mlp", seed=1, recipe=recipe, store=tmp_path, width=8).kind == "line"
    outputs = functional_call(skeleton(network(task, "mlp", width=8)), family.points[-1],
                              (task.prepare(split.images, torch.float64),))
    assert float((outputs.argmax(1) == split.labels).double().mean()) > 0.8


def test_a_curve_has_three_points_and_its_family_is_the_curve():
    net = MLP((1, 4, 4), 3, widths=(6,))
    integral = Integral(net, kind="bezier")
    weights = drawn(integral)
    family = integral.family(weights)
    assert (family.kind, len(family.points), family.free) == ("bezier", 3, (True, True, True))
    assert_close(family.points[1]["linear.0.weight"], weights["points.1.linear.0.weight"])
    assert_close(at(family.path()(torch.tensor([1.0])), 0), family.points[-1])


def test_other_settings_are_another_network_to_the_store():
    settings = [{}, {"kind": "bezier"}, {"epsilon": 0.2}, {"epsilon": 0.0}]
    assert len({described(Integral(Linear(), **each))["description"] for each in settings}) == 4


def test_a_family_and_the_weights_that_hold_it_are_two_names_of_one_thing():
    net = MLP((1, 4, 4), 3, widths=(6,))
    for kind in ("line", "bezier"):
        family, integral = start(net, kind, seed=2, dtype=torch.float64), Integral(net, kind=kind)
        weights = integral.weights(family)
        assert list(weights) == [name for name, _ in integral.named_parameters()]
        assert_close(integral.family(weights).points, family.points, rtol=0, atol=0)
    with pytest.raises(ValueError, match="family must have 3 control points, got 2"):
        integral.weights(start(net, "line"))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0, got -0.1"):
        Integral(Linear(), epsilon=-0.1)
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0, got inf"):
        Integral(Linear(), epsilon=float("inf"))
    with pytest.raises(ValueError, match="kind must be one of 'line', 'bezier'; got 'simplex'"):
        Integral(Linear(), kind="simplex")
    with pytest.raises(ValueError, match="nodes must be >= 1, got 0"):
        averaged(Integral(Linear()), drawn(Integral(Linear())), IMAGES, nodes=0)


@pytest.mark.parametrize("asked", [{"beta": 1.0}, {"draws": 2}, {"layerwise": True}])
def test_recipes_for_families_are_refused(asked, task, tmp_path):
    (name, value), = asked.items()
    with pytest.raises(ValueError, match=f"an Integral subspace is trained as a single network; got {name}={value!r}"):
        integral_subspace(task, "mlp", seed=1, recipe=replace(FAST, **asked), store=tmp_path, width=6)
    assert not Store(tmp_path).entries()


def test_all_control_points_are_trainable_as_far_as_the_network_is():
    net = MLP((1, 4, 4), 3, widths=(6,))
    assert all(parameter.requires_grad for parameter in Integral(net).parameters())
    net.linear[0].weight.requires_grad_(False)
    frozen = [name for name, parameter in Integral(net, kind="bezier").named_parameters() if not parameter.requires_grad]
    assert frozen == [f"points.{i}.linear.0.weight" for i in range(3)]
