import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossland import weights as w


def random_weights(seed: int, dtype: torch.dtype = torch.float64) -> w.Weights:
    g = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 2, generator=g, dtype=dtype), "b": torch.randn(4, generator=g, dtype=dtype)}


def test_unit_coefficients_give_the_point_to_the_last_bit():
    points = [random_weights(i, torch.float32) for i in range(3)]
    mixed = w.mix(points, torch.eye(3))
    for i, point in enumerate(points):
        for key in point:
            assert torch.equal(mixed[key][i], point[key])


def test_batched_mix_equals_a_loop():
    points, c = [random_weights(i) for i in range(3)], torch.rand(5, 3, dtype=torch.float64)
    mixed = w.mix(points, c)
    for t in range(5):
        assert_close(w.at(mixed, t), w.mix(points, c[t]))


def test_vector_and_back_is_the_identity_and_shares_memory():
    point = random_weights(0)
    vector = w.to_vector(point)
    again = w.from_vector(vector, point)
    assert_close(again, point, rtol=0, atol=0)
    vector += 1
    assert_close(again["b"], point["b"] + 1)
    assert w.count(point) == 10


def test_distance_and_cosine_have_their_known_values():
    a = {"x": torch.tensor([3.0, 0.0]), "y": torch.tensor([0.0])}
    b = {"x": torch.tensor([0.0, 0.0]), "y": torch.tensor([4.0])}
    assert w.distance(a, b) == 5 and w.cosine(a, b) == 0 and w.cosine(a, a) == 1
    with pytest.raises(ValueError, match="zero"):
        w.cosine(a, {key: 0 * value for key, value in a.items()})


@pytest.mark.parametrize("change, message", [
    (lambda p: p.pop("b"), "same parameter names; only in a: \\['b'\\]"),
    (lambda p: p.update(b=torch.zeros(5)), "'b' is \\(4,\\) in a and \\(5,\\) in b"),
])
def test_weights_that_do_not_match_are_refused_by_name(change, message):
    other = random_weights(1)
    change(other)
    with pytest.raises(ValueError, match=message):
        w.check_match(random_weights(0), other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_with_their_place(value):
    point = random_weights(0)
    point["b"][2] = value
    with pytest.raises(ValueError, match="end must be finite, got 1 .* in 'b'"):
        w.check_finite(point, "end")


def test_a_skeleton_leaves_the_module_alone():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    bare = w.skeleton(net)
    torch.func.functional_call(bare, (w.weights_of(net), w.buffers_of(net)), (torch.randn(3, 2),))
    assert net.training and not bare.training and next(bare.parameters()).is_meta
    assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_wrong_numbers_of_coefficients_and_entries_are_named():
    with pytest.raises(ValueError, match="one entry per point \\(2\\), got shape \\(1, 3\\)"):
        w.mix([random_weights(0), random_weights(1)], torch.ones(3))
    with pytest.raises(ValueError, match="shape \\(10,\\), got \\(9,\\)"):
        w.from_vector(torch.zeros(9), random_weights(0))


def test_weights_of_another_network_are_refused_by_name():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    w.check_belongs(net, dict(net.named_parameters()), "a")
    with pytest.raises(ValueError, match="a must hold the parameters of Sequential; .*'1.running_mean'.*not state_dict"):
        w.check_belongs(net, net.state_dict(), "a")
    parameters = dict(net.named_parameters())
    with pytest.raises(ValueError, match="take off 'module.', which DataParallel puts in front"):
        w.check_belongs(net, {f"module.{name}": value for name, value in parameters.items()}, "a")
    with pytest.raises(ValueError, match="a checkpoint that holds the weights under 'state_dict'"):
        w.check_belongs(net, {"epoch": 3, "state_dict": parameters}, "a")
    with pytest.raises(ValueError, match="missing \\['0.weight'.*not a parameter \\['w'\\]"):
        w.check_belongs(net, {"w": torch.ones(1)}, "a")
    with pytest.raises(ValueError, match="'0.weight' is \\(3, 2\\) there, got \\(4, 2\\)"):
        w.check_belongs(net, {**dict(net.named_parameters()), "0.weight": torch.ones(4, 2)}, "a")
    with pytest.raises(TypeError, match="a must be a dictionary .* got Sequential"):
        w.check_belongs(net, net, "a")
    with pytest.raises(TypeError, match="first must be a dictionary .* got Sequential"):
        w.check_match(net, net, ("first", "second"))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.out.weight = self.words.weight

    def forward(self, index):
        return self.out(self.words(index))


def test_tied_weights_stay_tied_in_a_skeleton():
    net = Tied()
    bare, index = w.skeleton(net), torch.tensor([1, 4])
    assert w.tied(bare) == w.tied(net) == {"out.weight": "words.weight"}
    weights = {"words.weight": torch.randn(5, 3), "out.bias": torch.zeros(5)}
    assert_close(torch.func.functional_call(bare, weights, (index,)), weights["words.weight"][index] @ weights["words.weight"].T)


def test_parameters_lie_with_the_module_that_owns_them():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.body = nn.Parameter(torch.zeros(2)), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    found = w.by_module(dict(Token().named_parameters()))
    assert found == {"": ["token"], "body.0": ["body.0.weight", "body.0.bias"], "body.1": ["body.1.weight", "body.1.bias"]}


@pytest.mark.parametrize(("wrong", "got"), [(torch.arange(4), "torch.int64"), (torch.arange(4.0).numpy(), "ndarray")])
def test_weights_are_tensors_of_floating_point_numbers(wrong, got):
    with pytest.raises(TypeError, match=f"end must hold tensors of floating point numbers, got {got} in 'b'"):
        w.check_finite({**random_weights(0), "b": wrong}, "end")
