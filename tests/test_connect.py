"""One contract over every cell of matching x move x scheme."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import make_task
from lossland import models
from lossland.adjust import Adjusted
from lossland.archive import load_path, save_path
from lossland.connect import connect
from lossland.evaluation import evaluate, predict
from lossland.layers import permute
from lossland.legs import Moved, Swaps, through_origin
from lossland.neurons import cycles
from lossland.paths import Mix, Path, arc, bezier, chain, linear_basis, segment
from lossland.weights import Weights, count, distance

TASK = make_task(shape=(1, 5, 5), train=120)
NET = models.build("mlp", TASK.input_shape, 3, width=8)


def bent(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """An invertible map, a straight line behind it, and back: what a flow does, coordinate by coordinate."""
    share = s[:, None, None]
    return ((1 - share) * x.asinh() + share * y.asinh()).sinh()


MOVES = {"linear": "linear", "arc": "arc", "flow": bent}
CELLS = list(product((None, "ot"), MOVES, ("butterfly", "rows", "adjust")))
cell = pytest.mark.parametrize("matching, move, scheme", CELLS, ids=lambda value: str(value))


def draw(seed: int) -> Weights:
    start = models.initial_weights(NET, torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {name: 2 * tensor for name, tensor in start.items()}


A, B = draw(1), draw(2)
P = torch.tensor([3, 1, 4, 0, 6, 5, 2, 7])


def joined(matching, move, scheme, a: Weights = A, b: Weights = B) -> Path:
    return connect(NET, a, b, matching=matching, move=MOVES[move], scheme=scheme, task=TASK, knots=4)


def shuffled(weights: Weights, p: Tensor = P) -> Weights:
    return permute(weights, NET.layers(), {"hidden0": p})


def before_the_swaps(path: Path) -> Path:
    return Path(tuple(leg for leg in path.legs if not isinstance(leg, Swaps)))


def losses(path: Path) -> np.ndarray:
    return evaluate(NET, path, TASK, points=25, splits=("test",)).nll.to_numpy()


@cell
def test_both_ends_are_exact(matching, move, scheme):
    path = joined(matching, move, scheme)
    for t, end in ((0.0, A), (1.0, B)):
        assert_close(path.point(t), end, rtol=0, atol=0)


@cell
def test_legs_meet_to_the_last_bit_and_nothing_jumps(matching, move, scheme):
    path = joined(matching, move, scheme)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for first, second in zip(path.legs[:-1], path.legs[1:], strict=True):
        assert_close(first(one), second(zero), rtol=0, atol=0)
    longest = []
    for steps in (400, 4000):  # a jump would not shrink with the step
        points = path(torch.arange(steps + 1, dtype=torch.float64) / steps)
        squares = sum(tensor.diff(dim=0).flatten(1).square().sum(1) for tensor in points.values())
        longest.append(float(squares.max().sqrt()))
    assert longest[1] < 0.15 * longest[0]


@cell
def test_losses_are_finite_everywhere(matching, move, scheme):
    table = evaluate(NET, joined(matching, move, scheme), TASK, points=25)
    assert np.isfinite(table[["nll", "accuracy", "ece", "distance", "norm"]]).all(axis=None)
    assert table.distance.iloc[-1] == pytest.approx(distance(A, B))


@cell
def test_units_in_another_order_give_the_path_in_another_order(matching, move, scheme):
    path, other = joined(matching, move, scheme), joined(matching, move, scheme, shuffled(A), shuffled(B))
    stage, moved = before_the_swaps(path), before_the_swaps(other)
    for t in (0.0, 0.13, 0.5, 0.77, 1.0):
        # The solver of the adjustment adds up in another order
        assert_close(moved.point(t), shuffled(stage.point(t)), rtol=1e-7, atol=1e-7)
    assert np.allclose(losses(stage), losses(moved), rtol=1e-6)
    swaps = [sum(leg.count for leg in p.legs if isinstance(leg, Swaps)) for p in (path, other)]
    assert swaps[0] == swaps[1]


@cell
def test_the_order_of_one_end_matters_without_matching_only(matching, move, scheme):
    path = losses(before_the_swaps(joined(matching, move, scheme)))
    for a, b in ((shuffled(A), B), (A, shuffled(B))):
        other = losses(before_the_swaps(joined(matching, move, scheme, a, b)))
        assert np.allclose(path, other, rtol=1e-6) == (matching == "ot")


@cell
def test_a_saved_path_is_the_path(matching, move, scheme, tmp_path):
    path = joined(matching, move, scheme)
    save_path(path, tmp_path / "path.safetensors")
    again = load_path(tmp_path / "path.safetensors", move=bent)
    t = torch.linspace(0, 1, 37, dtype=torch.float64)
    assert_close(again(t), path(t), rtol=0, atol=0)
    assert [type(leg) for leg in again.legs] == [type(leg) for leg in path.legs]


@cell
def test_what_is_linear_in_fixed_points_says_so(matching, move, scheme):
    path = joined(matching, move, scheme)
    assert isinstance(path.legs[-1], Swaps) == (matching == "ot")
    kinds = {type(leg) for leg in before_the_swaps(path).legs}
    assert kinds == ({Moved} if move == "flow" and scheme != "adjust" else {Mix})
    assert isinstance(path, Adjusted) == (scheme == "adjust")


def test_the_cells_have_the_names_of_the_paper():
    assert_close(joined(None, "linear", "butterfly").point(0.3), segment(A, B).point(0.3), rtol=0, atol=0)
    assert_close(joined(None, "linear", "rows").point(0.3), segment(A, B).point(0.3), rtol=0, atol=0)
    butterfly, rows = (joined(None, "arc", scheme).point(0.5) for scheme in ("butterfly", "rows"))
    assert_close(butterfly["linear.0.weight"], rows["linear.0.weight"])
    assert float((butterfly["linear.1.weight"] - rows["linear.1.weight"]).abs().max()) > 1e-3
    head, straight = "linear.1.weight", segment(A, B).point(0.5)["linear.1.weight"]
    assert_close(joined(None, "flow", "rows").point(0.5)[head], straight)
    share = torch.tensor([0.5], dtype=torch.float64)
    assert_close(joined(None, "flow", "butterfly").point(0.5)[head], bent(A[head].T, B[head].T, share)[0].T)


def test_transport_arrives_at_the_network_with_its_units_in_another_order():
    path = joined("ot", "linear", "butterfly")
    arrived, leg = path.point(0.5), path.legs[1]
    assert_close(arrived, shuffled(B, leg.permutations["hidden0"]), rtol=0, atol=0)
    assert_close(predict(NET, arrived, TASK), predict(NET, B, TASK))
    assert distance(A, arrived) < distance(A, B)
    assert leg.count == 8 - len(cycles(leg.permutations["hidden0"]))


def test_a_network_and_its_shuffled_copy_are_matched_exactly():
    path = joined("ot", "linear", "butterfly", A, shuffled(A))
    assert distance(path.point(0.0), path.point(0.5)) == 0


def test_units_that_are_in_order_already_need_no_swaps():
    near = {name: tensor + 1e-3 for name, tensor in A.items()}
    assert len(joined("ot", "linear", "butterfly", A, near).legs) == 1


def test_rows_or_butterflies_are_matched():
    def order(**kind) -> list[int]:
        return connect(NET, A, B, matching="ot", **kind).legs[-1].permutations["hidden0"].tolist()

    assert order() == order(match_on="butterfly") != order(match_on="rows") == order(match_on="rows", scheme="rows")
    adjusted = connect(NET, A, B, matching="ot", scheme="adjust", task=TASK, knots=2)
    assert adjusted.legs[-1].permutations["hidden0"].tolist() == order(match_on="rows")


def test_a_matching_can_be_given_and_deep_networks_move_by_rows():
    net = models.build("fc3", TASK.input_shape, 3, first=6, second=4)
    a, b = (models.initial_weights(net, torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    given = {"hidden0": torch.tensor([1, 2, 0, 3, 5, 4]), "hidden1": torch.tensor([3, 2, 1, 0])}
    for move in MOVES.values():
        path = connect(net, a, b, matching=given, move=move, scheme="rows")
        assert_close(path.point(0.5), permute(b, net.layers(), given), rtol=0, atol=0)
        assert_close(path.point(1.0), b, rtol=0, atol=0)
        assert path.legs[-1].count == 3 + 2
        assert np.isfinite(evaluate(net, path, TASK, points=5, splits=("test",)).nll).all()


def test_other_paths_are_saved_too(tmp_path):
    c, powers = draw(3), dict.fromkeys(A, 1)
    for path in (arc(A, B, c), bezier([A, c, B]), bezier([A, c, c, B]), chain([A, c, B]), through_origin(A, B, powers)):
        save_path(path, tmp_path / "path")
        t = torch.linspace(0, 1, 21, dtype=torch.float64)
        assert_close(load_path(tmp_path / "path")(t), path(t), rtol=0, atol=0)
    sizes = []
    for points in ([A, c, B], [A, c, B, c, A]):
        save_path(chain(points), tmp_path / "path")
        sizes.append((tmp_path / "path").stat().st_size)
    assert sizes[1] - sizes[0] < 8 * count(A)


def test_files_that_are_no_paths_or_were_changed_are_refused(tmp_path):
    file = tmp_path / "path"
    save_path(segment(A, B), file)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="must hold a path that save_path wrote, got path: does not match its hash"):
        load_path(file)
    save_path(connect(NET, A, B, move=bent), file)
    with pytest.raises(ValueError, match="move must be given: the file has a leg on which a function moves the units"):
        load_path(file)
    with pytest.raises(ValueError, match="the basis of legs\\[1\\] must be one of the package's \\(linear\\) to be saved"):
        save_path(Path((Mix((A, B), linear_basis), Mix((A, B), lambda s: linear_basis(s**2)))), file)
    with pytest.raises(ValueError, match="legs\\[0\\] must be a Mix, Powers, Swaps or Moved leg to be saved, got function"):
        save_path(Path((lambda s: A,)), file)


WIDER = models.initial_weights(models.build("mlp", TASK.input_shape, 3, width=9), torch.Generator(), dtype=torch.float64)
DEEP = models.build("fc3", TASK.input_shape, 3, first=6, second=4)
DEEP_WEIGHTS = models.initial_weights(DEEP, torch.Generator(), dtype=torch.float64)


@pytest.mark.parametrize("call, error, message", [
    (lambda: connect(NET, A, WIDER, matching="ot"), ValueError,
     "equal numbers of units of 'hidden0' for matching='ot', since a bijection needs them; got 8 and 9"),
    (lambda: connect(NET, A, WIDER), ValueError, "a and b must have the same shapes"),
    (lambda: connect(DEEP, DEEP_WEIGHTS, DEEP_WEIGHTS), ValueError,
     "task must be given for scheme='butterfly' of several hidden layers: the next layer is solved for"),
    (lambda: connect(DEEP, DEEP_WEIGHTS, DEEP_WEIGHTS, scheme="rows", matching="ot", match_on="butterfly"), ValueError,
     "match_on must be 'rows' for scheme='rows' of several hidden layers"),
    (lambda: connect(DEEP, DEEP_WEIGHTS, DEEP_WEIGHTS, scheme="adjust", task=TASK, solve="everywhere"), ValueError,
     "solve must be 'knots' where there are several hidden layers"),
    (lambda: connect(torch.nn.Sequential(torch.nn.Linear(2, 3)), A, B), TypeError,
     "layers must be given for Sequential, .* or a task, on whose images it can be traced"),
    (lambda: connect(NET, A, B, scheme="adjust"), ValueError, "task must be given for scheme='adjust'"),
    (lambda: connect(NET, A, B, scheme="butterflies"), ValueError, "did you mean 'butterfly'"),
    (lambda: connect(NET, A, B, matching="OT"), ValueError, "matching must be one of None, 'ot'"),
    (lambda: connect(NET, A, B, matching="ot", match_on="row"), ValueError, "did you mean 'rows'"),
    (lambda: connect(NET, A, B, move="line"), ValueError, "did you mean 'linear'"),
    (lambda: connect(NET, A, B, move=3), TypeError, "move must be 'linear', 'arc' or a function of \\(x, y, s\\), got int"),
    (lambda: connect(NET, A, B, move=lambda x, y, s: bent(y, x, s)), ValueError, "move must give x at s=0, got units that differ"),
    (lambda: connect(NET, A, B, move=lambda x, y, s: x), ValueError, "move must return \\(T, n, D\\)"),
    (lambda: connect(NET, A, B, move=lambda x, y, s: bent(x, y, s) / 0), ValueError, "move must return finite units"),
    (lambda: connect(NET, A, {**B, "linear.1.bias": B["linear.1.bias"] / 0}, move=bent), ValueError, "b must be finite"),
    (lambda: connect(NET, {**A, "linear.0.bias": A["linear.0.bias"] / 0}, B, matching="ot"), ValueError, "a must be finite"),
    (lambda: connect(NET, A, B, matching={"hidden1": P}), ValueError, "unit axes \\['hidden0'\\], got 'hidden1'"),
    (lambda: connect(NET, A, B, matching={"hidden0": P.clamp(max=5)}), ValueError, "must hold each of 0..7 once"),
])
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
