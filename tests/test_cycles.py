"""Cyclic learning rates, momentum that is kept, clipping, and networks taken out of a training run."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from conftest import Memory
from lossland import families, models
from lossland.many import fit_many
from lossland.sampling import stream_seed
from lossland.schedules import Recipe, batches_per_epoch, cycle_iterations, learning_rate, member_iterations, rate
from lossland.training import fit
from lossland.weights import Weights, to_vector
from test_training import FAST, mlp, start

TRIANGULAR = Recipe(epochs=6, lr=0.05, lr_low=5e-4, schedule="triangular", cycle=2, batch_size=32, weight_decay=1e-3,
                    precision="float64")
RESTARTS = replace(TRIANGULAR, schedule="restarts", lr_low=0.0)


class Taker:
    """Keeps a copy of everything it is given."""

    def __init__(self, iterations) -> None:
        self.iterations, self.taken, self.rows = set(iterations), [], []

    def wants(self, iteration: int) -> bool:
        return iteration in self.iterations

    def take(self, weights: Weights, row: dict[str, float]) -> None:
        self.taken.append(to_vector(weights).clone())
        self.rows.append(row)

    def save(self):
        return {f"{i}": v for i, v in enumerate(self.taken)}, {"rows": list(self.rows)}

    def restore(self, tensors, info) -> None:
        self.taken, self.rows = [tensors[f"{i}"] for i in range(len(tensors))], list(info["rows"])


def alpha(i: int, c: int, high: float, low: float) -> float:
    """G18 section 5, letter by letter."""
    t = ((i - 1) % c + 1) / c
    return (1 - 2 * t) * high + 2 * t * low if t <= 0.5 else (2 - 2 * t) * low + (2 * t - 1) * high


@pytest.mark.parametrize("per_epoch, cycle", [(3, 2), (7, 4), (4, 1), (2, 3)])
def test_the_triangular_rate_is_the_papers_formula(per_epoch, cycle):
    recipe = replace(TRIANGULAR, cycle=cycle)
    c = cycle * per_epoch
    found = [rate(recipe, i, per_epoch) for i in range(1, 3 * c + 1)]
    assert found == pytest.approx([alpha(i, c, 0.05, 5e-4) for i in range(1, 3 * c + 1)], rel=1e-12)
    assert found[c // 2 - 1] == pytest.approx(5e-4) == min(found) and found[c - 1] == pytest.approx(0.05) == max(found)
    assert found[0] == pytest.approx(0.05 - (0.05 - 5e-4) * 2 / c)


@pytest.mark.parametrize("per_epoch, cycle, epochs", [(3, 2, 6), (7, 4, 22), (4, 1, 5), (2, 3, 7)])
def test_members_are_taken_where_algorithm_1_takes_them(per_epoch, cycle, epochs):
    recipe = replace(TRIANGULAR, cycle=cycle, epochs=epochs)
    c, ensemble = cycle * per_epoch, []
    for i in range(1, epochs * per_epoch + 1):
        if i % c == c / 2:
            ensemble.append(i)
    assert list(member_iterations(recipe, per_epoch)) == ensemble
    assert [rate(recipe, i, per_epoch) for i in ensemble] == pytest.approx([recipe.lr_low] * len(ensemble))


def test_snapshots_end_their_cycles_and_a_constant_rate_gives_one_member_an_epoch():
    assert list(member_iterations(RESTARTS, 3)) == [6, 12, 18]
    assert list(member_iterations(replace(RESTARTS, epochs=5), 3)) == [6, 12]
    constant = Recipe(epochs=6, lr=0.05, schedule="constant")
    assert list(member_iterations(constant, 3)) == [3, 6, 9, 12, 15, 18]
    assert list(member_iterations(replace(constant, cycle=2), 3)) == [6, 12, 18]
    first, end = rate(RESTARTS, 7, 3), rate(RESTARTS, 12, 3)
    assert first == 0.05 and end == pytest.approx(0.05 * (1 + torch.cos(torch.tensor(5 * torch.pi / 6)).item()) / 2)


def test_schedules_by_epoch_have_one_rate_for_all_iterations_of_an_epoch():
    for recipe in (FAST, replace(FAST, schedule="cosine", warmup=1), replace(FAST, schedule="constant")):
        assert [rate(recipe, i, 4) for i in range(1, 13)] == [learning_rate(recipe, e) for e in (0, 1, 2) for _ in range(4)]


@pytest.mark.parametrize("change, error, message", [
    ({"cycle": 0}, ValueError, "cycle must be >= 1 \\(epochs\\) with schedule='triangular', got 0"),
    ({"cycle": 2.0}, TypeError, "cycle must be a whole number of epochs, got 2.0"),
    ({"cycle": 7}, ValueError, "cycle must not be longer than the run of 6 epochs, got 7"),
    ({"lr_low": 0.1}, ValueError, "alpha_1 = lr = 0.05 .*got alpha_2 = lr_low = 0.1"),
    ({"schedule": "cosine", "lr_low": 0.0}, ValueError, "cycle=2 needs schedule='triangular' or 'restarts', got 'cosine'"),
    ({"schedule": "constant"}, ValueError, "lr_low=0.0005 needs schedule='triangular' or 'restarts'"),
    ({"schedule": "triangle"}, ValueError, "did you mean 'triangular'"),
    ({"clip": -1.0}, ValueError, "clip must be finite and >= 0, got -1.0"),
])
def test_bad_cycles_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        replace(TRIANGULAR, **change)


def test_an_odd_cycle_is_refused_and_the_message_says_how_the_batches_count(task):
    odd = replace(TRIANGULAR, cycle=1)
    with pytest.raises(ValueError, match="even number of iterations.*got 1 epochs of 3 batches = 3: take an even number"):
        rate(odd, 1, 3)
    with pytest.raises(ValueError, match="1 epochs of 3 batches"):
        fit(mlp(task), families.point(start(mlp(task))), task, odd)
    assert cycle_iterations(odd, 4) == 4 and cycle_iterations(replace(RESTARTS, cycle=1), 3) == 3
    with pytest.raises(ValueError, match="changes with every iteration"):
        learning_rate(odd, 0)
    with pytest.raises(ValueError, match="iteration and per_epoch must be >= 1, got 0 and 3"):
        rate(TRIANGULAR, 0, 3)
    with pytest.raises(ValueError, match="schedule must be one of 'triangular', 'restarts', 'constant'"):
        member_iterations(FAST, 3)


def test_a_short_last_batch_counts_as_an_iteration(task):
    assert batches_per_epoch(replace(FAST, batch_size=40), 96) == 3 == batches_per_epoch(FAST, 96)
    steps = list(task.batches("train", batch_size=40))
    assert len(steps) == 3 and len(steps[-1][1]) == 16


@pytest.mark.parametrize("recipe", [TRIANGULAR, RESTARTS])
def test_cyclic_training_is_torchs_sgd_with_a_rate_per_iteration(task, recipe):
    net = mlp(task)
    taker = Taker(range(1, 100))
    trained = fit(net, families.point(start(net)), task, recipe, seed=3, collect=taker)
    real = models.MLP(task.input_shape, task.classes, widths=(6,)).double()
    real.load_state_dict(start(net))
    optimiser = torch.optim.SGD(real.parameters(), lr=9.0, momentum=0.9, weight_decay=1e-3)
    i = 0
    for epoch in range(recipe.epochs):
        order = torch.Generator().manual_seed(stream_seed(3, epoch, 0))
        for images, labels in task.batches("train", batch_size=32, generator=order, dtype=torch.float64):
            i += 1
            optimiser.param_groups[0]["lr"] = rate(recipe, i, 3)
            optimiser.zero_grad()
            cross_entropy(real(images), labels).backward()
            optimiser.step()
            assert_close(taker.taken[i - 1], torch.cat([p.detach().reshape(-1) for p in real.parameters()]))
    assert i == 18 and [row["iteration"] for row in taker.rows] == list(range(1, 19))
    assert taker.rows[3]["epoch"] == 4 / 3 and taker.rows[3]["lr"] == rate(recipe, 4, 3)
    assert trained.history.lr.tolist() == [rate(recipe, 3 * e, 3) for e in range(1, 7)]  # that of the last iteration


def test_collecting_changes_nothing(task):
    net = mlp(task)
    family = families.point(start(net))
    with_it = fit(net, family, task, TRIANGULAR, collect=Taker(range(1, 100, 2))).family.points[0]
    assert_close(with_it, fit(net, family, task, TRIANGULAR).family.points[0], rtol=0, atol=0)


@pytest.mark.parametrize("fail_after", [2, 3, 5])
def test_a_run_interrupted_inside_a_cycle_gives_the_same_members(task, fail_after):
    net, family = mlp(task), families.point(start(mlp(task)))
    whole, cut = Taker(member_iterations(TRIANGULAR, 3)), Taker(member_iterations(TRIANGULAR, 3))
    fit(net, family, task, TRIANGULAR, seed=1, collect=whole)
    memory = Memory(fail_after=fail_after)
    with pytest.raises(InterruptedError):
        fit(net, family, task, TRIANGULAR, seed=1, collect=cut, checkpoint=memory)
    memory.fail_after, again = None, Taker(member_iterations(TRIANGULAR, 3))
    fit(net, family, task, TRIANGULAR, seed=1, collect=again, checkpoint=memory)
    assert len(again.taken) == 3 and all(torch.equal(a, b) for a, b in zip(again.taken, whole.taken, strict=True))
    assert [{**row, "seconds": 0} for row in again.rows] == [{**row, "seconds": 0} for row in whole.rows]
    seconds = [row["seconds"] for row in again.rows]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_stopping_and_going_on_with_the_kept_momentum_is_one_run(task):
    """At a constant rate the second half, with the batches of its own epochs, is a run of its own."""
    net, recipe = mlp(task), replace(FAST, schedule="constant", epochs=1)
    real = models.MLP(task.input_shape, task.classes, widths=(6,)).double()
    real.load_state_dict(start(net))
    optimiser = torch.optim.SGD(real.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    first = fit(net, families.point(start(net)), task, recipe, seed=4, until=1)
    second = fit(net, first.family, task, recipe, seed=5, velocity=first.velocity)
    for seed in (4, 5):
        order = torch.Generator().manual_seed(stream_seed(seed, 0, 0))
        for images, labels in task.batches("train", batch_size=32, generator=order, dtype=torch.float64):
            optimiser.zero_grad()
            cross_entropy(real(images), labels).backward()
            optimiser.step()
    assert_close(second.family.points[0], dict(real.state_dict()))
    assert first.velocity and second.velocity == ()
    without = fit(net, first.family, task, recipe, seed=5).family.points[0]
    assert float((to_vector(without) - to_vector(second.family.points[0])).norm()) > 1e-3


def test_stopping_early_is_the_beginning_of_the_whole_run(task):
    net, memory = mlp(task), Memory()
    family = families.chain(start(net, 1), start(net, 2), bends=2)
    recipe = replace(FAST, epochs=5)
    whole = fit(net, family, task, recipe)
    half = fit(net, family, task, recipe, until=3, checkpoint=memory)
    assert len(half.history) == 3 and len(half.velocity) == 2
    assert half.history.drop(columns="seconds").equals(whole.history[:3].drop(columns="seconds"))
    rest = fit(net, family, task, recipe, checkpoint=memory)
    assert_close(rest.family.points, whole.family.points, rtol=0, atol=0)


@pytest.mark.parametrize("change, message", [
    ({"until": 0}, "until must be an epoch of the recipe, 1..3, got 0"),
    ({"until": 4}, "1..3, got 4"),
    ({"velocity": {}}, "velocity must be a sequence with one for each of the 1 free control points, got a single one"),
    ({"velocity": ()}, "1 free control points, got 0"),
    ({"velocity": ({"other": torch.zeros(1)},)}, "velocity\\[0\\] must hold the parameters of"),
])
def test_bad_stops_and_velocities_are_refused(task, change, message):
    with pytest.raises(ValueError, match=message):
        fit(mlp(task), families.point(start(mlp(task))), task, FAST, **change)


def test_members_are_taken_of_single_networks_only(task):
    net = mlp(task)
    with pytest.raises(ValueError, match="collect needs a family of one network, point\\(weights\\), got a bezier"):
        fit(net, families.bezier(start(net, 1), start(net, 2)), task, FAST, collect=Taker([1]))


def test_a_member_is_never_taken_from_a_diverged_run(task):
    net, taker = mlp(task), Taker(range(1, 100))
    with pytest.raises(FloatingPointError, match="in epoch 0, step \\d"):
        fit(net, families.point(start(net)), task, replace(TRIANGULAR, lr=1e200), collect=taker)
    assert all(bool(v.isfinite().all()) for v in taker.taken)


@pytest.mark.parametrize("large", [False, True])
def test_a_clipped_gradient_is_torchs(task, monkeypatch, large):
    monkeypatch.setattr("lossland.flat._LARGE", 1 if large else 2**20)
    net, recipe = mlp(task), replace(FAST, epochs=1, clip=0.3)
    trained = fit(net, families.point(start(net)), task, recipe, seed=3).family.points[0]
    real = models.MLP(task.input_shape, task.classes, widths=(6,)).double()
    real.load_state_dict(start(net))
    optimiser = torch.optim.SGD(real.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    order, norms = torch.Generator().manual_seed(stream_seed(3, 0, 0)), []
    for images, labels in task.batches("train", batch_size=32, generator=order, dtype=torch.float64):
        optimiser.zero_grad()
        cross_entropy(real(images), labels).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(real.parameters(), 0.3)))
        optimiser.step()
    assert_close(trained, dict(real.state_dict()))
    assert max(norms) > 0.3  # or nothing was clipped


def test_a_limit_that_is_never_reached_changes_nothing(task):
    net = mlp(task)
    free, wide = (fit(net, families.point(start(net)), task, replace(FAST, clip=clip)).family.points[0] for clip in (0, 1e9))
    assert_close(free, wide, rtol=0, atol=0)
    with pytest.raises(ValueError, match="without clipping, got clip=1; use way='one by one'"):
        fit_many(net, [start(net)], task, replace(FAST, clip=1.0), [0], way="together")
