"""Networks that share some epochs, and random mixtures of networks: identities first."""

from dataclasses import replace

import pytest
import torch
from conftest import blobs, make_task
from torch import nn
from torch.testing import assert_close

from lossland import families, models, recipes
from lossland.branching import branches, instability, mixtures
from lossland.ensembles import member_scores
from lossland.ensembles.random_mixtures import KINDS, mixture, random_coefficients
from lossland.evaluation import scoring
from lossland.families import point
from lossland.store import Store
from lossland.tasks import Split
from lossland.training import Recipe, fit
from lossland.weights import by_module, mix

SHAPE = (1, 8, 8)
TASK = replace(make_task(SHAPE), validation=blobs(37, 5, SHAPE), fingerprint="")
MLP, RESNET = models.MLP(SHAPE, 3, widths=(9, 8)), models.ResNet(SHAPE, 3, blocks=1, channels=3)
RECIPE = Recipe(epochs=4, lr=0.05, batch_size=32, schedule="cosine", warmup=1, precision="float64", momentum=0.9)
COLUMNS = ["nll", "accuracy", "ece"]


def drawn(net: nn.Module, count: int = 2) -> list[dict]:
    return [models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(1, count + 1)]


def parted(tmp_path, epoch: int, seeds=(1, 2), net: nn.Module = MLP, **settings) -> list[dict]:
    return branches(net, drawn(net, 1)[0], TASK, RECIPE, epoch=epoch, seeds=seeds, store=Store(tmp_path), **settings)


# Branches


def test_branches_from_the_last_epoch_are_the_same_network(tmp_path):
    one, two = parted(tmp_path, RECIPE.epochs, seed=5)
    whole = fit(MLP, point(drawn(MLP, 1)[0]), TASK, RECIPE, seed=5).family.points[0]
    for found in (one, two):
        assert_close(found, whole, rtol=0, atol=0)
    assert len(Store(tmp_path).entries()) == 1


def test_branches_from_the_start_share_the_initial_weights_alone(tmp_path):
    for found, seed in zip(parted(tmp_path, 0, seeds=(1, 2)), (1, 2), strict=True):
        assert_close(found, fit(MLP, point(drawn(MLP, 1)[0]), TASK, RECIPE, seed=seed).family.points[0], rtol=0, atol=0)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_branch_with_the_seed_of_the_shared_run_is_that_run(epoch, tmp_path):
    same, other = parted(tmp_path, epoch, seeds=(5, 6), seed=5)
    assert_close(same, fit(MLP, point(drawn(MLP, 1)[0]), TASK, RECIPE, seed=5).family.points[0], rtol=0, atol=0)
    assert not torch.equal(other["linear.0.weight"], same["linear.0.weight"])


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_branch_goes_on_with_schedule_momentum_and_batches_of_its_own(epoch, tmp_path):
    shared = fit(MLP, point(drawn(MLP, 1)[0]), TASK, RECIPE, seed=5, until=epoch)

    class State:
        """A checkpoint that hands over the state after the shared epochs."""

        def load(self):
            tensors = {name: torch.cat([x.flatten() for x in w.values()])[None]
                       for name, w in (("points", shared.family.points[0]), ("velocity", shared.velocity[0]))}
            return tensors, {"epoch": epoch, "history": []}

        def save(self, tensors, info):
            pass

    expected = fit(MLP, point(drawn(MLP, 1)[0]), TASK, RECIPE, seed=2, checkpoint=State())
    found, = parted(tmp_path, epoch, seeds=(2,), seed=5)
    assert_close(found, expected.family.points[0], rtol=0, atol=0)
    assert expected.history.epoch.tolist() == list(range(epoch, RECIPE.epochs))


def test_the_longer_networks_run_together_the_nearer_they_end(tmp_path):
    far = [sum(float((x - y).square().sum()) for x, y in zip(a.values(), b.values(), strict=True))
           for a, b in (parted(tmp_path, epoch, seed=5) for epoch in range(5))]
    assert far == sorted(far, reverse=True) and far[-1] == 0


def test_branches_are_trained_once_and_then_read(tmp_path, monkeypatch):
    made = parted(tmp_path, 2, seed=5)
    for module in ("lossland.branching.fit", "lossland.recipes.fit"):
        monkeypatch.setattr(module, lambda *args, **kwargs: pytest.fail("trained again"))
    assert_close(parted(tmp_path, 2, seed=5), made, rtol=0, atol=0)
    monkeypatch.undo()
    for change in ({"seed": 6}, {"seeds": (1, 3)}):
        other = parted(tmp_path, 2, **{"seed": 5, **change})
        assert not torch.equal(other[1]["linear.0.weight"], made[1]["linear.0.weight"])


def test_a_branch_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = parted(tmp_path / "whole", 1, seed=5)
    from lossland import training
    epoch_of = training._epoch

    def cut(state, *args):
        if state.epoch == 3 and args[1].seed == 2:
            raise KeyboardInterrupt
        return epoch_of(state, *args)

    monkeypatch.setattr(training, "_epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        parted(tmp_path / "cut", 1, seed=5)
    started = []
    monkeypatch.setattr(training, "_epoch", lambda state, *args: started.append(state.epoch) or epoch_of(state, *args))
    assert_close(parted(tmp_path / "cut", 1, seed=5), whole, rtol=0, atol=0)
    assert started == [3]


@pytest.mark.parametrize("epoch, seeds, error, message", [
    (5, (1, 2), ValueError, r"epoch must be one of the recipe's 0..4, got 5"),
    (-1, (1, 2), ValueError, r"epoch must be one of the recipe's 0..4, got -1"),
    (1.0, (1, 2), ValueError, r"epoch must be one of the recipe's 0..4, got 1.0"),
    (1, 2, TypeError, r"seeds must be a sequence such as \(1, 2\), got 2"),
    (1, (), ValueError, r"seeds must be different numbers >= 0, one for each branch, got \[\]"),
    (1, (1, 1), ValueError, r"seeds must be different numbers >= 0"),
    (1, (1, -1), ValueError, r"seeds must be different numbers >= 0"),
])
def test_bad_branches_are_refused(epoch, seeds, error, message, tmp_path):
    with pytest.raises(error, match=message):
        parted(tmp_path, epoch, seeds=seeds)


# Mixtures


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_are_uniform_on_the_simplex(kind):
    like = {"a.weight": torch.zeros(300, 100), "a.bias": torch.zeros(300), "b.weight": torch.zeros(4)}
    generator = torch.Generator().manual_seed(0)
    for m in (2, 5):
        draws = [random_coefficients(kind, like, m, generator) for _ in range(1 if kind == "per-weight" else 4000)]
        for found in draws:
            assert found.keys() == like.keys()
        assert_close(draws[0]["a.bias"].sum(0), torch.ones_like(draws[0]["a.bias"][0]))
        every = torch.cat([found["a.weight"].flatten(1) for found in draws], 1)
        # Dirichlet(1, ..., 1): mean 1/m, variance (m - 1) / (m^2 (m + 1)), covariance -1 / (m^2 (m + 1)).
        cov = (torch.eye(m, dtype=torch.float64) - 1 / m) / (m * (m + 1))
        assert_close(every.mean(1), torch.full((m,), 1 / m, dtype=torch.float64), rtol=0, atol=0.015)
        assert_close(every.cov(), cov, rtol=0, atol=0.005)


def test_layers_and_weights_have_coefficients_of_their_own():
    a = drawn(RESNET)[0]
    whole, layers, each = (random_coefficients(kind, a, 3, torch.Generator().manual_seed(1)) for kind in KINDS)
    assert len({tuple(c.flatten().tolist()) for c in whole.values()}) == 1
    groups = by_module(a).values()
    drawn_ones = [{tuple(layers[name].flatten().tolist()) for name in names} for names in groups]
    assert all(len(one) == 1 for one in drawn_ones) and len(set.union(*drawn_ones)) == len(groups) > 3
    for name, tensor in a.items():
        assert each[name].shape == (3, *tensor.shape)
        assert whole[name].shape == layers[name].shape == (3, *[1] * tensor.ndim)
        assert each[name][0].flatten().unique().numel() == tensor.numel()


def test_a_mixture_per_weight_with_equal_coefficients_is_the_global_one():
    networks = drawn(RESNET, 3)
    c = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    wide = {name: c.reshape(-1, *[1] * x.ndim).expand(3, *x.shape) for name, x in networks[0].items()}
    narrow = {name: c.reshape(-1, *[1] * x.ndim) for name, x in networks[0].items()}
    assert_close(mixture(networks, wide), mix(networks, c), rtol=0, atol=0)
    assert_close(mixture(networks, narrow), mix(networks, c), rtol=0, atol=0)


def test_mixtures_lie_in_the_box_between_the_networks():
    a, b = drawn(MLP)
    found = mixture([a, b], random_coefficients("per-weight", a, 2, torch.Generator().manual_seed(0)))
    for name, x in found.items():
        low, high = torch.minimum(a[name], b[name]), torch.maximum(a[name], b[name])
        assert ((x >= low - 1e-15) & (x <= high + 1e-15)).all()


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_rows_are_single_networks_their_average_their_ensemble_and_mixtures(average):
    networks = drawn(RESNET, 3)
    table = mixtures(RESNET, networks, TASK, draws=2, average=average)
    assert table.what.tolist() == ["alone"] * 3 + ["ensemble", "average"] + [kind for kind in KINDS for _ in range(2)]
    assert table.number.tolist() == [1, 2, 3, 1, 1] + [1, 2] * 3
    scores = member_scores(RESNET, networks, TASK, splits=("test",), average=average)
    assert table[COLUMNS][:3].to_numpy().tolist() == scores[[f"single_{c}" for c in COLUMNS]].to_numpy().tolist()
    assert table[COLUMNS].iloc[3].tolist() == pytest.approx(scores[COLUMNS].iloc[-1].tolist(), abs=1e-14)
    middle = mix(networks, torch.full((3,), 1 / 3, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    layered = [mixture(networks, random_coefficients("layerwise", networks[0], 3, generator)) for _ in range(2)]
    rest = member_scores(RESNET, [middle, *layered], TASK, splits=("test",))[[f"single_{c}" for c in COLUMNS]]
    assert table[COLUMNS].iloc[[4, 7, 8]].to_numpy().tolist() == rest.to_numpy().tolist()
    assert table.attrs == {"task": "blobs", "split": "test", "average": average, "networks": 3}


def test_mixtures_of_a_network_with_itself_are_that_network():
    a = drawn(RESNET)[0]
    table = mixtures(RESNET, [a, a], TASK, draws=2)
    assert table.accuracy.nunique() == 1 and table.nll.tolist() == pytest.approx([table.nll[0]] * len(table))


def test_statistics_are_re_estimated_for_every_network_on_training_images(monkeypatch):
    calls, buffers = [], scoring.Stateless.buffers
    monkeypatch.setattr(scoring.Stateless, "buffers", lambda self, w: calls.append(1) or buffers(self, w))
    first = mixtures(RESNET, drawn(RESNET), TASK, draws=2, split="validation")
    assert len(calls) == 2 + 1 + 6
    other = replace(TASK, test=Split(255 - TASK.test.images, TASK.test.labels), fingerprint="")
    assert first.equals(mixtures(RESNET, drawn(RESNET), other, draws=2, split="validation"))


def test_the_seed_decides_the_mixtures():
    one, two, same = (mixtures(MLP, drawn(MLP), TASK, kinds=("global",), draws=3, seed=seed) for seed in (0, 1, 0))
    assert one.equals(same) and one.nll[:4].tolist() == two.nll[:4].tolist() and one.nll.tolist() != two.nll.tolist()


@pytest.mark.parametrize("change, message", [
    ({"networks": 1}, "networks must hold at least two to be mixed, got 1"),
    ({"kinds": ("per-layer",)}, "kinds must be one of 'global', 'layerwise', 'per-weight'; got 'per-layer'"),
    ({"kinds": "global"}, r"kinds must be a sequence such as \('global',\) and draws >= 1, got 'global' and 10"),
    ({"draws": 0}, "draws >= 1, got .* and 0"),
    ({"average": "votes"}, "average must be one of"),
])
def test_bad_mixtures_are_refused(change, message):
    settings = {"networks": 2, **change}
    networks = drawn(MLP, settings.pop("networks"))
    with pytest.raises(ValueError, match=message):
        mixtures(MLP, networks, TASK, **settings)
    with pytest.raises(FloatingPointError, match="the loss is NaN or infinite for alone 1, split 'test'"):
        mixtures(MLP, [{k: 1e200 * x for k, x in w.items()} for w in drawn(MLP)], TASK)


# The analysis


def test_the_analysis_is_mixtures_of_branches(tmp_path):
    start, store = drawn(MLP, 1)[0], Store(tmp_path)
    table = instability(MLP, start, TASK, RECIPE, epochs=(0, 2, 4), seeds=(1, 2), seed=5, store=store, draws=2, mixture_seed=3)
    assert list(table.columns) == ["epoch", "what", "number", *COLUMNS] and table.epoch.unique().tolist() == [0, 2, 4]
    for epoch, rows in table.groupby("epoch"):
        expected = mixtures(MLP, parted(tmp_path, epoch, seed=5), TASK, draws=2, seed=3)
        assert rows.drop(columns="epoch").reset_index(drop=True).equals(expected)
    last = table[table.epoch == 4]
    assert last.accuracy.nunique() == 1


def test_shared_epochs_are_trained_once_for_all_stops(tmp_path, monkeypatch):
    from lossland import training
    epoch_of, done = training._epoch, []
    monkeypatch.setattr(training, "_epoch", lambda state, net, run, c: done.append((run.seed, state.epoch)) or epoch_of(state, net, run, c))
    instability(MLP, drawn(MLP, 1)[0], TASK, RECIPE, epochs=(3, 1), seeds=(1, 2), seed=5, store=Store(tmp_path), draws=1, kinds=())
    assert sorted(done) == [(1, 1), (1, 2), (1, 3), (1, 3), (2, 1), (2, 2), (2, 3), (2, 3), (5, 0), (5, 1), (5, 2)]


def test_an_analysis_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="epochs must hold at least one number of shared epochs, got none"):
        instability(MLP, drawn(MLP, 1)[0], TASK, RECIPE, epochs=(), store=Store(tmp_path))
    with pytest.raises(ValueError, match=r"epoch must be one of the recipe's 0..4, got 9"):
        instability(MLP, drawn(MLP, 1)[0], TASK, RECIPE, epochs=(0, 9), store=Store(tmp_path))
    assert not Store(tmp_path).entries()


def test_networks_of_the_package_may_be_named(tmp_path):
    name = {"model": "mlp", "sizes": {"width": 5}, "seed": 7}
    net = recipes.network(TASK, "mlp", width=5)
    start = models.initial_weights(net, torch.Generator().manual_seed(7), dtype=torch.float64)
    known, = recipes.endpoints(TASK, "mlp", seeds=[7], recipe=RECIPE, store=tmp_path, width=5)
    found = branches(net, start, TASK, RECIPE, epoch=2, seeds=(7, 8), seed=7, name=name, store=Store(tmp_path))
    assert_close(found[0], known, rtol=0, atol=0)
    assert len(Store(tmp_path).entries()) == 3  # the network, its stop after two epochs, the branch


def test_a_start_may_be_a_family_of_one_point_and_nothing_else(tmp_path):
    a, settings = drawn(MLP, 1)[0], {"epochs": (0,), "seeds": (1, 2), "draws": 1, "kinds": ()}
    tables = [instability(MLP, begin, TASK, RECIPE, store=Store(tmp_path), **settings) for begin in (a, families.point(a))]
    assert tables[0].equals(tables[1])
    with pytest.raises(TypeError, match=r"start must be the weights of one network, got Family: pass one of its control points, \.points\[0\]"):
        instability(MLP, families.line(a, a), TASK, RECIPE, store=Store(tmp_path), **settings)
    with pytest.raises(TypeError, match=r"epochs must be a sequence of numbers of shared epochs such as \(0, 3\), got 3"):
        instability(MLP, a, TASK, RECIPE, store=Store(tmp_path), **settings | {"epochs": 3})
    with pytest.raises(TypeError, match="start must be the weights of one network, got Family"):
        branches(MLP, families.line(a, a), TASK, RECIPE, epoch=1, seeds=(1,), store=Store(tmp_path))
