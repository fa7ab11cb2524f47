"""The LSTM language model: a network like any other, for training, curves, evaluation and the store."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lossland.evaluation import evaluate, predict
from lossland.families import bezier, point
from lossland.figures import plot_path
from lossland.metrics import accuracy, ece, nll
from lossland.models import build, initial_weights
from lossland.paths import segment
from lossland.recipes import RECIPES, endpoints, network, recipe_for
from lossland.recurrent import LSTM
from lossland.splits import Split
from lossland.store import Store
from lossland.targets import flatten, perplexity
from lossland.tasks import Task, load_task
from lossland.training import Recipe, fit
from lossland.weights import Weights, skeleton

CYCLE = 5  # words of the planted text, which follow each other in a fixed order


def counting(windows: int, length: int = 8) -> Split:
    """Windows of 0, 1, 2, 3, 4, 0, 1, ...: the next word follows from the one before."""
    words = torch.arange(windows * length + 1) % CYCLE
    return Split(words[:-1].reshape(windows, length), words[1:].reshape(windows, length))


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("counting", counting(40), counting(7), counting(9), CYCLE, 1.0, (), (), words=tuple("abcde"))


@pytest.fixture(scope="module")
def net(task: Task) -> nn.Module:
    return network(task, "lstm", hidden=8, layers=2)


RECIPE = Recipe(epochs=2, lr=0.5, batch_size=8)


def draw(net: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    return initial_weights(net, torch.Generator().manual_seed(seed), dtype=dtype)


# recipes

def test_the_recipe_of_the_penn_treebank_is_the_tutorials_step() -> None:
    """Losses of a window's words added up, learning rate 1, gradient clipped at 10: in terms of the mean per word."""
    # two words of 50: what is learnt first, and strongly, is how rare the others are
    recipe, words = RECIPES["g18-ptb"], torch.randint(2, (40, 36), generator=torch.Generator().manual_seed(0))
    windows = Split(words[:, :-1].contiguous(), words[:, 1:].contiguous())
    text = Task("text", windows, windows, None, 50, 1.0, (), (), words=tuple(map(str, range(50))))
    net, one = build("lstm", (35,), 50, hidden=8, layers=2), replace(recipe, epochs=1, batch_size=40, precision="float64")
    weights = draw(net, 1, torch.float64)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    cross_entropy(functional_call(net, leaves, (text.train.images,)), text.train.labels, reduction="sum").div(40).backward()
    assert float(torch.nn.utils.clip_grad_norm_(leaves.values(), 10)) > 12  # or nothing was clipped
    after = fit(net, point(weights), text, one).family.points[0]
    for name, leaf in leaves.items():
        torch.testing.assert_close(after[name], weights[name] - leaf.grad, rtol=1e-4, atol=1e-6)


# the network

def test_logits_are_those_of_every_next_word_and_do_not_look_ahead() -> None:
    net = build("lstm", (6,), 11, hidden=8, layers=2)
    weights, words = draw(net, 0, torch.float64), torch.arange(12).reshape(2, 6) % 11
    logits = functional_call(net, weights, (words,))
    assert logits.shape == (2, 11, 6)
    changed = words.clone()
    changed[:, 4] = 10
    later = functional_call(net, weights, (changed,))
    torch.testing.assert_close(later[:, :, :4], logits[:, :, :4], rtol=0, atol=0)
    assert not later[:, :, 4:].allclose(logits[:, :, 4:])


def test_cell_is_the_textbook_lstm() -> None:
    net = build("lstm", (4,), 7, hidden=3, layers=1)
    w = draw(net, 1, torch.float64)
    words = torch.tensor([[6, 0, 3, 3]])
    h = c = torch.zeros(3, dtype=torch.float64)
    expected = []
    for word in words[0]:
        gates = w["lstm.weight_ih_l0"] @ w["embedding.weight"][word] + w["lstm.bias_ih_l0"]
        i, f, g, o = (gates + w["lstm.weight_hh_l0"] @ h + w["lstm.bias_hh_l0"]).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        expected.append(w["decoder.weight"] @ h + w["decoder.bias"])
    torch.testing.assert_close(functional_call(net, w, (words,))[0], torch.stack(expected, 1))


def test_default_and_paper_sizes() -> None:
    large = build("lstm", (35,), 10_000, hidden=1500, layers=2, dropout=0.65)
    assert all(parameter.is_meta for parameter in large.parameters())
    assert sum(parameter.numel() for parameter in large.parameters()) == 66_034_000
    assert large.lstm.dropout == large.dropout.p == 0.65
    assert (build("lstm", (35,), 10).lstm.hidden_size, build("lstm", (35,), 10).lstm.num_layers) == (200, 2)


@pytest.mark.parametrize("after", ["embedding", "last layer"])
def test_dropout_works_in_training_mode_only(after: str) -> None:
    net, share = LSTM((50,), 11, hidden=8, layers=1, dropout=0.5), []
    reader = net.lstm if after == "embedding" else net.decoder
    reader.register_forward_pre_hook(lambda module, inputs: share.append(float((inputs[0] == 0).float().mean())))
    for mode in (True, False):
        net.train(mode)(torch.arange(50)[None] % 11)
    assert 0.3 < share[0] < 0.7 and share[1] == 0


@pytest.mark.parametrize(("sizes", "says"), [({"hidden": 0}, "got 0, 2, 0.0"), ({"layers": 0}, "got 200, 0, 0.0"),
                                             ({"dropout": 1.0}, "got 200, 2, 1.0")])
def test_impossible_sizes_are_refused(sizes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=rf"hidden and layers must be >= 1 and dropout in \[0, 1\), {says}"):
        build("lstm", (6,), 11, **sizes)


def test_text_for_a_network_of_images_is_refused_and_the_other_way_round(task: Task) -> None:
    with pytest.raises(ValueError, match=r"model must be 'lstm' for windows of words \(8,\), got 'mlp', made for im"):
        network(task, "mlp")
    with pytest.raises(ValueError, match=r"inputs must be \(L,\), the shape of a window of words, got \(1, 8, 8\)"):
        build("lstm", (1, 8, 8), 10)


# initial weights

def test_initial_weights_of_recurrent_layers_are_torchs_default(net: nn.Module) -> None:
    net = build("lstm", (6,), 11, hidden=64, layers=2)
    drawn = draw(net, 0)
    assert list(drawn) == [name for name, _ in net.named_parameters()]
    for name in (name for name in drawn if name.startswith("lstm.")):
        assert 0.115 < float(drawn[name].abs().max()) <= 1 / 8, name
        assert abs(float(drawn[name].mean())) < 0.02, name


def test_initial_weights_know_every_recurrent_layer() -> None:
    for kind in (nn.GRU, nn.RNN):
        assert max(float(tensor.abs().max()) for tensor in draw(kind(4, 25), 0).values()) <= 0.2


# targets

def test_flatten_keeps_every_logit_with_its_label() -> None:
    logits, labels = torch.randn(3, 5, 11, 4, 2, dtype=torch.float64), torch.randint(11, (5, 4, 2))
    flat, targets = flatten(logits, labels)
    assert flat.shape == (3, 40, 11) and targets.shape == (40,)
    for t in range(3):
        torch.testing.assert_close(cross_entropy(flat[t], targets), cross_entropy(logits[t], labels))


@pytest.mark.parametrize(("logits", "labels"), [((3, 5, 11), (5,)), ((5, 11), (5, 1)), ((4, 11, 2), (5, 2)),
                                                ((5, 11), (5, 11)), ((5, 11, 3), (5, 2)), ((11,), ())])
def test_flatten_leaves_one_label_per_image_and_what_does_not_fit_alone(logits: tuple, labels: tuple) -> None:
    logits, labels = torch.randn(logits), torch.randint(11, labels)
    assert all(ours is theirs for ours, theirs in zip(flatten(logits, labels), (logits, labels), strict=True))


def test_metrics_of_words_are_averages_over_words() -> None:
    logits, labels = torch.randn(3, 5, 11, 4, dtype=torch.float64), torch.randint(11, (5, 4))
    flat = flatten(logits, labels)
    torch.testing.assert_close(nll(logits, labels), torch.stack([cross_entropy(one, labels) for one in logits]))
    torch.testing.assert_close(accuracy(logits, labels), (logits.argmax(2) == labels).double().mean((1, 2)))
    torch.testing.assert_close(ece(logits.softmax(2), labels), ece(flat[0].softmax(-1), flat[1]))
    with pytest.raises(ValueError, match=r"labels must have shape \(11,\) to fit logits \(5, 11, 4\), got \(5, 3\)"):
        nll(logits[0], labels[:, :3])


def test_perplexity_of_uniform_guesses_is_the_size_of_the_vocabulary(task: Task, net: nn.Module) -> None:
    silent = {name: torch.zeros_like(tensor) for name, tensor in draw(net, 0).items()}
    table = evaluate(net, segment(silent, silent), task, points=2, splits=("train", "validation", "test"))
    torch.testing.assert_close(perplexity(torch.tensor(table.nll)), torch.full((6,), float(CYCLE), dtype=torch.float64))
    assert perplexity(0.0) == 1.0 and math.isclose(float(perplexity(math.log(1000))), 1000)


def test_perplexity_is_drawn_as_the_exponential_of_the_loss(task: Task, net: nn.Module) -> None:
    table = evaluate(net, segment(draw(net, 0), draw(net, 1)), task, points=3, splits=("test",))
    axes = plot_path(table, metric="perplexity", split="test").axes[0]
    drawn = torch.tensor(axes.lines[0].get_ydata())
    torch.testing.assert_close(drawn, perplexity(torch.tensor(table.nll.to_numpy())))
    assert axes.get_ylabel() == "test perplexity"


# training, curves, evaluation, store

def test_gradients_reach_every_parameter(task: Task, net: nn.Module) -> None:
    start = draw(net, 0)
    done = fit(net, point(start), task, Recipe(epochs=1, lr=0.1, batch_size=8), seed=0).family.points[0]
    assert [name for name in start if done[name].equal(start[name])] == []


def test_step_is_that_of_torch(task: Task, net: nn.Module) -> None:
    start = draw(net, 0, torch.float64)
    recipe = Recipe(epochs=1, lr=0.3, batch_size=40, momentum=0.0, schedule="constant", precision="float64")
    ours = fit(net, point(start), task, recipe).family.points[0]
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    cross_entropy(functional_call(net, leaves, (task.train.images,)), task.train.labels).backward()
    theirs = {name: (leaf - 0.3 * leaf.grad).detach() for name, leaf in leaves.items()}
    torch.testing.assert_close(ours, theirs)


def test_planted_text_is_learned(task: Task, net: nn.Module) -> None:
    done = fit(net, point(draw(net, 0)), task, Recipe(epochs=30, lr=0.3, batch_size=8))
    logits = predict(net, done.family.points[0], task)
    assert logits.shape == (7, CYCLE, 8)
    scores = logits, task.test.labels
    assert float(perplexity(nll(*scores))) < 1.05 and float(accuracy(*scores)) == 1.0
    assert done.history.accuracy.iloc[-1] == 1.0 and perplexity(done.history.loss).iloc[-1] < 1.05


def test_history_counts_words(task: Task, net: nn.Module) -> None:
    still = Recipe(epochs=1, lr=0.0, batch_size=16)
    weights = draw(net, 3)
    row = fit(net, point(weights), task, still).history.iloc[0]
    logits = functional_call(net, weights, (task.train.images,))
    assert row.accuracy == pytest.approx(float((logits.argmax(1) == task.train.labels).float().mean()))
    assert row.loss == pytest.approx(float(cross_entropy(logits, task.train.labels)))


class Interrupted:
    """A checkpoint that gives up after one epoch, and is kept."""

    def __init__(self) -> None:
        self.kept, self.left = None, 1

    def load(self) -> tuple | None:
        return self.kept

    def save(self, tensors: dict, info: dict) -> None:
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self.kept = copies, {**info, "history": list(info["history"])}
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_interrupted_curve_continues_to_the_same_weights(task: Task) -> None:
    net = network(task, "lstm", hidden=8, layers=2, dropout=0.3)
    curve, recipe = bezier(draw(net, 0), draw(net, 1)), Recipe(epochs=3, lr=0.3, batch_size=8)
    whole, checkpoint = fit(net, curve, task, recipe, seed=5), Interrupted()
    with pytest.raises(KeyboardInterrupt):
        fit(net, curve, task, recipe, seed=5, checkpoint=checkpoint)
    resumed = fit(net, curve, task, recipe, seed=5, checkpoint=checkpoint)
    for ours, theirs in zip(resumed.family.points, whole.family.points, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_curve_has_exact_ends_and_moves_its_bend(task: Task, net: nn.Module) -> None:
    a, b = draw(net, 0), draw(net, 1)
    curve = fit(net, bezier(a, b), task, RECIPE).family
    table = evaluate(net, curve, task, points=5, splits=("train", "test"))
    for t, weights in ((0.0, a), (1.0, b)):
        for split in ("train", "test"):
            row = table[(table.t == t) & (table.split == split)].iloc[0]
            scores = predict(net, weights, task, split), task.split(split).labels
            assert row.nll == pytest.approx(float(nll(*scores)), rel=1e-6)
            assert row.accuracy == pytest.approx(float(accuracy(*scores)))
    torch.testing.assert_close(curve.points[0], a, rtol=0, atol=0)
    torch.testing.assert_close(curve.points[2], b, rtol=0, atol=0)
    assert not curve.points[1]["lstm.weight_hh_l0"].equal((a["lstm.weight_hh_l0"] + b["lstm.weight_hh_l0"]) / 2)


def test_end_points_of_a_text_are_stored(task: Task, tmp_path) -> None:
    first = endpoints(task, "lstm", seeds=(1, 2), recipe=RECIPE, store=Store(tmp_path), hidden=8, layers=1)
    again = endpoints(task, "lstm", seeds=(1, 2), recipe=RECIPE, store=Store(tmp_path), hidden=8, layers=1)
    for ours, theirs in zip(first, again, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert recipe_for(task).lr == 2.0


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_other_precisions_train(task: Task, net: nn.Module, precision: str) -> None:
    done = fit(net, point(draw(net, 0)), task, Recipe(epochs=4, lr=0.3, batch_size=8, precision=precision))
    assert all(later <= before for before, later in pairwise(done.history.loss))


def test_recurrent_layers_of_a_skeleton_leave_the_weights_where_they_are(net: nn.Module, monkeypatch) -> None:
    bare, weights, words = skeleton(net), draw(net, 0), torch.zeros(1, 8).long()
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: pytest.fail("weights would be moved on a GPU"))
    assert functional_call(bare, weights, (words,)).shape == (1, CYCLE, 8)
    with pytest.raises(pytest.fail.Exception, match="would be moved"):
        functional_call(net, weights, (words,))


def test_language_model_of_python_documentation_beats_single_words() -> None:
    task = load_task("pydoc", device="cpu", vocabulary=60, window=20).subset(train=240, test=40)
    net = network(task, "lstm", hidden=24, layers=1)
    weights = fit(net, point(draw(net, 0)), task, Recipe(epochs=6, lr=2.0, batch_size=16)).family.points[0]
    counts = torch.bincount(task.train.labels.flatten(), minlength=60) + 1.0
    single = (counts / counts.sum()).log().expand(task.test.labels.numel(), 60)
    ours = float(nll(predict(net, weights, task), task.test.labels))
    assert perplexity(ours) < 0.9 * perplexity(float(nll(single, task.test.labels.flatten())))
