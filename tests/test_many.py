from dataclasses import replace

import pytest
import torch
from test_training import FAST, start
from torch.testing import assert_close

from conftest import Memory, make_task
from lossland import models
from lossland.families import point
from lossland.many import _batches, fit_many, together, trained_set
from lossland.recipes import endpoints
from lossland.store import Store
from lossland.training import Recipe, fit
from lossland.weights import to_vector


@pytest.fixture()
def net(task):
    return models.build("mlp", task.input_shape, task.classes, width=6)


@pytest.mark.parametrize("model, sizes", [("mlp", {"width": 6}), ("fc3", {"first": 7, "second": 5}), ("conv2fc1", {"channels": (3, 4)})])
@pytest.mark.parametrize("decay_on", ["points", "sampled"])
def test_networks_trained_together_are_those_of_single_runs(model, sizes, decay_on):
    task = replace(make_task(shape=(3, 8, 8), train=90), augment="flip-crop")  # 90 images: the last batch is smaller
    net = models.build(model, task.input_shape, task.classes, **sizes)
    recipe = replace(FAST, decay_on=decay_on)
    starts, seeds = [start(net, i) for i in (3, 4, 5)], (7, 8, 9)
    made = fit_many(net, starts, task, recipe, seeds, way="together")
    for weights, begin, seed in zip(made, starts, seeds, strict=True):
        single = fit(net, point(begin), task, recipe, seed=seed).family.points[0]
        assert_close(weights, single, rtol=0, atol=1e-6)
        assert float((to_vector(weights) - to_vector(begin)).abs().max()) > 1e-3


def test_one_by_one_is_the_loop_to_the_last_bit(task, net):
    made = fit_many(net, [start(net, 1)], task, FAST, [5], way="one by one")
    assert_close(made[0], fit(net, point(start(net, 1)), task, FAST, seed=5).family.points[0], rtol=0, atol=0)


@pytest.mark.parametrize("way, after", [("together", 1), ("one by one", 1), ("one by one", FAST.epochs + 1)])
def test_an_interrupted_set_gives_the_weights_of_an_uninterrupted_one(task, net, way, after):
    starts, memory, saves = [start(net, 1), start(net, 2)], Memory(), []

    def save(tensors, info):
        if len(saves) == after:
            raise InterruptedError
        saves.append(info["epoch"])
        keep(tensors, info)

    whole = fit_many(net, starts, task, FAST, (1, 2), way=way)
    keep, memory.save = memory.save, save
    with pytest.raises(InterruptedError):
        fit_many(net, starts, task, FAST, (1, 2), way=way, checkpoint=memory)
    memory.save = keep
    assert memory.saved[1].get("made", 0) == (after > FAST.epochs)
    assert_close(fit_many(net, starts, task, FAST, (1, 2), way=way, checkpoint=memory), whole, rtol=0, atol=0)


def test_every_network_sees_the_batches_that_it_would_see_alone(task):
    seeds = (3, 4, 5)
    made = list(_batches(task, FAST, seeds))
    for i, seed in enumerate(seeds):
        alone = task.batches("train", batch_size=FAST.batch_size, generator=torch.Generator().manual_seed(seed), dtype=FAST.dtype)
        for (images, labels), (image, label) in zip(made, alone, strict=True):
            assert torch.equal(images[i], image) and torch.equal(labels[i], label)


def test_on_a_gpu_larger_dense_networks_are_trained_together():
    wide, filters = (models.build(name, (3, 8, 8), 3, **sizes) for name, sizes in (("mlp", {"width": 2000}), ("conv2fc1", {"channels": (64, 512)})))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (wide, filters)]
    assert [together(net, size, "cuda") for net, size in zip((wide, filters), sizes, strict=True)] == [True, False]


def test_only_small_networks_without_norms_and_dropout_are_trained_together():
    small, wide, dropout, norms = (models.build(name, (3, 8, 8), 3, **sizes) for name, sizes in (
        ("mlp", {"width": 64}), ("mlp", {"width": 2000}), ("vgg16", {"channels": 2}), ("cresnet20", {"channels": 2, "blocks": 1})))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (small, wide, dropout, norms)]
    assert [together(net, size) for net, size in zip((small, wide, dropout, norms), sizes, strict=True)] == [True, False, False, False]


@pytest.mark.parametrize("model, sizes, kind", [("vgg16", {"channels": 2}, "Dropout"), ("cresnet20", {"channels": 2, "blocks": 1}, "BatchNorm2d")])
def test_networks_that_cannot_be_stacked_are_refused_by_kind(model, sizes, kind):
    task = make_task(shape=(3, 8, 8))
    net = models.build(model, task.input_shape, task.classes, **sizes)
    with pytest.raises(ValueError, match=f"without batch norm and dropout.*{kind}.*way='one by one'"):
        fit_many(net, [start(net)], task, FAST, [1], way="together")


def test_bad_sets_are_refused(task, net):
    with pytest.raises(ValueError, match="starts and seeds must be as many and at least one, got 1 and 2"):
        fit_many(net, [start(net)], task, FAST, [1, 2])
    with pytest.raises(ValueError, match="did you mean 'together'"):
        fit_many(net, [start(net)], task, FAST, [1], way="togther")
    with pytest.raises(FloatingPointError, match=r"networks \[0, 1\] \(seeds \[4, 5\]\) NaN or infinite in epoch"):
        fit_many(net, [start(net, 1), start(net, 2)], task, replace(FAST, lr=1e80, epochs=9), [4, 5], way="together")


def test_a_set_is_one_entry_that_names_its_way_and_one_by_one_shares_the_end_points(task, tmp_path):
    store, recipe = Store(tmp_path), Recipe(epochs=1, lr=0.1)
    first = trained_set(task, "mlp", seeds=[1, 2], recipe=recipe, store=store, width=5)
    entry, = store.entries()
    assert entry.record["recipe"]["way"] == "together" and entry.record["recipe"]["set"]["seeds"] == [1, 2]
    assert_close(trained_set(task, "mlp", seeds=[1, 2], recipe=recipe, store=store, width=5), first, rtol=0, atol=0)
    singles = trained_set(task, "mlp", seeds=[1, 2], recipe=recipe, store=store, way="one by one", width=5)
    assert_close(singles, first, rtol=0, atol=1e-6)
    assert len(store.entries()) == 3
    assert_close(endpoints(task, "mlp", seeds=[1], recipe=recipe, store=store, width=5)[0], singles[0], rtol=0, atol=0)
    assert len(store.entries()) == 3
