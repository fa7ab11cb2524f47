"""Learned subspaces: every gradient against autograd, what is drawn, where it starts, and what is refused."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.testing import assert_close

from conftest import Memory, make_task
from lossland import families, flat, models, recipes, subspaces
from lossland.batchnorm import norm_parameters
from lossland.draws import Draws
from lossland.families import Family
from lossland.layout import Layout
from lossland.many import fit_many
from lossland.regularisers import alike, spread
from lossland.sampling import stream_seed
from lossland.store import Store
from lossland.tasks import Split, Task
from lossland.training import Recipe, fit
from lossland.weights import Weights, by_module, mix, to_vector

TASK = make_task(shape=(3, 8, 8), train=44)  # batches of 16, 16 and 12
NET = models.build("cresnet20", TASK.input_shape, TASK.classes, blocks=1, channels=2)
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, weight_decay=1e-2, precision="float64", schedule="constant")
KINDS = {"line": ("line", None), "bezier": ("bezier", None), "simplex3": ("simplex", 3), "simplex6": ("simplex", 6)}


def begin(kind: str, net: nn.Module = NET, seed: int = 1) -> Family:
    kind, points = KINDS[kind]
    return subspaces.start(net, kind, points=points, seed=seed, dtype=torch.float64)


class Reference:
    """Training by torch.optim.SGD on the control points, with autograd through the combination."""

    def __init__(self, net: nn.Module, family: Family, task: Task, recipe: Recipe) -> None:
        self.net, self.family, self.task, self.recipe = net, family, task, recipe
        self.leaves = [{name: value.clone().requires_grad_() for name, value in point.items()} for point in family.points]
        self.layout = Layout.of(net, family.points[0], norms_last=recipe.beta > 0)
        self.real = models.ResNet(task.input_shape, task.classes, blocks=1, channels=2).double()
        self.seen: list[Tensor] = []
        self.real.linear.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))

    def run(self, seed: int) -> list[Weights]:
        recipe = self.recipe
        moving = [leaf for point, free in zip(self.leaves, self.family.free) if free for leaf in point.values()]
        decay = recipe.weight_decay if recipe.decay_on == "points" else 0.0
        optimiser = torch.optim.SGD(moving, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay)
        for epoch in range(recipe.epochs):
            draws = Draws(self.family, recipe, self.layout, seed=seed, epoch=epoch)
            order = torch.Generator().manual_seed(stream_seed(seed, epoch, 0))
            for batch in self.task.batches("train", batch_size=recipe.batch_size, generator=order, dtype=torch.float64):
                optimiser.zero_grad()
                self.loss(batch, draws.next(recipe.draws)).backward()
                optimiser.step()
        return [{name: value.detach() for name, value in point.items()} for point in self.leaves]

    def networks(self, where: Tensor) -> Iterator[Weights]:
        """Yield the sampled networks: mixed name by name, without a flat vector."""
        for position in where:
            if not self.recipe.layerwise:
                yield mix(self.leaves, self.family.coefficients(position[None])[0])
                continue
            yield {name: mix([{name: leaf[name]} for leaf in self.leaves], self.family.coefficients(t[None])[0])[name]
                   for t, names in zip(position, by_module(self.layout.like).values(), strict=True) for name in names}

    def loss(self, batch, sample) -> Tensor:
        recipe, n = self.recipe, len(sample.where)
        networks, parts = list(self.networks(sample.where)), list(zip(*(tensor.tensor_split(n) for tensor in batch)))
        total = torch.zeros((), dtype=torch.float64)
        features = []
        for theta, (images, labels) in zip(networks, parts, strict=True):
            logits = functional_call(self.real, theta, (images,))
            features.append(self.seen[-1])
            total = total + cross_entropy(logits, labels, label_smoothing=recipe.smoothing) / n
            if recipe.decay_on == "sampled":
                total = total + 0.5 * recipe.weight_decay * to_vector(theta).square().sum() / n
        if recipe.beta:
            a, b = (to_vector({name: value for name, value in self.leaves[i].items()
                               if name not in norm_parameters(self.net)}) for i in sample.points)
            total = total + recipe.beta * ((a @ b) / (a.norm() * b.norm())) ** 2
        if recipe.similarity:
            j, k = sample.networks
            if recipe.similarity_on == "same":
                functional_call(self.real, networks[k], (parts[j][0],))
                features[k] = self.seen[-1]
            rows = min(len(features[j]), len(features[k]))
            alike = cosine_similarity(features[j][:rows], features[k][:rows]).square().mean()
            total = total + recipe.similarity * (sample.where[j] - sample.where[k]).abs() * alike
        return total


CASES = [(kind, change) for kind in KINDS for change in (
    {}, {"beta": 1.0}, {"beta": 0.5, "decay_on": "sampled", "draws": 2}, {"layerwise": True, "beta": 2.0, "draws": 2})]
CASES += [(kind, change) for kind in ("line", "bezier") for change in (
    {"draws": 2, "similarity": 3.0}, {"draws": 4, "similarity": 3.0, "similarity_on": "same", "beta": 1.0})]
CASES += [("line", {"smoothing": 0.2}), ("simplex3", {"layerwise": True, "smoothing": 0.1}),
          ("line", {"draws": 2, "similarity": 2.0, "decay_on": "sampled", "smoothing": 0.3, "strata": False})]
LARGE = [("bezier", {"beta": 1.0}), ("simplex3", {"layerwise": True, "beta": 2.0, "draws": 2}),
         ("line", {"draws": 2, "similarity": 3.0, "similarity_on": "same", "beta": 1.0})]


@pytest.mark.parametrize("kind, change, size", [(*case, "small") for case in CASES] + [(*case, "large") for case in LARGE])
def test_every_control_point_moves_as_by_autograd_through_the_combination(kind, change, size, monkeypatch):
    if size == "large":  # the way of networks of more than a million weights, in pieces that cut through tensors
        monkeypatch.setattr(flat, "_LARGE", 1)
        monkeypatch.setattr(flat, "_PIECE", 7)
    recipe, family = replace(RECIPE, **change), begin(kind)
    trained = fit(NET, family, TASK, recipe, seed=4).family
    expected = Reference(NET, family, TASK, recipe).run(seed=4)
    for point, reference, before in zip(trained.points, expected, family.points, strict=True):
        assert list(point) == list(before)
        assert_close(point, reference, rtol=1e-9, atol=1e-12)
        assert float((to_vector(point) - to_vector(before)).norm()) > 1e-3


def test_fixed_ends_are_no_part_of_the_regulariser():
    a, b = (begin("line").points[i] for i in (0, 1))
    family = families.bezier(a, b, bends=2)
    family = family.with_points([a, *subspaces.start(NET, "line", seed=7, dtype=torch.float64).points, b])
    recipe = replace(RECIPE, beta=1.0)
    done = fit(NET, family, TASK, recipe, seed=2)
    for point, reference in zip(done.family.points, Reference(NET, family, TASK, recipe).run(seed=2), strict=True):
        assert_close(point, reference, rtol=1e-9, atol=1e-12)
    assert_close(done.family.points[0], a, rtol=0, atol=0)
    assert done.start == pytest.approx(spread(NET, family.points[1:3]), rel=1e-12)


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"decay_on": "sampled"}])
def test_one_point_is_trained_as_by_torchs_sgd_to_the_last_bit(change):
    recipe = replace(RECIPE, precision="float32", **change)
    family = subspaces.start(NET, "point", seed=3)
    trained = fit(NET, family, TASK, recipe, seed=5).family.points[0]
    real = models.ResNet(TASK.input_shape, TASK.classes, blocks=1, channels=2)
    real.load_state_dict(family.points[0], strict=False)
    optimiser = torch.optim.SGD(real.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        order = torch.Generator().manual_seed(stream_seed(5, epoch, 0))
        for images, labels in TASK.batches("train", batch_size=16, generator=order):
            optimiser.zero_grad()
            cross_entropy(real(images), labels).backward()
            optimiser.step()
    assert_close(trained, dict(real.named_parameters()), rtol=0, atol=0)


def test_new_options_leave_the_draws_of_a_recipe_as_they_were():
    family = begin("line")
    layout = Layout.of(NET, family.points[0])
    plain, more = (Draws(family, replace(RECIPE, draws=2, **change), layout, seed=3, epoch=1)
                   for change in ({}, {"beta": 1.0, "similarity": 1.0}))
    old = torch.Generator().manual_seed(stream_seed(3, 1, 1))
    for _ in range(5):
        first, second = plain.next(2), more.next(2)
        assert torch.equal(first.where, second.where) and torch.equal(first.where, family.draw(old, 2))
        assert first.points is None and first.networks is None and second.networks is not None


def test_pairs_are_drawn_evenly_among_the_free_points():
    ends = begin("simplex6")
    family = Family("simplex", ends.points, (True, False, True, True, False, True), "simplex")
    draws = Draws(family, replace(RECIPE, beta=1.0), Layout.of(NET, ends.points[0]), seed=0, epoch=0)
    pairs = Counter(tuple(sorted(draws.next(1).points)) for _ in range(3000))
    assert set(pairs) == {(0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5)}
    assert all(abs(times - 500) < 100 for times in pairs.values())


@pytest.mark.parametrize("m", [2, 3, 6])
def test_members_of_a_simplex_are_drawn_uniformly(m):
    family = families.simplex([{"w": torch.zeros(1, dtype=torch.float64)}] * m)
    drawn = family.draw(torch.Generator().manual_seed(0), 20_000)
    layerwise = family.draw_layerwise(torch.Generator().manual_seed(0), 2, 10_000).flatten(0, 1)
    for sample in (drawn, layerwise):
        assert bool((sample >= 0).all())
        assert_close(sample.sum(1), torch.ones(20_000, dtype=torch.float64))
        assert_close(sample.mean(0), torch.full((m,), 1 / m, dtype=torch.float64), atol=0.01, rtol=0)
        # Dirichlet(1, ..., 1): E[a_i a_j] = (1 + [i = j]) / (m (m + 1))
        second = (1 + torch.eye(m, dtype=torch.float64)) / (m * (m + 1))
        assert_close(sample.T @ sample / 20_000, second, atol=0.01, rtol=0)


def test_layerwise_draws_are_uniform_and_independent_from_module_to_module():
    drawn = begin("line").draw_layerwise(torch.Generator().manual_seed(0), 4, 20_000)  # (4, 20000)
    assert_close(torch.sort((drawn * 4).floor(), 0).values, torch.arange(4.0, dtype=torch.float64)[:, None].expand(4, 20_000))
    for row in drawn:  # of one network: a t for each module
        assert abs(float(row.mean()) - 1 / 2) < 0.01 and abs(float(row.var()) - 1 / 12) < 0.005
        assert abs(float(torch.corrcoef(torch.stack([row[::2], row[1::2]]))[0, 1])) < 0.03


@pytest.mark.parametrize("layerwise", [False, True])
def test_without_strata_the_draws_of_a_step_are_independent(layerwise):
    recipe, family = replace(RECIPE, draws=4, strata=False, layerwise=layerwise), begin("line")
    draws = Draws(family, recipe, Layout.of(NET, family.points[0]), seed=0, epoch=0)
    where = torch.stack([draws.next(4).where.reshape(4, -1)[:, 0] for _ in range(4000)]).T  # (4, 4000)
    assert_close(torch.corrcoef(where), torch.eye(4, dtype=torch.float64), atol=0.06, rtol=0)
    for row in where:
        assert abs(float(row.mean()) - 1 / 2) < 0.02 and abs(float(row.var()) - 1 / 12) < 0.006
    single = replace(recipe, draws=1, layerwise=False)  # one draw is the same with strata and without
    one, other = (Draws(family, replace(single, strata=strata), draws.layout, seed=0, epoch=0).next(1).where for strata in (True, False))
    assert torch.equal(one, other)


def test_layerwise_gives_every_module_with_parameters_its_own_coefficients():
    family = begin("line")
    layout = Layout.of(NET, family.points[0], norms_last=True)
    mixture, = Draws(family, replace(RECIPE, layerwise=True, beta=1.0), layout, seed=0, epoch=0).next(1).mixtures
    modules = {name.rpartition(".")[0] for name in family.points[0]}
    assert len(mixture) == len(modules) == len({tuple(row) for _, row in mixture})
    assert sum(stretch.stop - stretch.start for stretch, _ in mixture) == layout.size
    weights, = layout.weights  # without those of normalisations, and in one stretch
    norms = sum(tensor.numel() for name, tensor in family.points[0].items() if name in norm_parameters(NET))
    assert (weights.start, weights.stop) == (0, layout.size - norms)


@pytest.mark.parametrize("kind, change", [
    ("simplex3", {"beta": 1.0, "layerwise": True, "draws": 2}),
    ("line", {"beta": 1.0, "similarity": 1.0, "draws": 2, "smoothing": 0.1}),
])
def test_an_interrupted_run_gives_the_weights_of_an_uninterrupted_one(kind, change):
    recipe, family = replace(RECIPE, epochs=3, **change), begin(kind)
    task = replace(TASK, augment="flip-crop")
    whole = fit(NET, family, task, recipe, seed=1)
    memory = Memory(fail_after=2)
    with pytest.raises(InterruptedError):
        fit(NET, family, task, recipe, seed=1, checkpoint=memory)
    memory.fail_after = None
    again = fit(NET, family, task, recipe, seed=1, checkpoint=memory)
    for first, second in zip(whole.family.points, again.family.points, strict=True):
        assert_close(first, second, rtol=0, atol=0)
    assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert again.start == whole.start


def test_the_history_tells_how_far_apart_the_control_points_are():
    family = begin("simplex3")
    done = fit(NET, family, TASK, RECIPE, seed=1)
    assert list(done.history.columns) == ["epoch", "lr", "loss", "accuracy", "seconds", "distance", "cos2"]
    assert done.history[["distance", "cos2"]].iloc[-1].to_dict() == pytest.approx(spread(NET, done.family.points), rel=1e-12)
    bare = [to_vector({name: value for name, value in point.items() if name not in norm_parameters(NET)})
            for point in family.points]
    pairs = [(bare[i], bare[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert done.start["distance"] == pytest.approx(sum(float((a - b).norm()) for a, b in pairs) / 3, rel=1e-12)
    assert done.start["cos2"] == pytest.approx(sum(float(cosine_similarity(a, b, 0)) ** 2 for a, b in pairs) / 3, rel=1e-9)
    one = fit(NET, subspaces.start(NET, "point", dtype=torch.float64), TASK, RECIPE)
    assert one.start == {} and "cos2" not in one.history


def test_the_regulariser_opens_the_angle_between_the_ends():
    starts = subspaces.start(NET, "line", same_start=True, dtype=torch.float64)
    apart = subspaces.start(NET, "line", dtype=torch.float64)
    near = [{name: a[name] + 0.5 * b[name] for name in a} for a, b in (apart.points, apart.points[::-1])]
    recipe = replace(RECIPE, epochs=10)
    for family in (apart.with_points(near), starts):
        open_, free = (fit(NET, family, TASK, replace(recipe, beta=beta)) for beta in (1.0, 0.0))
        assert open_.history.cos2.iloc[-1] < free.history.cos2.iloc[-1]
    assert fit(NET, starts, TASK, RECIPE).start == {"distance": 0.0, "cos2": pytest.approx(1.0)}


def test_control_points_start_independently_and_the_first_ones_are_shared_by_all_kinds():
    line, bezier, simplex = (subspaces.start(NET, *KINDS[kind][:1], points=KINDS[kind][1], seed=5) for kind in
                             ("line", "bezier", "simplex3"))
    point = subspaces.start(NET, "point", seed=5)
    assert [family.kind for family in (point, line, bezier, simplex)] == ["point", "line", "bezier", "simplex"]
    assert all(family.free == (True,) * len(family.points) for family in (point, line, bezier, simplex))
    for other, order in ((line, (0, 1)), (bezier, (0, 2, 1)), (simplex, (0, 1, 2))):
        for i, k in enumerate(order):
            assert_close(other.points[i], simplex.points[k], rtol=0, atol=0)
    assert_close(point.points[0], simplex.points[0], rtol=0, atol=0)
    assert spread(NET, simplex.points)["cos2"] < 0.02
    same = subspaces.start(NET, "simplex", points=3, seed=5, same_start=True)
    for point in same.points:
        assert_close(point, simplex.points[0], rtol=0, atol=0)
    assert len({point["conv.weight"].data_ptr() for point in same.points}) == 3


def test_kaiming_normal_weights_have_variance_two_over_fan_in():
    net = nn.Sequential(nn.Conv2d(8, 64, 5, groups=2), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(300, 90), nn.Embedding(50, 40))
    drawn = models.initial_weights(net, torch.Generator().manual_seed(0), scheme="kaiming-normal")
    for name, fan_in in (("0.weight", 4 * 25), ("3.weight", 300)):
        assert float(drawn[name].var()) == pytest.approx(2 / fan_in, rel=0.05)
        assert float(((drawn[name] / (2 / fan_in) ** 0.5).abs() < 1).double().mean()) == pytest.approx(0.683, abs=0.02)
    assert not drawn["0.bias"].any() and not drawn["3.bias"].any()
    assert bool((drawn["1.weight"] == 1).all()) and not drawn["1.bias"].any()
    assert float(drawn["4.weight"].var()) == pytest.approx(1, rel=0.1)


def test_subspaces_are_trained_once_and_then_read(tmp_path, monkeypatch):
    store, recipe = Store(tmp_path), Recipe(epochs=1, lr=0.05, batch_size=16, beta=1.0)
    made = subspaces.subspace(TASK, "cresnet20", "simplex", points=3, seed=1, recipe=recipe, store=store, blocks=1, channels=2)
    for change in ({"points": 2}, {"same_start": True}, {"seed": 2}, {"recipe": replace(recipe, layerwise=True)}):
        given = {"points": 3, "seed": 1, "recipe": recipe, "store": store, "blocks": 1, "channels": 2} | change
        subspaces.subspace(TASK, "cresnet20", "simplex", **given)
    assert len(store.entries()) == 5
    monkeypatch.setattr(recipes, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    read = subspaces.subspace(TASK, "cresnet20", "simplex", points=3, seed=1, recipe=recipe, store=tmp_path, blocks=1, channels=2)
    for first, second in zip(made.family.points, read.family.points, strict=True):
        assert_close(first, second, rtol=0, atol=0)
    assert made.history.equals(read.history) and made.start == read.start and made.start["distance"] > 1


def test_a_network_of_ones_own_takes_fitted(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    family = subspaces.start(net, "line", seed=1)
    done = recipes.fitted(family, net, TASK, Recipe(epochs=2, lr=0.05, batch_size=16, beta=1.0), store=Store(tmp_path))
    assert done.history.cos2.iloc[-1] < 0.1 and list(done.family.points[0]) == [name for name, _ in net.named_parameters()]
    again = recipes.trained(family, net, TASK, Recipe(epochs=2, lr=0.05, batch_size=16, beta=1.0), store=Store(tmp_path))
    assert_close(again.points[1], done.family.points[1], rtol=0, atol=0)


def test_without_a_recipe_a_line_has_the_papers_beta(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(subspaces, "fitted", lambda family, net, task, recipe, **how: asked.append(recipe))
    for kind in ("point", "line"):
        subspaces.subspace(TASK, "cresnet20", kind, seed=1, store=tmp_path, blocks=1, channels=2)
    assert [recipe.beta for recipe in asked] == [0.0, 1.0]
    assert recipes.RECIPES["w21-line"] == replace(recipes.RECIPES["w21-cifar10"], beta=1.0)
    assert (recipes.RECIPES["w21-imagenet"].batch_size, recipes.RECIPES["w21-imagenet"].weight_decay) == (256, 5e-5)


def test_label_smoothing_is_that_of_networks_trained_together_too(task):
    net = models.build("mlp", task.input_shape, task.classes, width=5)
    starts = [models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2)]
    recipe = replace(RECIPE, smoothing=0.3, weight_decay=0.0)
    alone, together = (fit_many(net, starts, task, recipe, (1, 2), way=way) for way in ("one by one", "together"))
    for first, second in zip(alone, together, strict=True):
        assert_close(first, second)
    with pytest.raises(ValueError, match="beta=1 .*single networks"):
        fit_many(net, starts, task, replace(recipe, beta=1.0), (1, 2), way="together")


def test_a_diverging_layerwise_run_says_so():
    with pytest.raises(FloatingPointError, match="step \\d+, another member of the family in every module \\(lr 1e\\+80\\)"):
        fit(NET, begin("line"), TASK, replace(RECIPE, lr=1e80, layerwise=True, epochs=5))


@pytest.mark.parametrize("change, error, message", [
    ({"beta": -1.0}, ValueError, "beta must be finite and >= 0, got -1.0"),
    ({"beta": float("nan")}, ValueError, "beta must be finite"),
    ({"similarity": -1.0, "draws": 2}, ValueError, "similarity must be finite and >= 0"),
    ({"draws": 3}, ValueError, "draws must divide batch_size.*got 3 draws of batches of 16"),
    ({"similarity": 1.0}, ValueError, "draws must be >= 2 with similarity > 0.*got 1"),
    ({"similarity": 1.0, "draws": 2, "layerwise": True}, ValueError, "similarity > 0 needs layerwise=False"),
    ({"similarity": 1.0, "draws": 2, "clip": 1.0}, ValueError, "does not go together with clip=1"),
    ({"similarity": 1.0, "draws": 2, "measure": "length"}, ValueError, "does not go together with measure='length'"),
    ({"similarity_on": "sane"}, ValueError, "did you mean 'same'"),
    ({"layerwise": True, "draws": 2, "measure": "length"}, ValueError, "layerwise=True needs measure='parameter'"),
    ({"strata": None}, TypeError, "strata must be True or False, got None"),
    ({"layerwise": 1}, TypeError, "layerwise must be True or False, got 1"),
    ({"smoothing": 1.0}, ValueError, "smoothing must be in \\[0, 1\\), got 1.0"),
    ({"smoothing": -0.1}, ValueError, "smoothing must be in \\[0, 1\\), got -0.1"),
])
def test_bad_recipes_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        replace(RECIPE, **change)


@pytest.mark.parametrize("family, change, message", [
    (lambda: subspaces.start(NET, "point"), {"beta": 1.0}, "beta > 0 needs at least two free control points.*got 1 in a point: take a line"),
    (lambda: families.bezier(*begin("line").points), {"beta": 1.0}, "got 1 in a bezier"),
    (lambda: subspaces.start(NET, "point"), {"layerwise": True}, "layerwise=True needs a family of several control points"),
    (lambda: begin("simplex3"), {"similarity": 1.0, "draws": 2}, "similarity > 0 needs a family over an interval.*got a simplex"),
    (lambda: families.line(begin("line").points[0], {k: 0 * v for k, v in begin("line").points[1].items()}), {"beta": 1.0},
     "family.points\\[1\\] must not be zero with beta > 0"),
])
def test_recipes_that_do_not_suit_a_family_are_refused(family, change, message):
    with pytest.raises(ValueError, match=message):
        fit(NET, family(), TASK, replace(RECIPE, **change))


def test_features_need_a_linear_layer():
    net = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())
    with pytest.raises(ValueError, match="similarity > 0 needs a network with a linear layer"):
        fit(net, subspaces.start(net, "line"), TASK, Recipe(epochs=1, lr=0.1, batch_size=16, similarity=1.0, draws=2))


@pytest.mark.parametrize("kind, given, error, message", [
    ("simplex", {"points": 1}, ValueError, "points of a simplex must be >= 2.*got 1; kind='point' is plain training"),
    ("simplex", {"points": 2.0}, TypeError, "points must be a whole number, got 2.0"),
    ("line", {"points": 3}, ValueError, "points must be 2 for a line, got 3; kind='simplex'"),
    ("lime", {}, ValueError, "did you mean 'line'"),
    ("line", {"scheme": "kaiming"}, ValueError, "did you mean 'kaiming-normal'"),
])
def test_bad_subspaces_are_refused(kind, given, error, message):
    with pytest.raises(error, match=message):
        subspaces.start(NET, kind, **given)


def test_bad_seeds_are_refused(tmp_path):
    for seed in (-1, True, 1.0):
        with pytest.raises(ValueError, match="seed must be a whole number >= 0"):
            subspaces.subspace(TASK, "cresnet20", "line", seed=seed, store=tmp_path)


def test_velocities_of_a_stopped_run_come_back_under_the_names_of_their_weights():
    recipe, family = replace(RECIPE, epochs=2, batch_size=44, momentum=0.5, beta=1.0), begin("simplex3")
    first = fit(NET, family, TASK, recipe, seed=1, until=1)  # one step: from rest, the velocity is the gradient
    for before, after, velocity in zip(family.points, first.family.points, first.velocity, strict=True):
        assert list(velocity) == list(before)
        for name, speed in velocity.items():
            assert_close(after[name], before[name] - recipe.lr * speed)


def test_a_network_of_zeros_has_no_angle():
    zero, one = ({name: torch.full_like(value, fill) for name, value in begin("line").points[0].items()} for fill in (0, 1))
    found = spread(NET, [zero, one])
    weights = sum(value.numel() for name, value in one.items() if name not in norm_parameters(NET))
    assert found == {"distance": pytest.approx(weights**0.5), "cos2": 0.0}
    with pytest.raises(ValueError, match="points must hold at least two networks, got 1"):
        spread(NET, [one])


def test_features_of_several_words_are_one_vector_for_each_text():
    one, other = torch.randn(2, 5, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = [float((a * b).sum() / (a.norm() * b.norm())) ** 2 for a, b in zip(one, other[:4])]
    assert float(alike(one, other[:4])) == pytest.approx(sum(by_hand) / 4)


def test_a_language_model_is_learned_as_a_line():
    vocabulary = torch.arange(40)
    windows = Split(torch.stack([vocabulary.roll(i)[:7] for i in range(30)]) % 11, torch.stack([vocabulary.roll(i)[1:8] for i in range(30)]) % 11)
    task = replace(TASK, train=windows, test=windows, classes=11, mean=(), std=(), words=tuple("abcdefghijk"), fingerprint="words")
    net = models.build("lstm", task.input_shape, 11, hidden=6, layers=1)
    recipe = Recipe(epochs=2, lr=0.1, batch_size=10, beta=1.0, draws=2, similarity=0.5)
    done = fit(net, subspaces.start(net, "line"), task, recipe)
    assert done.history.loss.iloc[-1] < done.history.loss.iloc[0]
