from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from conftest import make_task
from lossland import recipes
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


@pytest.mark.parametrize("seeds, error, message", [
    (3, TypeError, "seeds must be a sequence such as \\(1, 2\\), got 3"),
    ([-1], ValueError, "seeds must be >= 0, got \\[-1\\]"),
    ([], ValueError, "at least one seed"),
])
def test_bad_seeds_are_refused(seeds, error, message, tmp_path):
    with pytest.raises(error, match=message):
        recipes.endpoints(TASK, "mlp", seeds=seeds, recipe=QUICK, store=tmp_path, width=5)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'mlp'"):
        recipes.endpoints(TASK, "mpl", seeds=[1], store=tmp_path)
    with pytest.raises(ValueError, match="field of the recipe must be one of .*did you mean 'epochs'"):
        recipes.recipe_for(TASK, epoch=3)
