"""What training refuses before it runs, and what each refusal says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_task
from lossland import families, recipes, subspaces
from lossland.store import Store
from lossland.training import Recipe, fit

TASK = make_task()
RECIPE = Recipe(epochs=1, lr=0.05, batch_size=32)


class Net(nn.Module):
    """Batch norm over single numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, images):
        return self.last(self.norm(self.first(images.flatten(1))))


class Gate(nn.Module):
    """A layer whose initial weights nobody knows but its author."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(3))


def weights_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


NET = Net()
POINT = families.point(weights_of(NET))
GIVEN = {"net": NET, "family": POINT, "task": TASK, "recipe": RECIPE}


@pytest.mark.parametrize("images, recipe, size", [
    (97, RECIPE, 33), (97, replace(RECIPE, batch_size=32, draws=2), 34), (96, replace(RECIPE, batch_size=1), 2)])
def test_a_last_batch_of_one_image_is_told_with_what_to_take(images, recipe, size):
    given = NET, families.line(weights_of(NET), weights_of(Net())), make_task(train=images)
    message = (f"{images} images in batches of {recipe.batch_size} \\(draws={recipe.draws}\\) end with a batch of 1; take "
               f"batch_size={size}, or")
    with pytest.raises(ValueError, match=f"batch_size must leave two images or more .*{message}"):
        fit(*given, recipe)
    assert fit(*given, replace(recipe, batch_size=size)).history.loss.notna().all()


def test_other_errors_of_the_network_stay_as_they_are():
    class Failing(Net):
        def forward(self, images):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="^mine$"):
        fit(Failing(), POINT, TASK, RECIPE)


def test_frozen_parameters_are_refused_and_skeletons_are_not(tmp_path):
    net = Net()
    net.first.requires_grad_(False)
    for train in (fit, lambda *given: recipes.trained(*given[1::-1], *given[2:], store=tmp_path)):
        with pytest.raises(ValueError, match="requires_grad=False for 'first.weight', 'first.bias': .*register_buffer"):
            train(net, POINT, TASK, RECIPE)
    assert len(fit(net.requires_grad_(False), POINT, TASK, RECIPE).history) == 1


WRONG = [
    ({"net": Net}, TypeError, r"net must be a network, got the class Net: make one, Net\(...\)"),
    ({"net": "mlp"}, TypeError, "net must be a network, a torch.nn.Module, got str"),
    ({"family": weights_of(NET)}, TypeError, r"family must be a Family, for one network ll.point\(weights\), got dict"),
    ({"family": fit(NET, POINT, TASK, RECIPE)}, TypeError, "family must be a Family, which this one holds as .family, got Fit"),
    ({"task": "digits"}, TypeError, r"task must be a Task, got the text 'digits': ll.load_task\('digits'\) loads one"),
    ({"task": 3}, TypeError, "task must be a Task .*got int"),
    ({"recipe": {"epochs": 3}}, TypeError, r"recipe must be a Recipe, made by ll.Recipe\(\*\*fields\), .*got {'epochs': 3} \(dict\)"),
    ({"recipe": "digits"}, TypeError, r"recipe must be a Recipe, such as ll.recipe_for\(task\), .*got 'digits' \(str\)"),
    ({"recipe": Recipe}, TypeError, r"made by ll.Recipe\(epochs=40, lr=0.05\); got the class Recipe"),
    ({"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
    ({"seed": 1.5}, ValueError, "seed must be a whole number >= 0, got 1.5"),
]


@pytest.mark.parametrize("change, error, message", WRONG)
@pytest.mark.parametrize("train", [fit, recipes.trained, recipes.fitted])
def test_arguments_of_another_kind_are_refused_with_what_to_pass(train, change, error, message, tmp_path):
    place = {} if train is fit else {"store": tmp_path}
    with pytest.raises(error, match=message):
        train(**GIVEN | change, **place)
    assert not list(tmp_path.iterdir())


def test_names_and_stores_of_another_kind_are_refused(tmp_path):
    with pytest.raises(TypeError, match="name must be a dictionary .*or None, got 'mine'"):
        recipes.trained(**GIVEN, name="mine", store=tmp_path)
    with pytest.raises(TypeError, match="store must be a Store or its folder, got 3"):
        recipes.trained(**GIVEN, store=3)


@pytest.mark.parametrize("kind", [Store, Path, str])
def test_a_store_is_a_store_or_its_folder(kind, tmp_path):
    recipes.trained(**GIVEN, store=kind(tmp_path))
    recipes.stopped_at(NET, POINT.points[0], TASK, RECIPE, epochs=[1], store=kind(tmp_path))
    assert len(Store(tmp_path).entries()) == 2


def test_named_recipes_refuse_the_same(tmp_path):
    for ask in (lambda **given: recipes.endpoints(TASK, "mlp", seeds=[1], store=tmp_path, width=5, **given),
                lambda **given: subspaces.subspace(TASK, "mlp", "line", store=tmp_path, width=5, **given)):
        for recipe in ({}, {"epochs": 3}, "digits", Recipe):
            with pytest.raises(TypeError, match="recipe must be a Recipe"):
                ask(recipe=recipe)
    for ask in (lambda: recipes.network("digits", "mlp"), lambda: recipes.recipe_for("digits"),
                lambda: subspaces.subspace("digits", "mlp", "line", store=tmp_path)):
        with pytest.raises(TypeError, match="task must be a Task, got the text 'digits'"):
            ask()


@pytest.mark.parametrize("kind, way", [
    ("line", r"ll.line\(dict\(first.named_parameters\(\)\), dict\(second.named_parameters\(\)\)\)"),
    ("simplex", r"ll.simplex\(\[dict\(net.named_parameters\(\)\) for net in nets\]\)"),
    ("bezier", r"ll.bezier\(.*ends='free'\)"), ("point", r"ll.point\(dict\(first")])
def test_modules_without_known_initial_weights_are_shown_the_way_out(kind, way):
    with pytest.raises(TypeError, match=f"got Gate at '0'.*{way}"):
        subspaces.start(nn.Sequential(Gate()), kind)


def test_starts_refuse_classes_seeds_and_flags():
    for given, error, message in (({"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
                                  ({"same_start": "yes"}, TypeError, "same_start must be True or False, got 'yes'")):
        with pytest.raises(error, match=message):
            subspaces.start(NET, "line", **given)
    with pytest.raises(TypeError, match="got the class Net"):
        subspaces.start(Net, "line")


@pytest.mark.parametrize("change, error, message", [
    ({"epochs": 1.5}, TypeError, "epochs must be a whole number, got 1.5"),
    ({"draws": 2.0}, TypeError, "draws must be a whole number, got 2.0"),
    ({"batch_size": 32.0}, TypeError, "batch_size must be a whole number, got 32.0"),
    ({"batch_size": "32"}, TypeError, "batch_size must be a whole number, got '32'"),
    ({"epochs": True}, TypeError, "epochs must be a whole number, got True"),
    ({"beta": True}, TypeError, "beta must be a number, got True"),
    ({"beta": "1"}, TypeError, "beta must be a number, got '1'"),
    ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
    ({"lr": None}, TypeError, "lr must be a number, got None"),
    ({"augment": 1}, TypeError, "augment must be True or False, got 1"),
    ({"momentum": 1.0}, ValueError, "momentum must be < 1, .*got 1.0"),
])
def test_fields_of_another_type_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        replace(RECIPE, **change)


def test_numbers_of_numpy_are_numbers():
    recipe = Recipe(epochs=np.int64(1), lr=np.float64(0.05), batch_size=np.int32(32), weight_decay=np.float32(0.5), draws=np.int8(2))
    assert recipe == Recipe(epochs=1, lr=0.05, batch_size=32, weight_decay=0.5, draws=2)
    assert all(type(value) in (int, float, str, bool) for value in recipe.facts().values())
