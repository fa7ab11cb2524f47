import math

import pytest
from test_training import start
from torch.testing import assert_close

from conftest import make_task
from lossland import learned, models
from lossland.flows import Flow, fit_bijection, fit_likelihood, realnvp
from lossland.layers import axes, gather
from lossland.learned import learned_flow, units_of
from lossland.store import Store

TASK = make_task()
NET = models.build("mlp", TASK.input_shape, TASK.classes, width=6)
V, HELD = [start(NET, seed) for seed in range(3)], [start(NET, seed) for seed in (7, 8)]
NAME = {"V": [0, 1, 2], "held": [7, 8], "model": "mlp", "width": 6}


def begin():
    return realnvp(units_of(NET, V), hidden=4, depth=1, standardise="coordinates")


def test_units_of_networks_stand_one_below_the_other():
    (group,) = axes(NET.layers()).values()
    assert_close(units_of(NET, V)[6:12], gather(V[1], *group), rtol=0, atol=0)


@pytest.mark.parametrize("loss", learned.LOSSES)
def test_a_flow_is_learned_once_and_then_read_to_the_last_bit(loss, tmp_path, monkeypatch):
    how = {"steps": 4, "lr": 1e-2, "every": 2}
    first = learned_flow(begin(), loss, NET, V, TASK, name=NAME, held_out=HELD, seed=3, store=Store(tmp_path), **how)
    if loss == "bijection":
        alone = fit_bijection(begin(), NET, V, TASK, seed=3, **how)
    else:
        alone = fit_likelihood(begin(), units_of(NET, V), held_out=units_of(NET, HELD), seed=3, **how)
    monkeypatch.setattr(learned, f"fit_{loss}", None)  # whoever trains again fails
    again = learned_flow(begin(), loss, NET, V, TASK, name=NAME, held_out=HELD, seed=3, store=Store(tmp_path), **how)
    for one in (first, again):
        assert one.diverged is None and one.history["step"].tolist() == [2, 4]
        assert_close(one.flow.tensors(), alone.flow.tensors(), rtol=0, atol=0)
    assert again.history.equals(first.history) and ("held out" in first.history) == (loss == "likelihood")


@pytest.mark.parametrize("change", [{"seed": 4}, {"lr": 2e-2}, {"name": {**NAME, "V": [0, 1, 3]}}])
def test_whatever_determines_a_flow_makes_another_entry(change, tmp_path):
    same = {"name": NAME, "seed": 3, "store": Store(tmp_path), "steps": 1, "lr": 1e-2}
    for how in (same, same, {**same, **change}):
        learned_flow(begin(), "likelihood", NET, V, TASK, **how)
    assert len(Store(tmp_path).entries()) == 2


def test_a_training_that_diverges_is_kept_with_its_last_finite_state(tmp_path, monkeypatch):
    real = Flow.log_density
    monkeypatch.setattr(Flow, "log_density", lambda self, rows: real(self, rows) * math.nan)
    how = {"name": NAME, "store": Store(tmp_path), "steps": 4, "lr": 1e-2}
    found = [learned_flow(begin(), "likelihood", NET, V, TASK, **how) for _ in range(2)]
    assert [one.diverged for one in found] == ["diverged at step 1"] * 2 and found[1].history.empty
    assert_close(found[1].flow.tensors(), begin().tensors(), rtol=0, atol=0)


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'likelihood'"):
        learned_flow(begin(), "likelyhood", NET, V, TASK, name=NAME, store=Store(tmp_path))
    deep = models.build("fc3", TASK.input_shape, TASK.classes, first=5, second=4)
    with pytest.raises(ValueError, match="net must have one hidden layer, got 2 hidden unit axes"):
        units_of(deep, [start(deep)])
