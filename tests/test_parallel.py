"""Two processes that train together give what one gives; one all-reduce a step, however many control points there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_task

import lossland as ll
from lossland.models import initial_weights
from lossland.parallel import Ranks
from lossland.recipes import fitted, network
from lossland.torchrun import joined
from lossland.training import fit

SCRIPT = '''
import json, sys
from pathlib import Path
from torch import distributed
from test_parallel import cases, run
calls = []
real = distributed.all_reduce
distributed.all_reduce = lambda *a, **k: (calls.append(1), real(*a, **k))
found = {}
for name in cases():
    calls.clear()
    found[name] = [run(name, sys.argv[1]), len(calls)]
    found[name + ", again"] = [run(name, sys.argv[1]), len(calls)]
Path(sys.argv[1], f"rank{distributed.get_rank()}.json").write_text(json.dumps(found))
'''
EPOCHS, BATCHES = 2, 4  # 98 images in batches of 32: the last one has two


def cases():
    """Return name -> what is trained; 98 images leave a last batch of two, which one process gets alone."""
    plain = {"epochs": EPOCHS, "lr": 0.05, "batch_size": 32, "precision": "float64"}
    return {"network": (1, {"weight_decay": 1e-2}, plain), "one bend": (3, {"decay_on": "sampled"}, plain),
            "five bends": (7, {"clip": 0.5}, plain), "two draws": (3, {"draws": 2}, plain),
            "batch norm": (1, {}, plain)}


def run(name, folder):
    """Train a case and return the sum and the norm of what was trained, its losses, and what is kept in the store."""
    points, changes, plain = cases()[name]
    task = make_task((1, 8, 8), train=98)
    net = network(task, "conv2fc1", channels=(2, 3), norm="batch") if name == "batch norm" else network(task, "mlp", width=7)
    recipe = ll.Recipe(**{**plain, **changes})
    ends = [initial_weights(net, torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2)]
    family = ll.bezier(*ends, bends=points - 2) if points > 2 else ll.point(ends[0])
    done = fitted(family, net, task, recipe, seed=3, store=Path(folder, "store"))
    vectors = [torch.cat([tensor.flatten() for tensor in weights.values()]) for weights in done.family.points]
    return [float(sum(v.sum() for v in vectors)), [float(v.norm()) for v in vectors],
            done.history.loss.tolist(), done.history.accuracy.tolist()]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Return what two processes of torchrun found, and the folder with their store."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "train.py").write_text(SCRIPT)
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lossland.torchrun",
               "train.py", str(folder)]
    env = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "RuntimeWarning" not in done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)], folder


@pytest.mark.parametrize("name", [name for name in cases() if name != "batch norm"])
def test_two_processes_train_what_one_does(together, tmp_path, name):
    torch.testing.assert_close(together[0][0][name][0], run(name, tmp_path), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", cases())
def test_all_processes_have_the_same_weights_and_read_them_again(together, name):
    first, second = together[0]
    assert first[name][0] == second[name][0] == first[name + ", again"][0] == second[name + ", again"][0]


@pytest.mark.parametrize("name", ["network", "one bend", "five bends", "batch norm"])
def test_a_step_has_one_all_reduce_however_many_control_points_there_are(together, name):
    assert together[0][0][name][1] == together[0][1][name + ", again"][1] == EPOCHS * BATCHES


def test_runs_of_two_processes_are_kept_as_such(together, tmp_path):
    ranks = [json.loads(file.read_text())["recipe"].get("ranks") for file in (together[1] / "store").glob("*/record.json")]
    assert ranks == [2] * len(cases())
    run("network", together[1])
    assert len(list((together[1] / "store").glob("*/record.json"))) == len(cases()) + 1


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 128])
def test_shares_make_up_the_batch_and_are_two_images_or_none(size, count):
    shares = [range(count)[Ranks(rank, size).share(count)] for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert all(len(share) != 1 for share in shares) or count == 1


def test_without_torchrun_it_says_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="torchrun --standalone --nproc-per-node 2 -m lossland.torchrun SCRIPT.py"):
        with joined():
            pass


def test_similarity_is_refused_where_several_train_together(monkeypatch):
    monkeypatch.setattr("lossland.training.ranks", lambda: Ranks(0, 2))
    task = make_task()
    net = network(task, "mlp", width=7)
    ends = [initial_weights(net, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    with pytest.raises(ValueError, match="similarity must be 0 where 2 processes train together"):
        fit(net, ll.line(*ends), task, ll.Recipe(epochs=1, lr=0.1, draws=2, similarity=1.0))
