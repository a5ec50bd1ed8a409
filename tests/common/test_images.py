"""First frames: cropped to the clip's size, upright, and the same for everybody."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from common.images import encode_png, first_frame, first_frame_png

RNG = np.random.default_rng(0)


def bands(height: int, width: int, band: int) -> np.ndarray:
    """Grey with a white band of `band` columns at each side."""
    image = np.full((height, width, 3), 120, np.uint8)
    image[:, :band] = image[:, width - band :] = 255
    return image


def test_the_right_size_is_untouched() -> None:
    image = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encode_png(image)
    assert np.array_equal(first_frame(data, 48, 64), image)
    assert first_frame_png(data, 48, 64) is data


def test_the_middle_of_a_wider_image_is_kept() -> None:
    """1280 x 720 covers 720 x 480 at 2/3 as 853 x 480, of which 66.7 columns are cut at each side: 100 of the file."""
    assert (first_frame(encode_png(bands(720, 1280, 96)), 480, 720) == 120).all()
    seen = first_frame(encode_png(bands(720, 1280, 106)), 480, 720)
    assert (seen[:, 0] > 200).all()
    assert (seen[:, 8:-8] == 120).all()


def test_a_smaller_image_is_enlarged() -> None:
    assert first_frame(encode_png(bands(24, 32, 0)), 48, 64).shape == (48, 64, 3)


def test_a_photo_is_turned_upright() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 0] = 200  # the left column
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", exif=exif)
    upright = first_frame(file.getvalue(), 6, 4)
    assert (upright[0] == 200).all()
    assert (upright[1:] == 0).all()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first_frame_png(file.getvalue(), 6, 4)))), upright)
    assert np.asarray(Image.open(io.BytesIO(first_frame_png(file.getvalue(), 4, 6)))).shape == (4, 6, 3)


@pytest.mark.parametrize("data", [b"", b"no image", encode_png(bands(8, 8, 0))[:40]])
def test_a_broken_image_is_named(data: bytes) -> None:
    with pytest.raises(ValueError, match="broken image"):
        first_frame_png(data, 4, 4)
