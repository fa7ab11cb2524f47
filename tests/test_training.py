import gc
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from conftest import Memory, make_task
from lossland import families, models, training
from lossland.sampling import stream_seed
from lossland.tasks import Task
from lossland.training import Recipe, fit, learning_rate
from lossland.weights import Weights, mix, to_vector

FAST = Recipe(epochs=3, lr=0.1, batch_size=32, weight_decay=1e-3, precision="float64")


def start(net: nn.Module, seed: int = 0) -> Weights:
    return models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(task: Task) -> nn.Module:
    return models.build("mlp", task.input_shape, task.classes, width=6)


def test_plain_training_is_torchs_sgd(task):
    net, recipe = mlp(task), replace(FAST, epochs=1, augment=False)
    trained = fit(net, families.point(start(net)), task, recipe, seed=3).family.points[0]
    real = models.MLP(task.input_shape, task.classes, widths=(6,)).double()
    real.load_state_dict(start(net))
    optimiser = torch.optim.SGD(real.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    order = torch.Generator().manual_seed(stream_seed(3, 0, 0))
    for images, labels in task.batches("train", batch_size=32, generator=order, dtype=torch.float64):
        optimiser.zero_grad()
        cross_entropy(real(images), labels).backward()
        optimiser.step()
    assert_close(trained, dict(real.state_dict()))


@pytest.mark.parametrize("decay_on", ["points", "sampled"])
def test_gradients_of_control_points_equal_autograd_through_the_combination(task, decay_on):
    net = mlp(task)
    family = families.bezier(start(net, 1), start(net, 2), ends="free").with_points([start(net, i) for i in (1, 2, 3)])
    recipe = replace(FAST, epochs=1, batch_size=96, decay_on=decay_on)
    trained = fit(net, family, task, recipe, seed=5).family
    leaves = [{k: v.clone().requires_grad_() for k, v in p.items()} for p in family.points]
    c = family.sample(torch.Generator().manual_seed(stream_seed(5, 0, 1)))
    sampled = mix(leaves, c)
    order = torch.Generator().manual_seed(stream_seed(5, 0, 0))
    (images, labels), = task.batches("train", batch_size=96, generator=order, dtype=torch.float64)
    real = models.MLP(task.input_shape, task.classes, widths=(6,)).double()
    loss = cross_entropy(functional_call(real, sampled, (images,)), labels)
    decayed = [sampled] if decay_on == "sampled" else leaves
    loss = loss + 0.5 * 1e-3 * sum(to_vector(p).square().sum() for p in decayed)
    loss.backward()
    for before, after in zip(leaves, trained.points, strict=True):
        for key in before:
            assert_close(after[key], before[key].detach() - 0.1 * before[key].grad)


class Silent(nn.Module):
    """Logits that do not depend on the weights, so that only the L2 term of the sampled point is left of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.zeros(5, 2))

    def forward(self, images):
        return torch.zeros(len(images), 3, dtype=images.dtype) + 0 * self.free.sum()


def test_on_a_quadratic_the_trained_bend_is_the_analytic_minimiser(task):
    a, b = ({"free": torch.randn(5, 2, generator=torch.Generator().manual_seed(s), dtype=torch.float64)} for s in (1, 2))
    pull = Recipe(epochs=150, lr=0.3, batch_size=16, momentum=0.0, weight_decay=1.0, decay_on="sampled", precision="float64")
    bend = fit(Silent(), families.bezier(a, b), task, pull).family.points[1]["free"]
    # minimise E_t ||c0 a + c1 x + c2 b||^2 over x: x = -(E[c0 c1] a + E[c1 c2] b) / E[c1^2] = -3/4 (a + b)
    expected = -0.75 * (a["free"] + b["free"])
    assert float((bend - expected).norm() / expected.norm()) < 0.05


def test_fixed_ends_stay_to_the_last_bit_and_the_input_is_untouched(task):
    net = mlp(task)
    a, b = start(net, 1), start(net, 2)
    family = families.chain(a, b, bends=2)
    before = [to_vector(p).clone() for p in family.points]
    trained = fit(net, family, task, FAST).family
    assert_close(trained.points[0], a, rtol=0, atol=0)
    assert_close(trained.points[-1], b, rtol=0, atol=0)
    for p, old, new in zip(family.points, before, trained.points, strict=True):
        assert torch.equal(to_vector(p), old)
    assert float((to_vector(trained.points[1]) - before[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("model, sizes", [("mlp", {"width": 6}), ("vgg16", {"channels": 2}), ("cresnet20", {"channels": 2, "blocks": 1})])
def test_an_interrupted_run_gives_the_weights_of_an_uninterrupted_one(model, sizes):
    task = make_task(shape=(3, 8, 8))
    net = models.build(model, task.input_shape, task.classes, **sizes)
    recipe = replace(FAST, augment=True, lr=0.01)
    task = replace(task, augment="flip-crop")
    whole = fit(net, families.point(start(net)), task, recipe, seed=1)
    memory = Memory(fail_after=2)
    with pytest.raises(InterruptedError):
        fit(net, families.point(start(net)), task, recipe, seed=1, checkpoint=memory)
    assert memory.saved[1]["epoch"] == 1
    memory.fail_after = None
    again = fit(net, families.point(start(net)), task, recipe, seed=1, checkpoint=memory)
    assert_close(again.family.points[0], whole.family.points[0], rtol=0, atol=0)
    assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))


def test_training_learns_and_leaves_torchs_generators_alone(task):
    net = models.build("vgg16", (1, 8, 8), 3, channels=2)  # has dropout
    state = torch.get_rng_state()
    fit(net, families.point(start(net)), make_task(shape=(1, 8, 8)), replace(FAST, epochs=1, lr=0.01))
    assert torch.equal(state, torch.get_rng_state())
    mlp_net = mlp(task)
    history = fit(mlp_net, families.point(start(mlp_net)), task, replace(FAST, epochs=20)).history
    assert list(history.columns) == ["epoch", "lr", "loss", "accuracy", "seconds"] and len(history) == 20
    assert history.accuracy.iloc[-1] > 0.9 > history.accuracy.iloc[0]


def test_what_training_needed_is_free_before_its_result_is_looked_through(task, monkeypatch):
    """Looking for numbers that are not finite takes memory of its own; on top of training's it would be the peak."""
    net, held = models.build("mlp", task.input_shape, task.classes, width=997), []
    ends, size = [start(net, seed) for seed in (1, 2)], 997 * (16 + 1 + 3) + 3

    def look(family, points):
        whole = {t.data_ptr() for t in gc.get_objects() if type(t) is torch.Tensor and t.numel() in (size, 3 * size)}
        held.append(len(whole))
        return replace(family, points=tuple(points))

    monkeypatch.setattr(families.Family, "with_points", look)
    fit(net, families.bezier(*ends), task, replace(FAST, epochs=1))
    assert held == [0]


def test_a_users_parameters_with_gradients_are_trained_and_stay_as_they_are(task):
    nets = [models.MLP(task.input_shape, task.classes, widths=(6,)) for _ in range(2)]
    a, b = (dict(net.named_parameters()) for net in nets)
    before = to_vector(a).clone()
    trained = fit(nets[0], families.bezier(a, b), task, replace(FAST, epochs=1)).family
    assert torch.equal(to_vector(a), before) and a["linear.0.weight"].requires_grad
    assert not any(value.requires_grad for point in trained.points for value in point.values())


def test_what_is_no_family_of_this_network_is_refused(task):
    net = mlp(task)
    with pytest.raises(TypeError, match="family must be a Family, .* got Path"):
        fit(net, families.line(start(net), start(net, 1)).path(), task, FAST)
    other = models.build("mlp", task.input_shape, task.classes, width=7)
    with pytest.raises(ValueError, match="family.points\\[0\\] must fit the network: 'linear.0.weight'"):
        fit(net, families.point(start(other)), task, FAST)


def test_seeds_decide_everything(task):
    net = mlp(task)
    first, again, other = (fit(net, families.point(start(net)), task, FAST, seed=s).family.points[0] for s in (0, 0, 1))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(to_vector(first), to_vector(other))


class Brittle(nn.Module):
    """Cross-entropy of constant logits plus log(w): NaN as soon as its only weight is below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return torch.zeros(len(images), 3, dtype=images.dtype) + torch.tensor([1.0, 0, 0], dtype=images.dtype) * self.w.log()


@pytest.mark.parametrize("family, member", [
    (families.point, ""),
    (lambda w: families.bezier(w, {"w": w["w"] - 2.0}), ", t = 0\\.\\d+"),
    (lambda w: families.simplex([w, {"w": w["w"] - 2.0}]), ", coefficients = \\[0\\.\\d+, 0\\.\\d+\\]"),
])
def test_a_diverging_run_stops_with_epoch_step_and_sampled_member(task, family, member):
    start = family({"w": torch.ones(1, dtype=torch.float64) * (1 if member else -1)})
    with pytest.raises(FloatingPointError, match=f"in epoch 0, step \\d+{member} \\(lr 0.1\\); the last good state is the start"):
        fit(Brittle(), start, task, FAST)


def test_a_diverging_run_keeps_the_last_good_state(task):
    net, memory = mlp(task), Memory()
    family = families.chain(start(net, 1), start(net, 2))
    good = fit(net, family, task, replace(FAST, schedule="constant"), checkpoint=memory).family
    assert memory.saved[1]["epoch"] == 3
    before = {name: tensor.clone() for name, tensor in memory.saved[0].items()}
    with pytest.raises(FloatingPointError, match="epoch 3, step \\d+, t = 0.*lr 1e\\+80.*the one after epoch 2"):
        fit(net, family, task, replace(FAST, lr=1e80, epochs=50), checkpoint=memory)
    assert_close(memory.saved[0], before, rtol=0, atol=0)
    assert_close(memory.saved[0]["points"][0], to_vector(good.points[1]), rtol=0, atol=0)


@pytest.mark.parametrize("schedule, warmup", [("piecewise", 0), ("cosine", 5), ("constant", 0)])
def test_schedules_start_high_end_low_and_never_rise_after_warm_up(schedule, warmup):
    recipe = Recipe(epochs=40, lr=0.3, schedule=schedule, warmup=warmup)
    rates = [learning_rate(recipe, epoch) for epoch in range(40)]
    assert max(rates) == 0.3 and all(x >= y for x, y in zip(rates[warmup:], rates[warmup + 1 :]))
    assert math.isclose(rates[-1], {"piecewise": 0.003, "constant": 0.3}.get(schedule, rates[-1]))


@pytest.mark.parametrize("change, message", [
    ({"epochs": 0}, "epochs must be >= 1, got 0"),
    ({"lr": float("nan")}, "lr must be finite"),
    ({"schedule": "cosin"}, "did you mean 'cosine'"),
    ({"precision": "float16"}, "precision must be one of"),
    ({"decay_on": "weights"}, "decay_on must be one of"),
    ({"draws": 0}, "draws must be >= 1, got 0"),
    ({"draws": 17}, "batch_size must be >= 2 \\* draws .*got 32 for 17"),
    ({"measure": "lenght", "draws": 2}, "did you mean 'length'"),
    ({"measure": "length"}, "draws must be >= 2 with measure='length'.*got 1"),
])
def test_bad_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(FAST, **change)


def test_the_same_recipe_still_gives_the_same_numbers(task):
    """Fails when the training code changes its numbers: then raise training.VERSION, so that no store reuses old runs."""
    net = mlp(task)
    trained = fit(net, families.bezier(start(net, 1), start(net, 2), bends=1), task, FAST, seed=7).family.points[1]
    fingerprint = [float(to_vector(trained).sum()), float(to_vector(trained).norm())]
    assert training.VERSION == 1
    assert fingerprint == pytest.approx(GOLDEN, rel=1e-8)


GOLDEN = [1.2300838129250355, 1.1145903399430197]
