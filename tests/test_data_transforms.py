"""Augmentation against arrays small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from rtseg.data.transforms import (
    Augment,
    blur,
    change_brightness,
    change_saturation,
    darken,
    distort,
    fitting_factor,
    pad,
    random_corner,
    resize,
    turn_hue,
)

LABEL = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
IMAGE = np.stack([LABEL, LABEL + 100, LABEL // 2], axis=-1)


def random_crop(image, label, size, category_cap, random):
    top, left = random_corner(label, size, category_cap, random)
    window = slice(top, top + size[0]), slice(left, left + size[1])
    return image[window], label[window]


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_resize_repeats_labels_and_mixes_pixels():
    label = np.array([[0, 7]], np.uint8)
    image = np.repeat(np.array([[0, 100]], np.uint8)[..., None], 3, axis=-1)
    image, label = resize(image, label, 2)
    assert label.tolist() == [[0, 0, 7, 7], [0, 0, 7, 7]]
    assert image[0, :, 0].tolist() == [0, 25, 75, 100]  # bilinear, half-pixel centers


def test_resize_keeps_at_least_one_pixel():
    image, label = resize(IMAGE, LABEL, 0.01)
    assert image.shape == (1, 1, 3)
    assert label.shape == (1, 1)


def test_pad_is_black_and_does_not_count():
    image, label = pad(IMAGE, LABEL, (3, 4))
    assert label.tolist() == [[0, 1, 2, 255], [3, 4, 255, 255], [255] * 4]
    assert image[2].max() == 0
    assert np.array_equal(image[:2, :3], IMAGE)


def test_crop_takes_the_same_window_of_both(random):
    for _ in range(20):
        image, label = random_crop(IMAGE, LABEL, (1, 2), 1.0, random)
        assert label.shape == (1, 2)
        assert np.array_equal(image[..., 0], label)


def test_crop_reaches_every_window(random):
    windows = {random_crop(IMAGE, LABEL, (1, 2), 1.0, random)[1].tobytes() for _ in range(100)}
    assert windows == {bytes(w) for w in ([0, 1], [1, 2], [3, 4], [4, 255])}


def test_crop_draws_again_above_the_category_cap(random):
    label = np.array([[0] * 8 + [0, 1]], np.uint8)  # one of nine windows holds two classes
    image = np.zeros((1, 10, 3), np.uint8)
    shares = [random_crop(image, label, (1, 2), 0.75, random)[1].max() for _ in range(200)]
    assert 0.55 < np.mean(shares) < 0.82  # 1 - (8/9) ** 10 = 0.69; without the cap 0.11


def test_ignored_pixels_are_not_a_category(random):
    label = np.array([[255, 255, 255, 0, 1]], np.uint8)
    image = np.zeros((1, 5, 3), np.uint8)
    _, crop = random_crop(image, label, (1, 5), 0.5, random)
    assert np.array_equal(crop, label)


def test_flip_mirrors_both(random):
    image, label = Augment(crop=(2, 3), flip=1)(IMAGE, LABEL, random)
    assert label.tolist() == [[2, 1, 0], [255, 4, 3]]
    assert np.array_equal(image, IMAGE[:, ::-1])


def test_the_defaults_change_nothing(random):
    image, label = Augment(crop=(2, 3))(IMAGE, LABEL, random)
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(label, LABEL)


def test_brightness_and_contrast():
    image = np.array([[[0] * 3, [200] * 3]], np.uint8)
    assert change_brightness(image, 0.5, 1)[0, :, 0].tolist() == [0, 100]
    assert change_brightness(image, 1, 0.5)[0, :, 0].tolist() == [50, 150]  # about the mean, 100
    assert change_brightness(image, 1, 1.5)[0, :, 0].tolist() == [
        0,
        250,
    ]  # -50 is clipped, not folded
    assert change_brightness(image, 2, 1)[0, :, 0].tolist() == [0, 255]


def test_darken_is_a_power_and_a_factor():
    image = np.array([[[0] * 3, [51] * 3, [255] * 3]], np.uint8)
    assert darken(image, 1, 1)[0, :, 0].tolist() == [0, 51, 255]
    assert darken(image, 0.4, 1)[0, :, 0].tolist() == [0, 20, 102]
    assert darken(image, 1, 2)[0, :, 0].tolist() == [0, 10, 255]  # 255 * 0.2 ** 2 = 10.2


def test_dark_frames_and_noise_come_as_often_as_asked(random):
    image = np.full((8, 8, 3), 200, np.uint8)
    label = np.zeros((8, 8), np.uint8)
    drawn = [
        Augment(crop=(8, 8), noise=20, noisy=0.25)(image, label, random)[0] for _ in range(400)
    ]
    assert 70 < sum(each.std() > 0.5 for each in drawn) < 125  # of 100, one in 40 is too weak
    drawn = [Augment(crop=(8, 8), dark=0.25)(image, label, random)[0] for _ in range(400)]
    assert all(each.std() == 0 for each in drawn)  # noise takes no part
    assert 70 < sum(each.mean() < 199 for each in drawn) < 125
    assert min(each.mean() for each in drawn) < 40


def test_noise_in_every_crop_draws_no_chance_of_it():
    image, label = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.uint8)
    always, often = (
        Augment(crop=(8, 8), noise=20, noisy=share)(image, label, np.random.default_rng(5))[0]
        for share in (1.0, 1 - 1e-9)
    )
    assert not np.array_equal(always, often)  # one number more was drawn before the second


def test_saturation_none_is_gray():
    image = np.array([[[10, 200, 90]]], np.uint8)
    gray = change_saturation(image, 0)[0, 0]
    assert gray[0] == gray[1] == gray[2]
    assert np.array_equal(change_saturation(image, 1), image)


def test_hue_turned_by_half_gives_the_complement():
    red = np.array([[[0, 0, 255]]], np.uint8)
    assert np.abs(turn_hue(red, 0.5)[0, 0].astype(int) - [255, 255, 0]).max() <= 6
    assert np.abs(turn_hue(red, 0.0)[0, 0].astype(int) - [0, 0, 255]).max() <= 6


def test_blur_spreads_a_point():
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    out = blur(image, 1.0)
    assert 0 < out[4, 5, 0] < out[4, 4, 0] < 255
    assert np.array_equal(blur(image, 0.0), image)


def test_the_generator_decides_everything():
    augment = Augment(
        crop=(8, 8), scale=(0.5, 2), flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3,
        hue=0.1, blur=0.5,
    )  # fmt: skip
    noise = np.random.default_rng(1).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    label = noise[..., 0] % 5
    first, again, other = (augment(noise, label, np.random.default_rng(s)) for s in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("wrong", [{"scale": (2, 1)}, {"scale": (0, 1)}, {"crop": (0, 4)}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"scale is|crop is"):
        Augment(**({"crop": (2, 2)} | wrong))


def test_fit_takes_the_side_that_binds():
    assert fitting_factor((600, 800), (512, 2048)) == pytest.approx(512 / 600)
    assert fitting_factor((100, 800), (512, 2048)) == pytest.approx(2048 / 800)
    augment = Augment(crop=(4, 4), fit=(4, 8))
    label = np.arange(64, dtype=np.uint8).reshape(8, 8)
    _, small = augment(np.dstack([label] * 3), label, np.random.default_rng(0))
    assert small.shape == (4, 4)  # the whole image, at half its size
    assert len(set(small.ravel() // 16)) == 4
    with pytest.raises(ValueError, match=r"fit is \[short, long\]"):
        Augment(crop=(4, 4), fit=(8, 4))


def test_maps_move_with_the_label():
    random = np.random.default_rng(3)
    label = random.integers(0, 200, (20, 30)).astype(np.uint8)
    maps = np.dstack([label, label // 2 + 1])
    augment = Augment(crop=(40, 24), scale=(0.5, 2), flip=0.5, category_cap=0.9)
    for seed in range(5):
        image, moved = augment(np.dstack([label] * 3), maps, np.random.default_rng(seed))
        assert moved.shape == (40, 24, 2)
        ids, other = moved[..., 0], moved[..., 1]
        inside = ids != 255
        assert np.array_equal(other[inside], ids[inside] // 2 + 1)
        assert (other[~inside] == 0).all()  # padded
        alone = augment(np.dstack([label] * 3), label, np.random.default_rng(seed))
        assert np.array_equal(alone[0], image)
        assert np.array_equal(alone[1], ids)


class Drawn:
    """A generator that gives the prescribed numbers."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)

    def uniform(self, low, high):
        value = self.numbers.pop(0)
        assert low <= value <= high
        return value


def test_photometric_steps_by_hand():
    image = np.array([[[10, 100, 240]]], np.uint8)
    no, yes = 0.9, 0.1
    same = distort(image, 0.5, Drawn(no, no, no, no))
    assert np.array_equal(same, image)
    brighter = distort(image, 0.5, Drawn(yes, 20.0, no, no, no))
    assert brighter.ravel().tolist() == [30, 120, 255]
    flatter = distort(image, 0.5, Drawn(no, yes, 0.5, no, no))
    assert flatter.ravel().tolist() == [5, 50, 120]
    # Red at full strength, half as saturated: 255 stays, 0 rises to about its half.
    red = np.array([[[0, 0, 255]]], np.uint8)
    paler = distort(red, 0.5, Drawn(no, no, yes, 0.5, no)).ravel()
    assert np.abs(paler.astype(int) - [127, 127, 255]).max() <= 1
    # A tenth of the circle from red, towards yellow.
    turned = distort(red, 0.5, Drawn(no, no, no, yes, 0.1)).ravel().astype(int)
    assert np.abs(turned - [0, 0.6 * 255, 255]).max() <= 3
