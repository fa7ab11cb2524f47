"""One contract over (architecture x method): deep networks are connected layer by layer."""

from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import make_task
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu
from torch.testing import assert_close

from lossland import models
from lossland.adjust import moments
from lossland.archive import load_path, save_path
from lossland.connect import connect
from lossland.evaluation import evaluate, predict
from lossland.features import Target
from lossland.layers import Layer, axes, gather, permute, unit_count, verify
from lossland.least_squares import solve
from lossland.legs import Moved, Swaps
from lossland.neurons import match
from lossland.patches import rows_of
from lossland.paths import Mix, Path
from lossland.stages import BUTTERFLY_RIDGE, Staged
from lossland.weights import Weights, count, weights_of

TASK = make_task(shape=(1, 8, 8), train=18, test=12)
SMALLER = make_task(shape=(1, 4, 4), train=1, test=3)


class Bottleneck(nn.Module):
    """What a user brings: a stem with pooling, a residual block with a depth-wise and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
                                  nn.MaxPool2d(2))
        self.down, self.norm1 = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.each, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.groups, self.up = nn.Conv2d(8, 4, 3, padding="same", groups=2), nn.Conv2d(4, 6, 1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6 * 4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        inner = relu(self.norm2(self.each(relu(self.norm1(self.down(stream))))))
        stream += self.up(relu(self.groups(inner)))
        return self.head(adaptive_avg_pool2d(relu(stream), 2).flatten(1))

    def layers(self) -> list[Layer]:
        return [Layer("stem.0", None, "stream", norm="stem.1"), Layer("down", "stream", "inner", norm="norm1", fixed=True),
                Layer("each", "inner", "inner", norm="norm2", fixed=True), Layer("groups", "inner", "narrow", fixed=True),
                Layer("up", "narrow", "stream"), Layer("head.1", "stream", "hidden"), Layer("head.3", "hidden", None)]


def dense(depth: int, width: int = 14) -> nn.Module:
    return models.MLP(TASK.input_shape, 3, widths=(width + 2, *[width] * (depth - 2)), bias=False)


ARCHITECTURES = {
    "fc3": partial(dense, 3), "fc5": partial(dense, 5), "fc7": partial(dense, 7),
    "conv2fc1": lambda: models.build("conv2fc1", TASK.input_shape, 3, channels=(4, 5)),
    "vgg16": lambda: models.build("vgg16", TASK.input_shape, 3, channels=2),
    "cresnet20": lambda: models.build("cresnet20", TASK.input_shape, 3, blocks=1, channels=4),
    "preresnet": lambda: models.build("preresnet20", TASK.input_shape, 3, blocks=1, channels=4),
    "bottleneck": Bottleneck,
}
METHODS = {
    "linear": (None, "linear", "rows"), "arc": (None, "arc", "rows"), "ot": ("ot", "linear", "rows"),
    "linear + butterfly": (None, "linear", "butterfly"), "arc + butterfly": (None, "arc", "butterfly"),
    "ot + butterfly": ("ot", "linear", "butterfly"),
    "linear + wa": (None, "linear", "adjust"), "arc + wa": (None, "arc", "adjust"), "ot + wa": ("ot", "linear", "adjust"),
}
cell = pytest.mark.parametrize("method", METHODS)
network = pytest.mark.parametrize("architecture", ARCHITECTURES)
staged = pytest.mark.parametrize("method", [name for name, (_, _, scheme) in METHODS.items() if scheme != "rows"])
matched = pytest.mark.parametrize("method", [name for name, (matching, _, _) in METHODS.items() if matching])


@cache
def built(architecture: str) -> nn.Module:
    return ARCHITECTURES[architecture]()


@cache
def drawn(architecture: str, seed: int) -> Weights:
    """Weights with biases and normalisations that are not the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    start = models.initial_weights(built(architecture), generator, dtype=torch.float64)
    return {name: 1.3 * tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.ndim == 1 else 1.3 * tensor for name, tensor in start.items()}


def joined(architecture: str, method: str, a: Weights | None = None, b: Weights | None = None, task=TASK,
           **kind) -> Path:
    matching, move, scheme = METHODS[method]
    ends = (a or drawn(architecture, 1), b or drawn(architecture, 2))
    return connect(built(architecture), *ends, task=task, **{"matching": matching, "move": move, "scheme": scheme,
                                                             "knots": 3, **kind})


@cache
def path_of(architecture: str, method: str) -> Path:
    return joined(architecture, method)


def shuffled(architecture: str, weights: Weights, seed: int = 3) -> Weights:
    layers, generator = built(architecture).layers(), torch.Generator().manual_seed(seed)
    free = [axis for axis, (writers, _) in axes(layers).items() if not any(writer.fixed for writer in writers)]
    return permute(weights, layers, {axis: torch.randperm(unit_count(weights, layers, axis), generator=generator)
                                     for axis in free})


def losses(architecture: str, path: Path, points=9) -> np.ndarray:
    return evaluate(built(architecture), path, TASK, points=points, splits=("test",)).nll.to_numpy()


def boundaries(path: Path) -> list[float]:
    return [i / len(path.legs) for i in range(len(path.legs) + 1)]


def test_the_networks_units_are_as_their_layers_say():
    images = TASK.prepare(TASK.train.images[:2], torch.float64)
    for architecture in ARCHITECTURES:
        verify(built(architecture), built(architecture).layers(), images)


@network
@cell
def test_paths_lead_from_a_to_b_to_the_last_bit(architecture, method):
    path = path_of(architecture, method)
    for t, end in ((0.0, drawn(architecture, 1)), (1.0, drawn(architecture, 2))):
        assert all(torch.equal(path.point(t)[name], tensor) for name, tensor in end.items())


@network
@cell
def test_legs_meet_to_the_last_bit(architecture, method):
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for first, second in pairwise(path_of(architecture, method).legs):
        end, start = first(one), second(zero)
        assert all(torch.equal(end[name], start[name]) for name in end)


@network
@cell
def test_losses_are_finite_everywhere(architecture, method):
    path = path_of(architecture, method)
    t = torch.linspace(0, 1, 15, dtype=torch.float64)
    table = evaluate(built(architecture), path, TASK, points=t, splits=("test",))
    assert np.isfinite(table[["nll", "accuracy", "norm"]]).all(axis=None)


@network
@matched
def test_completed_swaps_leave_the_function_as_it_is(architecture, method):
    path, net = path_of(architecture, method), built(architecture)
    leg = path.legs[-1]
    assert isinstance(leg, Swaps)
    expected = predict(net, drawn(architecture, 2), TASK)
    for k in {0, leg.count // 2, leg.count}:
        point = {name: tensor[0] for name, tensor in leg(torch.tensor([k / leg.count], dtype=torch.float64)).items()}
        assert_close(predict(net, point, TASK), expected, rtol=1e-7, atol=1e-7)


@network
@matched
def test_the_order_of_the_units_of_b_does_not_matter_to_matched_paths(architecture, method):
    path = path_of(architecture, method)
    other = joined(architecture, method, b=shuffled(architecture, drawn(architecture, 2)))
    t = boundaries(path)[:-1:5]
    assert len(path.legs) == len(other.legs)
    assert np.allclose(losses(architecture, path, t), losses(architecture, other, t), rtol=1e-4)


@network
@staged
def test_units_of_both_ends_in_one_order_give_the_path_in_that_order(architecture, method):
    ends = [shuffled(architecture, drawn(architecture, seed)) for seed in (1, 2)]
    path, other = path_of(architecture, method), joined(architecture, method, *ends)
    t = boundaries(path)[:-2:6]
    assert np.allclose(losses(architecture, path, t), losses(architecture, other, t), rtol=1e-4)


class Residual(nn.Module):
    """A stream with several writers and readers, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 30), nn.Linear(30, 3)
        self.inner, self.outer = (nn.ModuleList(nn.Linear(30, 30) for _ in range(2)) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images.flatten(1))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            stream = relu(stream + outer(relu(inner(stream))))
        return self.head(stream)

    def layers(self) -> list[Layer]:
        blocks = [layer for i in range(2) for layer in (Layer(f"inner.{i}", "stream", f"hidden{i}"),
                                                        Layer(f"outer.{i}", f"hidden{i}", "stream"))]
        return [Layer("stem", None, "stream"), *blocks, Layer("head", "stream", None)]


SMALL = {
    "fc3": partial(dense, 3, 40), "fc5": partial(dense, 5, 40), "fc7": partial(dense, 7, 40), "residual": Residual,
    "conv2fc1": lambda: models.build("conv2fc1", TASK.input_shape, 3, channels=(4, 5)),
    "vgg16": lambda: models.build("vgg16", SMALLER.input_shape, 3, channels=6),
    "cresnet20": lambda: models.build("cresnet20", TASK.input_shape, 3, blocks=1, channels=18),
    "preresnet": lambda: models.build("preresnet20", TASK.input_shape, 3, blocks=1, channels=18),
}


@pytest.mark.parametrize("method", ["linear + wa", "arc + wa", "ot + wa"])
@pytest.mark.parametrize("architecture", SMALL)
def test_as_many_units_as_samples_reproduce_the_outputs_of_a(architecture, method):
    few = TASK.subset(train=12 if architecture in ("fc3", "fc5", "fc7", "residual") else 1)  # a convolution's are patches
    few = SMALLER if architecture == "vgg16" else few
    net, (matching, move, scheme) = SMALL[architecture](), METHODS[method]
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2))
    path = connect(net, a, b, task=few, matching=matching, move=move, scheme=scheme, knots=3, ridge=1e-13)
    assert path.knots.residual.max() < 1e-6
    if "resnet" in architecture:  # statistics of so few images depend on how they are normalised in front
        return
    expected = predict(net, a, few, "train")
    for t in path.knots.t.unique():
        assert_close(predict(net, path.point(t), few, "train"), expected, rtol=1e-6, atol=1e-6)


@network
@staged
def test_points_of_a_leg_share_what_does_not_move(architecture, method):
    path, layers = path_of(architecture, method), {layer.module: layer for layer in built(architecture).layers()}
    start = 0
    for row in path.stages.itertuples():
        legs = path.legs[start : start + row.legs]
        start += row.legs
        if row.kind != "units":
            continue
        layer = layers[row.module]
        allowed = {module for module in (layer.module, layer.norm, layer.pre_norm, *row.readers) if module}
        last = row.Index == path.stages.index[path.stages.kind == "units"][-1]
        for leg in legs:
            moving = {name.rpartition(".")[0] for name in leg.moving()}
            assert moving <= allowed or ("butterfly" in method and last)
    points = [point for leg in path.legs if isinstance(leg, Mix) for point in leg.points]
    distinct = {id(tensor) for point in points for tensor in point.values()}
    assert len(distinct) < sum(map(len, points)) / (1.5 if architecture in ("fc3", "conv2fc1") else 2)


@network
@staged
def test_the_table_of_stages_describes_the_path(architecture, method):
    path, layers = path_of(architecture, method), built(architecture).layers()
    stages = path.stages
    assert isinstance(path, Staged)
    assert stages.t0.iloc[0] == 0
    assert stages.t1.iloc[-1] == 1
    assert stages.t0.tolist()[1:] == stages.t1.tolist()[:-1]
    assert stages.legs.sum() == len(path.legs)
    hidden = [layer.module for layer in layers if layer.writes is not None]
    assert stages.module[stages.kind == "units"].tolist() == hidden
    kinds = ["units"] * len(hidden) + ["output"] * ("wa" in method) + ["permutation"] * ("ot" in method)
    assert stages.kind.tolist() == kinds
    for row in stages[stages.kind == "units"].itertuples():
        point = path.point(row.t1)
        if "ot" not in method:
            assert torch.equal(point[f"{row.module}.weight"], drawn(architecture, 2)[f"{row.module}.weight"])
    assert set(path.knots.t) <= set(boundaries(path))
    assert path.knots.residual.between(0, 1).all()


def test_every_knot_solves_for_the_outputs_of_a_layer_by_layer():
    path, a, layers = path_of("cresnet20", "linear + wa"), drawn("cresnet20", 1), built("cresnet20").layers()
    rows = path.stages[path.stages.kind == "units"]
    stage = rows.iloc[0]  # the first convolution writes a stream, which several layers read
    assert len(stage.readers) == 3
    found = path.knots[(path.knots.stage == stage.stage) & (path.knots.t == stage.t1)]
    assert found.module.tolist() == list(stage.readers)
    point = path.point(stage.t1)
    for reader, residual in zip(found.module, found.residual, strict=True):
        layer = next(layer for layer in layers if layer.module == reader)
        total = moments(built("cresnet20"), point, layer, a, TASK)
        weight = point[f"{reader}.weight"].flatten(1)
        square = total.yy - 2 * (weight * total.yx).sum() + ((weight @ total.gram) * weight).sum()
        assert float((square / total.yy).sqrt()) == pytest.approx(residual, rel=1e-3)


@pytest.mark.parametrize("architecture", ["conv2fc1", "preresnet", "cresnet20"])
def test_points_that_share_a_pass_have_the_moments_of_each_alone(architecture):
    net, a, b = built(architecture), drawn(architecture, 1), drawn(architecture, 2)
    layers = net.layers()
    shared = {name: b[name] for layer in layers[:2] for name in a if name.startswith(layer.module)}
    names = [f"{layers[2].module}.weight"]
    points = [{**a, **shared, **{name: (1 - s) * a[name] + s * b[name] for name in names}} for s in (0.0, 0.4, 1.0)]
    reader = layers[-1]
    together = Target(net, a, TASK).moments(points, [reader.module])
    for point, found in zip(points, together, strict=True):
        alone = moments(net, point, reader, a, TASK)
        assert_close(found[reader.module][0].gram, alone.gram)
        assert_close(found[reader.module][0].yx, alone.yx)


def test_four_patches_an_image_are_two_by_two_half_a_map_apart():
    net, a, b = built("vgg16"), drawn("vgg16", 1), drawn("vgg16", 2)
    for number, count in ((1, 4), (2, 4), (4, 4), (8, 1)):  # maps of 8, 4, 2 and 1 pixels
        layer = net.layers()[number]
        found = Target(net, a, TASK, patches=4).moments([b], [layer.module])[0][layer.module][0]
        assert found.count == count * len(TASK.train)
    conv, images = nn.Conv2d(2, 3, 3, padding=1, bias=False).double(), torch.rand(5, 2, 7, 7, generator=torch.Generator()).double()
    rows = rows_of(conv, images, 4)[0]
    outputs = conv(images)[:, :, :6:3, :6:3]
    assert_close((rows @ conv.weight.flatten(1).T).reshape(5, 2, 2, 3).movedim(3, 1), outputs)
    path = joined("vgg16", "linear + wa", patches=4)
    assert np.isfinite(losses("vgg16", path)).all()
    with pytest.raises(ValueError, match="patches must be one of None, 4; got 9"):
        joined("vgg16", "linear + wa", patches=9)


def test_grouped_convolutions_are_solved_for_group_by_group():
    net, a, b = built("bottleneck"), drawn("bottleneck", 1), drawn("bottleneck", 2)
    found = Target(net, a, TASK).moments([b], ["groups"])[0]["groups"]
    assert [tuple(total.xx.shape) for total in found] == [(36, 36)] * 2
    stages = path_of("bottleneck", "linear + wa").stages
    assert stages.readers[stages.module == "down"].item() == ("groups",)


def test_a_move_of_ones_own_works_stage_by_stage():
    def bent(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        share = s[:, None, None]
        return ((1 - share) * x.asinh() + share * y.asinh()).sinh()

    for scheme in ("butterfly", "adjust"):
        path = joined("preresnet", "linear + wa", move=bent, scheme=scheme)
        assert all(torch.equal(path.point(1.0)[name], tensor) for name, tensor in drawn("preresnet", 2).items())
        assert ({Moved} if scheme == "butterfly" else {Mix}) == {type(leg) for leg in path.legs}


def test_a_network_and_its_shuffled_copy_are_matched_layer_by_layer():
    a = drawn("fc5", 1)
    path = joined("fc5", "ot + wa", b=shuffled("fc5", a), ridge=1e-13)
    assert_close(path.point(path.stages.t1[path.stages.kind == "output"].item()), a, rtol=1e-6, atol=1e-6)


def test_butterflies_are_matched_with_the_columns_that_the_readers_will_have():
    net, a = built("fc3"), drawn("fc3", 1)
    writers, readers = axes(net.layers())["hidden0"]
    found = {on: joined("fc3", "ot + butterfly", match_on=on).legs[-1].permutations["hidden0"]
             for on in ("butterfly", "rows")}
    b = {**a, "linear.0.weight": drawn("fc3", 2)["linear.0.weight"]}
    assert torch.equal(found["rows"], match(gather(a, writers), gather(b, writers)))
    total = moments(net, b, readers[0], a, TASK)
    b["linear.1.weight"] = solve(total, ridge=BUTTERFLY_RIDGE).weight
    assert torch.equal(found["butterfly"], match(gather(a, writers, readers), gather(b, writers, readers)))
    assert not torch.equal(found["butterfly"], found["rows"])


def test_a_matching_can_be_given_for_some_axes():
    given = {"hidden1": torch.arange(14).flip(0)}
    path = joined("fc5", "linear + wa", matching=given)
    assert path.stages.kind.iloc[-1] == "permutation"
    assert torch.equal(path.legs[-1].permutations["hidden1"], given["hidden1"])


def test_more_data_than_units_leave_better_paths_than_the_straight_line():
    task = make_task(shape=(1, 8, 8), train=240, test=60)
    assert task.classes == 3
    a = drawn("fc3", 1)
    path = joined("fc3", "linear + wa", task=task)
    expected = predict(built("fc3"), a, task)
    gaps = [float((predict(built("fc3"), joined_at, task) - expected).norm() / expected.norm())
            for joined_at in (path.point(path.stages.t1[0] / 2), joined("fc3", "linear").point(0.5))]
    assert gaps[0] < 0.7 * gaps[1]


class Shared(nn.Module):
    """A normalisation with two readers, listed with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.inner, self.outer, self.shortcut = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        stream = relu(self.norm(self.stem(images.flatten(1))))
        return self.head(relu(self.outer(relu(self.inner(stream))) + self.shortcut(stream)))

    def layers(self) -> list[Layer]:
        return [Layer("stem", None, "stream"), Layer("inner", "stream", "hidden", pre_norm="norm"),
                Layer("outer", "hidden", "last"), Layer("shortcut", "stream", "last"), Layer("head", "last", None)]


def test_all_layers_behind_a_normalisation_are_refit_when_it_moves():
    net = Shared()
    verify(net, net.layers(), TASK.prepare(TASK.train.images[:2], torch.float64))
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2))
    stages = connect(net, a, b, task=TASK, scheme="adjust", knots=2).stages
    assert stages.readers[:4].tolist() == [("inner", "shortcut"), ("outer", "shortcut"), ("head",), ("head",)]
    blocks = path_of("preresnet", "linear + wa").stages  # a shortcut around the normalisation is left alone
    assert blocks.readers[blocks.module == "blocks.1.conv1"].item() == ("blocks.1.conv2",)


def test_a_network_without_a_layer_list_is_traced():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))
    net.layers = nn.Identity()  # not a method that returns a list
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2))
    path = connect(net, a, b, task=TASK, matching="ot", scheme="adjust", knots=2)
    assert path.stages.module[:3].tolist() == ["1", "3", "5"]
    assert all(torch.equal(path.point(1.0)[name], tensor) for name, tensor in b.items())


def test_wrong_questions_are_answered_by_name():
    with pytest.raises(ValueError, match="task must be given for scheme='adjust' of several hidden layers"):
        joined("fc3", "linear + wa", task=None)
    with pytest.raises(ValueError, match="knots must be >= 2"):
        joined("fc3", "linear + wa", knots=1)
    with pytest.raises(ValueError, match="matching must be one of None, 'ot'; got 'OT'"):
        joined("fc3", "linear + wa", matching="OT")
    with pytest.raises(ValueError, match="match_on must be one of .*did you mean 'rows'"):
        joined("fc3", "linear + wa", match_on="row")
    with pytest.raises(ValueError, match="move must be one of 'linear', 'arc'; got 'line'"):
        joined("fc3", "linear + wa", move="line")


def test_a_saved_path_holds_what_legs_share_once(tmp_path):
    path, file = path_of("vgg16", "ot + wa"), tmp_path / "path"
    save_path(path, file)
    again, t = load_path(file), torch.linspace(0, 1, 23, dtype=torch.float64)
    for one in t.tolist():
        assert_close(again.point(one), path.point(one), rtol=0, atol=0)
    assert file.stat().st_size < len(path.legs) / 2 * 8 * count(drawn("vgg16", 1))


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"net must take the task's images, one of which is \(3, 8, 8\); VGG16 says"):
        joined("vgg16", "linear + wa", task=make_task(shape=(3, 8, 8)))
    with pytest.raises(ValueError, match="a must hold the parameters of VGG16"):
        connect(built("vgg16"), drawn("fc3", 1), drawn("fc3", 2), task=TASK, scheme="adjust")


def test_the_network_stays_as_it_was():
    net = Bottleneck()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    a = {name: tensor.double() for name, tensor in weights_of(net).items()}
    connect(net, a, drawn("bottleneck", 2), task=TASK, scheme="adjust", knots=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
