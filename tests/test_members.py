"""Ensembles along a run: which networks are taken, where they lie, and what is made of them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from conftest import make_task
from lossland import families, models, recipes
from lossland.ensembles import runs
from lossland.ensembles.gaussian import Gaussian
from lossland.ensembles.members import Members, running_mean
from lossland.ensembles.runs import fge, snapshots, swa, swag
from lossland.ensembles.settings import FGE_SETTINGS, SSE_SETTINGS, SWA_SETTINGS
from lossland.ensembles.starts import parameters_in
from lossland.ensembles.trace import trace_cycle
from lossland.evaluation import predict
from lossland.identity import described
from lossland.schedules import Recipe, member_iterations
from lossland.store import Store
from lossland.training import Start, fit
from lossland.weights import distance, to_vector, weights_of
from test_cycles import RESTARTS, TRIANGULAR, Taker
from test_training import FAST, mlp, start

TASK = make_task()
NET = mlp(TASK)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def taken(recipe: Recipe, begin: Start, seed: int = 0) -> list[torch.Tensor]:
    """Return what plain training has at the member iterations."""
    taker = Taker(member_iterations(recipe, 3))
    fit(NET, families.point(begin.weights), TASK, recipe, seed=seed, collect=taker,
        velocity=[begin.velocity] if begin.velocity else None)
    return taker.taken


@pytest.mark.parametrize("method, recipe, iterations", [
    (fge, TRIANGULAR, [3, 9, 15]), (snapshots, RESTARTS, [6, 12, 18]), (swa, RESTARTS, [6, 12, 18]),
    (swa, TRIANGULAR, [3, 9, 15]), (swa, Recipe(epochs=2, lr=0.05, schedule="constant", batch_size=32), [3, 6]),
])
def test_members_are_the_weights_of_plain_training_at_the_papers_iterations(store, method, recipe, iterations):
    members = method(NET, start(NET), TASK, recipe, seed=2, store=store)
    assert members.facts.iteration.tolist() == iterations
    for member, vector in zip(members, taken(recipe, Start(start(NET)), seed=2), strict=True):
        assert torch.equal(to_vector(member), vector)
    assert members.facts.distance.tolist() == pytest.approx([distance(start(NET), member) for member in members])


def test_members_are_read_from_the_store_when_they_are_asked_for(store, monkeypatch):
    made = fge(NET, start(NET), TASK, TRIANGULAR, store=store)
    monkeypatch.setattr(runs, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    read, finds = [], Store.find
    monkeypatch.setattr(Store, "find", lambda self, facts: read.append(facts.get("iteration")) or finds(self, facts))
    again = fge(NET, start(NET), TASK, TRIANGULAR, store=store)
    assert read == [None]  # the run's own entry alone
    assert torch.equal(to_vector(again[1]), to_vector(made[1])) and read == [None, 9, 9]
    assert again.facts.equals(made.facts)


class Softer(models.MLP):
    """A network with the same parameters, which computes something else."""

    def forward(self, images):
        return super().forward(images) / 2


def test_whatever_determines_a_run_makes_another(store):
    velocity = {name: torch.ones_like(value) for name, value in start(NET).items()}
    fge(NET, start(NET), TASK, TRIANGULAR, store=store)
    for change in ({"seed": 1}, {"name": {"forward": 2}}, {"task": make_task(train=90)}, {"start": start(NET, 1)},
                   {"start": Start(start(NET), velocity)}, {"recipe": replace(TRIANGULAR, lr_low=1e-4)},
                   {"net": Softer(TASK.input_shape, TASK.classes, widths=(6,))}):
        before = len(store.entries())
        given = {"start": start(NET), "task": TASK, "recipe": TRIANGULAR, "net": NET} | change
        fge(given.pop("net"), given.pop("start"), given.pop("task"), given.pop("recipe"), store=store, **given)
        assert len(store.entries()) == before + 4, change  # the run and three members


def test_a_run_cut_off_inside_a_cycle_goes_on_to_the_same_members(store, tmp_path, monkeypatch):
    whole = fge(NET, start(NET), TASK, TRIANGULAR, store=tmp_path / "other")
    save, count = runs.Checkpoint.save, []

    def failing(self, tensors, info):
        count.append(info["epoch"])
        if info["epoch"] == 4 and count.count(4) == 1:
            raise InterruptedError
        save(self, tensors, info)

    monkeypatch.setattr(runs.Checkpoint, "save", failing)
    with pytest.raises(InterruptedError):
        fge(NET, start(NET), TASK, TRIANGULAR, store=store)
    again = fge(NET, start(NET), TASK, TRIANGULAR, store=store)
    assert count == [1, 2, 3, 4, 4, 5, 6]
    for one, other in zip(again, whole, strict=True):
        assert torch.equal(to_vector(one), to_vector(other))
    assert again.facts.drop(columns="seconds").equals(whole.facts.drop(columns="seconds"))


def test_a_lost_member_is_made_again(store):
    made = fge(NET, start(NET), TASK, TRIANGULAR, store=store)
    expected = to_vector(made[1])
    lost = made._kept[1]
    store.remove(lost.facts)
    with pytest.raises(ValueError, match="the member of iteration 9 must be in the store .*run what made it again"):
        made[1]
    again = fge(NET, start(NET), TASK, TRIANGULAR, store=store)
    assert torch.equal(to_vector(again[1]), expected)


def test_several_starts_are_several_runs_joined_and_pretraining_happens_once(store, monkeypatch):
    calls, fitted = [], recipes.fit
    monkeypatch.setattr(recipes, "fit", lambda *args, **kwargs: calls.append(kwargs.get("until")) or fitted(*args, **kwargs))
    early, late, whole = recipes.trained_until(TASK, "mlp", epochs=(1, 2, 3), seed=1, recipe=FAST, store=store, width=6)
    assert calls == [1, 2, 3] and (early.epoch, late.epoch, whole.epoch) == (1, 2, 3)
    end, = recipes.endpoints(TASK, "mlp", seeds=[1], recipe=FAST, store=store, width=6)
    assert_close(whole.weights, end, rtol=0, atol=0)
    members = fge(NET, [early, late], TASK, TRIANGULAR, seed=5, store=store)
    assert members.facts.run.tolist() == [0, 0, 0, 1, 1, 1]
    expected = [*taken(TRIANGULAR, early, seed=5), *taken(TRIANGULAR, late, seed=6)]
    assert all(torch.equal(to_vector(m), v) for m, v in zip(members, expected, strict=True))
    still = fge(NET, early.weights, TASK, TRIANGULAR, seed=5, store=store)
    assert not torch.equal(to_vector(still[0]), to_vector(members[0]))  # the momentum was kept


def test_a_stop_goes_on_from_the_one_before_it(store, monkeypatch):
    whole = recipes.trained_until(TASK, "mlp", epochs=[3], seed=1, recipe=FAST, store=store, width=6)
    epochs, fitted = [], recipes.fit
    monkeypatch.setattr(recipes, "fit", lambda *args, **kwargs: (
        epochs.append(kwargs["checkpoint"].load() and kwargs["checkpoint"].load()[1]["epoch"]) or fitted(*args, **kwargs)))
    stops = recipes.trained_until(TASK, "mlp", epochs=(3, 1), seed=2, recipe=FAST, store=store, width=6)
    assert epochs == [None, 1] and [stop.epoch for stop in stops] == [3, 1]
    again = recipes.trained_until(TASK, "mlp", epochs=[3], seed=1, recipe=FAST, store=store, width=6)
    assert torch.equal(to_vector(again[0].velocity), to_vector(whole[0].velocity)) and len(epochs) == 2
    for wrong in ([], [4], [0]):
        with pytest.raises(ValueError, match="epochs must be some of the recipe's 1..3, got"):
            recipes.trained_until(TASK, "mlp", epochs=wrong, seed=1, recipe=FAST, store=store, width=6)


def test_members_join_slice_and_may_start_with_the_start(store):
    one = fge(NET, start(NET), TASK, TRIANGULAR, store=store, include_start=True)
    assert one.facts.iteration.tolist() == [0, 3, 9, 15] and one.facts.distance[0] == 0
    assert_close(one[0], start(NET), rtol=0, atol=0)
    both = one + fge(NET, start(NET), TASK, TRIANGULAR, seed=1, store=store)
    assert len(both) == 7 and both.facts.run.tolist() == [0] * 4 + [1] * 3
    assert (both + one).facts.run.tolist()[-1] == 2 and repr(both) == "Members(7 networks of 2 runs)"
    assert both[5:].facts.iteration.tolist() == [9, 15] and torch.equal(to_vector(both[5:][0]), to_vector(both[5]))
    assert torch.equal(to_vector(both[-1]), to_vector(both[6]))
    with pytest.raises(ValueError, match="members must hold at least one network, got none"):
        one[9:]
    with pytest.raises(ValueError, match="got none"):
        Members([])
    with pytest.raises(IndexError):
        one[4]


def test_the_running_mean_is_exact(store):
    members = swa(NET, start(NET), TASK, replace(RESTARTS, precision="float32", epochs=12, cycle=1), store=store)
    assert len(members) == 12 and members[0]["linear.0.weight"].dtype == torch.float32
    exact = torch.stack([to_vector(member).double() for member in members]).mean(0)
    assert float((to_vector(members.mean) - exact).abs().max()) < 1e-12 < float((to_vector(members[0]) - exact).abs().max())
    assert members.average["linear.0.weight"].dtype == torch.float32
    assert torch.equal(to_vector(members.average), to_vector(members.mean).float())
    for count, mean in enumerate(running_mean(members), 1):
        assert float((to_vector(mean) - torch.stack([to_vector(m).double() for m in members[:count]]).mean(0)).abs().max()) < 1e-12
    with pytest.raises(ValueError, match="at least one network"):
        list(running_mean([]))
    with pytest.raises(ValueError, match="members\\[1\\]"):
        list(running_mean([members[0], {"other": torch.zeros(1)}]))


def test_swag_has_the_mean_variance_and_directions_of_its_members(store):
    members = swa(NET, start(NET), TASK, RESTARTS, store=store)
    rows = torch.stack([to_vector(member) for member in members])
    gaussian = swag(NET, start(NET), TASK, RESTARTS, store=store, rank=2)
    assert_close(gaussian.mean, rows.mean(0))
    assert_close(gaussian.variance, rows.square().mean(0) - rows.mean(0).square(), rtol=1e-6, atol=1e-12)
    assert_close(gaussian.deviations, torch.stack([rows[1] - rows[:2].mean(0), rows[2] - rows.mean(0)]))
    assert swag(NET, start(NET), TASK, RESTARTS, store=store).deviations.shape[0] == 3


def test_draws_have_swags_covariance_and_come_again_the_same():
    generator = torch.Generator().manual_seed(0)
    members = [{"w": torch.randn(3, generator=generator, dtype=torch.float64)} for _ in range(4)]
    gaussian = Gaussian.fit(members, 3)
    drawn = torch.stack([one["w"] for one in gaussian.samples(6000, seed=1)])
    spread = gaussian.deviations
    expected = 0.5 * (gaussian.variance.diag() + spread.T @ spread / 2)
    assert float((drawn.T.cov() - expected).norm() / expected.norm()) < 0.06
    assert float((drawn.mean(0) - gaussian.mean).norm()) < 0.05
    draws = gaussian.samples(5, seed=1)
    assert torch.equal(draws[3]["w"], drawn[3]) and torch.equal(draws[2:][1]["w"], drawn[3]) and len(draws) == 5
    assert torch.equal(gaussian.sample(torch.Generator().manual_seed(3), scale=0)["w"], gaussian.mean)
    assert not torch.equal(gaussian.samples(1, seed=2)[0]["w"], drawn[0])


@pytest.mark.parametrize("act, message", [
    (lambda g: Gaussian.fit([{"w": torch.ones(2)}], 1), "rank must be a number of members, 2..1, got 1"),
    (lambda g: Gaussian.fit([{"w": torch.ones(2)}] * 3, 4), "2..3, got 4"),
    (lambda g: g.samples(0), "count must be >= 1, got 0"),
    (lambda g: g.sample(torch.Generator(), scale=-1), "scale must be >= 0, got -1"),
    (lambda g: Gaussian.fit([{"w": torch.ones(2)}, {"v": torch.ones(2)}], 2), "members\\[1\\]"),
])
def test_bad_gaussians_are_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act(Gaussian.fit([{"w": torch.ones(2)}, {"w": torch.zeros(2)}], 2))


@pytest.mark.parametrize("method, change, message", [
    (fge, {"recipe": RESTARTS}, "schedule of the recipe must be one of 'triangular'; got 'restarts'"),
    (snapshots, {"recipe": TRIANGULAR}, "schedule of the recipe must be one of 'restarts'; got 'triangular'"),
    (swa, {"recipe": FAST}, "schedule must be one of 'triangular', 'restarts', 'constant'; got 'piecewise'"),
    (fge, {"recipe": replace(TRIANGULAR, cycle=1)}, "even number of iterations .*got 1 epochs of 3 batches = 3"),
    (snapshots, {"recipe": replace(RESTARTS, cycle=4)}, "whole number of cycles of 4, got 6: .*the last 2 epochs"),
    (fge, {"start": [Start(start(NET), epoch=4), start(NET)], "budget": 15},
     "budget must cover 4 epochs of training and 2 runs of 6 epochs = 16, got 15"),
    (fge, {"start": start(NET), "budget": 5}, "0 epochs of training and 1 run of 6 epochs = 6, got 5"),
    (fge, {"start": []}, "start must hold at least one network, got none"),
    (fge, {"start": start(models.build("mlp", TASK.input_shape, TASK.classes, width=7))},
     "start must fit the network: 'linear.0.weight' is \\(6, 16\\) there, got \\(7, 16\\)"),
    (fge, {"start": [start(NET), {"a": torch.zeros(1)}]}, "start\\[1\\] must hold the parameters of MLP; missing"),
    (fge, {"start": Start(start(NET), {"a": torch.zeros(1)})}, "start.velocity must hold the parameters of MLP"),
    (fge, {"start": {**start(NET), "linear.0.bias": torch.full((6,), torch.nan)}}, "start must be finite, got 6 NaN"),
])
def test_bad_runs_are_refused(store, method, change, message):
    given = {"start": start(NET), "recipe": TRIANGULAR} | change
    with pytest.raises(ValueError, match=message):
        method(NET, given["start"], TASK, given["recipe"], store=store, budget=given.get("budget"))
    assert not store.entries()


def test_a_budget_that_fits_is_taken_and_a_module_is_no_start(store):
    assert len(fge(NET, [Start(start(NET), epoch=4), start(NET)], TASK, TRIANGULAR, store=store, budget=16)) == 6
    with pytest.raises(TypeError, match="start must be a dictionary parameter name -> tensor, such as net.state_dict\\(\\)"):
        fge(NET, NET, TASK, TRIANGULAR, store=store)


def test_the_papers_settings():
    paper = {name: (one.members, one.starts, one.epochs, one.budget) for name, one in FGE_SETTINGS.items()}
    assert paper == {"g18-vgg16": (22, (120, 156), 200, 200), "g18-wrn": (12, (120, 156), 200, 200),
                     "g18-preresnet": (6, (125,), 147, 150), "g18-imagenet": (4, (0,), 5, 0),
                     "readme-vgg16": (20, (160,), 200, 200), "readme-preresnet": (20, (160,), 200, 200),
                     "readme-wrn": (20, (160,), 200, 200)}
    vgg = FGE_SETTINGS["g18-vgg16"].recipe
    assert (vgg.lr, vgg.lr_low, vgg.cycle, vgg.epochs, vgg.schedule) == (1e-2, 5e-4, 2, 22, "triangular")
    assert {n: (s.members, s.recipe.cycle, s.recipe.lr) for n, s in SSE_SETTINGS.items()} == {
        "g18-vgg16": (5, 40, 0.05), "g18-wrn": (5, 40, 0.1), "g18-preresnet": (4, 37, 0.1)}
    assert all(s.members == 6 and s.starts == (120,) and s.recipe.lr == 0.05 for s in SWA_SETTINGS.values())
    with pytest.raises(ValueError, match="budget must cover 160 epochs of training and 1 run of 40 epochs = 200, got 190"):
        replace(FGE_SETTINGS["readme-vgg16"], budget=190)


class Scaled(nn.Module):
    """A layer with a buffer that is no statistic, tied weights and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.again = nn.Linear(16, 16, bias=False)
        self.again.weight = self.first.weight
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, images):
        return self.last(self.again(self.norm(self.first(images.flatten(1) * self.scale)).relu()))


def test_a_state_dict_is_taken_without_statistics_and_second_names():
    net = Scaled()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    state["norm.running_mean"] += 3
    found = parameters_in(net, dict(reversed(state.items())))
    assert_close(found, weights_of(net), rtol=0, atol=0)
    assert list(found) == [name for name, _ in net.named_parameters()]
    for other in (torch.tensor([3.0]), torch.ones(2)):
        with pytest.raises(ValueError, match="state must have the buffers of the network, but 'scale' differs: load it"):
            parameters_in(net, {**state, "scale": other})
    other = Scaled()
    other.scale += 1
    assert described(other) != described(net) == described(Scaled())
    other.scale -= 1
    other.norm.running_mean += 1
    assert described(other) == described(net)


def test_fge_starts_from_a_torchvision_checkpoint_on_disk(store, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng([]):
        torch_net = torchvision.models.resnet18(num_classes=3)
    save_file(torch_net.state_dict(), tmp_path / "resnet18.safetensors")
    task = make_task(shape=(3, 8, 8), train=8, test=4)
    before = {name: value.clone() for name, value in torch_net.state_dict().items()}
    recipe = Recipe(epochs=2, lr=1e-3, lr_low=1e-5, schedule="triangular", cycle=1, batch_size=4)
    state = load_file(tmp_path / "resnet18.safetensors")
    members = fge(torch_net, state, task, recipe, store=store, include_start=True)
    assert members.facts.iteration.tolist() == [0, 1, 3] and (members.facts.distance[1:] > 0).all()
    assert not {name for name in members[1] if "running" in name}
    assert predict(torch_net, members[2], task).isfinite().all()
    assert_close(dict(torch_net.state_dict()), before, rtol=0, atol=0)


def test_the_trace_has_the_learning_rate_distance_and_error_of_the_run(store):
    begin = Start(start(NET), {name: 0.1 * torch.ones_like(value) for name, value in start(NET).items()}, 2)
    table = trace_cycle(NET, begin, TASK, TRIANGULAR, every=4, store=store)
    assert table.iteration.tolist() == [0, 3, 4, 8, 9, 12, 15, 16]
    assert table[table.member].iteration.tolist() == [3, 9, 15]
    members = fge(NET, begin, TASK, TRIANGULAR, store=store)
    assert table[table.member].distance.tolist() == members.facts.distance.tolist()
    assert table[table.member].lr.tolist() == members.facts.lr.tolist()
    wrong = [(predict(NET, member, TASK).argmax(1) != TASK.test.labels).double().mean().item() for member in members]
    assert table[table.member].error.tolist() == pytest.approx(wrong)
    count = len(store.entries())
    assert trace_cycle(NET, begin, TASK, TRIANGULAR, every=4, store=store).equals(table) and len(store.entries()) == count
    short = trace_cycle(NET, begin, TASK, TRIANGULAR, every=4, until=2, on=TASK.subset(test=9), store=store)
    assert short.distance.tolist() == table.distance.tolist()[:3]
    assert (short.error * 9).tolist() == pytest.approx((short.error * 9).round().tolist())
    with pytest.raises(ValueError, match="every must be >= 1 iterations, got 0"):
        trace_cycle(NET, begin, TASK, TRIANGULAR, every=0, store=store)


def test_a_network_of_ones_own_is_stopped_at_without_a_name(store, monkeypatch):
    found, = recipes.stopped_at(NET, start(NET), TASK, FAST, epochs=[2], store=store)
    expected = fit(NET, families.point(start(NET)), TASK, FAST, until=2)
    assert_close((found.weights, found.velocity), (expected.family.points[0], expected.velocity[0]), rtol=0, atol=0)
    recipes.stopped_at(NET, start(NET, 1), TASK, FAST, epochs=[2], store=store)
    assert len(store.entries()) == 2
    monkeypatch.setattr(recipes, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    assert recipes.stopped_at(NET, start(NET), TASK, FAST, epochs=[2], store=store)[0].epoch == 2
