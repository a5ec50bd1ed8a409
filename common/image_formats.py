"""What a picture file says of its colours, depth and parts beyond its pixels, and what of it cannot be shown rightly.

Pillow decodes more than it interprets: it reads a preview as the picture, 12 bits as 16, and ignores primaries. Every
such file is read right (`depth_of`, `hidden_colour`) or refused by name (`check_format`).
"""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import Any, NamedTuple

from PIL import ExifTags, Image

warnings.filterwarnings("ignore", module=r"PIL\.")  # odd tags and large pictures; what is wrong is an error here

# Others are drawn by programs (EPS, WMF), hold layers or previews (PSD, ICNS), or colours that Pillow does not read
# (JPEG 2000).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM", "TGA", "ICO", "QOI")
STILL = ("JPEG", "MPO", "TGA", "BMP", "PPM", "ICO")  # formats whose further pictures, if any, are no animation
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GAMMA, SRGB_GAMMA = b"gAMA", 0.45455
CHROMATICITIES, SRGB_CHROMATICITIES = b"cHRM", (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, R, G, B
NEAR = 0.02  # the primaries of BT.601 are that near to sRGB's; those of wide gamuts are not
SRGB_LIKE = {1, 2, 6, 13}  # transfer functions of ITU-T H.273 that are shown as sRGB
BT709_LIKE = {1, 2, 5, 6, 7}  # primaries
BITS, PHOTOMETRIC, SUBFILE, EXTRA, DNG = 258, 262, 254, 338, 50706  # tags of TIFF
WHITE_IS_ZERO, REDUCED = 0, 1
START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"  # markers of JPEG
TAIL = bytes(256)  # zeros, which no compressed picture ends in


class Depth(NamedTuple):
    """Of grey with more than 8 bits: the value of the brightest pixel, and whether it stands for black."""

    largest: int
    inverted: bool


def check_format(data: bytes, image: Image.Image) -> None:
    """Raise `ValueError` for an opened picture that Pillow would show in wrong colours or parts, or that moves."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format not in STILL:
        raise ValueError(f"{count} pictures in one {image.format} file, animated or pages: save one of them as PNG")
    tiles = getattr(image, "tile", ())
    if image.format == "GIF" and tiles and tuple(tiles[0][1]) != (0, 0, *image.size):
        raise ValueError("a GIF whose picture does not fill its size: save it as PNG")
    if image.format == "TIFF" and (_tag(image, SUBFILE, 0) & REDUCED or _tag(image, DNG, None) is not None):
        raise ValueError("a preview inside a camera's raw file: develop the file, and save it as PNG")
    if image.format == "AVIF" and clean_aperture(data):
        raise ValueError("an AVIF that its clean aperture crops: save it as PNG")
    _check_end(data, image)
    _check_alpha(data, image)
    _check_colours(data, image)


def check_turn(image: Image.Image) -> None:
    """Raise `ValueError` for a loaded picture that says how to turn it, but where only some programs look for that.

    Pillow also turns by XMP and by a PNG's text of ImageMagick; browsers and FFmpeg do not.
    """
    own = Image.Exif()
    own.load(image.info.get("exif", b""))
    orientation = ExifTags.Base.Orientation
    if image.format != "TIFF" and own.get(orientation, 1) != image.getexif().get(orientation, 1):
        raise ValueError("an orientation that only some programs read (XMP, text): save the picture upright")


def chosen_profile(data: bytes, image: Image.Image) -> bytes | None:
    """The ICC profile of an opened picture's colours. A PNG's `cICP` chunk goes before it; such colours are sRGB's."""
    coded = image.format == "PNG" and len(dict(png_chunks(data)).get(b"cICP", b"")) == 4
    return None if coded else image.info.get("icc_profile")


def depth_of(image: Image.Image) -> Depth | None:
    """The depth of an opened picture in more than 8 bits of grey; None for others."""
    if image.mode == "I" and image.format == "PPM":
        return Depth(65535, inverted=False)  # Pillow scales to it
    if not image.mode.startswith("I;16"):
        return None
    if image.format != "TIFF":
        return Depth(65535, inverted=False)
    bits = _tag(image, BITS, 16)
    return Depth(
        (1 << (bits[0] if isinstance(bits, tuple) else bits)) - 1, _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO
    )


def hidden_colour(data: bytes, image: Image.Image) -> Any:
    """`info["transparency"]` in the values that Pillow's pixels have: it expands grey of 2 and 4 bits to 8.

    Raises `ValueError` for a colour in 16 bits: after rounding, others are equal to it.
    """
    hidden = image.info.get("transparency")
    if image.format != "PNG" or hidden is None or isinstance(hidden, bytes):
        return hidden
    depth = data[24]
    if image.mode == "RGB" and depth == 16:
        raise ValueError("a hidden colour in 16 bits per channel: save the image with an alpha channel")
    return hidden * (255 // ((1 << depth) - 1)) if image.mode == "L" and depth in (2, 4) else hidden


def clean_aperture(data: bytes) -> tuple[float, float, float, float] | None:
    """The `clap` box of an MP4, QuickTime or AVIF file: width, height and offsets of what is shown; None without."""
    place = data.find(struct.pack(">I", 40) + b"clap")
    if place < 0 or place + 40 > len(data):
        return None
    values = struct.unpack_from(">8i", data, place + 8)
    width, height, right, down = (
        top / bottom if bottom else 0.0 for top, bottom in zip(values[::2], values[1::2], strict=True)
    )
    return width, height, right, down


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(name, content) of a PNG's chunks, as far as they are whole."""
    found, place = [], len(SIGNATURE)
    while place + 12 <= len(data):
        length = struct.unpack_from(">I", data, place)[0]
        name, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        check = data[place + 8 + length : place + 12 + length]
        if len(check) < 4 or struct.unpack(">I", check)[0] != zlib.crc32(name + content):
            break
        found.append((name, content))
        place += 12 + length
    return found


def _check_end(data: bytes, image: Image.Image) -> None:
    """Refuse a file whose end was not written, where decoders show grey and say nothing."""
    if image.format in ("JPEG", "MPO"):
        whole = data.find(END_OF_IMAGE, _first_scan(data)) >= 0
    else:
        whole = image.format not in ("WEBP", "AVIF") or not data.endswith(TAIL)
    if not whole:
        raise ValueError("truncated: its end is missing, as in a download that was not finished")


def _first_scan(data: bytes) -> int:
    """Where a JPEG's pixels begin. The segments before may hold a whole small picture."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != START_OF_SCAN:
        if data[place + 1] == 0xFF:  # a fill byte
            place += 1
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return place


def _check_alpha(data: bytes, image: Image.Image) -> None:
    """Refuse a fourth channel of which the file does not say whether it is transparency."""
    said = True
    if image.format == "TGA":
        said = bool(data[17] & 0xF)
    elif image.format == "TIFF":
        said = _tag(image, EXTRA, None) is not None
    if image.mode == "RGBA" and not said:
        raise ValueError("a fourth channel that may be transparency or not: save the image as PNG")


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _check_colours(data: bytes, image: Image.Image) -> None:
    """Refuse HDR and wide-gamut pictures without a profile, and gamma other than sRGB's."""
    coded = None
    if image.format == "PNG":
        chunks = dict(png_chunks(data))
        if len(chunks.get(b"cICP", b"")) == 4:
            coded = chunks[b"cICP"][0], chunks[b"cICP"][1]
            if not chunks[b"cICP"][3]:
                raise ValueError("colours in the narrow range of video: save the image in sRGB")
        elif "icc_profile" not in image.info and b"sRGB" not in chunks:
            _check_curve_and_primaries(chunks)
    elif image.format == "AVIF" and (place := data.find(b"colrnclx")) >= 0:
        coded = struct.unpack_from(">HH", data, place + 8)
    if coded is not None and not (coded[0] in BT709_LIKE and coded[1] in SRGB_LIKE):
        kind = {16: "HDR (PQ)", 18: "HDR (HLG)"}.get(coded[1], "wide-gamut")
        raise ValueError(f"{kind} colours, which need tone mapping: save the image in sRGB")


def _check_curve_and_primaries(chunks: dict[bytes, bytes]) -> None:
    if len(chunks.get(GAMMA, b"")) == 4:
        gamma = struct.unpack(">I", chunks[GAMMA])[0] / 100000
        if abs(gamma - SRGB_GAMMA) > 0.01:
            raise ValueError(f"a gamma of {gamma:g}, not sRGB's: save the image in sRGB")
    if len(chunks.get(CHROMATICITIES, b"")) == 32:
        found = (value / 100000 for value in struct.unpack(">8I", chunks[CHROMATICITIES]))
        if any(abs(one - srgb) > NEAR for one, srgb in zip(found, SRGB_CHROMATICITIES, strict=True)):
            raise ValueError("wide-gamut colours (cHRM): save the image in sRGB")
