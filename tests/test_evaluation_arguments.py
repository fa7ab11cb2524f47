"""What a first user passes by mistake to evaluate, plane and pairs: every message names the argument and what to pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_task
from lossland import models, paths
from lossland.connect import connect
from lossland.evaluation import evaluate
from lossland.families import bezier
from lossland.metrics import barrier
from lossland.pairwise import pairs
from lossland.planes import plane
from lossland.products import bytes_pay
from lossland.search import worst
from lossland.weights import Weights

TASK = make_task(shape=(1, 8, 8))
NET, DEEP = models.build("mlp", (1, 8, 8), 3, width=9), models.build("fc3", (1, 8, 8), 3, first=7, second=5)


def ends(net: nn.Module = NET, dtype: torch.dtype = torch.float32, count: int = 2) -> list[Weights]:
    return [models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=dtype) for seed in range(count)]


A, B, C = ends(count=3)
PATH = paths.segment(A, B)
THREE = {"a": A, "b": B, "c": C}


@pytest.mark.parametrize("points", [np.int64(4), torch.tensor(4), np.array(4)])
def test_whole_numbers_of_numpy_and_torch_are_numbers_of_points(points):
    assert evaluate(NET, PATH, TASK, points=points).attrs["grid"] == 4


def test_a_generator_of_networks_is_as_good_as_a_list():
    assert pairs(NET, (one for one in (A, B, C)), TASK, points=3).attrs["pairs"] == 3


@pytest.mark.parametrize("how, error, message", [
    ({"points": 5.0}, TypeError, "points must be a number, of equidistant t, .* got 5.0"),
    ({"points": 0.5}, TypeError, r"points must be .* got 0.5: one t alone is \[0.5\]"),
    ({"points": True}, TypeError, "points must be .* got True"),
    ({"points": ["a"]}, TypeError, r"points must be .* or the t themselves, .* got \['a'\]"),
    ({"splits": []}, ValueError, "splits must name at least one split"),
    ({"splits": None}, TypeError, "splits must be a sequence of names .* got None"),
    ({"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
    ({"tolerance": "1e-3"}, TypeError, "tolerance must be a number, .* got '1e-3'"),
    ({"swaps": -1}, ValueError, "swaps must be >= 1, got -1"),
    ({"swaps": 2.5}, TypeError, "swaps must be a whole number, got 2.5"),
    ({"precision": "fp16"}, ValueError, "precision must be one of 'float32', 'bfloat16'; got 'fp16'"),
])
def test_options_of_evaluate_are_refused_by_name(how, error, message):
    with pytest.raises(error, match=message):
        evaluate(NET, PATH, TASK, **how)


@pytest.mark.parametrize("how, error, message", [
    ({"most": 2.5}, TypeError, "most must be a whole number, got 2.5"),
    ({"tolerance": None}, TypeError, "tolerance must be a number, .* got None"),
])
def test_options_of_worst_are_refused_by_name(how, error, message):
    with pytest.raises(error, match=message):
        worst(NET, PATH, TASK, points=3, **how)


@pytest.mark.parametrize("call, error, message", [
    (lambda: pairs(NET, THREE, TASK), TypeError, r"networks must be .* a dictionary: pass list\(networks.values\(\)\)"),
    (lambda: pairs(NET, A, TASK), TypeError, r"networks must be .*\[a, b, c\], got the weights of one network"),
    (lambda: pairs(NET, 3, TASK), TypeError, r"networks must be .*\[a, b, c\], got int"),
    (lambda: pairs(NET, [A, B], TASK, path="segment"), TypeError, r"path must be a function \(a, b\) -> Path .* got 'segment'"),
    (lambda: pairs(NET, [A, B], TASK, path=PATH), TypeError, r"path must be a function .* such as lossland.segment, got Path"),
    (lambda: pairs(NET, [A, B], TASK, path=paths.arc), TypeError,
     r"got arc, which takes \(a, b, centre\): .* lambda a, b: arc\(a, b, ...\)"),
])
def test_bad_pairs_are_told_what_to_pass(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("between", [lambda a, b: None, lambda a, b: {}["partner"]])
def test_errors_of_a_pair_name_it(between):
    with pytest.raises((TypeError, KeyError)) as caught:
        pairs(NET, [A, B], TASK, path=between)
    assert caught.value.__notes__ == ["on the path from networks[0] to networks[1]"]


@pytest.mark.parametrize("how, error, message", [
    ({"points": {**THREE, "c": {**C, "linear.0.bias": C["linear.0.bias"] + torch.nan}}}, ValueError, r"points\['c'\] must be finite"),
    ({"points": {**THREE, "c": {name: one.double() for name, one in C.items()}}}, ValueError,
     r"points\['a'\] and points\['c'\] must have the same dtypes"),
    ({"margin": float("nan")}, ValueError, "margin must be finite and > -0.5, .* got nan"),
    ({"margin": -0.5}, ValueError, "margin must be finite and > -0.5, .* got -0.5"),
    ({"margin": "wide"}, TypeError, "margin must be a number, or two of them, .* got 'wide'"),
    ({"cells": 2.5}, TypeError, "cells must be a whole number, or two of them, .* got 2.5"),
    ({"cells": (3, 4, 5)}, TypeError, r"cells must be a whole number, or two of them, .* got \(3, 4, 5\)"),
    ({"split": None}, TypeError, "split must be a sequence of names"),
    ({"split": ()}, ValueError, "split must name at least one split"),
])
def test_bad_planes_are_refused_by_name(how, error, message):
    with pytest.raises(error, match=message):
        plane(NET, how.pop("points", THREE), TASK, **how)


@pytest.mark.parametrize("make", [paths.segment, lambda a, b: paths.chain([a, a, b]), bezier, lambda a, b: connect(NET, a, b)])
def test_ends_of_several_dtypes_are_refused_by_both_names(make):
    with pytest.raises(ValueError, match="must have the same dtypes; 'linear.0.weight' is torch.float32 in .* and torch.float16 in"):
        make(A, {name: one.half() for name, one in B.items()})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_bfloat16_wants_float32_weights_of_deep_networks_and_blames_no_forward_pass(dtype):
    a, b = ends(DEEP, dtype)
    with pytest.raises(ValueError, match="precision='bfloat16' needs float32 weights, got float.*: only .* one hidden layer") as caught:
        evaluate(DEEP, paths.segment(a, b), TASK, points=3, precision="bfloat16")
    assert not getattr(caught.value, "__notes__", [])


def test_errors_of_a_leg_are_not_blamed_on_the_network():
    def leg(s):
        if (s > 0).any():
            raise ValueError("a leg of a user's own")
        return {name: one[None] for name, one in A.items()}

    with pytest.raises(ValueError, match="of a user's own") as caught:
        evaluate(NET, paths.Path((leg,)), TASK, points=3)
    assert not getattr(caught.value, "__notes__", [])


def test_a_first_layer_for_other_images_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"must take the 36 numbers of an input \(1, 6, 6\) .* its weight has 64 columns"):
        evaluate(NET, PATH, make_task(shape=(1, 6, 6)), points=3)


def test_too_few_logits_are_counted():
    net = models.build("mlp", (1, 8, 8), 1, width=9)
    with pytest.raises(ValueError, match=r"labels must be .* 0\.\.2: the network gives 1 logit for an input, it must give one for each"):
        evaluate(net, paths.segment(*ends(net)), TASK, points=3)


@pytest.mark.skipif(not bytes_pay(), reason="no instructions for products of bytes")
@pytest.mark.parametrize("worth, product", [(41, "int8 x 3"), (42, "float32")])
def test_swaps_of_few_images_are_not_made_by_bytes_either(worth, product, monkeypatch):
    monkeypatch.setattr("lossland.evaluation.first_layers._WORTH", worth)
    path = connect(NET, A, B, matching="ot")
    assert evaluate(NET, path, replace(TASK), points=3, splits=("test",)).attrs["product"] == product


def test_accuracies_that_were_not_evaluated_are_explained():
    with pytest.raises(ValueError, match="loss must be finite, got nan at position 1; .* rows with evaluated == False have no accuracy"):
        barrier([0, 0.5, 1], [0.1, np.nan, 0.1])


@pytest.mark.parametrize("t", [0.5, 1])
def test_one_number_is_asked_of_point(t):
    with pytest.raises(TypeError, match=rf"t must be a tensor \(T,\), got {t}; one network: path.point\({t}\)"):
        PATH(t)


class Two(nn.Module):
    """Gives two tensors, not one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(images.flatten(1)), images


def test_a_network_that_gives_two_things_is_told_what_to_give():
    weights = dict(Two().named_parameters())
    with pytest.raises(AttributeError) as caught:
        evaluate(Two(), paths.segment(weights, weights), TASK, points=2)
    assert any("give 3 logits, one for each class" in note for note in caught.value.__notes__)
