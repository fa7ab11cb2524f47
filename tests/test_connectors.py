"""Connectors: verdicts that are known, intervals that hold, simplexes and paths alike."""

import re

import pytest
import torch
from conftest import make_task
from scipy.stats import binom

from lossland import families, models
from lossland.connectors import Connector, is_connector
from lossland.ensembles import member_scores
from lossland.evaluation import evaluate, predict
from lossland.paths import segment
from lossland.recipes import recipe_for
from lossland.search import worst
from lossland.training import fit

TASK = make_task((1, 6, 6), test=200)


def net() -> torch.nn.Module:
    return models.MLP((1, 6, 6), 3, widths=(8,))


def drawn(seed: int) -> dict:
    return models.initial_weights(net(), torch.Generator().manual_seed(seed))


def good(seed: int) -> dict:
    return fit(net(), families.point(drawn(seed)), TASK, recipe_for(TASK, epochs=8, lr=0.1, batch_size=16), seed=seed).family.points[0]


def test_a_network_and_itself_are_connected():
    a = good(1)
    found = is_connector(net(), segment(a, a), TASK, points=5)
    assert found.verdict == "yes" and found.worst == found.mean == found.ends[0] and found.networks == 5


def test_a_way_through_a_broken_network_is_none():
    a = good(1)
    broken = {name: -tensor for name, tensor in a.items()}
    middle = families.chain(a, a).with_points((a, broken, a))
    found = is_connector(net(), middle, TASK, points=11)
    assert found.verdict == "no" and found.high < found.mean and found.worst < 0.6 < found.mean
    table = evaluate(net(), middle, TASK, points=11, splits=("test",))
    assert found.worst == table.accuracy.min() and found.at == (table.t[table.accuracy.idxmin()],)


def test_the_ends_are_named_in_their_order():
    a, b = good(1), drawn(2)
    ends = tuple(evaluate(net(), segment(a, b), TASK, points=[0.0, 1.0], splits=("test",)).accuracy)
    assert is_connector(net(), segment(a, b), TASK, points=5).ends == ends and ends[0] > ends[1]
    assert is_connector(net(), families.simplex([a, b]), TASK, points=4).ends == ends


def test_random_members_of_a_simplex_follow_the_seed():
    family = families.simplex([good(seed) for seed in (1, 2, 3)])  # the worst network lies between them
    found = [is_connector(net(), family, TASK, points=40, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_a_loss_that_the_images_cannot_tell_is_undecided():
    found = Connector(0.95, (0.5,), (0.96, 0.96), 0.91, 0.975, 61, 500)
    assert found.verdict == "undecided"
    assert str(found) == ("undecided: the worst of 61 networks, at 0.5, has 95.00% (91.00% to 97.50%) on 500 images; "
                          "the ends have 96.00% on average")


def test_the_interval_is_exact_and_wider_for_more_networks():
    a = drawn(3)  # untrained: about a third is right
    few, many = (is_connector(net(), segment(a, a), TASK, points=points) for points in (2, 50))
    hits, n = round(few.worst * 200), 200
    tail = 0.05 / 2 / 2  # two networks, two sides
    assert binom.sf(hits - 1, n, few.low) == pytest.approx(tail) and binom.cdf(hits, n, few.high) == pytest.approx(tail)
    assert many.low < few.low and many.high > few.high


def test_a_simplex_is_looked_at_in_corners_centre_and_at_random():
    corners = [good(seed) for seed in (1, 2, 3)]
    family = families.simplex(corners)
    found = is_connector(net(), family, TASK, points=12)
    singles = [evaluate(net(), segment(c, c), TASK, points=[0.0], splits=("test",)).accuracy[0] for c in corners]
    assert found.ends == tuple(singles) and found.networks == 12 and sum(found.at) == pytest.approx(1)
    centre = evaluate(net(), segment(family.midpoint(), corners[0]), TASK, points=[0.0], splits=("test",)).accuracy[0]
    assert is_connector(net(), family, TASK, points=4).worst == min(*singles, centre) >= found.worst


def test_what_cannot_be_connected_is_refused():
    a = drawn(1)
    with pytest.raises(ValueError, match=r"path\(\) needs a family over an interval, got a point"):
        is_connector(net(), families.point(a), TASK)
    with pytest.raises(ValueError, match="level must be a fraction between 0 and 1, got 95"):
        is_connector(net(), segment(a, a), TASK, level=95)
    with pytest.raises(ValueError, match="points must be > 3, for 3 corners and the centre, got 3"):
        is_connector(net(), families.simplex([a, a, a]), TASK, points=3)


def test_only_a_yes_is_true():
    parts = ((0.5,), (0.9, 0.9))
    yes, maybe, no = (Connector(worst, *parts, worst - 0.03, worst + 0.03, 61, 500) for worst in (0.9, 0.88, 0.8))
    assert [found.verdict for found in (yes, maybe, no)] == ["yes", "undecided", "no"]
    assert yes and not maybe and not no


def test_a_tolerance_lowers_the_bar_and_is_said():
    parts = (0.9, (0.5,), (0.91, 0.91), 0.88, 0.905, 61, 500)
    found = [Connector(*parts, tolerance=gap) for gap in (0.0, 0.004, 0.006, 0.02)]
    assert [each.verdict for each in found] == ["no", "no", "undecided", "yes"]
    assert str(found[3]) == ("yes: the worst of 61 networks, at 0.5, has 90.00% (88.00% to 90.50%) on 500 images; "
                             "the ends have 91.00% on average, of which 2.00% may be missing")
    assert "missing" not in str(found[0])


def test_ends_that_differ_are_connected_with_a_tolerance_only():
    a, b = good(1), drawn(2)
    strict = is_connector(net(), segment(a, b), TASK, points=5)
    assert min(strict.ends) < strict.mean and strict.verdict != "yes"
    easy = is_connector(net(), segment(a, b), TASK, points=5, tolerance=strict.mean - strict.worst + 1e-9)
    assert easy.verdict == "yes" and (easy.worst, easy.low, easy.high) == (strict.worst, strict.low, strict.high)
    with pytest.raises(ValueError, match="tolerance must be a fraction >= 0 of accuracy, such as 0.005, got -0.1"):
        is_connector(net(), segment(a, b), TASK, tolerance=-0.1)


def test_what_is_no_path_is_told_what_to_be():
    a = drawn(1)
    done = fit(net(), families.line(a, drawn(2)), TASK, recipe_for(TASK, epochs=1, batch_size=64))
    for call in (is_connector, worst, evaluate):
        with pytest.raises(TypeError, match=r"path must be a Path.*got Fit, what training returns: pass its \.family"):
            call(net(), done, TASK)
        with pytest.raises(TypeError, match=r"got dict, the weights w of one network: score it by member_scores\(net, \[w\], task\)"):
            call(net(), a, TASK)
        with pytest.raises(ValueError, match=r"got a point, which is one network: score it by member_scores\(net, family.points"):
            call(net(), families.point(a), TASK)
        with pytest.raises(TypeError, match=r"net must be a network, got the class MLP: make one, MLP\(...\)"):
            call(models.MLP, segment(a, a), TASK)
        with pytest.raises(TypeError, match="net must be a network, a torch.nn.Module .*got dict"):
            call(a, segment(a, a), TASK)
        with pytest.raises(TypeError, match="task must be the data, a Task such as load_task.'digits'.*got str"):
            call(net(), segment(a, a), "digits")


def test_one_network_may_come_as_a_family_of_one_point():
    a = drawn(1)
    torch.testing.assert_close(predict(net(), families.point(a), TASK), predict(net(), a, TASK), rtol=0, atol=0)
    done = fit(net(), families.point(a), TASK, recipe_for(TASK, epochs=1, batch_size=64))
    for given, message in ((done, r"got Fit: pass one of its control points, \.family\.points\[0\]"),
                           (families.line(a, a), r"got Family: pass one of its control points, \.points\[0\] to \.points\[1\]"),
                           (segment(a, a), r"got a Path: pass one of its points, path\.point\(t\)"),
                           ([a], "weights must be a dictionary parameter name -> tensor.*got list")):
        with pytest.raises(TypeError, match=message):
            predict(net(), given, TASK)


def test_errors_of_torch_say_which_network_met_which_data():
    a = drawn(1)
    other, few = make_task((1, 8, 8)), models.MLP((1, 6, 6), 2, widths=(8, 5))
    b = models.initial_weights(few, torch.Generator().manual_seed(1))
    note = r"the network must take inputs of shape \(1, {0}, {0}\) and give 3 logits, one for each class"
    for call in (lambda: evaluate(net(), segment(a, a), other, points=3), lambda: predict(net(), a, other)):
        with pytest.raises((RuntimeError, ValueError)) as caught:  # of torch, or of what multiplies first layers
            call()
        assert len(caught.value.__notes__) == 1
        assert re.search(r"MLP on task 'blobs': " + note.format(8), caught.value.__notes__[0])
    with pytest.raises(ValueError, match=r"labels must be int64 classes 0\.\.1, got torch.int64, 0\.\.2") as caught:
        evaluate(few, segment(b, b), TASK, points=3)
    assert re.search(note.format(6), caught.value.__notes__[-1])
    with pytest.raises(ValueError, match=r"labels must be int64 classes 0\.\.1, got torch.int64, 0\.\.2") as caught:
        member_scores(few, [b], TASK)
    assert caught.value.__notes__ == ["the network gave 2 logits for each label: there must be one for each class of the task"]


def test_members_may_be_families_of_one_point_and_no_fits():
    a = drawn(1)
    one, other = (member_scores(net(), [member], TASK) for member in (a, families.point(a)))
    assert one.nll.equals(other.nll) and len(one)
    done = fit(net(), families.point(a), TASK, recipe_for(TASK, epochs=1, batch_size=64))
    with pytest.raises(TypeError, match=r"members\[0\] must be the weights of one network, got Fit: .* \.family\.points\[0\]"):
        member_scores(net(), [done], TASK)
