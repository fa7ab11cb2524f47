"""Corrupted images: what every kind keeps and changes, severities in order, folders that lack something."""

import numpy as np
import pytest
import torch
from conftest import make_task
from torch.testing import assert_close

from lossland.corruptions import SEVERITIES, STRENGTHS, corrupt, corrupted, load_corrupted
from lossland.tasks import load_task


def pictures(n: int = 12, channels: int = 3, side: int = 32, top: int = 255) -> torch.Tensor:
    """Images with smooth and sharp parts."""
    g = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, channels, 4, 4, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    sharp = (torch.rand(n, channels, side, side, generator=g) > 0.9).float()
    return ((0.7 * smooth + 0.3 * sharp) * top).to(torch.uint8)


def damage(images: torch.Tensor, kind: str, severity: int, **options: float) -> float:
    return float((corrupt(images, kind, severity, **options).float() - images.float()).abs().mean())


@pytest.mark.parametrize(("channels", "side", "top"), [(3, 32, 255), (1, 8, 16), (1, 28, 255)])
@pytest.mark.parametrize("kind", STRENGTHS)
def test_every_severity_does_more_damage_than_the_one_before(kind, channels, side, top):
    images = pictures(channels=channels, side=side, top=top)
    found = [damage(images, kind, severity, scale=top) for severity in SEVERITIES]
    # Digits have 16 grey values and 8 pixels a side: two severities may come out alike.
    assert all(y > x if side > 8 else y >= x for x, y in zip(found, found[1:]))
    assert 0 < found[-1]
    for severity in SEVERITIES:
        out = corrupt(images, kind, severity, scale=top)
        assert out.dtype == torch.uint8 and out.shape == images.shape and int(out.max()) <= top


def test_noise_has_the_stated_deviation_and_no_mean():
    grey = torch.full((50, 1, 28, 28), 128, dtype=torch.uint8)
    for severity in (1, 2):  # hardly ever cut off at 0 or 255
        found = corrupt(grey, "noise", severity).float()
        assert float(found.std()) / 255 == pytest.approx(STRENGTHS["noise"][severity - 1], rel=0.02)
        assert float(found.mean()) == pytest.approx(128, abs=0.5)


def test_noise_follows_its_seed():
    images = pictures()
    assert corrupt(images, "noise", 3, seed=1).equal(corrupt(images, "noise", 3, seed=1))
    assert not corrupt(images, "noise", 3, seed=1).equal(corrupt(images, "noise", 3, seed=2))


def test_contrast_keeps_means_and_scales_differences():
    images = pictures().float()
    found = corrupt(images.to(torch.uint8), "contrast", 2).float()
    assert_close(found.mean((1, 2, 3)), images.mean((1, 2, 3)), rtol=0, atol=0.1)
    assert_close(found.std((1, 2, 3)) / images.std((1, 2, 3)), torch.full((12,), 0.45), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", ["blur", "contrast", "pixelate", "jpeg"])
def test_an_even_image_stays_as_it_is(kind):
    grey = torch.full((2, 3, 32, 32), 96, dtype=torch.uint8)
    assert damage(grey, kind, 5) <= 1


def test_brightness_is_cut_off_at_the_top():
    assert corrupt(torch.full((1, 1, 8, 8), 12, dtype=torch.uint8), "brightness", 5, scale=16).eq(16).all()


def test_pixels_become_squares_of_one_colour():
    images = pictures()
    found = corrupt(images, "pixelate", 2)  # squares of 4 x 4, ceil(0.1 * 32)
    squares, before = (x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2).float() for x in (found, images))
    assert squares.std(-1).max() == 0
    assert_close(squares.mean(-1), before.mean(-1), rtol=0, atol=0.51)


@pytest.mark.parametrize("across", [2, 3])
def test_blur_spreads_a_line_by_its_deviation_in_both_directions(across):
    line, places = torch.zeros(1, 1, 33, 33, dtype=torch.uint8), torch.arange(33.0) - 16
    line.select(across, 16).fill_(255)
    profile = corrupt(line, "blur", 4)[0, 0].float().mean(3 - across)  # across the line
    share = profile / profile.sum()
    assert float((share * places.square()).sum()) ** 0.5 == pytest.approx(0.06 * 33, rel=0.03)


@pytest.mark.parametrize("kind", ["blur", "contrast", "brightness", "pixelate", "jpeg"])
def test_a_batch_is_its_images_one_by_one(kind):
    images = pictures()
    assert torch.cat([corrupt(image[None], kind, 4) for image in images]).equal(corrupt(images, kind, 4))


def test_only_test_images_change():
    task = load_task("digits", device="cpu")
    found = corrupted(task, "noise", 2)
    assert found.train is task.train and found.test.labels is task.test.labels
    assert found.test.images.equal(corrupt(task.test.images, "noise", 2, scale=16)) and found.fingerprint != task.fingerprint
    assert found.note.endswith("test images with noise of severity 2")


@pytest.mark.parametrize(("arguments", "message"), [
    (("nois", 1), r"kind must be one of 'noise', .*; got 'nois' \(did you mean 'noise'\?\)"),
    (("noise", 6), r"severity must be one of 1, 2, 3, 4, 5; got 6"),
    (("noise", 0), r"severity must be one of 1, 2, 3, 4, 5; got 0"),
])
def test_kinds_and_severities_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(pictures(1), *arguments)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"images must be uint8 \(n, C, H, W\), got float32 \(2, 3\)"):
        corrupt(torch.zeros(2, 3), "blur", 1)
    with pytest.raises(ValueError, match="scale must be the largest value of a pixel, got 16 for a pixel of"):
        corrupt(pictures(1), "blur", 1, scale=16)
    with pytest.raises(ValueError, match="1 or 3 channels for kind 'jpeg', got 2"):
        corrupt(torch.zeros(1, 2, 8, 8, dtype=torch.uint8), "jpeg", 1)
    with pytest.raises(ValueError, match="must hold images to be corrupted, got the text 'pydoc'"):
        corrupted(load_task("pydoc", device="cpu", vocabulary=50), "blur", 1)


@pytest.fixture
def folder(tmp_path):
    task = make_task((3, 6, 6))
    n = len(task.test)
    stacked = torch.cat([corrupt(task.test.images, "noise", severity) for severity in SEVERITIES])
    np.save(tmp_path / "gaussian_noise.npy", stacked.permute(0, 2, 3, 1).contiguous().numpy())
    np.save(tmp_path / "labels.npy", task.test.labels.repeat(5).numpy().astype(np.uint8))
    assert len(stacked) == 5 * n
    return task, tmp_path


def test_a_folder_gives_the_images_of_the_severity(folder):
    task, place = folder
    for severity in (1, 5):
        found = load_corrupted(task, place, "gaussian_noise", severity)
        assert found.test.images.equal(corrupt(task.test.images, "noise", severity)) and found.train is task.train


def test_a_folder_that_lacks_a_file_is_refused(folder):
    task, place = folder
    with pytest.raises(FileNotFoundError, match=r"gaussian_nois.npy is not in .*; there are gaussian_noise \(did you mean"):
        load_corrupted(task, place, "gaussian_nois", 1)
    (place / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match="labels.npy is not in "):
        load_corrupted(task, place, "gaussian_noise", 1)


def test_a_folder_of_other_images_is_refused(folder):
    task, place = folder
    with pytest.raises(ValueError, match=r"gaussian_noise.npy must be uint8 \(205, 5, 5, 3\) with 205 labels, .*got uint8"):
        load_corrupted(make_task((3, 5, 5)), place, "gaussian_noise", 1)
    np.save(place / "labels.npy", (1 + task.test.labels.repeat(5).numpy()) % 3)
    with pytest.raises(ValueError, match="labels.npy must hold the labels of blobs's test images in their order"):
        load_corrupted(task, place, "gaussian_noise", 2)


def test_a_folder_that_is_absent_or_empty_is_said_to_be(tmp_path):
    task = make_task((3, 6, 6))
    with pytest.raises(FileNotFoundError, match="folder must hold corrupted images.* is absent"):
        load_corrupted(task, tmp_path / "not-there", "fog", 1)
    with pytest.raises(FileNotFoundError, match="folder must hold corrupted images.* is empty"):
        load_corrupted(task, tmp_path, "fog", 1)
    (tmp_path / "archive.tar").write_bytes(b"0")
    with pytest.raises(FileNotFoundError, match="archive.tar is no folder"):
        load_corrupted(task, tmp_path / "archive.tar", "fog", 1)
