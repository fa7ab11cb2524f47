"""What every kernel says to input that it cannot use, and that it takes all the rest: one table, all kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lossland import kernels
from lossland.kernels import reference


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def path(curve: str = "segment", points: int = 20, images: int = 23, units: int = 19, classes: int = 5) -> dict[str, object]:
    s = torch.linspace(0, 1, points, dtype=torch.float64)
    c = torch.stack([1 - s, s] if curve == "segment" else [(1 - s) ** 2, 2 * s * (1 - s), s**2], 1)
    k = c.shape[1]
    return {"features": list(draw(k, images, units)), "coefficients": c, "heads": list(draw(k, classes, units, seed=1)),
            "biases": list(draw(k, classes, seed=2)), "labels": torch.arange(images) * 7 % classes}


def exchanges(points: int = 20, images: int = 23, units: int = 19, classes: int = 5) -> dict[str, object]:
    z, head = draw(units, images), draw(classes, units, seed=1)
    pairs = torch.arange(2 * points).reshape(-1, 2) % units
    return {"logits": head @ z.relu(), "features": z, "head": head,
            "swaps": (pairs, torch.linspace(0, 1, points, dtype=torch.float64)), "labels": torch.arange(images) * 7 % classes}


def scores(points: int = 20, images: int = 23, classes: int = 5, **_: int) -> dict[str, object]:
    return {"logits": draw(points, images, classes), "labels": torch.arange(images) * 7 % classes}


KERNELS: dict[str, tuple[Callable[..., tuple], Callable[..., dict], str]] = {
    "segment": (kernels.path_scores, path, "features"),
    "bezier": (kernels.path_scores, lambda **sizes: path("bezier", **sizes), "features"),
    "few points": (kernels.path_scores, lambda **sizes: path(**{"points": 3, **sizes}), "features"),
    "tanh": (lambda **args: kernels.path_scores(**args, activation=torch.tanh), path, "features"),
    "swaps": (kernels.swap_scores, exchanges, "features"),
    "swaps of tanh": (lambda **args: kernels.swap_scores(**args, activation=torch.tanh), exchanges, "features"),
    "class scores": (kernels.class_scores, scores, "logits"),
}


def cast(value: object, change: Callable[[Tensor], Tensor]) -> object:
    """Return the value with all its floating-point tensors changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    return [cast(one, change) for one in value]


def changed(args: dict[str, object], change: Callable[[Tensor], Tensor]) -> dict[str, object]:
    return {name: value if name in ("coefficients", "swaps", "labels") else cast(value, change) for name, value in args.items()}


def first(args: dict[str, object], name: str, change: Callable[[Tensor], Tensor]) -> dict[str, object]:
    value = args[name]
    return {**args, name: change(value) if isinstance(value, Tensor) else [change(value[0]), *value[1:]]}


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_are_refused_where_they_are_recorded(name):
    kernel, make, _ = KERNELS[name]
    recorded = {key: cast(value, lambda one: one.clone().requires_grad_()) for key, value in make().items()}
    for key in recorded.keys() - {"labels"}:
        with pytest.raises(ValueError, match="_scores gives no gradients: call it under torch.no_grad"):
            kernel(**{**make(), key: recorded[key]})
    with torch.no_grad():
        found = kernel(**recorded)
    assert not any(one.requires_grad for one in found)
    for one, other in zip(found, kernel(**make()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "class scores"])
@pytest.mark.parametrize("change, what", [(Tensor.float, "float32 on cpu"), (lambda one: one.to("meta"), "float64 on meta")])
def test_mixed_types_and_devices_are_refused(name, change, what):
    kernel, make, main = KERNELS[name]
    with pytest.raises(ValueError, match=f"_scores must be of one dtype on one device, got .*{main}.*: '.*{what}"):
        kernel(**first(make(), main, change))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("change", [Tensor.long, Tensor.tolist])
def test_what_is_no_floating_point_tensor_is_refused(name, change):
    kernel, make, _ = KERNELS[name]
    args = {key: value if key in ("coefficients", "swaps", "labels") else
            change(value) if isinstance(value, Tensor) else list(map(change, value)) for key, value in make().items()}
    with pytest.raises((ValueError, TypeError), match="_scores takes (floating-point numbers, got torch.int64|tensors, got)"):
        kernel(**args)


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_no_tensor_is_refused(name):
    kernel, make, _ = KERNELS[name]
    args = make()
    for key in args.keys() & {"coefficients", "swaps", "labels"}:
        lists = (args[key][0].tolist(), args[key][1]) if key == "swaps" else args[key].tolist()
        with pytest.raises(TypeError, match=f"_scores takes tensors, got {{'{'pairs' if key == 'swaps' else key}': 'list'}}"):
            kernel(**{**args, key: lists})


@pytest.mark.parametrize("name", KERNELS)
def test_there_must_be_bins(name):
    """With none a compiled kernel would write beside its histogram."""
    kernel, make, _ = KERNELS[name]
    for bins in (0, -1):
        with pytest.raises(ValueError, match=f"bins must be >= 1, got {bins}"):
            kernel(**make(), bins=bins)
    nll, hits, histogram = kernel(**make(), bins=1)
    assert histogram.shape == (len(nll), 3, 1) and (histogram[:, 0] == 23).all() and torch.equal(histogram[:, 2, 0], hits)


NEEDED = {"paths": "at least one (point and one t|image, unit and class), got .*0",
          "swaps": "at least one image, unit, class and network", "class scores": "at least one network, image and class"}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("size", ["points", "images", "classes", "units"])
def test_what_is_empty_is_refused(name, size):
    if (name, size) == ("class scores", "units"):
        return
    kernel, make, _ = KERNELS[name]
    args = make(**({} if size in ("units", "classes") else {size: 0}))
    if size == "units":
        args = {key: cast(value, lambda one: one[..., :0] if key != "features" or "swaps" not in name else one[:0])
                if key in ("features", "heads", "head") else value for key, value in args.items()}
    if size == "classes":
        cut = {"heads": lambda one: one[:0], "head": lambda one: one[:0], "biases": lambda one: one[:0],
               "logits": lambda one: one[..., :0] if name == "class scores" else one[:0]}
        args = {key: cast(value, cut.get(key, lambda one: one)) for key, value in args.items()}
    with pytest.raises(ValueError, match=NEEDED.get(name.removesuffix(" of tanh"), NEEDED["paths"])):
        kernel(**args)


def test_paths_through_no_point_are_refused():
    with pytest.raises(ValueError, match="at least one point and one t, got k=0, T=5"):
        kernels.path_scores([], torch.zeros(5, 0), [], [], torch.arange(3))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("labels, message", [
    (torch.arange(23), r"labels must be int64 classes 0\.\.4, got torch.int64, 0\.\.22"),
    (-torch.ones(23, dtype=torch.int64), r"labels must be int64 classes 0\.\.4, got torch.int64, -1\.\.-1"),
    (torch.zeros(23), r"labels must be int64 classes 0\.\.4, got torch.float32"),
    (torch.zeros(22, dtype=torch.int64), r"labels must be \(23,\), one for each image, on cpu, got \(22,\)"),
    (torch.zeros(23, dtype=torch.int64, device="meta"), r"labels must be .* on cpu, got \(23,\) on meta"),
])
def test_labels_that_are_no_classes_are_refused(name, labels, message):
    kernel, make, _ = KERNELS[name]
    with pytest.raises(ValueError, match=message):
        kernel(**{**make(), "labels": labels})


def spread(one: Tensor) -> Tensor:
    """Return the tensor with a gap behind every number."""
    return one.repeat_interleave(2, -1)[..., ::2]


def turned(one: Tensor) -> Tensor:
    """Return the tensor with its first axis innermost."""
    return one.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("gaps", [spread, turned, lambda one: spread(one.mT).mT if one.ndim > 1 else one])
def test_memory_may_have_gaps(name, gaps):
    kernel, make, _ = KERNELS[name]
    args = make(images=32)  # of whole groups nothing is copied to fill one up
    apart = {key: gaps(value) if isinstance(value, Tensor) else [gaps(one) for one in value] for key, value in args.items()}
    for one, other in zip(kernel(**apart), kernel(**args), strict=True):
        assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("classes", [1, 16, 17, 33, 1000])
def test_any_number_of_classes_will_do(name, classes):
    kernel, make, _ = KERNELS[name]
    args = make(classes=classes)
    exact = {"exact": True} if "class" not in name else {}
    wanted = kernel(**args, **exact) if exact else reference.class_scores(**args)
    for one, other in zip(kernel(**args), wanted, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_nan_is_a_loss_that_is_nan_and_never_a_hit(name):
    kernel, make, main = KERNELS[name]
    args = make(classes=2)
    args["labels"] = torch.zeros(23, dtype=torch.int64)
    broken = cast(args[main], lambda one: torch.full_like(one, float("nan")))
    args = {**args, main: broken}
    if "swaps" in name:  # what the network in place gave is NaN, too
        args["logits"] = torch.full_like(args["logits"], float("nan"))
    nll, hits, histogram = kernel(**args)
    assert nll.isnan().all() and not hits.any() and not histogram[:, 2].any()
    assert (histogram[:, 0, 0] == 23).all() and not histogram[:, 0, 1:].any()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_lower_precision_is_taken(name, dtype, tolerance):
    kernel, make, _ = KERNELS[name]
    args = make()
    found, wanted = kernel(**changed(args, lambda one: one.to(dtype))), kernel(**args)
    assert found[0].dtype == torch.float64
    assert_close(found[0] / 23, wanted[0] / 23, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spoil, message", [
    (lambda a: {**a, "features": a["features"][:, 1:]}, "must fit together"),
    (lambda a: {**a, "swaps": (a["swaps"][0][1:], a["swaps"][1])}, "must fit together"),
    (lambda a: {**a, "head": a["head"][:, 1:]}, "must fit together"),
    (lambda a: {**a, "swaps": (a["swaps"][0], a["swaps"][1][:, None])}, "must fit together"),
    (lambda a: {**a, "swaps": (a["swaps"][0] + 1, a["swaps"][1])}, r"swaps must be int64 units 0\.\.18, got torch.int64, 1\.\.19"),
    (lambda a: {**a, "swaps": (a["swaps"][0].double(), a["swaps"][1])}, r"swaps must be int64 units 0\.\.18, got torch.float64"),
])
def test_swaps_that_do_not_fit_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        kernels.swap_scores(**spoil(exchanges()))
