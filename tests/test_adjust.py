import warnings

import pytest
import torch
from conftest import make_task
from torch import nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear, relu
from torch.testing import assert_close

from lossland import adjust, least_squares, models
from lossland import features as features_of_layers
from lossland.adjust import adjusted, moments
from lossland.evaluation import evaluate, predict
from lossland.layers import Layer, permute
from lossland.least_squares import Moments, solve
from lossland.paths import Mix, Path, arc, chain, segment
from lossland.weights import weights_of

TASK = make_task(train=96)


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(width: int = 9, dtype: torch.dtype = torch.float64, bias: bool = True):
    net = models.MLP(TASK.input_shape, 3, widths=(width,), bias=bias)
    return net, *(models.initial_weights(net, torch.Generator().manual_seed(s), dtype=dtype) for s in (1, 2))


def sums(x: torch.Tensor, y: torch.Tensor, block: int = 0, products: torch.dtype = torch.float64) -> Moments:
    total = Moments.zeros(x.shape[1], y.shape[1], products=products)
    for some_x, some_y in zip(x.split(block or len(x)), y.split(block or len(y)), strict=True):
        total.add(some_x, some_y)
    return total


def features(weights: dict, task=TASK) -> torch.Tensor:
    images = task.prepare(task.train.images, weights["linear.0.weight"].dtype).flatten(1)
    return relu(linear(images, weights["linear.0.weight"], weights["linear.0.bias"]))


# Moments and the solution


def test_moments_of_blocks_are_those_of_one_block(monkeypatch):
    monkeypatch.setattr(least_squares, "_TILE", 4)  # 10 columns: a whole and a part of a stripe
    x, y = draws(37, 10), draws(37, 3, seed=1)
    for total in (sums(x, y), sums(x, y, block=8)):
        assert_close(total.gram, x.T @ x)
        assert_close(total.yx, y.T @ x)
        assert_close(total.yy, y.square().sum())
        assert total.count == 37
        assert torch.equal(total.gram, total.gram.T)


def test_float32_products_are_added_up_in_float64():
    x, y = draws(4000, 6, dtype=torch.float32), draws(4000, 2, seed=1, dtype=torch.float32)
    coarse = sums(x, y, block=100, products=torch.float32)
    assert coarse.xx.dtype == coarse.yx.dtype == coarse.yy.dtype == torch.float64
    exact = x.double().T @ x.double()
    error = float((coarse.gram - exact).abs().max())
    assert error < 0.3 * float(((x.T @ x).double() - exact).abs().max()) or error < 1e-4
    assert solve(coarse).residual == pytest.approx(solve(sums(x, y)).residual, rel=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-12])
def test_a_planted_solution_is_recovered(ridge):
    x, planted = draws(200, 12), draws(3, 12, seed=1)
    found = solve(sums(x, x @ planted.T), ridge=ridge)
    assert_close(found.weight, planted, rtol=1e-9, atol=1e-9)
    assert found.residual < 1e-7
    assert found.rank == 12


def test_a_larger_ridge_gives_smaller_weights_and_larger_residuals():
    x, y = draws(50, 12), draws(50, 3, seed=1)
    found = [solve(sums(x, y), ridge=ridge) for ridge in (0.0, 1e-3, 0.1, 10.0)]
    norms, residuals = [float(one.weight.norm()) for one in found], [one.residual for one in found]
    assert norms == sorted(norms, reverse=True)
    assert residuals == sorted(residuals)


def test_the_ridge_is_relative():
    x, y = draws(50, 12), draws(50, 3, seed=1)
    assert_close(solve(sums(100 * x, y), ridge=0.1).weight * 100, solve(sums(x, y), ridge=0.1).weight)


@pytest.mark.parametrize("products", [torch.float32, torch.float64])
@pytest.mark.parametrize("ridge", [0.0, 1e-7])
def test_dead_and_duplicated_units_do_no_harm(products, ridge):
    x = relu(draws(3000, 200) + 0.5)
    x[:, 160:180] = 0  # dead
    x[:, 180:] = x[:, :20]  # duplicated
    y = x @ draws(10, 200, seed=1).T + 0.1 * draws(3000, 10, seed=2)
    best = x @ (torch.linalg.pinv(x) @ y)
    found = solve(sums(x, y, block=256, products=products), ridge=ridge)
    assert_close(x @ found.weight.T, best, rtol=0, atol=1e-3 if products == torch.float32 else 1e-5)
    assert found.residual == pytest.approx(float((y - best).norm() / y.norm()), rel=1e-4)
    assert float(found.weight[:, 160:180].abs().max()) < 1e-12
    assert found.rank == (160 if ridge == 0 else 200)


def test_a_matrix_that_rounding_made_indefinite_is_solved_all_the_same():
    total = sums(draws(50, 6), draws(50, 2, seed=1))
    values, vectors = torch.linalg.eigh(total.gram)
    values[0] = -1e-3 * values.mean()
    total.xx = vectors @ values.diag() @ vectors.T
    found = solve(total, ridge=1e-5)
    assert found.weight.isfinite().all()
    assert found.condition == pytest.approx(float(values[-1] / (1e-5 * values.mean())), rel=1e-3)


def test_the_condition_number_is_that_of_the_matrix_that_was_inverted():
    x = draws(100, 12) * torch.logspace(0, -3, 12, dtype=torch.float64)
    total = sums(x, draws(100, 2, seed=1))
    values = torch.linalg.eigvalsh(total.gram)
    assert solve(total, ridge=0.0).condition == pytest.approx(float(values[-1] / values[0]), rel=1e-6)
    ridged = values + 1e-3 * values.mean()
    assert solve(total, ridge=1e-3).condition == pytest.approx(float(ridged[-1] / ridged[0]), rel=0.05)


def test_fewer_samples_than_units_without_a_ridge_warn_and_go_on():
    x, y = draws(8, 20), draws(8, 3, seed=1)
    with pytest.warns(UserWarning, match=r"fewer samples \(8\) than units \(20\) and no ridge: rank 8, condition"):
        found = solve(sums(x, y), ridge=0.0)
    assert_close(x @ found.weight.T, y)
    assert_close(found.weight, (torch.linalg.pinv(x) @ y).T)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(sums(x, y), ridge=1e-7)


def test_units_that_are_all_dead_give_zero_weights():
    found = solve(sums(torch.zeros(5, 4, dtype=torch.float64), draws(5, 2)))
    assert torch.equal(found.weight, torch.zeros(2, 4, dtype=torch.float64))
    assert (found.residual, found.rank) == (1.0, 0)


def test_bad_moments_and_ridges_are_refused():
    good = sums(draws(5, 4), draws(5, 2))
    with pytest.raises(ValueError, match="ridge must be finite and >= 0, got -1"):
        solve(good, ridge=-1)
    with pytest.raises(ValueError, match="moments must hold at least one sample, got none"):
        solve(Moments.zeros(3, 2))
    with pytest.raises(ValueError, match="moments must be finite, got NaN or infinite sums"):
        solve(sums(draws(5, 4), draws(5, 2).fill_(torch.nan)))
    with pytest.raises(ValueError, match="moments must be finite, got NaN or infinite sums"):
        solve(sums(1e200 * draws(5, 4), draws(5, 2)))


# Moments of a layer


def test_moments_are_those_of_a_layers_inputs_and_its_outputs_without_bias():
    net, a, b = pair()
    total = moments(net, b, net.layers()[1], a, TASK)
    x, y = features(b), features(a) @ a["linear.1.weight"].T
    assert_close(total.gram, x.T @ x)
    assert_close(total.yx, y.T @ x)
    assert total.count == len(TASK.train)


def test_no_block_holds_more_images_than_allowed(monkeypatch):
    net, a, b = pair()
    whole, seen = moments(net, b, net.layers()[1], a, TASK), []
    plain = Moments.add
    monkeypatch.setattr(Moments, "add", lambda self, x, y: (seen.append(len(x)), plain(self, x, y)))
    monkeypatch.setattr(features_of_layers, "BLOCK", 20)
    assert_close(moments(net, b, net.layers()[1], a, TASK).gram, whole.gram)
    monkeypatch.setattr(features_of_layers, "BLOCK_BYTES", 7 * 9 * 8)  # seven images of nine float64 units
    assert_close(moments(net, b, net.layers()[1], a, TASK).gram, whole.gram)
    list(adjust._along(net, segment(a, b), torch.tensor([0.0, 0.5]), layer=net.layers()[1], a=a, task=TASK,
                       products=torch.float64))
    assert seen == 4 * [20] + [16] + 13 * [7] + [5] + [7, 7] * 13 + [5, 5]


def test_a_convolution_is_the_linear_map_of_its_patches():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 2, padding=1, stride=2, dilation=2))
    weights = {name: draws(*p.shape, seed=3) for name, p in weights_of(net).items()}
    layer = Layer("2", "hidden", None)
    total = moments(net, weights, layer, weights, TASK)
    found = solve(total, ridge=1e-12)
    images = TASK.prepare(TASK.train.images, torch.float64)
    maps = relu(conv2d(images, weights["0.weight"], weights["0.bias"], padding=1))
    out = conv2d(maps, weights["2.weight"], None, 2, 1, 2)
    again = conv2d(maps, found.weight.reshape(weights["2.weight"].shape), None, 2, 1, 2)
    assert total.count == out[:, 0].numel()
    assert_close(total.yy, out.square().sum())
    assert_close(again, out, rtol=1e-4, atol=1e-4)


def test_deep_layers_and_batch_norm_have_moments_too():
    task = make_task(shape=(1, 8, 8), train=24)
    net = models.build("cresnet20", task.input_shape, 3, channels=2, blocks=1)
    weights = models.initial_weights(net, torch.Generator().manual_seed(1), dtype=torch.float64)
    for layer in net.layers():
        found = solve(moments(net, weights, layer, weights, task), ridge=1e-12)
        assert found.residual < 1e-4


def test_moments_leave_the_network_as_it_was():
    net, a, b = pair()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    moments(net, b, net.layers()[1], a, TASK)
    assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_layers_that_are_no_plain_linear_map_are_refused():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=2))
    weights = weights_of(net)
    with pytest.raises(TypeError, match="layer '1' must be a linear or 2-D convolutional module to be adjusted, got B"):
        moments(net, weights, Layer("1", "x", "y"), weights, TASK)
    with pytest.raises(ValueError, match="layer '2' must have groups=1, got 2"):
        moments(net, weights, Layer("2", "x", "y"), weights, TASK)


@pytest.mark.parametrize("kind", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"},
                                  {"padding": (2, 1), "padding_mode": "reflect", "stride": (2, 1)}])
def test_patches_are_padded_as_the_convolution_does(kind):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, **kind))
    weights = {name: draws(*p.shape, seed=3) for name, p in weights_of(net).items()}
    total = moments(net, weights, Layer("2", "hidden", None), weights, TASK)
    images = TASK.prepare(TASK.train.images, torch.float64)
    outputs = functional_call(net, {**weights, "2.bias": 0 * weights["2.bias"]}, (images,))
    assert total.count == outputs[:, 0].numel()
    assert_close(total.yy, outputs.square().sum())


# Adjusted paths


@pytest.mark.parametrize("shape", ["segment", "arc", "chain", "bare"])
def test_shared_first_layers_give_the_moments_of_one_network_at_a_time(shape, monkeypatch):
    net, a, b = pair()
    middle = {name: (a[name] + b[name]) / 3 for name in a}
    paths = {"segment": segment(a, b), "arc": arc(a, b, middle), "chain": chain([a, middle, b]),
             "bare": Path((lambda s: Mix((a, b), lambda s: torch.stack([1 - s, s], -1))(s),))}
    monkeypatch.setattr(adjust, "_KNOT_BYTES", 2 * 8 * 81)  # two knots at a time
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    shared = list(adjust._along(net, paths[shape], t, layer=net.layers()[1], a=a, task=TASK, products=torch.float64))
    for one, each in zip(t.tolist(), shared, strict=True):
        alone = moments(net, paths[shape].point(one), net.layers()[1], a, TASK)
        assert_close(each.gram, alone.gram)
        assert_close(each.yx, alone.yx)
        assert_close(each.yy, alone.yy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["knots", "everywhere"])
def test_adjusted_paths_lead_from_a_to_b_to_the_last_bit(dtype, how):
    net, a, b = pair(dtype=dtype)
    path = adjusted(net, segment(a, b), a, b, TASK, knots=4, solve=how)
    assert_close(path.point(0.0), a, rtol=0, atol=0)
    assert_close(path.point(1.0), b, rtol=0, atol=0)
    assert len(path.legs) == (5 if how == "knots" else 3)


def test_adjusted_paths_have_no_jump():
    net, a, b = pair()
    path = adjusted(net, arc(a, b, {name: 0 * w for name, w in a.items()}), a, b, TASK, knots=4)
    for number in range(1, len(path.legs)):
        before, after = path.legs[number - 1](torch.tensor([1.0])), path.legs[number](torch.tensor([0.0]))
        assert_close(before, after, rtol=0, atol=0)


def test_knots_solve_for_the_outputs_of_a():
    net, a, b = pair(width=5)
    moved, path = segment(a, b), adjusted(net, segment(a, b), a, b, TASK, knots=3, ridge=1e-12)
    for number, t in enumerate((0.0, 0.5, 1.0)):
        point, x = path.point((number + 1) / 4), features(moved.point(t))
        best = torch.linalg.lstsq(x, features(a) @ a["linear.1.weight"].T).solution
        assert_close(point["linear.1.weight"], best.T, rtol=1e-5, atol=1e-5)
        assert_close(point["linear.0.weight"], moved.point(t)["linear.0.weight"])
        assert torch.equal(point["linear.1.bias"], a["linear.1.bias"])


@pytest.mark.parametrize("bias", [True, False])
def test_as_many_units_as_samples_reproduce_the_outputs_of_a(bias):
    few = TASK.subset(train=12)
    net, a, b = pair(width=40, bias=bias)
    path = adjusted(net, segment(a, b), a, b, few, knots=3, ridge=1e-12)
    for number in (1, 2, 3):
        logits = predict(net, path.point(number / 4), few, "train")
        assert_close(logits, predict(net, a, few, "train"), rtol=0, atol=1e-6)
    assert path.knots.residual.max() < 1e-6


def test_the_function_at_the_knots_does_not_depend_on_the_order_of_units():
    net, a, b = pair()
    order = {"hidden0": torch.tensor([3, 1, 4, 0, 2, 8, 6, 7, 5])}
    moved = [permute(w, net.layers(), order) for w in (a, b)]
    one = adjusted(net, segment(a, b), a, b, TASK, knots=3)
    other = adjusted(net, segment(*moved), *moved, TASK, knots=3)
    for t in (0.1, 0.25, 0.6, 1.0):
        assert_close(permute(one.point(t), net.layers(), order), other.point(t))


def test_float32_weights_give_the_residuals_of_float64():
    net, a, b = pair(width=20)
    single = [{name: w.float() for name, w in point.items()} for point in (a, b)]
    exact, coarse = (adjusted(net, segment(*ends), *ends, TASK, knots=5).knots for ends in ((a, b), single))
    assert_close(torch.tensor(coarse.residual), torch.tensor(exact.residual), rtol=1e-3, atol=5e-4)


def test_few_samples_get_products_in_float64(monkeypatch):
    seen, plain = [], Moments.add
    monkeypatch.setattr(Moments, "add", lambda self, x, y: (seen.append(self.products), plain(self, x, y)))
    net, a, b = pair(dtype=torch.float32)
    for train, ridge in ((96, None), (48, None), (96, 0.0)):
        adjusted(net, segment(a, b), a, b, TASK.subset(train=train), knots=2, ridge=ridge)
    moments(net, b, net.layers()[1], a, TASK)
    moments(net, b, net.layers()[1], a, TASK.subset(train=48))
    assert seen == [torch.float32] * 2 + [torch.float64] * 4 + [torch.float32, torch.float64]


def test_solving_everywhere_equals_the_knots_where_both_solve():
    net, a, b = pair(width=5)
    knots = adjusted(net, segment(a, b), a, b, TASK, knots=3, ridge=1e-6)
    everywhere = adjusted(net, segment(a, b), a, b, TASK, ridge=1e-6, solve="everywhere")
    for t in (0.0, 0.5, 1.0):
        assert_close(everywhere.point((1 + t) / 3), knots.point((1 + 2 * t) / 4), rtol=1e-9, atol=1e-9)
    plain = adjusted(net, segment(a, b), a, b, TASK, solve="everywhere")
    assert (plain.knots.attrs["ridge"], knots.knots.attrs["ridge"]) == (0.0, 1e-6)
    best = torch.linalg.lstsq(features(segment(a, b).point(0.3)), features(a) @ a["linear.1.weight"].T).solution
    assert_close(plain.point(1.3 / 3)["linear.1.weight"], best.T, rtol=1e-6, atol=1e-6)


def test_the_table_of_knots_says_how_well_they_solve():
    net, a, b = pair()
    table = adjusted(net, segment(a, b), a, b, TASK, knots=5).knots
    assert list(table) == ["t", "residual", "condition", "rank"]
    assert table.t.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert table.residual[0] < 1e-3 < table.residual[4]
    assert (table.condition > 1).all()


def test_the_last_leg_is_convex():
    net, a, b = pair()
    path = adjusted(net, segment(a, b), a, b, TASK, knots=3)
    losses = evaluate(net, path, TASK, points=[0.75, 0.8, 0.875, 0.95, 1.0], splits=["train"]).nll.tolist()
    for t, loss in zip((0.8, 0.875, 0.95), losses[1:4], strict=True):
        assert loss <= losses[0] + (t - 0.75) / 0.25 * (losses[4] - losses[0]) + 1e-9


def test_every_leg_boundary_of_the_path_is_a_knot():
    net, a, b = pair()
    middle = {name: (a[name] + b[name]) / 3 for name in a}
    assert adjusted(net, chain([a, middle, b]), a, b, TASK, knots=4).knots.t.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_wrong_questions_are_answered_by_name():
    net, a, b = pair()
    with pytest.raises(ValueError, match="solve must be one of 'knots', 'everywhere'; got 'knot'"):
        adjusted(net, segment(a, b), a, b, TASK, solve="knot")
    with pytest.raises(ValueError, match="knots must be >= 2"):
        adjusted(net, segment(a, b), a, b, TASK, knots=1)
    with pytest.raises(ValueError, match="path must move the units from a's to b's, but at t = 1 'linear.0.weight' is"):
        adjusted(net, segment(a, a), a, b, TASK)
    with pytest.raises(ValueError, match="ridge must be finite and >= 0, got -1"):
        adjusted(net, segment(a, b), a, b, TASK, ridge=-1.0)
    deep = models.build("fc3", TASK.input_shape, 3, first=5, second=4)
    start = models.initial_weights(deep, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="one layer that reads it, got unit axes \\['hidden0', 'hidden1'\\]"):
        adjusted(deep, segment(start, start), start, start, TASK)
