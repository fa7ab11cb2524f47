"""The GPU kernels against the plain torch versions: compiled where there is a GPU, else by triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu
from torch.testing import assert_close

from conftest import make_task
from lossland import evaluation as ev
from lossland import kernels, models, paths
from lossland.evaluation.dense import one_hidden
from lossland.evaluation.walks import swept
from lossland.kernels import gpu, reference

COMPILED = torch.cuda.is_available()
DEVICE = "cuda" if COMPILED else "cpu"

pytest.importorskip("triton")
from lossland.kernels import _triton, _triton_scores  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, about NaN, in the interpreter
ACTIVATIONS = {"relu": None, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": silu, "gelu": gelu}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def leg(k: int = 2, images: int = 37, units: int = 10, points: int = 5, classes: int = 3, *,
        dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return random arguments of `path_scores`; logits are about as large as those of networks."""
    return [draw(k, images, units, dtype=dtype), draw(points, k, seed=1), draw(k, classes, units, seed=2, dtype=dtype) / units**0.5,
            draw(k, classes, seed=3, dtype=dtype), torch.arange(images, device=DEVICE) * 7 % classes]


def assert_equal_scores(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float = 1e-10, ties: int = 0) -> None:
    """`ties`: images that may fall into the other of two bins, or classes."""
    images = float(wanted[2][0, 0].sum())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float64 and one.shape == other.shape
        assert one.device.type == DEVICE
    assert_close(found[0], wanted[0], rtol=tolerance, atol=tolerance * images, equal_nan=True)
    assert_close(found[1], wanted[1], rtol=0, atol=ties)
    assert_close(found[2][:, [0, 2]], wanted[2][:, [0, 2]], rtol=0, atol=ties)
    assert_close(found[2][:, 1], wanted[2][:, 1], rtol=tolerance, atol=tolerance * images + ties, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(2, 37, 10, 5, 3), (1, 1, 1, 1, 1), (3, 130, 17, 6, 16), (4, 5, 33, 2, 17), (2, 150, 20, 3, 70), (2, 3, 40, 1, 64),
                                   (2, 300, 18, 3, 10), (1, 9, 5, 2, 34)])
def test_path_scores_equal_the_reference(shape, dtype):
    args = leg(*shape, dtype=dtype)
    assert_equal_scores(_triton.path_scores(*args), reference.path_scores(*args), TOLERANCE[dtype], ties=dtype == torch.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name):
    args = leg()
    found = _triton.path_scores(*args, activation=name)
    assert_equal_scores(found, reference.path_scores(*args, activation=ACTIVATIONS[name]))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0])
def test_what_is_not_finite_is_so_in_the_scores_and_never_a_hit(name, value):
    args = leg()
    args[1] = args[1].abs()
    args[0][1, 36, 0] = value
    found, wanted = _triton.path_scores(*args, activation=name), reference.path_scores(*args, activation=ACTIVATIONS[name])
    assert_equal_scores(found, wanted)
    if value != value:
        assert found[0].isnan().all() and not found[2][:, 1, 1:].isnan().any()


def test_heads_and_biases_that_are_not_finite_are_found():
    for part in (2, 3):
        args = leg()
        args[part][1, 2] = float("nan")
        nll, hits, _ = _triton.path_scores(*args)
        assert nll.isnan().all() and not hits.any()


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_products_of_single_precision_may_be_made_of_shorter_ones(precision):
    args = leg(2, 70, 100, 3, 10, dtype=torch.float32)
    error = (_triton.path_scores(*args, precision=precision)[0] - reference.path_scores(*(a.double() for a in args[:4]), args[4])[0]).abs().max() / 70
    assert error < (3e-3 if precision == "tf32" else 3e-6)


def test_bfloat16_is_added_up_in_single_precision():
    args = leg(2, 70, 100, 5, 10, dtype=torch.bfloat16)
    assert_close(_triton.path_scores(*args)[0] / 70, reference.path_scores(*(a.double() for a in args[:4]), args[4])[0] / 70, rtol=0, atol=3e-2)


@pytest.mark.parametrize("wrong, message", [({"activation": "rely"}, "activation.*did you mean 'relu'"), ({"precision": "tf32x"}, "precision.*tf32x3")])
def test_what_the_kernel_does_not_know_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        _triton.path_scores(*leg(), **wrong)


def test_views_of_one_product_are_read_where_they_are():
    args = leg(3)
    wanted = _triton.path_scores(*args)
    whole = torch.cat(list(args[0]), 1)  # (N, k n)
    views = list(whole.split(10, 1))
    every, strides = _triton.strided(views)
    assert every.data_ptr() == whole.data_ptr() and strides == (10, 30)
    for features in (views, list(args[0]), [args[0][0].T.contiguous().T, *args[0][1:]], [one.clone() for one in args[0]]):
        assert_equal_scores(_triton.path_scores(features, *args[1:]), wanted, 1e-14)
    gaps = [args[1].T.contiguous().T, args[2].transpose(1, 2).contiguous().transpose(1, 2), args[3], args[4].repeat_interleave(2)[::2]]
    assert_equal_scores(_triton.path_scores(views, *gaps), wanted, 1e-14)


def test_heads_mixed_in_parts_give_the_same(monkeypatch):
    args = leg(points=7)
    wanted = _triton.path_scores(*args)
    monkeypatch.setattr(_triton, "HEADS", 2 * 10 * 16 * 8)
    for one, other in zip(_triton.path_scores(*args), wanted, strict=True):
        assert torch.equal(one, other)


def test_results_are_the_same_to_the_last_bit_every_time():
    args = leg(2, 1030, 3, 1, 2, dtype=torch.float32)
    for one, other in zip(_triton.path_scores(*args), _triton.path_scores(*args), strict=True):
        assert torch.equal(one, other)


def test_of_equal_logits_the_first_class_counts():
    args = leg(classes=5)
    args[2], args[3] = args[2][:, :1].repeat(1, 5, 1), args[3][:, :1].repeat(1, 5)
    assert torch.equal(_triton.path_scores(*args)[1], torch.full((5,), 8.0, dtype=torch.float64, device=DEVICE))
    logits = draw(1, 6, 300).clamp(max=1)  # the largest is in several tiles of classes
    labels = logits[0].argmax(1)
    assert _triton_scores.class_scores(logits, labels)[1] == 6
    assert _triton_scores.class_scores(logits, labels + 1)[1] == 0
    logits.fill_(-float("inf"))
    assert _triton_scores.class_scores(logits, torch.zeros_like(labels))[1] == reference.class_scores(logits, torch.zeros_like(labels))[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("points, images, classes", [(1, 1, 1), (3, 37, 10), (2, 131, 3), (2, 9, 130), (1, 5, 300), (5, 17, 17)])
def test_class_scores_equal_the_reference(points, images, classes, dtype):
    logits, labels = 3 * draw(points, images, classes, dtype=dtype), torch.arange(images, device=DEVICE) % classes
    found = _triton_scores.class_scores(logits, labels)
    assert_equal_scores(found, reference.class_scores(logits, labels), TOLERANCE.get(dtype, 2e-5), ties=dtype != torch.float64)
    columns = logits.transpose(1, 2).contiguous().transpose(1, 2)
    assert_equal_scores(_triton_scores.class_scores(columns, labels), found, 1e-14)


@pytest.mark.parametrize("bins", [1, 15, 20, 32])
def test_bins_are_closed_on_the_right(bins):
    logits = torch.zeros(1, 4, 4, dtype=torch.float64, device=DEVICE)
    logits[0, :, 0] = torch.tensor([0.0, 800.0, 1.0, float("nan")])  # confidences 1/4, 1, 0.475; the last is not counted as sure
    labels = torch.tensor([0, 0, 1, 0], device=DEVICE)
    assert_equal_scores(_triton_scores.class_scores(logits, labels, bins), reference.class_scores(logits, labels, bins))


@pytest.mark.parametrize("label", [-1, 3, 10**6])
def test_a_label_that_is_no_class_spoils_the_loss(label):
    args = leg()
    args[4][3] = label
    assert _triton.path_scores(*args)[0].isnan().all()
    nll, hits, _ = _triton_scores.class_scores(draw(2, 37, 3), args[4])
    assert nll.isnan().all() and hits.max() <= 36


@pytest.mark.parametrize("row", [[float("inf"), 0, 0], [-float("inf"), 0, 1], [float("nan"), 9, 1], [float("inf")] * 3, [-float("inf")] * 3])
def test_logits_that_are_not_finite_are_scored_like_the_reference(row):
    logits = draw(2, 5, 3)
    logits[1, 2] = torch.tensor(row)
    for label in range(3):
        labels = torch.full((5,), label, device=DEVICE)
        assert_equal_scores(_triton_scores.class_scores(logits, labels), reference.class_scores(logits, labels))


def test_tiles_of_classes_may_have_no_finite_logit():
    logits, labels = draw(1, 3, 300), torch.tensor([0, 150, 299], device=DEVICE)
    logits[..., :128] = -float("inf")  # all of the first tile
    assert_equal_scores(_triton_scores.class_scores(logits, labels), reference.class_scores(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("units, images, swaps, classes", [(6, 37, 3, 5), (2, 1, 1, 1), (9, 150, 20, 10), (7, 9, 17, 70)])
def test_swap_scores_equal_the_reference(units, images, swaps, classes, dtype):
    z, head = draw(units, images, dtype=dtype), draw(classes, units, seed=1, dtype=dtype)
    pairs = torch.stack([torch.arange(swaps) % units, (torch.arange(swaps) + 1) % units], 1).to(DEVICE)
    u, labels = torch.linspace(0, 1, swaps, dtype=dtype, device=DEVICE), torch.arange(images, device=DEVICE) % classes
    args = head @ z.relu() + draw(classes, 1, seed=2, dtype=dtype), z, head, (pairs, u), labels
    found = _triton_scores.swap_scores(*args)
    assert_equal_scores(found, reference.swap_scores(*args), TOLERANCE[dtype] * 5, ties=dtype == torch.float32)
    at_rest = _triton_scores.class_scores(args[0].T[None], labels)
    assert_equal_scores(tuple(one[:1] for one in found), at_rest, TOLERANCE[dtype] / 5, ties=dtype == torch.float32)
    assert all(torch.equal(one[-1], one[0]) for one in found)  # u = 0 and 1
    z[0, 0] = float("nan")
    assert_equal_scores(_triton_scores.swap_scores(*args), reference.swap_scores(*args), TOLERANCE[dtype] * 5, ties=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k, size, points", [(1, 1, 1), (2, 1025, 17), (3, 40, 33), (4, 1024, 16)])
def test_mixtures_are_the_matrix_product(k, size, points, dtype):
    w, c = draw(k, size, dtype=dtype), draw(points, k, seed=1)
    found = _triton_scores.mix(w, c)
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-6}.get(dtype, 1e-14)
    assert_close(found.double(), c @ w.double(), rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("net, way", [("mlp", "triton"), ("tanh", "triton"), ("softplus", "fused")])
def test_evaluate_uses_the_kernels_on_a_gpu(net, way, monkeypatch):
    if not COMPILED:
        monkeypatch.setattr(gpu, "serves", lambda tensor, points=1: tensor.dtype in gpu.DTYPES and points <= gpu.POINTS)
    task = make_task(shape=(1, 4, 4), train=40, test=20).to(DEVICE)
    act = {"tanh": torch.nn.Tanh(), "softplus": torch.nn.Softplus()}
    net = (models.build("mlp", task.input_shape, 3, width=7) if net == "mlp" else
           torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 7), act[net], torch.nn.Linear(7, 3)))
    ends = [{name: draw(*p.shape, seed=seed) for name, p in net.named_parameters()} for seed in range(3)]
    for path in (paths.segment(*ends[:2]), paths.arc(*ends)):
        found, wanted = (ev.evaluate(net, path, task, points=9, exact=exact) for exact in (False, True))
        assert found.attrs["way"] == way and wanted.attrs["way"] == "reference"
        for column in ("nll", "accuracy", "ece"):
            assert (found[column] - wanted[column]).abs().max() < 1e-10
        assert swept(one_hidden(net), path, 1001) == (way == "triton")


def test_tensors_of_a_cpu_are_not_the_kernels():
    assert not gpu.serves(torch.zeros(1)) and not gpu.serves(torch.zeros(1), 2)
    assert kernels.path_way(torch.eye(2), [torch.zeros(3, 4)] * 2) == "fused"


WITHOUT_A_GPU = """
import sys
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
import torch

class Absent:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = get_current_stream = staticmethod(lambda *_: 0)

driver.set_active(Absent())
run, made = JITFunction.run, set()

def compiled(self, *args, warmup=False, **options):
    binary = run(self, *args, warmup=True, **options)
    assert binary.asm["cubin"]
    made.add(self.__name__)
    return binary

JITFunction.run = compiled
from lossland.kernels import _triton, _triton_scores
how = _triton._how
_triton._how = lambda *a, **b: (how(*a, **b)[0]._replace(wide=False), how(*a, **b)[1])
labels = torch.zeros(9, dtype=torch.int64)
for dtype, k, classes in ((torch.float32, 2, 10), (torch.bfloat16, 3, 100)):
    ones = [torch.ones(k, *shape, dtype=dtype) for shape in ((9, 16), (classes, 16), (classes,))]
    _triton.path_scores(ones[0], torch.ones(1, k), *ones[1:], labels)
_triton_scores.class_scores(torch.ones(2, 9, 130), labels)
_triton_scores.swap_scores(torch.ones(3, 9), torch.ones(4, 9), torch.ones(3, 4), (torch.zeros(2, 2, dtype=torch.int64), torch.ones(2)), labels)
assert made == {"_path", "_mix", "_tally", "_class_scores", "_swaps"}, made
"""


@pytest.mark.skipif(COMPILED, reason="the other tests compile the kernels")
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_GPU], env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]


def test_triton_was_not_imported_before_the_interpreter_was_chosen():
    """As torchvision, imported by other tests, would: triton's own functions stay compiled ones then."""
    from triton.language import standard

    assert type(standard.zeros).__name__ == ("JITFunction" if COMPILED else "InterpretedFunction")


def test_the_benchmark_runs_in_the_interpreter():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_kernels", "--device", "cpu"], capture_output=True, text=True,
                          check=False, cwd=Path(__file__).parents[1])
    assert not done.returncode, done.stderr[-3000:]
    keys = dict(part.split("=") for part in done.stdout.splitlines()[-1].removeprefix("RESULT gpu_kernels ").split())
    assert {"path_ms", "dense_ms", "roofline", "many_ratio", "swaps_torch", "mix3_share"} <= keys.keys()
    assert float(keys["fused_ieee_diff"]) < 1e-6 and float(keys["fused_bfloat16_diff"]) < 1e-2
