import math
from dataclasses import replace

import pytest
import torch
from test_training import start
from torch.testing import assert_close

from conftest import Memory, make_task
from lossland import models
from lossland.flows import Flow, FlowDiverged, fit_bijection, fit_likelihood, iaf, realnvp, restored
from lossland.layers import axes, gather, scatter
from lossland.paths import linear_basis
from lossland.store import Store
from lossland.training import Recipe
from lossland.weights import distance, mix, to_vector

KINDS = {"realnvp": lambda units, **more: realnvp(units, hidden=12, couplings=3, **more), "iaf": iaf}


def correlated(n: int = 300, dimension: int = 5, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.randn(n, dimension, generator=g, dtype=torch.float64) @ factor.T + 2.0


def shaken(flow: Flow, size: float = 0.3) -> Flow:
    g = torch.Generator().manual_seed(3)
    return flow.with_weights({k: v + size * torch.randn(v.shape, generator=g).to(v) for k, v in flow.weights.items()})


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture()
def flow(kind):
    return shaken(kind(correlated()))


@pytest.mark.parametrize("standardise", ["covariance", "coordinates", "none"])
def test_an_untrained_flow_is_the_arc_about_the_mean(kind, standardise):
    units = correlated()
    x, y, s = units[:100], units[100:200], torch.linspace(0, 1, 7, dtype=torch.float64)
    mu = 0 if standardise == "none" else units.mean(0)
    cos, sin = (f(math.pi / 2 * s)[:, None, None] for f in (torch.cos, torch.sin))
    arc = mu + cos * (x - mu) + sin * (y - mu)
    assert_close(kind(units, standardise=standardise).move(x, y, s), arc, atol=1e-12, rtol=1e-10)


def test_an_untrained_flow_has_the_density_of_the_fitted_gaussian(kind):
    units, others = correlated(), correlated(seed=1)
    gaussian = torch.distributions.MultivariateNormal(units.mean(0), torch.cov(units.T))
    assert_close(kind(units).log_density(others), gaussian.log_prob(others))


def test_the_inverse_undoes_the_map_both_ways(flow):
    units = correlated(seed=1)
    noise, _ = flow.to_noise(units)
    assert float((noise - (units - flow.centre) @ flow.unspread.T).abs().max()) > 0.1
    assert_close(flow.to_units(noise), units, atol=1e-10, rtol=1e-10)
    assert_close(flow.to_noise(flow.to_units(units))[0], units, atol=1e-10, rtol=1e-10)


def test_the_log_determinant_is_that_of_the_jacobian(flow):
    unit = correlated(seed=1)[0]
    jacobian = torch.autograd.functional.jacobian(lambda row: flow.to_noise(row[None])[0][0], unit)
    assert_close(flow.to_noise(unit[None])[1][0], torch.linalg.slogdet(jacobian)[1])


def test_the_slow_direction_of_iaf_is_nflows_own_and_inverts_the_fast_one():
    flow = shaken(iaf(correlated()))
    layer = flow.module.steps[0].requires_grad_(False)
    layer.load_state_dict({k.removeprefix("steps.0."): v for k, v in flow.weights.items() if "steps.0." in k}, strict=False)
    rows = correlated(seed=2)
    slow, logdet = super(type(layer), layer).inverse(rows)  # nflows: always D passes
    assert_close(layer.inverse(rows), (slow, logdet), atol=1e-12, rtol=1e-12)
    fast, back = layer(slow)
    assert_close(fast, rows, atol=1e-10, rtol=1e-10)
    assert_close(back, -logdet)


def test_the_slow_direction_goes_on_until_it_rests():
    units = correlated(200, 16)
    flow = shaken(iaf(units), 0.4)
    noise, _ = flow.to_noise(units)
    assert_close(flow.to_units(noise), units, atol=1e-6, rtol=1e-6)


def test_a_coupling_can_expand_and_its_scales_are_bounded():
    coupling = realnvp(correlated(), couplings=1, hidden=4).module.steps[0]
    parameters = torch.tensor([[0.0] * 3 + [30.0, 0.5, -30.0]], dtype=torch.float64)
    scale, shift = coupling._scale_and_shift(parameters)
    assert_close(scale.log(), torch.tensor([[2.0, 2 * math.tanh(0.25), -2.0]], dtype=torch.float64), atol=1e-6, rtol=1e-6)
    assert_close(shift, torch.zeros_like(shift))


def test_the_gradient_of_the_slow_direction_is_that_of_its_unrolled_passes():
    flow = shaken(iaf(correlated()))
    layer = flow.module.steps[0]
    layer.load_state_dict({k.removeprefix("steps.0."): v for k, v in flow.weights.items() if "steps.0." in k}, strict=False)
    layer.requires_grad_(True)
    rows = correlated(20, seed=2).requires_grad_()
    leaves = [rows, *layer.parameters()]
    found = []
    for inverse in (layer.inverse, super(type(layer), layer).inverse):
        noise, logdet = inverse(rows)
        found.append(torch.autograd.grad((noise.sin() * torch.arange(5)).sum() + logdet.sum(), leaves))
    assert_close(found[0], found[1], atol=1e-9, rtol=1e-9)


def test_gradients_reach_every_parameter(flow):
    weights = {k: v.clone().requires_grad_() for k, v in flow.weights.items()}
    trial = flow.with_weights(weights)
    units = correlated(seed=1)
    (-trial.log_density(units).mean() + trial.to_units(units).square().mean()).backward()
    assert all(bool(v.grad.isfinite().all()) and bool((v.grad != 0).any()) for v in weights.values())


def test_a_move_keeps_its_contract(flow):
    x, y = correlated(40, seed=1).float(), correlated(40, seed=2).float()
    flow = flow.to(x)
    s = torch.tensor([0.0, 1e-9, 0.2, 0.5, 1 - 1e-7, 1.0], dtype=torch.float64)
    moved = flow.move(x, y, s)
    assert moved.shape == (6, 40, 5) and moved.dtype == x.dtype and bool(moved.isfinite().all())
    assert torch.equal(moved[0], x) and torch.equal(moved[-1], y)
    assert_close(moved[1], x, atol=1e-5, rtol=1e-5)
    assert_close(moved[-2], y, atol=1e-5, rtol=1e-5)
    for row, one in zip(moved, s, strict=True):
        assert_close(row, flow.move(x, y, one[None])[0], atol=1e-5, rtol=1e-5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert_close(flow.move(x[order], y[order], s), moved[:, order], atol=1e-5, rtol=1e-5)


def test_ends_are_exact_where_the_flow_is_less_precise_than_the_units(flow):
    x, y = correlated(40, seed=1), correlated(40, seed=2)  # float64
    moved = flow.to(x.float()).move(x, y, torch.tensor([0.0, 0.5, 1.0]))
    assert moved.dtype == x.dtype
    assert torch.equal(moved[0], x) and torch.equal(moved[2], y)


def test_what_the_inverse_loses_makes_no_jump_at_the_ends(flow, monkeypatch):
    real = Flow.to_units
    monkeypatch.setattr(Flow, "to_units", lambda self, noise: real(self, noise) + 3e-5)  # within the accepted error
    x, y = correlated(40, seed=1), correlated(40, seed=2)
    moved = flow.move(x, y, torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64))
    assert_close(moved, torch.stack([x, y]), atol=1e-6, rtol=0)


def test_many_points_are_mapped_in_pieces_with_the_same_result(flow, monkeypatch):
    x, y, s = correlated(30, seed=1), correlated(30, seed=2), torch.linspace(0, 1, 7)
    whole = flow.move(x, y, s)
    monkeypatch.setattr("lossland.flows.maps._ROWS", 60)
    assert_close(flow.move(x, y, s), whole)


def test_the_noise_of_a_network_is_computed_once(flow, monkeypatch):
    calls, real = [], Flow.to_noise
    monkeypatch.setattr(Flow, "to_noise", lambda self, units: calls.append(1) or real(self, units))
    x, y = correlated(30, seed=1), correlated(30, seed=2)
    first = flow.move(x, y, torch.tensor([0.3]))
    assert_close(flow.move(x.clone(), y.clone(), torch.tensor([0.3])), first, rtol=0, atol=0)
    assert len(calls) == 2
    x += 1  # what changes in place is another network
    assert not torch.equal(flow.move(x, y, torch.tensor([0.3])), first)
    assert len(calls) == 3


def test_a_flow_that_cannot_be_inverted_is_named_with_its_error(monkeypatch):
    flow = realnvp(correlated(), hidden=8)
    monkeypatch.setattr(Flow, "to_units", lambda self, noise: correlated(len(noise), seed=4))
    with pytest.raises(FloatingPointError, match=r"invertible on x to 0.0001 .* got an inversion error of \d.* about 1, here it is up to \d"):
        flow.move(correlated(30), correlated(30, seed=1), torch.tensor([0.5]))


def test_a_trained_flow_keeps_the_covariance_of_gaussian_units():
    units = correlated(4000)
    flow = fit_likelihood(realnvp(units, hidden=16, standardise="coordinates"), units, steps=400, lr=1e-2, batch=512).flow
    middle = flow.move(correlated(4000, seed=1), correlated(4000, seed=2), torch.tensor([0.5]))[0]
    straight = (correlated(4000, seed=1) + correlated(4000, seed=2)) / 2
    size = torch.cov(units.T).norm()
    assert float((torch.cov(middle.T) - torch.cov(units.T)).norm() / size) < 0.1
    assert float((torch.cov(straight.T) - torch.cov(units.T)).norm() / size) > 0.4


def test_likelihood_learns_what_is_not_gaussian(kind):
    def banana(n, seed):
        rows = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return torch.stack([rows[:, 0], rows[:, 0] ** 2 + 0.2 * rows[:, 1]], 1)

    units, held_out = banana(1000, 0), banana(1000, 1)
    flow = realnvp(units, hidden=16) if kind is not iaf else iaf(units, hidden=16)
    fit = fit_likelihood(flow, units, steps=200, lr=1e-2, held_out=held_out, every=100)
    before, after = (-float(one.log_density(held_out).mean()) for one in (flow, fit.flow))
    assert after < before - 0.2
    assert fit.history["held out"].iloc[-1] == pytest.approx(after)
    assert list(fit.history["step"]) == [100, 200]
    assert fit.history["lr"].iloc[-1] < 1e-5 < fit.history["lr"].iloc[0]


def test_an_interrupted_training_gives_the_flow_of_an_uninterrupted_one(kind):
    flow, units = kind(correlated()), correlated()
    state = torch.get_rng_state()
    whole = fit_likelihood(flow, units, steps=9, every=3, lr=1e-2)
    memory = Memory(fail_after=6)
    with pytest.raises(InterruptedError):
        fit_likelihood(flow, units, steps=9, every=3, lr=1e-2, checkpoint=memory)
    memory.fail_after = None
    again = fit_likelihood(flow, units, steps=9, every=3, lr=1e-2, checkpoint=memory)
    assert_close(again.flow.weights, whole.flow.weights, rtol=0, atol=0)
    assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    other = fit_likelihood(flow, units, steps=9, every=3, lr=1e-2, seed=1)
    assert not torch.equal(to_vector(other.flow.weights), to_vector(whole.flow.weights))
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_decide_the_initial_parameters_and_torchs_generator_is_put_back(kind):
    state = torch.get_rng_state()
    first, again, other = (to_vector(kind(correlated(), seed=s).weights) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_diverging_flow_stops_with_step_and_loss_and_keeps_the_last_finite_state(kind):
    units = correlated()
    flow, memory = kind(units), Memory()

    def poisoned(self, rows, real=Flow.log_density, calls=[]):  # noqa: B006
        calls.append(1)
        return real(self, rows) * (math.nan if len(calls) == 6 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flow, "log_density", poisoned)
        with pytest.raises(FlowDiverged, match=r"loss nan .* at step 6 \(lr 0.01\).*after step 4") as caught:
            fit_likelihood(flow, units, steps=20, every=2, lr=1e-2, checkpoint=memory)
    kept = caught.value.fit
    assert caught.value.step == 6 and list(kept.history["step"]) == [2, 4]
    assert memory.saved[1]["step"] == 4 and torch.equal(memory.saved[0]["theta"], to_vector(kept.flow.weights))
    assert bool(kept.flow.log_density(units).isfinite().all())


def test_a_flow_comes_back_from_the_store_to_the_last_bit(flow, tmp_path):
    store, recipe = Store(tmp_path), {"flow": dict(flow.settings)}
    store.fetch(recipe, lambda checkpoint: flow.tensors())
    again = restored(flow.settings, store.find(recipe).tensors)
    x, y, s = correlated(30, seed=1), correlated(30, seed=2), torch.linspace(0, 1, 4)
    assert_close(again.move(x, y, s), flow.move(x, y, s), rtol=0, atol=0)
    with pytest.raises(ValueError, match="settings and tensors must have the same"):
        restored({**flow.settings, "hidden": 30}, flow.tensors())
    with pytest.raises(ValueError, match="none called"):
        restored(flow.settings, flow.weights)


@pytest.mark.parametrize("call", ["move", "to_noise", "to_units", "fit"])
def test_units_of_another_dimension_are_refused(flow, call):
    other, s = correlated(30, 4), torch.tensor([0.5])
    calls = {"move": lambda: flow.move(other, other, s), "to_noise": lambda: flow.to_noise(other),
             "to_units": lambda: flow.to_units(other), "fit": lambda: fit_likelihood(flow, other)}
    with pytest.raises(ValueError, match=r"must be \(n, 5\) like the units that this flow was made from, got \(30, 4\)"):
        calls[call]()


@pytest.mark.parametrize("make, message", [
    (lambda u: realnvp(u, couplings=0), "couplings must be >= 1, got 0"),
    (lambda u: iaf(u, hidden=3), "hidden must be >= D - 1 = 4"),
    (lambda u: iaf(u, standardise="covarience"), "did you mean 'covariance'"),
    (lambda u: realnvp(u[0]), r"units must be \(n, D\)"),
    (lambda u: realnvp(u * math.inf), "units must be finite"),
    (lambda u: realnvp(u).move(u[:3], u[:4], torch.tensor([0.5])), "equal numbers of units"),
    (lambda u: fit_likelihood(realnvp(u), u, steps=0), "steps must be >= 1, got 0"),
    (lambda u: fit_likelihood(realnvp(u), u, lr=0.0), "lr must be > 0, got 0.0"),
    (lambda u: restored({"kind": "glow", "dimension": 5}, {}), "kind must be one of 'realnvp', 'iaf'"),
])
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(correlated())


@pytest.mark.parametrize("standardise", ["covariance", "coordinates"])
def test_coordinates_that_never_vary_do_no_harm(kind, standardise):
    units = correlated()
    units[:, 2] = 0.25
    flow = kind(units, standardise=standardise)
    moved = flow.move(units[:100], units[100:200], torch.linspace(0, 1, 5))
    assert bool(moved.isfinite().all())
    assert_close(moved[..., 2], torch.full_like(moved[..., 2], 0.25), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def connected():
    """Eight small networks trained together: six are V, two are held out."""
    from lossland.many import fit_many

    task = make_task(train=300)
    net = models.build("mlp", task.input_shape, task.classes, width=12)
    made = fit_many(net, [start(net, i) for i in range(8)], task, Recipe(epochs=20, lr=0.1, batch_size=32, precision="float64"),
                    range(8), way="together")
    group, = axes(net.layers()).values()
    return task, net, made, group


@pytest.mark.parametrize("t", ["uniform", 0.5])
def test_a_bijection_lowers_the_loss_between_networks_that_it_never_saw(connected, t):
    from torch.func import functional_call
    from torch.nn.functional import cross_entropy

    task, net, networks, group = connected
    flow = realnvp(torch.cat([gather(w, *group) for w in networks[:6]]), hidden=24, depth=1)
    fit = fit_bijection(flow, net, networks[:6], task, t=t, steps=150, lr=5e-3, batch=64)
    real = models.MLP(task.input_shape, task.classes, widths=(12,)).double()

    def loss(trial):
        x, y = (gather(w, *group) for w in networks[6:])
        s = torch.tensor([0.5], dtype=torch.float64)
        point = scatter(mix(networks[6:], linear_basis(s)[0]), trial.move(x, y, s)[0], *group)
        images = task.prepare(task.test.images, torch.float64)
        return float(cross_entropy(functional_call(real, point, (images,)), task.test.labels))

    assert loss(fit.flow) < loss(flow)
    assert fit.history["loss"].iloc[-1] < fit.history["loss"].iloc[0]


def test_a_bijection_minimises_the_loss_of_the_point_on_the_path(connected):
    from torch.func import functional_call
    from torch.nn.functional import cross_entropy

    task, net, networks, group = connected
    task = replace(task, train=task.train.__class__(task.train.images[:1], task.train.labels[:1]))  # every batch is this image
    two = [networks[0], {**networks[1], "linear.1.bias": networks[1]["linear.1.bias"] + 5}]
    flow = realnvp(torch.cat([gather(w, *group) for w in two]), hidden=8)
    found = fit_bijection(flow, net, two, task, t=0.5, steps=1, batch=2).history["loss"].item()
    moved = flow.move(gather(two[0], *group), gather(two[1], *group), torch.tensor([0.5]))[0]
    point = scatter(mix(two, torch.tensor([0.5, 0.5])), moved, *group)
    real = models.MLP(task.input_shape, task.classes, widths=(12,)).double()
    logits = functional_call(real, point, (task.prepare(task.train.images, torch.float64),))
    assert found == pytest.approx(float(cross_entropy(logits, task.train.labels)), rel=1e-6)


def test_a_bijection_is_a_function_of_its_seed_and_leaves_networks_alone(connected):
    task, net, networks, group = connected
    before = [{k: v.clone() for k, v in w.items()} for w in networks]
    flow = realnvp(torch.cat([gather(w, *group) for w in networks]), hidden=8)
    first, again, other = (to_vector(fit_bijection(flow, net, networks, task, steps=4, seed=s).flow.weights) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert max(distance(a, b) for a, b in zip(before, networks, strict=True)) == 0


def test_bad_bijections_are_refused(connected):
    task, net, networks, group = connected
    flow = realnvp(torch.cat([gather(w, *group) for w in networks]), hidden=8)
    with pytest.raises(ValueError, match="at least two networks .* got 1 networks"):
        fit_bijection(flow, net, networks[:1], task)
    with pytest.raises(ValueError, match="t must be 'uniform' or a number in"):
        fit_bijection(flow, net, networks, task, t="normal")
    deep = models.build("fc3", task.input_shape, task.classes, first=5, second=4)
    with pytest.raises(ValueError, match="2 hidden unit axes"):
        fit_bijection(flow, deep, [start(deep, 1), start(deep, 2)], task)
    with pytest.raises(ValueError, match="networks must be finite|must be finite"):
        fit_bijection(flow, net, [networks[0], {k: v * math.nan for k, v in networks[1].items()}], task)
    narrow = models.build("mlp", task.input_shape, task.classes, width=5)
    with pytest.raises(ValueError, match="like the units that this flow was made from"):
        fit_bijection(replace(flow, centre=flow.centre[:-1]), narrow, [start(narrow, 1), start(narrow, 2)], task)
