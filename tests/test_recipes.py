from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from conftest import make_task
from lossland import recipes
from lossland.families import bezier
from lossland.store import Store
from lossland.training import Recipe

TASK = make_task()
QUICK = Recipe(epochs=2, lr=0.05, batch_size=32)


def test_end_points_are_trained_once_and_then_read(tmp_path, monkeypatch):
    store = Store(tmp_path)
    made = recipes.endpoints(TASK, "mlp", seeds=(1, 2), recipe=QUICK, store=store, width=5)
    assert len(store.entries()) == 2
    monkeypatch.setattr(recipes, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    read = recipes.endpoints(TASK, "mlp", seeds=(1, 2), recipe=QUICK, store=tmp_path, width=5)
    for first, second in zip(made, read, strict=True):
        assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(made[0]["linear.0.weight"], made[1]["linear.0.weight"])


@pytest.mark.parametrize("change", [{"recipe": replace(QUICK, lr=0.06)}, {"width": 6}, {"task": make_task(train=99)}])
def test_whatever_determines_a_network_makes_another_entry(tmp_path, change):
    given = {"task": TASK, "recipe": QUICK, "width": 5}
    for settings in (given, given | change):
        recipes.endpoints(settings["task"], "mlp", seeds=[1], recipe=settings["recipe"], store=tmp_path,
                          width=settings["width"])
    assert len(Store(tmp_path).entries()) == 2


class Own(nn.Module):
    """A network of the user's."""

    def __init__(self, units: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, units), nn.BatchNorm1d(units), nn.Tanh(), nn.Linear(units, 3))

    def forward(self, images):
        return self.body(images)


def test_without_a_name_networks_and_their_numbers_say_what_is_the_same(tmp_path, monkeypatch):
    net, store = Own(), Store(tmp_path)
    a, b, c = ({name: torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) for name, p in net.named_parameters()}
               for seed in range(3))
    curve, other = (recipes.trained(bezier(a, end), net, TASK, QUICK, store=store) for end in (b, c))
    assert not torch.equal(curve.points[1]["body.1.weight"], other.points[1]["body.1.weight"])
    relu = Own()
    relu.body[3] = nn.ReLU()  # the same names and shapes, another network
    recipes.trained(bezier(a, b), relu, TASK, QUICK, store=store)
    assert len(store.entries()) == 3
    monkeypatch.setattr(recipes, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    again = recipes.trained(bezier({name: value.clone() for name, value in a.items()}, b), Own(), TASK, QUICK, store=store)
    assert_close(again.points[1], curve.points[1], rtol=0, atol=0)


class Dropped(nn.Module):
    """Says nothing of its p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.linear, self.p = nn.Linear(16, 3), p

    def forward(self, images):
        return self.linear(nn.functional.dropout(images.flatten(1), self.p, self.training))


def test_attributes_that_are_not_shown_make_another_network(tmp_path):
    first = recipes.point({name: p.detach().clone() for name, p in Dropped(0.0).named_parameters()})
    nets = [Dropped(0.0), Dropped(0.5)]
    found = [recipes.trained(first, net, TASK, QUICK, store=str(tmp_path)).points[0] for net in nets]
    assert repr(nets[0]) == repr(nets[1]) and not torch.equal(found[0]["linear.weight"], found[1]["linear.weight"])
    assert len(Store(tmp_path).entries()) == 2


def test_a_record_tells_how_the_network_came_about(tmp_path):
    recipes.endpoints(TASK, "mlp", seeds=[3], recipe=QUICK, store=tmp_path, width=5)
    entry, = Store(tmp_path).entries()
    assert entry.record["recipe"]["name"] == {"model": "mlp", "sizes": {"width": 5}, "seed": 3}
    assert entry.record["device"] == "cpu" and len(entry.record["history"]) == 2


def test_the_papers_recipes():
    assert recipes.recipe_for(make_task(shape=(3, 8, 8))).epochs == 400
    mnist_like = recipes.recipe_for(TASK)
    assert (mnist_like.epochs, mnist_like.lr, mnist_like.batch_size) == (30, 0.01, 128)
    assert recipes.recipe_for(TASK, epochs=0, lr=0.5).epochs == 30 and recipes.recipe_for(TASK, lr=0.5).lr == 0.5


def test_0_means_0_where_a_recipe_can_have_it():
    digits = replace(TASK, name="digits")
    assert recipes.recipe_for(digits).weight_decay == 1e-3
    changed = recipes.recipe_for(digits, weight_decay=0.0, momentum=0, warmup=0, clip=0.0, beta=0, augment=False)
    assert changed == replace(recipes.RECIPES["digits"], weight_decay=0.0, momentum=0, augment=False)
    kept = {"epochs": 0, "lr": 0.0, "batch_size": 0, "draws": 0}
    assert recipes.recipe_for(digits, **kept) == recipes.RECIPES["digits"]
    assert recipes.recipe_for(digits, **dict.fromkeys([*kept, "weight_decay"])) == recipes.RECIPES["digits"]


@pytest.mark.parametrize("seeds, error, message", [
    (3, TypeError, "seeds must be a sequence such as \\(1, 2\\), got 3"),
    ([-1], ValueError, "seeds must be >= 0, got \\[-1\\]"),
    ([], ValueError, "at least one seed"),
])
def test_bad_seeds_are_refused(seeds, error, message, tmp_path):
    with pytest.raises(error, match=message):
        recipes.endpoints(TASK, "mlp", seeds=seeds, recipe=QUICK, store=tmp_path, width=5)


@pytest.mark.parametrize("model, sizes, message", [
    ("mlp", {"width": "8"}, "width must be of the kind of 2000, got '8' \\(str\\)"),
    ("mlp", {"width": True}, "width must be of the kind of 2000, got True \\(bool\\)"),
    ("mlp", {"width": 8.0}, "width must be of the kind of 2000, got 8.0 \\(float\\)"),
    ("conv2fc1", {"channels": 3}, "channels must be of the kind of \\(32, 64\\), got 3 \\(int\\)"),
    ("conv2fc1", {"channels": (3, "4")}, "channels must be of the kind of \\(32, 64\\)"),
    ("cresnet20", {"bias": 1}, "bias must be of the kind of False, got 1 \\(int\\)"),
])
def test_sizes_of_another_type_are_refused(model, sizes, message):
    with pytest.raises(TypeError, match=message):
        recipes.network(TASK, model, **sizes)


def test_sizes_of_the_right_type_are_taken():
    assert recipes.network(TASK, "mlp", width=np.int64(3)).linear[0].out_features == 3
    assert recipes.network(make_task((3, 32, 32)), "conv2fc1", channels=[4, 6]).layers()


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'mlp'"):
        recipes.endpoints(TASK, "mpl", seeds=[1], store=tmp_path)
    with pytest.raises(ValueError, match="size of 'mlp' must be one of 'width'; got 'widht' \\(did you mean 'width'"):
        recipes.network(TASK, "mlp", widht=3)
    with pytest.raises(ValueError, match="field of the recipe must be one of .*did you mean 'epochs'"):
        recipes.recipe_for(TASK, epoch=3)


def test_fields_added_later_leave_the_keys_of_stored_recipes_alone():
    """Fails when a new field of Recipe changes the place of networks that were trained before it came."""
    old = {"epochs": 30, "lr": 0.01, "batch_size": 128, "momentum": 0.9, "weight_decay": 1e-4, "decay_on": "points",
           "schedule": "piecewise", "warmup": 0, "augment": True, "precision": "float32"}
    recipe = recipes.RECIPES["ay20-mnist"]
    assert recipe.facts() == old and list(recipe.facts()) == list(old)
    facts = {"name": {"model": "mlp", "sizes": {"width": 2000}, "seed": 1}, "kind": "point", "points": 1, "task": "abc",
             "recipe": recipe.facts(), "seed": 1, "training": 1, "device": "cpu"}
    assert Store().key(facts) == GOLDEN


@pytest.mark.parametrize("change", [{"draws": 2}, {"draws": 2, "measure": "length"}, {"clip": 0.25},
                                    {"beta": 1.0}, {"layerwise": True}, {"similarity": 1.0, "draws": 2}, {"smoothing": 0.1},
                                    {"similarity_on": "same"}, {"strata": False},
                                    {"schedule": "triangular", "cycle": 2, "lr_low": 0.01}])
def test_a_new_field_with_a_value_of_its_own_makes_another_entry(change):
    changed = replace(QUICK, **change)
    assert changed.facts() == QUICK.facts() | change


def test_trained_families_are_kept_under_the_facts_of_their_recipe(tmp_path):
    start = recipes.endpoints(TASK, "mlp", seeds=[3], recipe=QUICK, store=tmp_path, width=5)
    entry, = Store(tmp_path).entries()
    assert entry.record["recipe"]["recipe"] == QUICK.facts() and start


GOLDEN = "3358ae8e8216344012eb"  # as made before Recipe had draws and measure
