import os

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports triton, as torchvision does: parts that triton decorates without it cannot be interpreted.
    os.environ["TRITON_INTERPRET"] = "1"

from lossland.tasks import Split, Task  # noqa: E402

torch.set_num_threads(1)


def blobs(n: int, seed: int, shape: tuple[int, int, int] = (1, 4, 4), classes: int = 3) -> Split:
    """Images whose brightest block tells the class, with noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 120, (n, *shape), generator=g, dtype=torch.uint8)
    rows = shape[1] // classes or 1
    for c in range(classes):
        images[labels == c, :, c * rows : (c + 1) * rows] += 100
    order = torch.randperm(n, generator=g)
    return Split(images[order], labels[order])


def make_task(shape: tuple[int, int, int] = (1, 4, 4), train: int = 96, test: int = 41, classes: int = 3) -> Task:
    channels = shape[0]
    return Task(name="blobs", train=blobs(train, 0, shape, classes), test=blobs(test, 1, shape, classes), validation=None,
                classes=classes, scale=255.0, mean=(0.0,) * channels, std=(1.0,) * channels, augment="none", note="made here",
                fingerprint=f"blobs-{shape}-{train}-{test}-{classes}")


class Memory:
    """A checkpoint in memory that can fail after some epochs or steps."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.saved, self.fail_after = None, fail_after

    def load(self):
        return self.saved

    def save(self, tensors, info):
        if self.fail_after is not None and self.fail_after == info.get("epoch", info.get("step")):
            raise InterruptedError
        self.saved = {k: v.clone() for k, v in tensors.items()}, {**info, "history": list(info["history"])}


@pytest.fixture(scope="session")
def task() -> Task:
    return make_task()
