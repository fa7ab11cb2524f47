"""The store computes a recipe once, survives kills and damage, and never reuses anything that does not match."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lossland.files
from lossland.store import CHECKPOINT, RECORD, WEIGHTS, Checkpoint, Store

RECIPE = {"model": "mlp", "width": 10, "lr": 0.01, "seed": 1}
EPOCHS = 6


def train(checkpoint: Checkpoint, die_after: int = 0, log: Path | None = None) -> dict[str, Tensor]:
    """A made-up training of `EPOCHS` epochs that draws random numbers; kills itself after ``die_after`` epochs."""
    generator = torch.Generator().manual_seed(3)
    weights, epoch = torch.zeros(5), 0
    state = checkpoint.load()
    if state is not None:
        tensors, info = state
        weights, epoch = tensors["weights"], info["epoch"]
        generator.set_state(tensors["generator"])
    for epoch in range(epoch, EPOCHS):
        weights = 0.9 * weights + torch.randn(5, generator=generator)
        checkpoint.save({"weights": weights, "generator": generator.get_state()}, {"epoch": epoch + 1})
        if log is not None:
            with log.open("a") as file:
                file.write(f"{epoch}\n")
        if epoch + 1 == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"weights": weights}


def never(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A maker that must not be called."""
    raise AssertionError("made again")


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "lossland.store", "pytest"])  # imported once for all of them


def exit_code(target: Callable[..., None], *arguments: object) -> int:
    """Run a function in a process of its own; -9: it was killed."""
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def fetch_and_die(root: Path, epoch: int, log: Path | None = None) -> None:
    """Train and be killed after some epochs."""
    Store(root).fetch(RECIPE, lambda checkpoint: train(checkpoint, epoch, log))


def die_in_write(root: Path, name: str, half: bool) -> None:
    """Train and be killed while a file is written: with half of it there, or just before it is renamed."""
    replaced = []

    def die(source: Path, target: Path) -> None:
        replaced.append(target)
        if target.name != name or (name == CHECKPOINT and len(replaced) <= 3):
            return replace(source, target)
        if half:
            os.truncate(source, source.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    replace, lossland.files.os.replace = os.replace, die
    Store(root).fetch(RECIPE, train)


def die_at_once(root: Path) -> None:
    """Be killed while the lock is held."""
    Store(root).fetch(RECIPE, lambda checkpoint: os.kill(os.getpid(), signal.SIGKILL))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def flip(file: Path, position: int = -1) -> None:
    """Change one byte of the file."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


# keys

def test_key_does_not_depend_on_the_order_of_names_nor_on_tuple_or_list(store: Store) -> None:
    assert store.key({"a": 1, "b": {"c": (1, 2), "d": None}}) == store.key({"b": {"d": None, "c": [1, 2]}, "a": 1})


def test_key_differs_for_every_value_and_for_int_and_float(store: Store) -> None:
    recipes = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"b": 1}, {"a": 0.1},
               {"a": 0.1 + 2 ** -56}, {"a": "é"}, {"a": "e\u0301"}, {}]
    keys = {store.key(recipe) for recipe in recipes}
    assert len(keys) == len(recipes)
    assert all(len(key) == 20 and int(key, 16) >= 0 for key in keys)


def test_key_is_the_hash_of_the_canonical_text(store: Store) -> None:
    text = b'{"lr":0.01,"model":"mlp","seed":1,"width":10}'
    assert store.key(RECIPE) == hashlib.sha256(text).hexdigest()[:20]


@pytest.mark.parametrize(("recipe", "says"), [
    ({"a": {"b": [1, torch.ones(1)]}}, r"recipe\.a\.b\[1\] must be a JSON value .* got tensor\(\[1.\]\) \(Tensor\)"),
    ({"lr": float("nan")}, "recipe.lr must be finite, got nan"),
    ({"lr": float("-inf")}, "recipe.lr must be finite, got -inf"),
    ({"a": {1: 2}}, "recipe.a must have strings as keys, got 1"),
    ({"a": {1, 2}}, r"recipe.a must be a JSON value .*\(set\)"),
])
def test_recipe_that_is_not_json_names_the_place(store: Store, recipe: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        store.fetch(recipe, never)


def test_recipe_that_is_no_mapping_is_refused(store: Store) -> None:
    with pytest.raises(TypeError, match="recipe must be a mapping, got list"):
        store.key([1])  # type: ignore[arg-type]


# reading and writing

def test_second_fetch_reads_what_the_first_made(store: Store) -> None:
    made = store.fetch(RECIPE, train)
    read = store.fetch(RECIPE, never)
    assert (made.fresh, read.fresh) == (True, False)
    torch.testing.assert_close(made.tensors, read.tensors, rtol=0, atol=0)
    assert made.record == read.record
    assert sorted(file.name for file in made.folder.iterdir()) == [RECORD, WEIGHTS]


def test_tensors_keep_type_shape_order_and_values(store: Store) -> None:
    buffer = torch.randn(6, generator=torch.Generator().manual_seed(0))
    tensors = {"z.ü": torch.tensor([1.5, -2.25], dtype=torch.bfloat16), "a": torch.eye(3, dtype=torch.float64).T,
               "count": torch.tensor(2**40), "flags": torch.tensor([True, False]), "none": torch.zeros(0, 3),
               "view": buffer[:4].view(2, 2), "same memory": buffer[2:], "half": torch.ones(1, dtype=torch.float16)}
    read = store.fetch(RECIPE, lambda checkpoint: tensors).tensors
    assert list(read) == list(tensors)
    torch.testing.assert_close(read, tensors, rtol=0, atol=0)


def test_record_tells_recipe_hash_versions_and_the_makers_facts(store: Store) -> None:
    def make(checkpoint: Checkpoint) -> dict[str, Tensor]:
        checkpoint.record["accuracy"] = 0.5
        checkpoint.record["device"] = "a GPU"
        return {"w": torch.ones(1)}

    recipe = {"name": "Ünï → 木 \U0001f600 \ud800", "sizes": (1, 2)}
    entry = store.fetch(recipe, make)
    record = json.loads((entry.folder / RECORD).read_bytes())
    assert record == entry.record == store.find(recipe).record
    assert record["recipe"] == {"name": recipe["name"], "sizes": [1, 2]}
    assert "木".encode() in (entry.folder / RECORD).read_bytes()
    assert record["key"] == entry.folder.name == store.key(recipe)
    assert (record["accuracy"], record["device"], record["torch"]) == (0.5, "a GPU", torch.__version__)
    assert {"sha256", "seconds", "date", "threads", "lossland", "python", "platform"} <= record.keys()
    assert record["date"].endswith("+00:00")


def test_record_does_not_let_the_maker_replace_the_stores_facts(store: Store) -> None:
    def make(checkpoint: Checkpoint) -> dict[str, Tensor]:
        checkpoint.record["seconds"] = 0
        return {"w": torch.ones(1)}

    with pytest.raises(ValueError, match="record must not hold 'seconds'"):
        store.fetch(RECIPE, make)
    assert store.find(RECIPE) is None


@pytest.mark.parametrize(("made", "error", "says"), [
    ({"w": torch.tensor([1.0, float("nan")])}, ValueError, "weights 'w' must be finite"),
    ({"w": torch.tensor(float("inf"))}, ValueError, "weights 'w' must be finite"),
    ({}, ValueError, "make must return at least one tensor"),
    ({"a": torch.ones(1), "w": [1.0]}, TypeError, "weights 'w' must be a tensor, got list"),
])
def test_bad_weights_are_refused_and_nothing_is_kept(store: Store, made: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        store.fetch(RECIPE, lambda checkpoint: made)
    assert store.find(RECIPE) is None and store.entries() == []
    assert store.fetch(RECIPE, train).fresh


def test_bad_checkpoint_is_refused_and_the_last_good_one_stays(store: Store) -> None:
    def make(checkpoint: Checkpoint) -> dict[str, Tensor]:
        checkpoint.save({"w": torch.ones(2)}, {"epoch": 1})
        with pytest.raises(ValueError, match="checkpoint 'w' must be finite"):
            checkpoint.save({"w": torch.tensor([1.0, float("nan")])}, {"epoch": 2})
        with pytest.raises(ValueError, match="info.loss must be finite"):
            checkpoint.save({"w": torch.ones(2)}, {"loss": float("nan")})
        tensors, info = checkpoint.load()
        assert info == {"epoch": 1}
        return tensors

    torch.testing.assert_close(store.fetch(RECIPE, make).tensors["w"], torch.ones(2))


def test_entries_lists_complete_ones_and_remove_deletes(store: Store) -> None:
    assert store.entries() == []
    for seed in range(3):
        store.fetch({"seed": seed}, lambda checkpoint: {"w": torch.full((1,), float(seed))})
    with pytest.raises(RuntimeError, match="stop"):
        store.fetch({"seed": 9}, stop)
    assert sorted(entry.record["recipe"]["seed"] for entry in store.entries()) == [0, 1, 2]
    assert all(entry.tensors["w"].item() == entry.record["recipe"]["seed"] for entry in store.entries())
    store.remove({"seed": 1})
    store.remove({"seed": 5})
    assert store.find({"seed": 1}) is None and len(store.entries()) == 2


def stop(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A maker that fails after its first checkpoint."""
    checkpoint.save({"w": torch.ones(1)}, {})
    raise RuntimeError("stop")


def test_environment_variable_moves_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOSSLAND_STORE", str(tmp_path / "there"))
    assert Store().root == tmp_path / "there"
    assert Store(tmp_path / "here").root == tmp_path / "here"
    monkeypatch.delenv("LOSSLAND_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Store().root == tmp_path / "cache" / "lossland" / "store"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Store().root == Path.home() / ".cache" / "lossland" / "store"


@pytest.mark.parametrize("below", ["", "deeper"])
def test_root_that_cannot_be_written_names_the_variable(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"store root .*file.* cannot be written \(a file lies there\): .*set LOSSLAND_STORE"):
        Store(tmp_path / "file" / below).fetch(RECIPE, never)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_read_only_root_is_refused_but_complete_entries_are_read(store: Store) -> None:
    store.fetch(RECIPE, train)
    store.root.chmod(0o555)
    try:
        assert not store.fetch(RECIPE, never).fresh
        with pytest.raises(OSError, match="cannot be written .*set LOSSLAND_STORE"):
            store.fetch({"other": 1}, never)
    finally:
        store.root.chmod(0o755)


# damage

@pytest.mark.parametrize("name", [WEIGHTS, RECORD])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_entry_is_set_aside_and_made_again(store: Store, name: str, damage: str) -> None:
    first = store.fetch(RECIPE, train)
    tensors, file = first.tensors, first.folder / name
    if damage == "flip":
        flip(file, file.read_bytes().index(b'"threads": ') + 11 if name == RECORD else -1)
    else:
        file.write_bytes(file.read_bytes()[:-20] if damage == "truncate" else b"")
    damaged = file.read_bytes()
    with pytest.warns(UserWarning, match=f"{first.folder}: .*; moved to corrupt-1, to be made again"):
        second = store.fetch(RECIPE, train)
    assert second.fresh and (first.folder / "corrupt-1" / name).read_bytes() == damaged
    torch.testing.assert_close(second.tensors, tensors, rtol=0, atol=0)
    flip(file)
    with pytest.warns(UserWarning, match="moved to corrupt-2"):
        assert store.find(RECIPE) is None


def test_missing_weights_are_noticed(store: Store) -> None:
    (store.fetch(RECIPE, train).folder / WEIGHTS).unlink()
    with pytest.warns(UserWarning, match="weights file is missing; moved to corrupt-1"):
        assert store.fetch(RECIPE, train).fresh


def test_listed_entry_with_damaged_weights_says_so(store: Store) -> None:
    flip(store.fetch(RECIPE, train).folder / WEIGHTS)
    with pytest.raises(ValueError, match="weights file does not match its hash; fetch\\(\\) makes it again"):
        _ = store.entries()[0].tensors


def test_record_of_another_recipe_is_not_reused(store: Store) -> None:
    other = store.fetch({"seed": 2}, lambda checkpoint: {"weights": torch.ones(5)})
    shutil.copytree(other.folder, store.root / store.key(RECIPE))
    with pytest.warns(UserWarning, match="record holds another recipe"):
        entry = store.fetch(RECIPE, train)
    assert entry.fresh and entry.record["recipe"] == RECIPE


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_damaged_checkpoint_is_set_aside_and_training_starts_again(store: Store, tmp_path: Path, where: str) -> None:
    expected = Store(tmp_path / "other").fetch(RECIPE, train).tensors
    assert exit_code(fetch_and_die, store.root, 3) == -signal.SIGKILL
    file = store.root / store.key(RECIPE) / CHECKPOINT
    flip(file, {"first": 0, "middle": file.read_bytes().index(b"epoch"), "last": -1}[where])
    with pytest.warns(UserWarning, match="checkpoint does not match its hash; moved to corrupt-1"):
        entry = store.fetch(RECIPE, train)
    torch.testing.assert_close(entry.tensors, expected, rtol=0, atol=0)
    assert (entry.folder / "corrupt-1" / CHECKPOINT).exists()


def test_every_flipped_byte_of_a_checkpoint_is_noticed() -> None:
    packed = lossland.files.pack({"w": torch.arange(3.0)}, {"sha256": "0" * 64, "text": '"sha256":"' + "1" * 64 + '"'})
    file = lossland.files.sealed(packed)
    assert lossland.files.unsealed(file) == packed
    for position in range(len(file)):
        with pytest.raises(lossland.files.Corrupt):
            lossland.files.unsealed(file[:position] + bytes([file[position] ^ 1]) + file[position + 1:])


# kills

@pytest.mark.parametrize("epoch", [1, 4, EPOCHS])
def test_killed_training_resumes_and_equals_the_uninterrupted_one(store: Store, tmp_path: Path, epoch: int) -> None:
    expected = Store(tmp_path / "other").fetch(RECIPE, train).tensors
    log = tmp_path / "log"
    assert exit_code(fetch_and_die, store.root, epoch, log) == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entry = store.fetch(RECIPE, lambda checkpoint: train(checkpoint, log=log))
    torch.testing.assert_close(entry.tensors, expected, rtol=0, atol=0)
    assert log.read_text().split() == [str(n) for n in range(EPOCHS)]
    assert sorted(file.name for file in entry.folder.iterdir()) == [RECORD, WEIGHTS]


@pytest.mark.parametrize("name", [CHECKPOINT, WEIGHTS, RECORD])
@pytest.mark.parametrize("half", [True, False])
def test_kill_in_the_middle_of_a_write_loses_nothing(store: Store, tmp_path: Path, name: str, half: bool) -> None:
    expected = Store(tmp_path / "other").fetch(RECIPE, train).tensors
    assert exit_code(die_in_write, store.root, name, half) == -signal.SIGKILL
    assert any(file.suffix == ".tmp" for file in (store.root / store.key(RECIPE)).iterdir())
    assert store.find(RECIPE) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entry = store.fetch(RECIPE, train)
    torch.testing.assert_close(entry.tensors, expected, rtol=0, atol=0)
    assert sorted(file.name for file in entry.folder.iterdir()) == [RECORD, WEIGHTS]


def test_seconds_are_added_up_over_interrupted_runs(store: Store) -> None:
    def make(checkpoint: Checkpoint) -> dict[str, Tensor]:
        if checkpoint.load() is None:
            checkpoint._start -= 100  # as if 100 seconds had passed
            checkpoint.save({"w": torch.ones(1)}, {})
            raise KeyboardInterrupt
        checkpoint._start -= 10
        return {"w": torch.ones(1)}

    with pytest.raises(KeyboardInterrupt):
        store.fetch(RECIPE, make)
    assert 110 <= store.fetch(RECIPE, make).record["seconds"] < 115


# two processes

def compete(root: Path, log: Path, ready: multiprocessing.Barrier, results: multiprocessing.Queue) -> None:
    """Fetch at the same time as another process; log every epoch that is computed."""
    ready.wait()
    waited: list[str] = []
    entry = Store(root).fetch(RECIPE, lambda checkpoint: slow(checkpoint, log), on_wait=lambda f: waited.append(f.name))
    results.put((entry.fresh, waited, entry.tensors["weights"].tolist()))


def slow(checkpoint: Checkpoint, log: Path) -> dict[str, Tensor]:
    """A training of a second, so that the other process surely comes meanwhile."""
    made = train(checkpoint, log=log)
    time.sleep(1.0)
    return made


def test_of_two_processes_one_makes_and_the_other_waits_and_reads(store: Store, tmp_path: Path) -> None:
    ready, results, log = PROCESSES.Barrier(2), PROCESSES.Queue(), tmp_path / "log"
    processes = [PROCESSES.Process(target=compete, args=(store.root, log, ready, results)) for _ in range(2)]
    for process in processes:
        process.start()
    got = sorted((results.get(timeout=60) for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join()
    (read, waited, theirs), (fresh, unhindered, ours) = got
    assert (read, fresh) == (False, True)
    assert (waited, unhindered) == ([store.key(RECIPE)], [])
    assert theirs == ours
    assert log.read_text().split() == [str(n) for n in range(EPOCHS)]


def test_lock_is_free_after_an_error_and_after_a_kill(store: Store) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        store.fetch(RECIPE, stop)
    assert exit_code(die_at_once, store.root) == -signal.SIGKILL
    waited: list[Path] = []
    assert store.fetch(RECIPE, lambda checkpoint: {"w": torch.ones(1)}, on_wait=waited.append).fresh
    assert waited == []
