"""Images: the one place that says what a model, its rewards and people see of an image file.

```
file ──> upright (EXIF) ──> sRGB (ICC profile) ──> 8 bits ──> on white where transparent ──> RGB
     ──> scaled to cover the clip's size, cropped at its center ──> first frame
```

An image of another size than the clip is never squeezed: a squeezed frame differs from every clip that a model can make
of it, and rewards would punish all of them for that. What cannot be shown rightly is refused by name.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from common.errors.oom import reraise_oom
from common.image_formats import (
    FORMATS,
    SIGNATURE,
    Depth,
    check_format,
    check_turn,
    chosen_profile,
    depth_of,
    hidden_colour,
    png_chunks,
)

BACKGROUND = (255, 255, 255)  # behind transparent pixels, everywhere
PICTURES = ("GIF", "PNG", "WEBP", "JPEG", "TIFF", "BMP", "AVIF")
SIDEWAYS = (5, 6, 7, 8)  # orientations whose rows are columns
PROFILED = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode -> colour space of its profile
MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels [H, W, 3] as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decode_image(data: bytes) -> Image.Image:
    """An encoded image as a viewer shows it: 8-bit sRGB, upright, transparent parts on `BACKGROUND`.

    Raises:
        ValueError: it is not an image, broken, animated, or cannot be shown rightly.
    """
    return on_background(decode_layer(data))


def decode_layer(data: bytes) -> Image.Image:
    """`decode_image` without a background: RGBA if parts are transparent, else RGB."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_format(data, image)
            image.load()
            check_turn(image)
            profile, depth = chosen_profile(data, image), depth_of(image)
            if (hidden := hidden_colour(data, image)) is not None:
                image.info["transparency"] = hidden
            upright = ImageOps.exif_transpose(image)
            return _in_srgb(_eight_bits(upright, depth), profile)
    except UnidentifiedImageError:
        raise ValueError(f"broken image: not a whole picture of a kind that is read: {', '.join(FORMATS)}") from None
    except Exception as error:  # of a damaged file, Pillow's plugins raise almost anything
        reraise_oom(error)
        why = " ".join(str(error).split(" <")[0].split()) or type(error).__name__
        raise ValueError(f"broken image: {why}") from None


def upright_size(file: Path) -> tuple[int, int]:
    """Height and width of a picture that `decode_image` reads, from the head of its file."""
    with Image.open(file, formats=FORMATS) as image:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))  # getexif() would decode a PNG without one
        width, height = image.size
        turned = exif.get(ExifTags.Base.Orientation) in SIDEWAYS and image.format != "TIFF"  # whose size is upright
        return (width, height) if turned else (height, width)


def on_background(image: Image.Image) -> Image.Image:
    """An RGB or RGBA image as RGB, its transparent parts on `BACKGROUND`."""
    if image.mode == "RGB":
        return image
    behind = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(behind, image).convert("RGB")


def picture_format(data: bytes) -> str | None:
    """The format of a picture file, such as GIF; None for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=PICTURES) as image:
            return image.format
    except Exception as error:  # as in `decode_layer`
        reraise_oom(error)
        return None


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """An RGB image as uint8 [height, width, 3]: scaled to cover that size (Lanczos) and cropped at its center."""
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).copy()


def first_frame(data: bytes, height: int, width: int) -> np.ndarray:
    """The first frame that an encoded image stands for, uint8 [height, width, 3]. Raises like `decode_image`."""
    return fit(decode_image(data), height, width)


def first_frame_png(data: bytes, height: int, width: int) -> bytes:
    """`first_frame` as PNG: the same bytes if they are a bare PNG of that size. Raises like `decode_image`."""
    if _is_bare_png(data, height, width):
        return data
    return encode_png(first_frame(data, height, width))


def _eight_bits(image: Image.Image, depth: Depth | None) -> Image.Image:
    """The image with 8 bits per channel, in mode L, RGB, RGBA or CMYK."""
    if depth is not None:
        return _from_deep_grey(image, depth)
    if image.mode not in MODES:
        raise ValueError(f"pixels of the kind {image.mode}, whose range is unknown: save the image as 8-bit RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or image.has_transparency_data:
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def _from_deep_grey(image: Image.Image, depth: Depth) -> Image.Image:
    values = np.asarray(image).astype(np.uint32).clip(0, depth.largest)
    levels = ((values * 255 + depth.largest // 2) // depth.largest).astype(np.uint8)
    grey = Image.fromarray(255 - levels if depth.inverted else levels)
    hidden = image.info.get("transparency")
    if hidden is None:
        return grey
    alpha = Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha)).convert("RGBA")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image of `_eight_bits` as RGB or RGBA in sRGB. Without a profile it is in sRGB already."""
    if not profile:
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = str(getattr(given.profile, "xcolor_space", "")).strip()
        colours = image.convert("RGB") if image.mode == "RGBA" or (image.mode, space) == ("L", "RGB") else image
        colours = colours.convert("L") if space == "GRAY" and _is_grey(colours) else colours
        if PROFILED[colours.mode] != space:
            raise ValueError(f"a colour profile for {space} in a picture of {colours.mode}: save the image in sRGB")
        shown = ImageCms.profileToProfile(colours, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(f"its colour profile cannot be used ({error}): save the image in sRGB") from None
    assert shown is not None  # only in place
    if alpha is not None:
        shown.putalpha(alpha)
    return shown


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return image.mode == "RGB" and bool((pixels == pixels[..., :1]).all())


def _is_bare_png(data: bytes, height: int, width: int) -> bool:
    """Whether the data is a whole PNG of 8-bit RGB of that size, with nothing but its pixels in it."""
    if not data.startswith(SIGNATURE):
        return False
    chunks = png_chunks(data)
    names = [name for name, _ in chunks]
    if names != [b"IHDR", *[b"IDAT"] * (len(names) - 2), b"IEND"]:
        return False
    whole = len(SIGNATURE) + sum(12 + len(content) for _, content in chunks) == len(data)
    return whole and chunks[0][1][:10] == struct.pack(">IIBB", width, height, 8, 2)
