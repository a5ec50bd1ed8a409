"""First frames: the one place that says what part of an image a model, its rewards and people see.

An image of another size than the clip is scaled until it covers the clip, and cropped at its center, never squeezed: a
squeezed frame differs from every clip that a model can make of it, and rewards would punish all of them for that.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

ORIENTATION = ExifTags.Base.Orientation


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels [H, W, 3] as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decode_image(data: bytes) -> Image.Image:
    """An encoded image in RGB, turned upright as its EXIF data says.

    Raises:
        ValueError: it is not an image, or broken.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"broken image: {str(error).split(' <')[0]}") from None


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """An RGB image as uint8 [height, width, 3]: scaled to cover that size (Lanczos) and cropped at its center."""
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).copy()


def first_frame(data: bytes, height: int, width: int) -> np.ndarray:
    """The first frame that an encoded image stands for, uint8 [height, width, 3]. Raises like `decode_image`."""
    return fit(decode_image(data), height, width)


def first_frame_png(data: bytes, height: int, width: int) -> bytes:
    """`first_frame` as PNG: the same bytes, unchecked, if they are a PNG of that size. Raises like `decode_image`."""
    if _is_png_of(data, height, width):
        return data
    return encode_png(first_frame(data, height, width))


def _is_png_of(data: bytes, height: int, width: int) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return image.size == (width, height) and ORIENTATION not in image.getexif()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return False
