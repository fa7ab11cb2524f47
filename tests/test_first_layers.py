"""Which way the products of images with first layers are made, and that it makes no difference."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from conftest import make_task
from lossland import models, paths
from lossland.evaluation import evaluate
from lossland.evaluation.first_layers import FirstLayers
from lossland.pairwise import pairs
from lossland.products import bytes_pay
from lossland.tasks import Task
from lossland.weights import Weights

needs_bytes = pytest.mark.skipif(not bytes_pay(), reason="no instructions for products of bytes")


@pytest.fixture(autouse=True)
def few_are_worth_it(monkeypatch):
    monkeypatch.setattr("lossland.evaluation.first_layers._WORTH", 41)  # of the test split's images alone


def colour(shape: tuple[int, int, int] = (3, 6, 6)) -> Task:
    """Return a task whose channels are normalised differently."""
    return replace(make_task(shape=shape), mean=(0.5, 0.1, 0.9), std=(0.2, 0.3, 0.05), fingerprint="")


def ends(task: Task, count: int = 2, width: int = 30, dtype: torch.dtype = torch.float32) -> tuple[models.MLP, list[Weights]]:
    net = models.build("mlp", task.input_shape, task.classes, width=width)
    return net, [{name: (4 * tensor).to(dtype) for name, tensor in
                  models.initial_weights(net, torch.Generator().manual_seed(seed)).items()} for seed in range(count)]


def layers(points: list[Weights]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(point["linear.0.weight"], point["linear.0.bias"]) for point in points]


@needs_bytes
def test_channels_are_normalised_inside_of_products_of_bytes():
    task = colour()
    _, points = ends(task)
    first = FirstLayers(task, layers(points))
    assert first.product == "int8 x 3" and first.width == 60
    images = task.prepare(task.train.images, torch.float64).flatten(1)
    for found, (weight, bias) in zip(first(task.train.images), layers(points), strict=True):
        wanted = images @ weight.double().T + bias.double()
        assert_close(found.double(), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@needs_bytes
def test_a_layer_that_bytes_do_not_serve_is_multiplied_in_float32():
    task = colour((3, 16, 16))
    _, points = ends(task)
    points[1]["linear.0.weight"][3, 1:] *= 1e-7
    first = FirstLayers(task, layers(points))
    assert first.product == "float32 + int8 x 3"
    for one, other in zip(first(task.test.images), FirstLayers(task, layers(points), "float32")(task.test.images), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


@needs_bytes
@pytest.mark.parametrize("shape", ["segment", "arc", "bezier"])
def test_tables_say_what_was_multiplied_and_do_not_depend_on_it(shape):
    task = colour()
    net, (a, b, c) = ends(task, 3)
    path = {"segment": paths.segment(a, b), "arc": paths.arc(a, b, c), "bezier": paths.bezier([a, c, b])}[shape]
    found = evaluate(net, path, task, points=31)
    full = evaluate(net, path, task, points=31, precision="float32")
    assert (found.attrs["product"], full.attrs["product"]) == ("int8 x 3", "float32")
    assert evaluate(net, path, task, points=31, exact=True).attrs["product"] == "float32"
    assert ((found.nll / full.nll - 1).abs() < 1e-6).all() and (found.accuracy - full.accuracy).abs().max() < 0.05
    low = evaluate(net, path, task, points=31, precision="bfloat16")
    assert low.attrs["product"] == "bfloat16" and 1e-5 < (low.nll / full.nll - 1).abs().max() < 0.1


@needs_bytes
def test_bytes_are_for_many_images():
    task = colour()
    net, (a, b) = ends(task)
    for images, product in ((40, "float32"), (41, "int8 x 3")):
        some = task.subset(test=images)
        assert evaluate(net, paths.segment(a, b), some, points=9, splits=("test",)).attrs["product"] == product
        assert pairs(net, [a, b], some, points=9, splits=("test",)).attrs["product"] == product


def test_without_the_instructions_tables_are_made_in_float32(monkeypatch):
    monkeypatch.setattr("lossland.products.bytes_pay", lambda: False)
    task = colour()
    net, (a, b) = ends(task)
    assert evaluate(net, paths.segment(a, b), task, points=9).attrs["product"] == "float32"


def test_weights_in_float64_are_multiplied_in_float64():
    task = colour()
    net, (a, b) = ends(task, dtype=torch.float64)
    table = evaluate(net, paths.segment(a, b), task, points=9)
    assert table.attrs["product"] == "float64"
    assert_close(torch.tensor(table.nll), torch.tensor(evaluate(net, paths.segment(a, b), task, points=9, exact=True).nll))


def test_a_precision_is_one_of_two():
    task = colour()
    net, (a, b) = ends(task)
    with pytest.raises(ValueError, match="precision must be one of 'float32', 'bfloat16'; got 'bfloat'"):
        evaluate(net, paths.segment(a, b), task, precision="bfloat")


@needs_bytes
def test_networks_for_other_images_are_refused_before_any_product():
    task = colour()
    net, (a, b) = ends(colour((3, 5, 5)))
    with pytest.raises(ValueError, match=r"take the 108 numbers of an input \(3, 6, 6\) .* has 75 columns") as error:
        evaluate(net, paths.segment(a, b), task)
    assert "must take inputs of shape (3, 6, 6)" in error.value.__notes__[0]
