"""Shared passes: equal to the last bit to passes of their own, for every kind of network."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from conftest import make_task
from lossland import evaluation as ev
from lossland import models, paths
from lossland.evaluation import mixtures, scoring
from lossland.evaluation.reuse import Batch, Member, Span
from lossland.recording import Recording
from lossland.tasks import Split, Task
from lossland.weights import Weights, from_vector, skeleton

TASK = make_task(shape=(1, 8, 8))
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def mix_everything(monkeypatch):
    """The networks here are so small that nothing would be worth mixing."""
    monkeypatch.setattr(mixtures, "_WORTH", 0)


class InPlace(nn.Module):
    """A stream that is added to, scaled and cut in place, through views."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (nn.Linear(m, n) for m, n in ((64, 6), (6, 6), (6, 6), (6, 3)))

    def forward(self, images: Tensor) -> Tensor:
        stream = self.first(images.flatten(1)).relu_()
        half = stream[:, :3]  # shares memory with the stream
        stream *= 2
        early = stream + 0
        stream[:, 3:] += self.second(stream)[:, 3:]
        half.add_(self.third(early)[:, :3])
        return self.head(torch.cat([half, stream[:, 3:]], 1).clamp_(min=0)) + early[:, :3]


class Attention(nn.Module):
    """Rows of an image as tokens, one functional parameter, and multi-head attention."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.norm, self.attend = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1, 2) * self.scale
        rows = rows + self.attend(*[self.norm(rows)] * 3, need_weights=False)[0]
        return self.head(rows.mean(1))


class Recurrent(nn.Module):
    """Rows of an image in time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(8, 5, batch_first=True), nn.GRU(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images.flatten(1, 2))[0])[0][:, -1])


class Choosy(nn.Module):
    """Takes the way that its own values say."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.read, self.first, self.head = read, nn.Linear(64, 4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1))
        way = {"item": lambda: hidden.sum().item() > 0, "list": lambda: sum(hidden.tolist()[0]) > 0,
               "mask": lambda: len(hidden[hidden > 0]) > 9}[self.read]()
        return self.head(hidden if way else -hidden)


class Random(nn.Module):
    """Draws numbers in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.first(images.flatten(1)) + torch.rand(4, dtype=images.dtype))


class Greedy(nn.Module):
    """Writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        images -= 0.25
        return self.head(self.first(images.flatten(1)))


NETS = {
    "dense": lambda: models.MLP((1, 8, 8), 3, widths=(7, 6, 5)),
    "conv": lambda: models.VGG16((1, 8, 8), 3, channels=2),
    "residual": lambda: models.ResNet((1, 8, 8), 3, blocks=1, channels=2),
    "pre-activation": lambda: models.ResNet((1, 8, 8), 3, blocks=1, channels=2, pre_activation=True),
    "no layer list": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.BatchNorm1d(5),
                                           nn.Tanh(), nn.Linear(5, 3)),
    "in place": InPlace, "attention": Attention, "recurrent": Recurrent,
}


def built(make) -> tuple[nn.Module, list[str]]:
    net = make().double().eval()
    return net, [name for name, _ in net.named_parameters()]


def draw(net: nn.Module, seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.4 for name, p in net.named_parameters()}


def legs(net: nn.Module, names: list[str]):
    """Yield a leg for every choice of neighbouring parameters that move."""
    a, b = draw(net, 1), draw(net, 2)
    for start in range(0, len(names), 2):
        moving = names[start : start + 2]
        yield paths.Mix((a, {**a, **{name: b[name] for name in moving}}), paths.linear_basis), set(moving)


@pytest.mark.parametrize("name", NETS)
def test_shared_passes_equal_own_passes_to_the_last_bit(name):
    net, names = built(NETS[name])
    bare, buffers = skeleton(net), dict(net.named_buffers())

    def call(weights: Weights, buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(bare, (weights, buffers), (images,))

    skipped = []
    with torch.no_grad():
        for leg, moving in legs(net, names):
            assert leg.moving() == moving
            batch = Batch(Span(call, {}, leg.moving()), IMAGES, shared=True)
            for s in (0.2, 0.7, 1.0):
                weights = {key: tensor[0] for key, tensor in leg(torch.tensor([s])).items()}
                found = batch(Member(weights, buffers, leg.basis(torch.tensor(s))))
                assert torch.equal(found, call(weights, buffers, IMAGES)), (moving, s)
            assert batch.recording.safe
            skipped.append(batch.recording.skipped)
    assert skipped[-1] == max(skipped) > skipped[0], "the later the first moving parameter, the more is shared"


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_tables_of_staged_legs_equal_one_network_at_a_time(name, mixed, monkeypatch):
    net, names = built(NETS[name])
    if not mixed:
        monkeypatch.setattr(mixtures.Mixtures, "_span", without_mixing(mixtures.Mixtures._span))
    for leg, moving in legs(net, names):
        path = paths.Path((leg,))
        table = ev.evaluate(net, path, TASK, points=4)
        assert table.attrs["way"] == "shared prefix" or moving & set(names[:2])
        for row in table.itertuples():
            sums = scoring.Sums.zeros(1)
            with torch.no_grad():
                scoring.add_point(sums, 0, scoring.Stateless(net, TASK), path.point(row.t), TASK.split(row.split))
            alone = sums.columns(len(TASK.split(row.split)))["nll"][0]
            assert row.nll == (pytest.approx(alone, rel=1e-9) if mixed else alone), (moving, row.t)


def without_mixing(span):
    def plain(*args, **kwargs):
        full = span(*args, **kwargs)
        return Span(full.call, {}, full.moving, full.private, full.limit)
    return plain


@pytest.mark.parametrize("make", [lambda: Choosy("item"), lambda: Choosy("list"), lambda: Choosy("mask"), Greedy])
def test_networks_that_look_at_their_values_or_write_into_images_run_one_by_one_and_right(make):
    net, names = built(make)
    a, b = draw(net, 1), draw(net, 2)
    for moving in (names, names[2:]):
        path = paths.Path((paths.Mix((a, {**a, **{name: b[name] for name in moving}}), paths.linear_basis),))
        table = ev.evaluate(net, path, TASK, points=5, splits=("test",))
        assert table.attrs["way"] == "one by one" or moving != names
        for row in table.itertuples():
            alone = ev.evaluate(net, path, TASK, points=[row.t], splits=("test",))
            assert row.nll == pytest.approx(alone.nll.item(), rel=1e-12), (moving, row.t)


def span_of(net: nn.Module, moving: list[str]) -> Span:
    bare = skeleton(net)
    return Span(lambda weights, buffers, images: functional_call(bare, (weights, buffers), (images,)), {}, frozenset(moving))


@pytest.mark.parametrize("make, safe", [(lambda: Choosy("item"), False), (lambda: Choosy("mask"), False), (Random, False),
                                        (Greedy, False), (NETS["in place"], True)])
def test_a_recording_knows_what_cannot_be_shared(make, safe):
    net, names = built(make)
    with torch.no_grad():
        assert span_of(net, names).record(Member(draw(net, 1), {}, torch.ones(1)), IMAGES.clone())[0].safe == safe


def test_numbers_that_were_left_out_are_not_read_unnoticed():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(64, 4), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.first(images.flatten(1))
            return self.head(hidden) * max(hidden.tolist()[0])

    net, names = built(Reader)
    members = [Member({**(a := draw(net, 1)), "head.weight": a["head.weight"] + i}, {}, torch.ones(1)) for i in (0, 1)]
    with torch.no_grad():
        assert not span_of(net, ["head.weight"]).probe(*members, IMAGES).shares


def test_a_branch_that_the_trial_did_not_take_ends_the_sharing():
    net, names = built(lambda: Choosy("list"))
    span, a = span_of(net, names), draw(net, 1)
    members = [Member(weights, {}, torch.ones(1)) for weights in (a, {key: -value for key, value in a.items()})]
    with torch.no_grad():
        batch = Batch(span, IMAGES, shared=True)
        for member in (*members, members[0]):
            assert torch.equal(batch(member), span.call(member.weights, {}, IMAGES))
    assert not batch.shared


def test_random_networks_share_nothing():
    net, _ = built(Random)
    table = ev.evaluate(net, paths.segment(draw(net, 1), draw(net, 2)), TASK, points=5)
    assert table.attrs["way"] == "one by one"


def test_a_leg_on_which_nothing_moves_is_constant():
    net, _ = built(NETS["residual"])
    a = draw(net, 1)
    table = ev.evaluate(net, paths.Path((paths.Mix((a, a), paths.linear_basis),)), TASK, points=4)
    assert table.attrs["way"] == "shared prefix" and (table.groupby("split").nll.nunique() == 1).all()
    assert (table.distance == 0).all()


@pytest.mark.parametrize("name", ["conv", "pre-activation"])
def test_little_memory_changes_nothing(name, monkeypatch):
    net, names = built(NETS[name])
    for leg, _ in legs(net, names):
        path = paths.Path((leg,))
        whole = ev.evaluate(net, path, TASK, points=5)
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "SHARED", 20_000)
            small = ev.evaluate(net, path, TASK, points=5)
        assert_close(torch.tensor(small.nll.values), torch.tensor(whole.nll.values), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_passes_are_so_small_that_their_results_stay_in_cache(shared, monkeypatch):
    monkeypatch.setattr(mixtures, "_WORTH", 0 if shared else 1e9)
    net, names = built(NETS["conv"])
    a, b = draw(net, 1), draw(net, 2)
    end = {**a, names[-1]: b[names[-1]]} if shared else b
    path = paths.Path((paths.Mix((a, end), paths.linear_basis),))
    whole = ev.evaluate(net, path, TASK, points=4, splits=("train",))
    assert whole.attrs["way"] == ("shared prefix" if shared else "one by one")
    seen: list[int] = []
    monkeypatch.setattr(mixtures, "Batch", lambda span, images, **kind: seen.append(len(images)) or Batch(span, images, **kind))
    map_bytes = 2 * 64 * 8  # two maps of 64 pixels, float64
    for cache, least, memory, expected in ((3 * map_bytes, 1, 1e9, 3), (1, 4, 1e9, 4), (1, 4, 2 * map_bytes, 2)):
        monkeypatch.setattr(mixtures, "_CACHE", cache)
        monkeypatch.setattr(mixtures, "_LEAST", 1)
        monkeypatch.setattr(mixtures, "_LEAST_HEAVY", least)  # any weights are more than such a cache
        monkeypatch.setattr(scoring, "SHARED", memory)
        small = ev.evaluate(net, path, TASK, points=4, splits=("train",))
        assert_close(torch.tensor(small.nll.values), torch.tensor(whole.nll.values), rtol=1e-9, atol=0)
        assert max(seen) == expected and sum(seen) == len(TASK.train)
        seen.clear()


@pytest.mark.parametrize("way, make", [
    ("one by one", lambda: nn.Sequential(nn.Embedding(5, 8), nn.Tanh(), nn.Linear(8, 5), Turned())),
    ("shared first layer", lambda: nn.Sequential(OneHot(), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5), Turned())),
])
def test_passes_over_a_text_have_as_many_words_as_others_have_images(way, make, monkeypatch):
    words = torch.randint(5, (70, 36), generator=torch.Generator().manual_seed(0))
    split = Split(words[:, :-1].contiguous(), words[:, 1:].contiguous())
    net = make().double()
    task = Task("text", split, split, None, 5, 1.0, (), (), words=tuple("abcde"))
    seen: list[int] = []
    monkeypatch.setattr(mixtures, "Batch", lambda span, images, **kind: seen.append(len(images)) or Batch(span, images, **kind))
    table = ev.evaluate(net, paths.segment(draw(net, 1), draw(net, 2)), task, points=4, splits=("train",))
    assert table.attrs["way"] == way and seen == [28, 28, 14]  # windows of 35 words: 980 of the 1000 in a pass
    seen.clear()
    monkeypatch.setattr(mixtures, "_CACHE", 20 * 35 * 8 * 8)  # twenty results of a layer of eight units, float64
    small = ev.evaluate(net, paths.segment(draw(net, 1), draw(net, 2)), task, points=4, splits=("train",))
    assert seen == [20, 20, 20, 10]
    assert_close(torch.tensor(small.nll.values), torch.tensor(table.nll.values), rtol=1e-12, atol=0)


class OneHot(nn.Module):
    """Words as rows of zeros and a one."""

    def forward(self, words: Tensor) -> Tensor:
        return nn.functional.one_hot(words, 5).double()


class Turned(nn.Module):
    """Logits of each word as (b, C, L)."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.transpose(1, 2)


def test_networks_that_compute_nothing_are_evaluated():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(3))

        def forward(self, images: Tensor) -> Tensor:
            return self.logits.expand(len(images), 3)

    net, names = built(Constant)
    assert ev.evaluate(net, paths.segment(draw(net, 1), draw(net, 2)), TASK, points=4).nll.notna().all()


def test_what_images_alone_decide_is_not_called_a_shared_first_layer():
    net, _ = built(NETS["conv"])
    ends = [{name: value.float() for name, value in draw(net, seed).items()} for seed in (1, 2)]
    table = ev.evaluate(net.float(), paths.segment(*ends), TASK, points=5, precision="bfloat16")
    assert table.attrs["way"] == "one by one"  # autocast makes bfloat16 of the images once


def test_no_more_than_the_limit_is_kept():
    net, names = built(NETS["conv"])
    a, b = draw(net, 1), draw(net, 2)
    moving = [names[0], names[-2]]
    leg = paths.Mix((a, {**a, **{name: b[name] for name in moving}}), paths.linear_basis)
    bare = skeleton(net)
    points = {name: [point[name] for point in leg.points] for name in moving}

    def kept(limit: float) -> int:
        span = Span(lambda w, b, x: functional_call(bare, (w, b), (x,)), points, leg.moving(), limit=limit)
        with torch.no_grad():
            return span.record(Member(a, {}, leg.basis(torch.tensor(0.0))), IMAGES)[0].bytes

    assert kept(1e9) == 2 * 5 * 2 * 64 * 8  # outputs of the first convolution at both points, float64
    assert kept(100) == 0


@pytest.mark.parametrize("first, inner", [
    (nn.Sequential(nn.Flatten(), nn.Linear(100, 4)), 100),
    (nn.Sequential(nn.Conv2d(4, 4, 5), nn.Flatten()), 100),
    (nn.Sequential(nn.Conv2d(4, 4, 5, groups=2), nn.Flatten()), 50),
])
@pytest.mark.parametrize("bends, used", [(0, 2), (1, 3)])
@pytest.mark.parametrize("above", [False, True])
def test_first_layers_are_mixed_where_that_costs_less_than_computing_them(first, inner, bends, used, above, monkeypatch):
    task = make_task(shape=(4, 5, 5))
    net = nn.Sequential(first, nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)).double()
    points = [draw(net, seed) for seed in range(2 + bends)]
    monkeypatch.setattr(mixtures, "_WORTH", inner / used + (0.1 if above else 0))
    table = ev.evaluate(net, paths.bezier(points) if bends else paths.segment(*points), task, points=5)
    assert table.attrs["way"] == ("one by one" if above else "shared first layer")


def test_weights_that_share_memory_do_not_spoil_the_sharing():
    net, names = built(NETS["dense"])
    flat = torch.randn(sum(p.numel() for p in net.parameters()), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    a = from_vector(flat, draw(net, 1))
    b = {**a, names[-1]: a[names[-1]] + 1}
    path = paths.segment(a, b)
    table = ev.evaluate(net, path, TASK, points=4)
    assert table.attrs["way"] == "shared prefix"
    assert table.nll.iloc[-1] == pytest.approx(ev.evaluate(net, paths.segment(b, a), TASK, points=[0.0]).nll.iloc[-1], rel=1e-12)


def test_parameters_that_do_not_move_keep_every_bit():
    net, names = built(NETS["dense"])
    a = draw(net, 1)
    leg = paths.Mix((a, {**a, names[0]: a[names[0]] + 1}), paths.linear_basis)
    for t in (0.1, 0.3, 0.7):
        point = paths.Path((leg,)).point(t)
        assert all(torch.equal(point[name], a[name]) for name in names[1:])
    scaled = paths.Mix((a, a), lambda s: torch.stack([s, s], -1))
    assert_close(scaled(torch.tensor([0.25]))[names[1]][0], a[names[1]] / 2)


def test_a_pass_that_takes_another_way_is_noticed():
    x = torch.randn(3)
    with torch.no_grad():
        with (recording := Recording([x])):
            x * 2
        with pytest.raises(RuntimeError, match="called aten.add"), recording.again():
            x + 2


def test_views_of_weights_count_as_no_result():
    weight, images = torch.ones(50, 60), torch.ones(2, 60)
    with torch.no_grad(), (recording := Recording([weight])):
        images @ weight.t()
    assert recording.largest == 2 * 50 * weight.itemsize


def test_sharing_does_not_import_the_compiler():
    lines = ("import sys, torch", "from lossland.recording import Recording",
             "with torch.no_grad(), Recording([x := torch.ones(2)]): x + 1", "sys.exit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)]).returncode == 0
