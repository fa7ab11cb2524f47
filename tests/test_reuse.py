"""Shared passes: equal to the last bit to passes of their own, for every kind of network."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from conftest import make_task
from lossland import evaluation as ev
from lossland import mixtures, models, paths, scoring
from lossland.recording import Recording
from lossland.reuse import Batch, Member, Span
from lossland.weights import Weights, skeleton

TASK = make_task(shape=(1, 8, 8))
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


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
