"""Trained weights on disk: a recipe hashes to a folder with ``weights.safetensors`` and a readable ``record.json``.

The same recipe is computed once: a second process waits for the first and reads. A process that is killed leaves its
last checkpoint, and the next one goes on from there. Every file is written beside its place and then renamed, so a file
is either whole or not there; every file has a hash, so a damaged one is seen, moved aside and made again. No pickle.
"""

import errno
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from lossland.files import (Corrupt, cache_folder, canonical, copied, installed_version, opened_record, pack, plain,
                            sealed, sealed_record, set_aside, unpack, unsealed, write_whole)
from lossland.parallel import fetched, ranks

WEIGHTS, RECORD, CHECKPOINT = "weights.safetensors", "record.json", "checkpoint.safetensors"


@dataclass(frozen=True)
class Entry:
    """One finished recipe on disk.

    Attributes:
        record: Contents of ``record.json``: recipe, key, sha256 of the weights file, seconds of computing added up over
            interrupted runs, date [UTC], device, versions, threads, and what the maker added.
        folder: Where it lies.
        fresh: Whether it was made by this call; False: read.
    """

    record: dict[str, Any]
    folder: Path
    fresh: bool = False

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors on the CPU, in the order in which they were made; read on first use and verified.

        Raises:
            ValueError: The file is not the one that the record describes.
        """
        try:
            return _read_weights(self.folder, self.record)
        except Corrupt as error:
            raise ValueError(f"store entry {self.folder}: {error}; fetch() makes it again") from error


class Checkpoint:
    """State of an unfinished computation; `Store.fetch` hands it to the maker.

    Attributes:
        record: Facts the maker wants in ``record.json`` besides the recipe (JSON values). Only what is here when the
            maker returns is kept; what must survive an interruption belongs into `save`'s ``info``.
    """

    def __init__(self, folder: Path) -> None:
        self.record: dict[str, Any] = {}
        self._folder = folder
        self._earlier = 0.0  # seconds spent by interrupted runs, up to their last checkpoint
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, those of the interrupted runs included once `load` has found their state."""
        return self._earlier + time.perf_counter() - self._start

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the last saved (tensors on the CPU, info), or None where there is none.

        A damaged checkpoint is moved to ``corrupt-<n>`` with a warning, and None is returned.
        """
        file = self._folder / CHECKPOINT
        if not file.exists():
            return None
        try:
            tensors, header = unpack(unsealed(file.read_bytes()))
        except Corrupt as error:
            set_aside(self._folder, [CHECKPOINT], f"checkpoint {error}")
            return None
        self._earlier = header["seconds"]
        self._start = time.perf_counter()
        return tensors, header["info"]

    def save(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Replace the saved state: tensors and info in one file, whole or not at all.

        Args:
            tensors: Name -> tensor of any shape, type and device; copied.
            info: JSON values, such as the number of finished epochs.

        Raises:
            ValueError: A tensor holds NaN or an infinite number, or info holds a value that is not JSON.
            TypeError: A value of ``tensors`` is no tensor.
        """
        copies = copied(tensors, "checkpoint")
        header = {"info": plain(info, "info"), "seconds": self.seconds}
        write_whole(self._folder / CHECKPOINT, sealed(pack(copies, header)))


class Store:
    """Folder of finished recipes.

    Args:
        root: Folder; None: the environment variable ``LOSSLAND_STORE``, else ``store`` in `cache_folder`. It is made
            when something is first written.

    Example:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> entry = store.fetch({"seed": 1}, lambda checkpoint: {"w": torch.ones(2)})
        >>> entry.fresh, store.fetch({"seed": 1}, lambda checkpoint: {}).fresh
        (True, False)
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get("LOSSLAND_STORE") or cache_folder() / "store").expanduser()

    def key(self, recipe: Mapping[str, Any]) -> str:
        """Return the name of the recipe's folder: 20 hexadecimal digits of the sha256 of its canonical JSON.

        The order of keys does not matter and a tuple is a list, but 1 and 1.0 are different recipes: JSON writes them
        differently, and to compute once too often is harmless where to reuse wrongly is not.

        Raises:
            ValueError: A value that is not JSON (other types, NaN, infinite), with its place in the recipe.
            TypeError: The recipe is no mapping.
        """
        if not isinstance(recipe, Mapping):
            raise TypeError(f"recipe must be a mapping, got {type(recipe).__name__}")
        return hashlib.sha256(canonical(recipe, "recipe")).hexdigest()[:20]

    def fetch(self, recipe: Mapping[str, Any], make: Callable[[Checkpoint], Mapping[str, Tensor]], *,
              on_wait: Callable[[Path], None] | None = None) -> Entry:
        """Return the recipe's entry; where there is none, make and keep it.

        Args:
            recipe: Everything the result depends on, as JSON values; the number of processes that train together
                (`lossland.parallel`) is added to it.
            make: Gets the `Checkpoint` and returns name -> finite tensor. One process makes, others wait for it; when
                it dies, the next one takes over from its last checkpoint. Processes that train together all make.
            on_wait: Called once with the entry's folder if another process is at work on the recipe.

        Raises:
            ValueError: The recipe is not JSON, or ``make`` returned no tensors, NaN or infinite ones.
            OSError: The root cannot be written; the message names LOSSLAND_STORE.
        """
        if (size := ranks().size) > 1:
            recipe = {**recipe, "ranks": size}
            return fetched(lambda shared: self._fetch(recipe, shared, on_wait), lambda: self.find(recipe), make,
                           lambda: Checkpoint(self.root / self.key(recipe)))
        return self._fetch(recipe, make, on_wait)

    def _fetch(self, recipe: Mapping[str, Any], make: Callable[[Checkpoint], Mapping[str, Tensor]],
               on_wait: Callable[[Path], None] | None) -> Entry:
        found = self.find(recipe)
        if found is not None:
            return found
        key = self.key(recipe)
        with self._locked(key, on_wait):
            return self._verified(key, recipe) or self._make(key, recipe, make)

    def find(self, recipe: Mapping[str, Any]) -> Entry | None:
        """Return the recipe's entry if it is complete and undamaged, else None; nothing is made.

        A damaged entry, or one that holds another recipe, is moved to ``corrupt-<n>`` in its folder with a warning.
        """
        key = self.key(recipe)
        try:
            return self._read(key, recipe)
        except Corrupt:
            with self._locked(key):  # a writer may have been between its two files: look again when it has finished
                return self._verified(key, recipe)

    def entries(self) -> list[Entry]:
        """Return all complete entries, oldest first; their weights are read and verified on first use."""
        found = []
        for folder in self.root.glob("*/"):
            try:
                record = _read_record(folder)
            except Corrupt:
                continue  # fetch() and find() deal with it when its recipe is asked for
            if record is not None and (folder / WEIGHTS).exists():
                found.append(Entry(record, folder))
        return sorted(found, key=lambda entry: (entry.record["date"], entry.folder.name))

    def remove(self, recipe: Mapping[str, Any]) -> None:
        """Delete the recipe's folder, if there is one, its checkpoint and what was set aside included."""
        key = self.key(recipe)
        if (self.root / key).exists():
            with self._locked(key):
                shutil.rmtree(self.root / key)

    def _read(self, key: str, recipe: Mapping[str, Any]) -> Entry | None:
        folder = self.root / key
        record = _read_record(folder)
        if record is None:
            return None
        if canonical(record.get("recipe"), "recipe") != canonical(recipe, "recipe"):
            raise Corrupt("record holds another recipe")
        entry = Entry(record, folder)
        entry.__dict__["tensors"] = _read_weights(folder, record)  # fills the cached property
        return entry

    def _verified(self, key: str, recipe: Mapping[str, Any]) -> Entry | None:
        try:
            return self._read(key, recipe)
        except Corrupt as error:
            set_aside(self.root / key, [WEIGHTS, RECORD], str(error))
            return None

    def _make(self, key: str, recipe: Mapping[str, Any], make: Callable[[Checkpoint], Mapping[str, Tensor]]) -> Entry:
        folder = self.root / key
        for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
        checkpoint = Checkpoint(folder)
        made = make(checkpoint)
        if not made:
            raise ValueError("make must return at least one tensor, got none")
        tensors = copied(made, "weights")
        data = pack(tensors, {})
        record = _facts(checkpoint, next(iter(made.values())).device)
        record |= {"recipe": plain(recipe, "recipe"), "key": key, "sha256": hashlib.sha256(data).hexdigest()}
        write_whole(folder / WEIGHTS, data)
        write_whole(folder / RECORD, sealed_record(record))  # last: it completes the entry
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return Entry(opened_record((folder / RECORD).read_bytes()), folder, fresh=True)

    @contextmanager
    def _locked(self, key: str, on_wait: Callable[[Path], None] | None = None) -> Iterator[None]:
        folder = self.root / key
        lock = FileLock(self.root / f"{key}.lock")  # beside the folder, so that remove() can delete that
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if on_wait is not None:
                    on_wait(folder)
                lock.acquire()
            folder.mkdir(exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            lock.release()
            occupied = isinstance(error, (FileExistsError, NotADirectoryError))
            why = "a file lies there" if occupied else error.strerror or error
            reason = f"store root {self.root} cannot be written ({why})"
            raise OSError(error.errno, f"{reason}: pass another root or set LOSSLAND_STORE") from error
        try:
            yield
        finally:
            lock.release()


def _facts(checkpoint: Checkpoint, device: torch.device) -> dict[str, Any]:
    """Return what the record says about the run: the store's own facts and the maker's."""
    facts = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seconds": round(checkpoint.seconds, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "lossland": installed_version(),
        "python": platform.python_version(), "platform": platform.platform(),
    }
    extra = plain(checkpoint.record, "record")
    reserved = {*facts, "recipe", "key", "sha256", "record_sha256"} - {"device"}  # results may come back on the CPU
    if clash := sorted(reserved & extra.keys()):
        raise ValueError(f"record must not hold {clash[0]!r}: the store writes it")
    return facts | extra


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        return opened_record((folder / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_weights(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        data = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise Corrupt("weights file is missing") from error
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise Corrupt("weights file does not match its hash")
    return unpack(data)[0]
