"""The list of recorded runs (book/record.yml): which are outstanding, and how long they take on this machine."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from chapters import ROOT, find_chapter

LEAST = 0.1  # of an estimate: what a run that was cut off late is still taken to need


@dataclass(frozen=True)
class Recording:
    """One recorded run.

    Attributes:
        chapter: its whole name, such as "02_preserving_distributions".
        scale: of the run.
        dataset: name of the data set, as it stands in the result's file name.
        minutes: estimated on the reference machine; 0: not known.
        device: "cpu", or "gpu" for a run that waits for one.
        rough: whether the estimate has no recorded run behind it.
    """

    chapter: str
    scale: str
    dataset: str
    minutes: float = 0.0
    device: str = "cpu"
    rough: bool = False

    @property
    def name(self) -> str:
        """Return what the run is called in messages and folders."""
        return f"{self.chapter}-{self.scale}-{self.dataset}"

    def result(self, root: Path) -> Path:
        """Return the file of the result."""
        return root / "book" / "results" / self.chapter / f"{self.scale}-{self.dataset}.json"

    def work(self, root: Path) -> Path:
        """Return the folder of the notebook and of what is known of runs that were cut off."""
        return root / "runs" / "record" / self.name

    def spent(self, root: Path) -> float:
        """Return the seconds that runs which were cut off have spent; what they trained is in the store."""
        try:
            return float(json.loads((self.work(root) / "spent.json").read_text(encoding="utf-8"))["seconds"])
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, ValueError):
            return 0.0

    def seconds(self, root: Path, factor: float) -> float:
        """Return the estimated seconds that are left, on a machine that takes `factor` times as long."""
        whole = 60 * self.minutes * factor
        return max(whole - self.spent(root), LEAST * whole)


def listed(root: Path = ROOT) -> list[Recording]:
    """Return the runs of book/record.yml in its order; those of chapters that the book does not have are left out."""
    found = []
    for entry in read_list(root)["runs"]:
        try:
            found.append(Recording(**{**entry, "chapter": find_chapter(entry["chapter"], root).stem}))
        except ValueError:
            continue
    return found


def read_list(root: Path) -> dict[str, Any]:
    """Return what book/record.yml holds: speed and runs."""
    return yaml.safe_load((root / "book" / "record.yml").read_text(encoding="utf-8"))


def outstanding(root: Path = ROOT) -> list[Recording]:
    """Return the runs of the list that have no result yet, in order."""
    return [run for run in listed(root) if not run.result(root).is_file()]


def named(chapter: str, scale: str, dataset: str, root: Path) -> Recording:
    """Return one run, in the list or not.

    Raises:
        ValueError: an unknown chapter; a data set that is no plain name.
    """
    if not re.fullmatch(r"[\w-]+", dataset):
        raise ValueError(f"DATASET must be a name such as mnist, got {dataset!r}; DATA_DIR says where its files lie")
    stem = find_chapter(chapter, root).stem
    bare = Recording(stem, scale, dataset)
    return next((run for run in listed(root) if run.name == bare.name), bare)


def budget_seconds(text: str) -> float:
    """Return the seconds in a text such as "90s", "8m", "1h30m", "2h".

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    if not hours + minutes + seconds:
        raise ValueError(f"BUDGET must be a time such as 90s, 8m, 2h or 1h30m, got {text!r}")
    return 3600 * hours + 60 * minutes + seconds


def spoken(seconds: float) -> str:
    """Return seconds in words: "40 s", "12 min", "3.5 h", "4.2 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def speed(device: str, *, tests: int = 16, pause: float = 0.15) -> float:
    """Measure the steps a second of a small training on a device, in seconds: the best of some short tests.

    Other work on the machine slows down most of them, but hardly all: they are short, and some time apart.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    place = torch.device("cuda" if device == "gpu" else "cpu")
    steps = 200 if device == "gpu" else 3
    images = torch.rand(128, 784, generator=generator).to(place)
    layers = [(torch.randn(shape, generator=generator) / 30).to(place).requires_grad_()
              for shape in ((2000, 784), (10, 2000))]
    labels = (torch.arange(128) % 10).to(place)
    taken = []
    for _ in range(tests):
        time.sleep(pause)
        started = time.perf_counter()
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy((images @ layers[0].T).relu() @ layers[1].T, labels)
            with torch.no_grad():
                for layer, gradient in zip(layers, torch.autograd.grad(loss, layers), strict=True):
                    layer.sub_(gradient, alpha=0.01)
        loss.item()  # waits for a GPU
        taken.append(time.perf_counter() - started)
    return steps / min(taken)


def factors(root: Path) -> dict[str, float]:
    """Return for each device that this machine has how many times as long as the reference it takes: a measurement."""
    import torch

    reference = read_list(root)["speed"]
    there = ["cpu", *(["gpu"] if torch.cuda.is_available() else [])]
    return {device: reference[device] / speed(device) for device in there}


def edition_minutes(root: Path, parameters: dict[str, Any]) -> dict[str, float]:
    """Return number of chapter -> minutes on one core of the reference machine in an edition with these parameters.

    Known are those of the data set digits at some scales, with no other parameter; else nothing is.
    """
    if parameters.keys() - {"scale", "seed", "progress"}:
        return {}
    return read_list(root).get("edition", {}).get(parameters.get("scale"), {})


def data_parameters(dataset: str, data_dir: Path | None) -> dict[str, str]:
    """Return a chapter's parameters for a data set: the .npz file in the folder where there is one, else the name."""
    if data_dir is None:
        return {"dataset": dataset}
    file = data_dir.expanduser().resolve() / f"{dataset}.npz"
    return {"dataset": str(file)} if file.is_file() else {"dataset": dataset, "data_dir": str(file.parent)}


def on_cpu(run: Recording) -> Recording:
    """Return a run that waits for a GPU as one that does not."""
    return replace(run, device="cpu")
