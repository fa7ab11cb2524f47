"""Data sets are checked when they are loaded, the same on every device, and drawn from generators only."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lossland.devices import pick_device
from lossland.sampling import channel_statistics, first_of_every_class, flip_crop
from lossland.tasks import TASKS, Split, Task, load_task


def arrays(channels: int | None = None, first: bool = False, n: int = 40, size: int = 6) -> dict[str, np.ndarray]:
    """Made-up images of four classes, as an .npz holds them."""
    generator = np.random.default_rng(0)
    shape = (size, size) if channels is None else (channels, size, size) if first else (size, size, channels)
    made = {}
    for split, count in (("train", n), ("test", n // 2)):
        made[f"x_{split}"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"y_{split}"] = np.arange(count, dtype=np.uint8) % 4
    return made


def saved(folder: Path, content: dict[str, np.ndarray], name: str = "made.npz") -> Path:
    """Write an .npz and return its path."""
    np.savez(folder / name, **content)
    return folder / name


def colour(n: int = 40, augment: str = "flip-crop") -> Task:
    """A task of small colour images."""
    content = {name: torch.from_numpy(array) for name, array in arrays(3, first=True, n=n).items()}
    train, test = (Split(content[f"x_{split}"], content[f"y_{split}"].long()) for split in ("train", "test"))
    return Task("colour", train, test, None, 4, 255.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), augment)


def generator(seed: int = 0) -> torch.Generator:
    """A new generator."""
    return torch.Generator().manual_seed(seed)


def same(a: Tensor, b: Tensor) -> None:
    """Fail unless both tensors are equal to the last bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# digits

def test_digits_have_their_fixed_stratified_split() -> None:
    task = load_task("digits", device="cpu")
    assert (len(task.train), len(task.test), task.validation, task.classes) == (1297, 500, None, 10)
    assert (task.input_shape, task.scale, task.augment) == ((1, 8, 8), 16.0, "none")
    share = [torch.bincount(part.labels) / len(part) for part in (task.train, task.test)]
    assert (share[0] - share[1]).abs().max() < 0.003
    assert task.fingerprint == load_task(device="cpu").fingerprint == "f72fe742719b99c6"


def test_digits_are_scikit_learns_each_once() -> None:
    from sklearn.datasets import load_digits

    task = load_task("digits", device="cpu")
    ours = torch.cat([torch.cat([part.images.flatten(1), part.labels[:, None]], 1) for part in (task.train, task.test)])
    images, labels = load_digits(return_X_y=True)
    theirs = torch.from_numpy(np.concatenate([images, labels[:, None]], 1)).long()
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


# normalisation

def test_prepared_pixels_are_scaled_and_standardised() -> None:
    task = colour()
    images = task.train.images
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (task.mean, task.std))
    torch.testing.assert_close(task.prepare(images, torch.float64), (images.double() / 255 - mean) / std)
    torch.testing.assert_close(task.prepare(images), ((images.double() / 255 - mean) / std).float())
    same(task.prepare(images.float()), task.prepare(images))
    digits = load_task(device="cpu").train.images
    torch.testing.assert_close(load_task(device="cpu").prepare(digits, torch.float64), digits.double() / 16)


@pytest.mark.parametrize(("images", "error", "says"), [
    (torch.full((1, 3, 6, 6), float("nan")), ValueError, "images must be finite, got NaN or infinite pixels"),
    (torch.full((1, 3, 6, 6), float("inf")), ValueError, "images must be finite"),
    (torch.zeros(1, 3, 6, 6, dtype=torch.int64), TypeError, "images must be uint8 or floating point, got torch.int64"),
    (torch.zeros(3, 6, 6), ValueError, r"images must be \(n, 3, 6, 6\), got float32 \(3, 6, 6\)"),
    (torch.zeros(2, 1, 6, 6), ValueError, r"images must be \(n, 3, 6, 6\), got float32 \(2, 1, 6, 6\)"),
])
def test_prepare_refuses_bad_images(images: Tensor, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        colour().prepare(images)


def test_channel_statistics_are_those_of_all_pixels() -> None:
    images = arrays(3, first=True, n=1301)["x_train"]
    mean, std = channel_statistics(images, 255.0)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-12)


def test_normalisation_of_a_file_follows_its_channels(tmp_path: Path) -> None:
    grey = load_task(saved(tmp_path, arrays()), device="cpu")
    assert (grey.mean, grey.std, grey.scale) == ((0.0,), (1.0,), 255.0)
    path = saved(tmp_path, arrays(3))
    task = load_task(path, device="cpu", validation=0.25)
    seen = task.prepare(task.train.images, torch.float64)
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))
    assert load_task(path, device="cpu", normalise="unit").mean == (0.0, 0.0, 0.0)
    assert load_task("digits", device="cpu", normalise="channels").mean[0] > 0.2


def test_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    content = arrays(3)
    content["x_train"][..., 1] = 7
    with pytest.raises(ValueError, match="channel 1 of the training images must vary .* use normalise='unit'"):
        load_task(saved(tmp_path, content), device="cpu")


# batches

def test_batches_in_order_are_the_split() -> None:
    task = colour()
    batches = list(task.batches("train", batch_size=12))
    assert [len(labels) for _, labels in batches] == [12, 12, 12, 4]
    same(torch.cat([images for images, _ in batches]), task.prepare(task.train.images))
    same(torch.cat([labels for _, labels in batches]), task.train.labels)
    assert [len(labels) for _, labels in task.batches("test", batch_size=12, drop_last=True)] == [12]
    assert next(iter(task.batches(batch_size=3, dtype=torch.float64)))[0].dtype == torch.float64


def test_shuffled_batches_hold_every_image_once_with_its_label_and_follow_the_seed() -> None:
    task = load_task(device="cpu")
    first, again, other = (list(task.batches(batch_size=100, generator=generator(seed))) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        same(a[0], b[0])
    assert not torch.equal(first[0][0], other[0][0])
    seen = torch.cat([torch.cat([(images * 16).flatten(1), labels[:, None]], 1) for images, labels in first])
    kept = torch.cat([task.train.images.flatten(1), task.train.labels[:, None]], 1)
    assert sorted(map(tuple, seen.long().tolist())) == sorted(map(tuple, kept.tolist()))
    assert not torch.equal(torch.cat([labels for _, labels in first]), task.train.labels)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"batch_size": 0}, "batch_size must be >= 1, and with drop_last <= 40, got 0"),
    ({"batch_size": 41, "drop_last": True}, "batch_size must be >= 1, and with drop_last <= 40, got 41"),
    ({"batch_size": 4, "augment": True}, "generator must be given for augment=True"),
    ({"batch_size": 4, "split": "validation"}, r"'train', 'test' and no .validation.: .* load_task\(..., validation=0"),
    ({"batch_size": 4, "split": "tran"}, r"split must be one of 'train', 'test', 'validation'; got 'tran' \(did you"),
])
def test_bad_batches_are_refused_when_they_are_asked_for(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        colour().batches(**arguments)


# augmentation

def test_flip_crop_equals_a_loop_over_images() -> None:
    images = torch.randint(256, (30, 3, 5, 7), generator=generator(), dtype=torch.uint8)
    crops = torch.stack([torch.arange(30) % 2, torch.arange(30) % 9, torch.arange(30) * 5 % 9])
    for image, out, (flip, top, left) in zip(images, flip_crop(images, crops), crops.T.tolist(), strict=True):
        mirrored = image.flip(-1) if flip else image
        padded = torch.nn.functional.pad(mirrored, (4, 4, 4, 4))
        same(out, padded[:, top:top + 5, left:left + 7])


def test_augmented_batches_draw_every_shift_and_both_sides_and_repeat_with_the_seed() -> None:
    images = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4] = 200
    images[:, 0, 4, 3] = 100  # left of the bright pixel: shows the side
    split = Split(images, torch.zeros(4000, dtype=torch.int64))
    task = Task("dot", split, split, None, 1, 1.0, (0.0,), (1.0,), "flip-crop")
    out = torch.cat([x for x, _ in task.batches(batch_size=999, generator=generator(), augment=True)])[:, 0]
    again = torch.cat([x for x, _ in task.batches(batch_size=999, generator=generator(), augment=True)])[:, 0]
    same(out, again)
    place = (out == 200).flatten(1).float().argmax(1)
    assert torch.bincount(place, minlength=81).min() > 20  # 81 shifts, 49 each on average
    dim = (out == 100).flatten(1).float().argmax(1)
    visible = (out == 100).flatten(1).any(1)
    assert 0.46 < (dim > place)[visible].float().mean() < 0.54
    plain = torch.cat([x for x, _ in task.batches(batch_size=999, generator=generator())])[:, 0]
    assert (plain[:, 4, 4] == 200).all()


def test_augment_of_a_task_without_augmentation_changes_nothing() -> None:
    task = colour(augment="none")
    plain, asked = (torch.cat([x for x, _ in task.batches(batch_size=7, generator=generator(), augment=augment)])
                    for augment in (False, True))
    same(plain, asked)


# validation, noise, subsets, fingerprints

def test_validation_comes_out_of_the_training_split_only() -> None:
    whole, parted = load_task(device="cpu"), load_task(device="cpu", validation=97)
    assert (len(parted.train), len(parted.split("validation"))) == (1200, 97)
    same(parted.test.images, whole.test.images)
    joined = torch.cat([parted.train.images, parted.validation.images]).flatten(1)
    assert sorted(map(tuple, joined.tolist())) == sorted(map(tuple, whole.train.images.flatten(1).tolist()))
    assert len(load_task(device="cpu", validation=0.5).validation) == 648
    same(load_task(device="cpu", validation=97).validation.labels, parted.validation.labels)
    assert not torch.equal(load_task(device="cpu", validation=97, seed=1).validation.labels, parted.validation.labels)


@pytest.mark.parametrize("validation", [-1, 1297, 1.0, -0.1, 0.0001, 0.9999, True, "10", None, float("nan")])
def test_impossible_validation_is_refused(validation: object) -> None:
    with pytest.raises(ValueError, match=r"validation must be a number of images in 0..1296, or a fraction in \[0, 1"):
        load_task(device="cpu", validation=validation)  # type: ignore[arg-type]


def test_label_noise_redraws_a_fixed_fraction_the_same_for_the_same_seed() -> None:
    clean, noisy = load_task(device="cpu", validation=97), load_task(device="cpu", validation=97, label_noise=0.5)
    changed = (clean.train.labels != noisy.train.labels).float().mean().item()
    assert changed == pytest.approx(0.5 * 0.9, abs=0.03)  # a tenth draws the true label again
    same(clean.train.images, noisy.train.images)
    same(clean.validation.labels, noisy.validation.labels)
    same(clean.test.labels, noisy.test.labels)
    same(load_task(device="cpu", validation=97, label_noise=0.5).train.labels, noisy.train.labels)
    drawn = [load_task(device="cpu", label_noise=0.5, seed=seed).train.labels for seed in (0, 1)]
    assert (drawn[0] != drawn[1]).float().mean() > 0.5
    assert noisy.fingerprint != clean.fingerprint
    assert "50% of the training labels redrawn" in noisy.note
    all_of_them = load_task(device="cpu", label_noise=1.0).train.labels
    assert torch.bincount(all_of_them, minlength=10).min() > 90


def test_smaller_noise_is_part_of_larger_noise() -> None:
    labels = [load_task(device="cpu", label_noise=noise).train.labels for noise in (0.0, 0.2, 0.6)]
    redrawn = labels[0] != labels[1]
    assert redrawn.any()
    same(labels[1][redrawn], labels[2][redrawn])


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_impossible_label_noise_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=r"label_noise must be a fraction in \[0, 1\], got"):
        load_task(device="cpu", label_noise=noise)


def test_subset_takes_the_first_of_every_class_in_order() -> None:
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 2, 0])
    assert first_of_every_class(labels, 5).tolist() == [0, 1, 3, 5, 6]
    assert first_of_every_class(labels, 3).tolist() == [0, 3, 6]
    assert first_of_every_class(labels, 8).tolist() == list(range(8))
    whole = load_task(device="cpu")
    small = whole.subset(train=200, test=50)
    assert torch.bincount(small.train.labels).tolist() == [20] * 10
    assert torch.bincount(small.test.labels).tolist() == [5] * 10
    assert small.fingerprint not in (whole.fingerprint, whole.subset(train=200).fingerprint)
    assert whole.subset().fingerprint == whole.fingerprint
    for n in (0, 1298):
        with pytest.raises(ValueError, match=rf"train must be a number of images in 1..1297, got {n}"):
            whole.subset(train=n)


def test_fingerprint_tells_data_apart_and_ignores_names(tmp_path: Path) -> None:
    content = arrays()
    path = saved(tmp_path, content)
    task = load_task(path, device="cpu")
    assert load_task(saved(tmp_path, content, "other.npz"), device="cpu").fingerprint == task.fingerprint
    assert load_task(path, device="cpu").to("cpu").fingerprint == task.fingerprint
    others = [load_task(path, device="cpu", normalise="channels"), load_task(path, device="cpu", augment="flip-crop"),
              load_task(path, device="cpu", validation=4), load_task(path, device="cpu", label_noise=0.5)]
    for key in content:
        changed = {name: array.copy() for name, array in content.items()}
        changed[key].flat[0] = (changed[key].flat[0] + 1) % 4
        others.append(load_task(saved(tmp_path, changed, f"{key}.npz"), device="cpu"))
    assert len({other.fingerprint for other in [task, *others]}) == len(others) + 1


# files

@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint64, np.int32])
def test_file_with_any_integer_labels_is_read(tmp_path: Path, dtype: type) -> None:
    content = arrays()
    for key in ("y_train", "y_test"):
        content[key] = content[key].astype(dtype)
    task = load_task(str(saved(tmp_path, content)), device="cpu")
    assert (task.name, task.classes, task.augment, task.train.labels.dtype) == ("made", 4, "none", torch.int64)
    assert "made.npz" in task.note and str(tmp_path) not in task.note
    same(task.test.images[:, 0], torch.from_numpy(content["x_test"]))
    same(task.test.labels, torch.from_numpy(content["y_test"].astype(np.int64)))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_be_first_or_last(tmp_path: Path, channels: int) -> None:
    last = arrays(channels)
    first = {key: np.moveaxis(array, 3, 1) if array.ndim == 4 else array for key, array in last.items()}
    tasks = [load_task(saved(tmp_path, content, f"{i}.npz"), device="cpu") for i, content in enumerate((last, first))]
    assert tasks[0].input_shape == tasks[1].input_shape == (channels, 6, 6)
    assert tasks[0].fingerprint == tasks[1].fingerprint
    same(tasks[0].train.images[:, 0], torch.from_numpy(last["x_train"][..., 0]))


def test_columns_of_labels_are_read_as_keras_keeps_them(tmp_path: Path) -> None:
    content = arrays()
    content["y_train"] = content["y_train"][:, None]
    assert load_task(saved(tmp_path, content), device="cpu").train.labels.shape == (40,)


def test_file_is_found_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, arrays())
    assert load_task("made.npz", data_dir=tmp_path, device="cpu").name == "made"
    monkeypatch.setenv("LOSSLAND_DATA", str(tmp_path))
    assert load_task("made.npz", device="cpu").name == "made"
    with pytest.raises(FileNotFoundError, match="none.npz must be an .npz file, got none at none.npz nor at .*none"):
        load_task("none.npz", device="cpu")


@pytest.mark.parametrize(("key", "change", "says"), [
    ("x_test", None, r"made.npz must be a whole .npz .*: it lacks the key 'x_test', it has x_train, y_test, y_train"),
    ("x_train", lambda x: x / 255, r"made.npz: x_train must be uint8 pixels 0..255, got float64"),
    ("x_test", lambda x: x.astype(np.int64), r"made.npz: x_test must be uint8 pixels 0..255, got int64"),
    ("y_train", lambda y: y / 1.0, r"made.npz: y_train must be integers \(n,\), got float64"),
    ("y_test", lambda y: y > 0, r"made.npz: y_test must be integers \(n,\), got bool"),
    ("y_test", lambda y: y.reshape(5, 4), r"made.npz: y_test must be integers \(n,\), got uint8 \(5, 4\)"),
    ("y_test", lambda y: y.astype(object), "made.npz must be a whole .npz file .*: Object arrays cannot be loaded"),
    ("y_train", lambda y: y[:-1], "made.npz: y_train must have one label for each of the 40 images, got 39"),
    ("y_test", lambda y: y + 1, r"made.npz: y_test must have labels in 0..3, got 4"),
    ("y_test", lambda y: y.astype(int) - 1, r"made.npz: y_test must have labels in 0..3, got -1"),
    ("y_train", lambda y: 0 * y, r"made.npz: y_train must have at least two classes, got no label above 0"),
    ("y_train", lambda y: y.astype(int) - 1, r"made.npz: y_train must have labels in 0..2, got -1"),
    ("y_train", lambda y: np.where(np.arange(40) == 3, 9, y), r"y_train must have every label .*\(9\), got no 4"),
    ("x_train", lambda x: x[:0], r"made.npz: x_train must have at least one image, got shape \(0, 6, 6\)"),
    ("x_test", lambda x: x[:, :, :5], r"made.npz: x_test must have images like x_train, \(1, 6, 6\) \(C, H, W\), got"),
    ("x_train", lambda x: x[0], r"made.npz: x_train must be \(n, H, W\), .* got \(6, 6\)"),
    ("x_train", lambda x: x[:, :2, :, None].repeat(4, 3), r"x_train must be .* 1 or 3 channels .* got \(40, 2, 6, 4\)"),
    ("x_train", lambda x: x[:, :3, :, None].repeat(3, 3), r"x_train must be .* 1 or 3 channels .* got \(40, 3, 6, 3\)"),
])
def test_bad_file_is_refused_with_file_and_key(tmp_path: Path, key: str, change: object, says: str) -> None:
    content = arrays()
    if change is None:
        del content[key]
    else:
        content[key] = change(content[key])
    with pytest.raises(ValueError, match=says):
        load_task(saved(tmp_path, content), device="cpu")


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = saved(tmp_path, arrays())
    data = path.read_bytes()
    path.write_bytes(data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="made.npz must be a whole .npz file with x_train, y_train, x_test, y_test: "):
        load_task(path, device="cpu")


def test_every_kind_of_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    np.savez_compressed(path, **arrays(n=8))
    data, damaged = path.read_bytes(), 0
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1:])
        try:
            load_task(path, device="cpu")  # some bytes, such as dates, do not matter
        except ValueError as error:
            damaged += 1
            assert "made.npz" in str(error)
    assert damaged > 20


def test_single_array_under_the_name_of_an_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "made.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="made.npz must be a whole .npz file"):
        load_task(tmp_path / "made.npz", device="cpu")


# names, options, devices

def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"name must be one of 'digits', 'mnist', .*, the path of an .npz file, a "
                                         r"folder with train.txt, .*, or a folder of images .*; got 'cifar-10' \(did you mean 'cifar10'\?\)"):
        load_task("cifar-10")
    assert TASKS == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "pydoc")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"augment must be one of 'auto', 'none', 'flip-crop', 'resized-crop'; got 'flip'"):
        load_task(augment="flip")
    with pytest.raises(ValueError, match=r"normalise must be one of 'auto', 'unit', 'channels'; got 'channel'"):
        load_task(normalise="channel")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps", "cpu:1"])
def test_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device must be 'auto' or one of those .*\(cpu.*\), got '{device}'"):
        load_task(device=device)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_missing_torchvision_data_say_where_they_were_looked_for(tmp_path: Path) -> None:
    for name in TASKS[1:-1]:
        with pytest.raises(FileNotFoundError, match=rf"{name} must lie in {tmp_path} .*\.npz.*\('FOLDER', download=True\)"
                                                    r".*data_dir.*LOSSLAND_DATA.*allow_download=True"):
            load_task(name, data_dir=tmp_path)


def test_mnist_is_read_as_torchvision_keeps_it(tmp_path: Path) -> None:
    content = arrays(n=20)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        x, y = content[f"x_{split}"], content[f"y_{split}"]
        for file, array in ((f"{prefix}-images-idx3-ubyte", x), (f"{prefix}-labels-idx1-ubyte", y)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / "MNIST" / "raw" / file).write_bytes(header + array.tobytes())
    task = load_task("mnist", data_dir=tmp_path, device="cpu")
    assert (task.classes, task.scale, task.mean, task.augment) == (10, 255.0, (0.0,), "none")
    same(task.train.images[:, 0], torch.from_numpy(content["x_train"]))
    same(task.test.labels, torch.from_numpy(content["y_test"]).long())


def test_cifar_gets_the_papers_augmentation_and_the_usual_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    content = arrays(3)

    class Fake:
        """Stands for torchvision's CIFAR-10, whose files are too large for a test."""

        classes = [str(c) for c in range(10)]

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            assert download is False
            split = "train" if train else "test"
            self.data, self.targets = content[f"x_{split}"], content[f"y_{split}"].tolist()

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    task = load_task("cifar10", device="cpu")
    assert (task.augment, task.classes, task.input_shape) == ("flip-crop", 10, (3, 6, 6))
    assert task.mean == (0.4914, 0.4822, 0.4465) and task.std == (0.2470, 0.2435, 0.2616)
    assert load_task("cifar10", device="cpu", augment="none").augment == "none"


# tasks made by hand

@pytest.mark.parametrize(("change", "says"), [
    ({"classes": 3}, r"train labels must be in 0..2, got 3"),
    ({"mean": (0.5,)}, r"mean and std must have one value per channel \(3\)"),
    ({"std": (0.1, 0.0, 0.1)}, "std and scale must be > 0"),
    ({"augment": "crop"}, "augment must be one of 'none', 'flip-crop', 'resized-crop'; got 'crop'"),
    ({"test": Split(torch.zeros(1, 3, 5, 6).byte(), torch.tensor([0]))}, "test images must have the shape"),
    ({"test": Split(torch.zeros(1, 3, 6, 6).byte(), torch.tensor([-1]))}, "test labels .* got -1"),
])
def test_inconsistent_task_is_refused(change: dict, says: str) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match=says):
        replace(colour(), **change)


@pytest.mark.parametrize(("images", "labels", "says"), [
    (torch.zeros(2, 1, 3, 3), torch.zeros(2).long(), r"images must be uint8 \(n, C, H, W\), .* got float32 \(2, 1"),
    (torch.zeros(2, 3, 3).byte(), torch.zeros(2).long(), r"images must be uint8 .* got uint8 \(2, 3, 3\)"),
    (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(3).long(), r"labels must be int64, one for each of the 2 images"),
    (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(2).byte(), r"labels must be int64, .* got uint8 \(2,\)"),
    (torch.zeros(0, 1, 3, 3).byte(), torch.zeros(0).long(), r"and at least one, got int64 \(0,\)"),
])
def test_bad_split_is_refused(images: Tensor, labels: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Split(images, labels)


# where the data or the device are at hand

def test_mnist_file_is_mnist() -> None:
    folder = Path(os.environ.get("LOSSLAND_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
    if not (folder / "mnist.npz").is_file():
        pytest.skip(f"mnist.npz is not in {folder}: set LOSSLAND_DATA to its folder")
    task = load_task("mnist.npz", data_dir=folder, device="cpu")
    assert (len(task.train), len(task.test), task.classes, task.input_shape) == (60000, 10000, 10, (1, 28, 28))
    mean, std = channel_statistics(task.train.images.numpy(), 255.0)
    assert mean[0] == pytest.approx(0.1307, abs=1e-4) and std[0] == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_task_is_the_same_on_the_gpu() -> None:
    here = colour()
    there = here.to("cuda")
    assert there.train.images.is_cuda and there.fingerprint == here.fingerprint
    assert Task("again", there.train, there.test, None, 4, 255.0, here.mean, here.std,
                "flip-crop").fingerprint == here.fingerprint
    ours, theirs = (task.batches(batch_size=7, generator=generator(), augment=True) for task in (here, there))
    for (images, labels), (their_images, their_labels) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(their_images.cpu(), images)
        same(their_labels.cpu(), labels)
    same(here.subset(train=9).train.images, there.subset(train=9).train.images.cpu())
    with pytest.raises(ValueError, match="generator must be on the CPU, got one on cuda"):
        here.batches(batch_size=3, generator=torch.Generator("cuda"))
