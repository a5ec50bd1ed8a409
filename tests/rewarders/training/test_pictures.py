"""Fingerprints of pictures: equal under size, crop and encoding, and different for different pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from common.images import decode_image, fit
from common.toon.prompts import ToonPrompts
from rewarders.training.pictures import LENGTH, TOLERANCE, fingerprint, groups, same


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    """First frames of the toon world, which has few backgrounds and figures."""
    prompts = ToonPrompts(0)
    return [decode_image(data) for data in sorted({prompts(i).image or b"" for i in range(150)})]


def prints(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([fingerprint(one) for one in pictures])


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return decode_image(data.getvalue())


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: jpeg(image, 80),
        lambda image: image.resize((720, 540)),
        lambda image: Image.fromarray(fit(image, 270, 480)),
        lambda image: Image.fromarray(fit(image, 60, 60)),
        lambda image: Image.fromarray(fit(image, 96, 48)),
        lambda image: jpeg(Image.fromarray(fit(image, 360, 640)), 50),
    ],
    ids=["jpeg", "large", "wide", "square", "tall", "wide jpeg"],
)
def test_a_changed_picture_is_the_same_and_no_other_one(frames: list[Image.Image], changed) -> None:
    pairs = same(prints([changed(image) for image in frames]), prints(frames))
    assert pairs.tolist() == [[i, i] for i in range(len(frames))]


def test_groups_reach_through_others() -> None:
    step = 0.9 * TOLERANCE
    levels = np.array([100, 100 + step, 100 + 2 * step, 200, 100])
    grey = np.broadcast_to(levels.round().astype(np.uint8)[:, None, None], (5, 2, LENGTH))
    found = groups(grey)
    assert found[0] == found[1] == found[2] == found[4] != found[3]
    assert same(grey[:1], grey[2:3]).tolist() == []
    assert same(grey[:0], grey).shape == (0, 2)


def test_many_pictures_are_compared_in_parts(frames: list[Image.Image]) -> None:
    some = prints(frames)
    many = np.tile(some, (600 // len(some) + 1, 1, 1))
    whole = same(many, some)
    assert whole.tolist() == [[i, i % len(some)] for i in range(len(many))]
