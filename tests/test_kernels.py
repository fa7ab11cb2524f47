import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossland.kernels import class_scores
from lossland.kernels.reference import exchange_logits, mix_head
from lossland.metrics import ece


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k, images, units, points, classes", [(2, 37, 10, 5, 3), (3, 1, 7, 1, 1), (1, 300, 33, 4, 17), (2, 5, 1, 3, 16)])
def test_mix_head_equals_the_formula(k, images, units, points, classes):
    features, c, head, bias = draw(k, images, units), draw(points, k), draw(points, classes, units), draw(points, classes)
    hidden = torch.einsum("tk,kni->tni", c, features).relu()
    expected = torch.einsum("tni,tci->tnc", hidden, head) + bias[:, None]
    assert_close(mix_head(features, c, head, bias), expected)


def test_tiles_do_not_change_the_result(monkeypatch):
    args = draw(2, 100, 20), draw(3, 2), draw(3, 4, 20), draw(3, 4)
    whole = mix_head(*args)
    monkeypatch.setattr("lossland.kernels.reference._TILE", 1)
    assert_close(mix_head(*args), whole)


@pytest.mark.parametrize("shapes", [((2, 5, 3), (4, 3), (4, 2, 3), (4, 2)), ((2, 5, 3), (4, 2), (4, 2, 9), (4, 2)),
                                    ((2, 0, 3), (4, 2), (4, 2, 3), (4, 2)), ((2, 5, 3), (0, 2), (0, 2, 3), (0, 2))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="needs coefficients|at least one point, image and t"):
        mix_head(*(draw(*shape) for shape in shapes))


def test_class_scores_equal_the_definitions():
    logits, labels = 3 * draw(4, 50, 6), torch.arange(50) % 6
    nll, hits, histogram = class_scores(logits, labels)
    for t in range(4):
        assert_close(nll[t], cross_entropy(logits[t], labels, reduction="sum"))
        assert hits[t] == (logits[t].argmax(1) == labels).sum()
    images, confidence, right = histogram.unbind(1)
    assert_close((confidence - right).abs().sum(-1) / 50, ece(logits.softmax(-1), labels, bins=20))
    assert_close(images.sum(-1), torch.full((4,), 50.0, dtype=torch.float64))


def test_nan_logits_are_never_a_hit():
    logits = torch.zeros(1, 3, 2)
    logits[0, 0] = float("nan")
    nll, hits, _ = class_scores(logits, torch.zeros(3, dtype=torch.long))
    assert hits[0] == 2 and nll[0].isnan()


def test_one_class_is_always_right():
    nll, hits, _ = class_scores(draw(2, 4, 1), torch.zeros(4, dtype=torch.long))
    assert_close(nll, torch.zeros(2, dtype=torch.float64))
    assert hits.tolist() == [4, 4]


def test_exchanges_of_two_units_equal_two_networks_with_the_units_mixed():
    units, images, classes = 6, 37, 5
    z, head = draw(units, images), draw(classes, units)
    p, q, u = torch.tensor([0, 3, 5]), torch.tensor([2, 1, 4]), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    found = exchange_logits(head @ z.relu(), (z[p], z[q]), (head.T[p], head.T[q]), u)
    for t in range(3):
        rows, columns = z.clone(), head.T.clone()
        for place, other in ((p[t], q[t]), (q[t], p[t])):
            rows[place], columns[place] = (torch.lerp(x[place], x[other], u[t]) for x in (z, head.T))
        assert_close(found[t], (columns.T @ rows.relu()).T)
    assert torch.equal(found[0], (head @ z.relu()).T) and torch.equal(found[2], found[0])


def test_exchanges_of_other_shapes_are_refused():
    z, head = draw(4, 7), draw(3, 4)
    with pytest.raises(ValueError, match="need features \\(T, N\\) and heads \\(T, C\\), got \\(1, 7\\)"):
        exchange_logits(head @ z, (z[:1], z[:2]), (head.T[:1], head.T[:1]), torch.tensor([0.5]))
