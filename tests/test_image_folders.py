"""Folders of image files: which are found, how they become pixels, and that reading them late changes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import functional_call
from torch.testing import assert_close
from torchvision.transforms import functional as transforms

from lossland import evaluation, models
from lossland.batchnorm import refresh
from lossland.corruptions import corrupted, load_corrupted
from lossland.evaluation import evaluate
from lossland.families import line, point
from lossland.image_files import LazyImages, decoding, read_ahead, resized_crops
from lossland.recipes import RECIPES, network, recipe_for
from lossland.tasks import load_task, loading
from lossland.training import Recipe, fit
from lossland.weights import skeleton

CLASSES = ("ant", "bee", "cat")


def pixels(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth image with some noise, so that JPEG keeps it well."""
    draws = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / height * a + columns / width * b) for a, b in draws.uniform(1, 6, (3, 2))]
    return (127 + 90 * np.stack(waves, -1) + draws.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)


def write(path: Path, seed: int, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height, width)).save(path)


def folder(place: Path, parts: dict[str, int], *, height: int = 8, width: int = 8, kind: str = "png") -> Path:
    """torchvision's layout with so many images of each class."""
    seed = 0
    for split, count in parts.items():
        for name in CLASSES:
            for i in range(count):
                seed += 1
                write(place / split / name / f"{split}_{i}.{kind}", seed, height, width)
    return place


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return folder(tmp_path / "small", {"train": 7, "val": 4})


def loaded(place: Path, resident: bool, **options):
    return load_task(place, device="cpu", **{"image_size": 8, "resident": resident, **options})


def test_torchvisions_layout_is_read_class_by_class(small):
    task = loaded(small, True)
    assert (task.name, task.classes, task.class_names, task.input_shape) == ("small", 3, CLASSES, (3, 8, 8))
    assert task.train.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7 and len(task.test) == 12
    found = np.asarray(Image.open(small / "train" / "bee" / "train_2.png")).transpose(2, 0, 1)
    assert np.array_equal(task.train.images[9], found)
    assert task.mean == (0.485, 0.456, 0.406) and task.augment == "flip-crop" and task.scale == 255
    assert "val to test on" in task.note and task.validation is None


def test_files_are_found_at_any_depth_and_others_left_alone(small):
    write(small / "train" / "ant" / "images" / "deep.JPEG", 99, 8, 8)
    (small / "train" / "ant" / "boxes.txt").write_text("no image")
    (small / "train" / "ant" / ".hidden.png").write_text("no image")
    (small / "train" / ".cache").mkdir()
    assert len(loaded(small, False).train) == 22


def test_a_test_folder_comes_before_val_which_then_validates(small):
    folder(small, {"test": 2})
    task = loaded(small, True)
    assert (len(task.test), len(task.validation)) == (6, 12)
    with pytest.raises(ValueError, match="validation must be left out for 'small', which brings a validation split"):
        loaded(small, True, validation=3)


def tiny(place: Path) -> Path:
    """TinyImageNet as it comes: train/<class>/images, val/images with a text, test/images without labels."""
    for number, name in enumerate(CLASSES):
        for i in range(3):
            write(place / "train" / name / "images" / f"{name}_{i}.JPEG", 10 * number + i, 8, 8)
    lines = []
    for i, name in enumerate(["cat", "ant", "bee", "ant"]):
        write(place / "val" / "images" / f"val_{i}.JPEG", 50 + i, 8, 8)
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t7\t7")
    (place / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    write(place / "test" / "images" / "test_0.JPEG", 70, 8, 8)
    return place


def test_tiny_imagenets_own_layout_is_read_as_it_comes(tmp_path):
    place = tiny(tmp_path / "tiny")
    task = loaded(place, True)
    assert task.test.labels.tolist() == [0, 0, 1, 2]
    for row, number in enumerate((1, 3, 2, 0)):
        found = np.asarray(Image.open(place / "val" / "images" / f"val_{number}.JPEG")).transpose(2, 0, 1)
        assert np.array_equal(task.test.images[row], found)
    assert load_task(place, device="cpu").input_shape == (3, 64, 64)
    text = place / "val" / "val_annotations.txt"
    text.write_text(text.read_text().replace("bee", "dog"))
    with pytest.raises(ValueError, match="one of the training images' 3 classes in each line, got .'val_2.JPEG', 'dog'"):
        loaded(place, True)
    text.write_text("val_9.JPEG\tant\n")
    with pytest.raises(FileNotFoundError, match="images/val_9.JPEG is not in"):
        loaded(place, True)


@pytest.mark.parametrize("size", [(300, 400), (500, 280), (120, 90), (224, 224)])
def test_images_are_resized_and_cropped_as_torchvision_does(size):
    image = Image.fromarray(pixels(3, *size))
    expected = image
    if size != (224, 224):
        expected = transforms.center_crop(transforms.resize(image, 256), 224)
    assert np.array_equal(decoding.centred(image, 224), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("seed", range(6))
def test_random_parts_are_torchvisions_resized_crops(seed):
    image = Image.fromarray(pixels(3, 120, 90))
    box = decoding.random_box(*image.size, seed)
    expected = transforms.resized_crop(image, box.top, box.left, box.height, box.width, [32, 32])
    expected = transforms.hflip(expected) if box.flip else expected
    assert np.array_equal(decoding.cropped(image, box, 32), np.asarray(expected).transpose(2, 0, 1))


def test_random_parts_have_the_stated_areas_and_aspects():
    boxes = [decoding.random_box(400, 300, seed) for seed in range(2000)]
    areas = torch.tensor([box.width * box.height / 120_000 for box in boxes])
    aspects = torch.tensor([box.width / box.height for box in boxes])
    assert 0.079 < float(areas.min()) and float(areas.max()) <= 1 and 0.74 < float(aspects.min())
    assert float(aspects.max()) < 1.35
    assert float(areas[areas < 0.6].mean()) == pytest.approx(0.34, abs=0.02)  # uniform where every draw fits
    assert 0.45 < sum(box.flip for box in boxes) / 2000 < 0.55
    assert all(box.left + box.width <= 400 and box.top + box.height <= 300 for box in boxes)
    assert decoding.random_box(10, 1000, 0)[:4] == (0, 493, 10, 13)  # nothing fits: the middle, within the aspects


@pytest.mark.parametrize("augment", ["none", "flip-crop", "resized-crop"])
def test_reading_late_gives_the_batches_of_the_resident_task(small, augment):
    late, held = (loaded(small, resident, augment=augment) for resident in (False, True))
    assert late.train.is_lazy and not held.train.is_lazy
    for options in ({}, {"generator": 5}, {"generator": 5, "augment": True}, {"generator": 5, "drop_last": True}):
        both = []
        for task in (late, held):
            more = {**options, "generator": torch.Generator().manual_seed(5)} if "generator" in options else options
            both.append(list(task.batches("train", batch_size=4, **more)))
        for (images, labels), (others, numbers) in zip(*both, strict=True):
            assert_close(images, others, rtol=0, atol=0)
            assert labels.equal(numbers)


def test_random_parts_of_files_are_taken_from_the_whole_file(tmp_path):
    place = folder(tmp_path / "large", {"train": 2, "val": 1}, height=40, width=60)
    task = loaded(place, False, augment="resized-crop")
    batches = task.batches("train", batch_size=4, generator=torch.Generator().manual_seed(1), augment=True)
    found = torch.cat([images for images, _ in batches])
    draws = torch.Generator().manual_seed(1)
    order, seeds = torch.randperm(6, generator=draws), torch.randint(2**62, (6,), generator=draws)
    names = task.train.images.names
    for row in range(6):
        image = Image.open(place / "train" / names[int(order[row])])
        expected = decoding.cropped(image, decoding.random_box(60, 40, int(seeds[row])), 8)
        assert_close(found[row], task.prepare(torch.from_numpy(expected.copy())[None])[0], rtol=0, atol=0)


def test_parts_of_a_late_task_are_those_of_the_resident_one(small):
    late, held = loaded(small, False), loaded(small, True)
    changes = {"subset": lambda task: task.subset(train=5, test=4), "hold_out": lambda task: task.hold_out(0.3, seed=2),
               "to": lambda task: task.to("cpu"), "corrupted": lambda task: corrupted(task, "noise", 2, seed=1),
               "validation": lambda task: loaded(small, not task.train.is_lazy, validation=4, label_noise=0.5, seed=3)}
    for name, change in changes.items():
        one, other = change(late), change(held)
        assert one.train.is_lazy and not other.train.is_lazy and one.test.is_lazy == (name != "corrupted")
        for split in ("train", "test", *(["validation"] if one.validation else [])):
            assert_close(one.split(split).images[:], other.split(split).images, rtol=0, atol=0, msg=f"{name} {split}")
            assert one.split(split).labels.equal(other.split(split).labels)
    images, labels = held.train.images, held.train.labels
    both = loaded(small, True, validation=4, label_noise=0.5, seed=3)
    for image, label in zip(both.validation.images, both.validation.labels, strict=True):  # its labels are the true ones
        assert labels[(images == image).flatten(1).all(1)].tolist() == [int(label)]
    assert late.train.images.split(5).__next__().shape == (5, 3, 8, 8)
    assert [len(block) for block in late.train.images.split(8)] == [8, 8, 5]


def test_a_late_task_trains_and_evaluates_to_the_same_numbers(small):
    results = []
    for resident in (False, True):
        task = loaded(small, resident)
        net = network(task, "conv2fc1", channels=(2, 3), norm="batch")
        start = models.initial_weights(net, torch.Generator().manual_seed(0), dtype=torch.float64)
        recipe = Recipe(epochs=2, lr=0.05, batch_size=8, precision="float64")
        done = fit(net, point(start), task, recipe, seed=1).family.points[0]
        table = evaluate(net, line(start, done), task, points=3)
        blocks = (images for images, _ in task.batches("train", batch_size=5, dtype=torch.float64))
        buffers = refresh(net, done, blocks)
        outputs = functional_call(skeleton(net), (done, buffers), (task.prepare(task.test.images[:], torch.float64),))
        results.append((done, table, outputs, evaluation.predict(net, done, task)))
    (done, table, outputs, logits), (other, numbers, same, again) = results
    assert_close(done, other, rtol=0, atol=0)
    assert table.equals(numbers)
    assert outputs.equal(same) and logits.equal(again)


def test_fingerprints_of_files_tell_names_sizes_labels_and_sides_apart(small, tmp_path):
    task = loaded(small, False)
    assert loaded(small, False).fingerprint == task.fingerprint == task.to("cpu").fingerprint
    others = [loaded(small, False, image_size=9), task.subset(train=5), loaded(small, False, label_noise=0.9),
              task.hold_out(3)]
    write(small / "val" / "ant" / "val_9.png", 123, 8, 8)
    others.append(loaded(small, False))
    (small / "val" / "ant" / "val_9.png").unlink()
    write(small / "train" / "ant" / "train_0.png", 124, 8, 9)
    others.append(loaded(small, False))
    assert len({each.fingerprint for each in [task, *others]}) == 7


def test_what_does_not_fit_in_memory_stays_in_its_files(small, monkeypatch):
    assert not load_task(small, device="cpu").train.is_lazy
    monkeypatch.setattr(loading, "RESIDENT_BYTES", 33 * 3 * 8**2 - 1)  # 33 images in all
    assert loaded(small, None).train.is_lazy and loaded(small, None).test.is_lazy
    assert not loaded(small, True).train.is_lazy
    monkeypatch.setattr(loading, "RESIDENT_BYTES", 33 * 3 * 8**2)
    assert not loaded(small, None).train.is_lazy


def test_no_file_is_opened_before_a_batch_asks_for_it(small):
    (small / "train" / "bee" / "train_3.png").write_bytes(b"no image at all")
    task = loaded(small, False)
    assert "read from files" in repr(task.train)
    with pytest.raises(ValueError, match=r"train_3\.png must be an image that PIL can read"):
        list(task.batches("train", batch_size=4))
    with pytest.raises(ValueError, match=r"train_3\.png must be an image that PIL can read"):
        loaded(small, True)
    whole = (small / "train" / "bee" / "train_2.png").read_bytes()
    (small / "train" / "bee" / "train_3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train_3\.png must be an image that PIL can read: .*truncated"):
        loaded(small, True)


def test_grey_and_transparent_files_become_three_channels(small):
    Image.fromarray(pixels(1, 8, 8)[..., 0]).save(small / "train" / "ant" / "train_0.png")
    Image.fromarray(pixels(1, 8, 8)).convert("RGBA").save(small / "train" / "ant" / "train_1.png")
    images = loaded(small, True).train.images
    assert images[0, 0].equal(images[0, 1]) and not images[1, 0].equal(images[1, 1])


def test_the_next_batches_are_read_meanwhile_and_errors_come_in_their_place():
    asked = []

    def read(number):
        asked.append(number)
        if number == 4:
            raise ValueError("the fourth")
        return torch.tensor(number)

    batches = read_ahead(read, range(9))
    assert int(next(batches)) == 0 and len(asked) <= 4
    assert [int(next(batches)) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="the fourth"):
        next(batches)
    assert len(asked) <= 7
    early = read_ahead(lambda number: torch.tensor(number), range(5))
    next(early)
    early.close()


def test_resident_images_have_random_parts_too():
    images = torch.from_numpy(np.stack([pixels(i, 8, 8).transpose(2, 0, 1) for i in range(3)]))
    seeds = torch.tensor([1, 2, 3])
    found = resized_crops(images, slice(0, 3), seeds)
    for row in range(3):
        image = Image.fromarray(images[row].movedim(0, -1).numpy())
        assert np.array_equal(found[row], decoding.cropped(image, decoding.random_box(8, 8, row + 1), 8))


def test_folders_have_the_recipes_of_tiny_imagenet_and_imagenet(small):
    assert recipe_for(loaded(small, True)) == RECIPES["w21-tinyimagenet"]
    assert recipe_for(loaded(small, False, image_size=64)) == RECIPES["w21-tinyimagenet"]
    assert recipe_for(loaded(small, False, image_size=65)) == RECIPES["w21-imagenet"]
    assert loaded(small, False, image_size=65).augment == "resized-crop"
    assert recipe_for(loaded(small, True), epochs=3).epochs == 3


def test_bad_folders_are_named(small, tmp_path):
    (small / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"train/dog must have at least one image \(.*\), got none"):
        loaded(small, True)
    (small / "train" / "dog").rmdir()
    write(small / "val" / "cats" / "a.png", 1, 8, 8)
    with pytest.raises(ValueError, match=r"no class that the training images lack, got 'cats' \(did you mean 'cat'\?\)"):
        loaded(small, True)
    (small / "val" / "cats" / "a.png").rename(small / "val" / "cat" / "a.png")
    (small / "val" / "cats").rmdir()
    (small / "val" / "cat" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="a.png must be an image, got an empty file"):
        loaded(small, True)
    place = folder(tmp_path / "alone", {"train": 1})
    with pytest.raises(FileNotFoundError, match="must have a folder val or test with a folder for each .*; got train"):
        loaded(place, True)
    (tmp_path / "none" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="train must have a folder for each class, got none"):
        loaded(tmp_path / "none", True)


def test_options_that_do_not_belong_are_refused(small):
    with pytest.raises(ValueError, match="image_size must be >= 1 pixels, got 0"):
        loaded(small, True, image_size=0)
    with pytest.raises(ValueError, match="is a folder of images: vocabulary and window must be left out, got window=3"):
        loaded(small, True, window=3)
    with pytest.raises(ValueError, match="'digits' is no folder of images: image_size and resident .* got image_size=8"):
        load_task("digits", image_size=8)
    with pytest.raises(ValueError, match="normalise='channels' would read every image first"):
        loaded(small, False, normalise="channels")
    assert loaded(small, True, normalise="unit").mean == (0.0, 0.0, 0.0)
    task = loaded(small, True, normalise="channels")
    assert_close(task.prepare(task.train.images, torch.float64).mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="augment='resized-crop' needs square images of 3 channels, got .1, 8, 8."):
        load_task("digits", augment="resized-crop", device="cpu")
    late = loaded(small, False)
    with pytest.raises(TypeError, match=r"images must be a tensor, got LazyImages\(21 files in train, 8 x 8, to cpu\)"):
        late.prepare(late.train.images)
    assert isinstance(late.train.images, LazyImages) and replace(late, fingerprint="").fingerprint == late.fingerprint


@pytest.fixture
def damaged(small) -> Path:
    """ImageNet-C's layout for the clean images of `small`."""
    place = small.parent / "small-c"
    for severity in (1, 2):
        for number, clean in enumerate(sorted((small / "val").glob("*/*.png"))):
            file = place / "fog" / str(severity) / clean.parent.name / clean.name
            write(file.with_suffix(".JPEG"), 1000 * severity + number, 8, 8)
    return place


@pytest.mark.parametrize("resident", [True, False])
def test_imagenet_cs_layout_takes_the_place_of_the_test_images(small, damaged, resident):
    task = loaded(small, resident)
    found = load_corrupted(task, damaged, "fog", 2)
    expected = [np.asarray(Image.open(damaged / "fog" / "2" / name / f"val_{i}.JPEG")) for name in CLASSES
                for i in range(4)]
    assert np.array_equal(found.test.images[:], np.stack(expected).transpose(0, 3, 1, 2))
    assert found.test.is_lazy == (not resident) and found.test.labels.equal(task.test.labels)
    assert found.train is task.train and "fog of severity 2" in found.note
    assert len({found.fingerprint, task.fingerprint, load_corrupted(task, damaged, "fog", 1).fingerprint}) == 3


def test_files_of_a_subset_are_found_by_their_names(small, damaged):
    task = loaded(small, False).subset(test=5)
    found = load_corrupted(task, damaged, "fog", 1).test
    assert [Path(name).stem for name in found.images.names] == [Path(name).stem for name in task.test.images.names]
    assert [Path(name).parent.name for name in found.images.names] == ["ant", "ant", "bee", "bee", "cat"]


def test_files_with_names_of_their_own_are_taken_class_by_class(tmp_path):
    place, task = tmp_path / "tiny-c", loaded(tiny(tmp_path / "tiny"), False)  # classes 0, 0, 1, 2
    for number, (name, file) in enumerate([("ant", "t_7"), ("ant", "t_3"), ("bee", "t_0"), ("cat", "t_1")]):
        write(place / "fog" / "1" / name / f"{file}.JPEG", 300 + number, 8, 8)
    for order, stems in (([0, 1, 2, 3], ["t_3", "t_7", "t_0", "t_1"]), ([3, 0, 2, 1], ["t_1", "t_3", "t_0", "t_7"])):
        clean = replace(task, test=task.test.rows(torch.tensor(order)))
        names = load_corrupted(clean, place, "fog", 1).test.images.names
        assert [Path(name).stem for name in names] == stems


def test_what_a_folder_of_corrupted_images_lacks_is_named(small, damaged):
    late, held = loaded(small, False), loaded(small, True)
    with pytest.raises(FileNotFoundError, match="frog is not in .*small-c; there are fog .did you mean 'fog'"):
        load_corrupted(late, damaged, "frog", 1)
    with pytest.raises(FileNotFoundError, match="fog/3 is not in"):
        load_corrupted(late, damaged, "fog", 3)
    with pytest.raises(ValueError, match="severity must be one of 1, 2, 3, 4, 5; got 6"):
        load_corrupted(late, damaged, "fog", 6)
    with pytest.raises(ValueError, match="task must come from a folder of images, whose classes have names, .* 'digits'"):
        load_corrupted(load_task("digits", device="cpu"), damaged, "fog", 1)
    file = damaged / "fog" / "1" / "bee" / "val_2.JPEG"
    file.unlink()
    with pytest.raises(FileNotFoundError, match="fog/1 must have every clean test image, got 1 of 12 missing, first "
                                                "bee/val_2"):
        load_corrupted(late, damaged, "fog", 1)
    with pytest.raises(FileNotFoundError, match="fog/1/bee must have 4 images, .* got 3"):
        load_corrupted(held, damaged, "fog", 1)
    for rest in file.parent.iterdir():
        rest.unlink()
    file.parent.rmdir()
    with pytest.raises(FileNotFoundError, match="got 4 of 12 missing, first bee/val_0"):
        load_corrupted(late, damaged, "fog", 1)
    with pytest.raises(FileNotFoundError, match="fog/1/bee must have 4 images, .* got 0"):
        load_corrupted(held, damaged, "fog", 1)
    write(damaged / "fog" / "2" / "cat" / "more.JPEG", 1, 8, 8)
    with pytest.raises(ValueError, match="fog/2/cat must have 4 images, .* got 5"):
        load_corrupted(held, damaged, "fog", 2)
    write(damaged / "fog" / "2" / "dog" / "val_0.JPEG", 1, 8, 8)
    with pytest.raises(ValueError, match="no class that the training images lack, got 'dog'"):
        load_corrupted(held, damaged, "fog", 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_late_task_is_the_same_on_the_gpu(small):
    here, there = (load_task(small, device=device, image_size=8, resident=False, augment="resized-crop")
                   for device in ("cpu", "cuda"))
    assert there.train.images.device == there.train.labels.device and there.fingerprint == here.fingerprint
    both = [list(task.batches("train", batch_size=4, generator=torch.Generator().manual_seed(5), augment=True))
            for task in (here, there)]
    for (images, labels), (others, numbers) in zip(*both, strict=True):
        assert_close(images, others.cpu())
        assert labels.equal(numbers.cpu())


def test_classes_that_are_never_tested_and_the_size_are_in_the_note(small):
    assert load_task(small, device="cpu", resident=False).note.endswith("its val to test on; 224 x 224 pixels, the default")
    for file in (small / "val" / "bee").iterdir():
        file.unlink()
    (small / "val" / "bee").rmdir()
    assert loaded(small, True).note.endswith("its val to test on; val has no images of 'bee'; 8 x 8 pixels")


def test_one_class_alone_is_refused(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "one" / split / "images" / "a.png", 1, 8, 8)
    with pytest.raises(ValueError, match="at least two classes, got 'images' alone"):
        loaded(tmp_path / "one", True)


def test_a_folder_that_is_neither_images_nor_text_is_told_what_both_have(small, tmp_path):
    message = r"must have train/<class>/... and val/<class>/... \(or test\) for images, or train.txt, .* for a text; got {}"
    with pytest.raises(FileNotFoundError, match=message.format(rf"small; did you mean .*small\?")):
        load_task(tmp_path, device="cpu")
    with pytest.raises(FileNotFoundError, match=message.format(rf"ant, bee, cat; did you mean .*small\?")):
        load_task(small / "train", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message.format("nothing$")):
        load_task(tmp_path / "empty", device="cpu")
