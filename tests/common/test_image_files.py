"""Image files as people have them: what is seen is what a viewer shows, or the file is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from actors.prompts.source import FilePrompts
from common.errors import ConfigError
from common.images import decode_image, encode_png, first_frame, first_frame_png

RNG = np.random.default_rng(0)
MAGENTA, BLUE = (255, 0, 255), (0, 0, 255)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data), int)


def half_hidden() -> Image.Image:
    """Blue at the left, at the right magenta that is not seen."""
    image = Image.new("RGBA", (8, 4), (*BLUE, 255))
    image.paste((*MAGENTA, 0), (4, 0, 8, 4))
    return image


def of_gamma(power: float) -> bytes:
    """An sRGB profile in which all channels have another curve: a `curv` of one number."""
    profile = bytearray(SRGB)
    count = struct.unpack_from(">I", profile, 128)[0]
    for place in range(count):
        tag, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * place)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            assert size >= 14
            profile[start : start + 14] = struct.pack(">4sIIH", b"curv", 0, 1, round(256 * power))
    return bytes(profile)


def chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """The PNG with a chunk behind its header."""
    made = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png[:33] + made + png[33:]


def palette() -> Image.Image:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([*BLUE, *MAGENTA])
    image.paste(1, (4, 0, 8, 4))
    return image


def test_hidden_colours_are_white_in_every_format() -> None:
    files = {
        "RGBA": saved(half_hidden()),
        "WebP": saved(half_hidden(), "WEBP", lossless=True, exact=True),
        "palette": saved(palette(), transparency=1),
        "palette with alpha": saved(palette(), transparency=bytes([255, 0])),
        "GIF": saved(palette(), "GIF", transparency=1),
        "RGB with one hidden colour": saved(half_hidden().convert("RGB"), transparency=MAGENTA),
        "TIFF": saved(half_hidden(), "TIFF"),
    }
    for name, data in files.items():
        seen = pixels(data)
        assert (seen[:, 4:] == 255).all(), name
        assert (seen[:, :4] == BLUE).all(), name
        assert np.array_equal(first_frame(data, 4, 8), seen), name
        assert np.array_equal(pixels(first_frame_png(data, 4, 8)), seen), name


def test_grey_with_alpha_is_blended() -> None:
    image = Image.merge("LA", (Image.new("L", (4, 4), 100), Image.new("L", (4, 4), 51)))
    assert (pixels(saved(image)) == 224).all()  # a fifth of 100 on white


def test_grey_of_16_bits_keeps_its_shades() -> None:
    values = np.linspace(0, 65535, 32).astype(np.uint16).reshape(4, 8)
    for kind in ("PNG", "TIFF"):
        seen = pixels(saved(Image.fromarray(values), kind))
        assert np.abs(seen[..., 0] - values / 257).max() <= 0.5
        assert (seen == seen[..., :1]).all()
    hidden = chunk(saved(Image.fromarray(values)), b"tRNS", struct.pack(">H", int(values[0, 3])))
    seen = pixels(hidden)
    assert seen[0, 3].tolist() == [255] * 3
    assert seen[0, 0].tolist() == [0] * 3


def test_colours_of_16_bits() -> None:
    values = RNG.integers(0, 65536, (4, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 8, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    assert np.abs(pixels(data) - values / 257).max() <= 1
    assert np.array_equal(first_frame(first_frame_png(data, 4, 8), 4, 8), pixels(data))


def test_a_colour_profile_is_applied() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    linear = of_gamma(1.0)
    wanted = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(linear)), ImageCms.createProfile("sRGB")
    )
    seen = pixels(saved(image, icc_profile=linear))
    assert np.array_equal(seen, np.asarray(wanted))
    grey = pixels(saved(Image.new("RGB", (2, 2), (55, 55, 55)), icc_profile=linear))
    assert np.abs(grey - 128).max() <= 1  # linear 55/255 = 0.2157 is 0.5017 in sRGB
    assert np.abs(pixels(saved(image, icc_profile=SRGB)) - np.asarray(image)).max() <= 1


def test_a_profile_goes_with_transparency_palette_and_grey() -> None:
    linear = of_gamma(1.0)
    image = Image.new("RGBA", (4, 4), (55, 55, 55, 255))
    image.paste((*MAGENTA, 0), (2, 0, 4, 4))
    seen = pixels(saved(image, icc_profile=linear))
    assert np.abs(seen[:, :2] - 128).max() <= 1
    assert (seen[:, 2:] == 255).all()
    for other in (Image.new("L", (4, 4), 55), Image.new("RGB", (4, 4), (55, 55, 55)).quantize(4)):
        assert np.abs(pixels(saved(other, icc_profile=linear)) - 128).max() <= 1


def test_the_profile_is_not_applied_twice() -> None:
    data = saved(Image.new("RGB", (4, 4), (55, 55, 55)), icc_profile=of_gamma(1.0))
    once = first_frame_png(data, 4, 4)
    assert once != data
    assert first_frame_png(once, 4, 4) is once
    assert np.abs(pixels(once) - 128).max() <= 1


def test_cmyk_is_shown_in_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.abs(pixels(saved(image, "TIFF")) - [0, 255, 255]).max() <= 2
    assert np.abs(pixels(saved(image, "JPEG", quality=95)) - [0, 255, 255]).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_upright(kind: str, orientation: int) -> None:
    turns = {
        1: lambda one: one,
        2: lambda one: one[:, ::-1],
        3: lambda one: one[::-1, ::-1],
        4: lambda one: one[::-1],
        5: lambda one: one.transpose(1, 0, 2),
        6: lambda one: np.rot90(one, -1),
        7: lambda one: one[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90,
    }
    image = np.zeros((16, 32, 3), np.uint8)
    image[:8, :16] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = pixels(saved(Image.fromarray(image), kind, exif=exif))
    assert seen.shape == turns[orientation](image).shape
    assert np.abs(seen - turns[orientation](image)).mean() < 8


def animated(kind: str, **options: Any) -> bytes:
    frames = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


REFUSED = {
    "3 pictures in one GIF file": animated("GIF"),
    "3 pictures in one WEBP file": animated("WEBP"),
    "3 pictures in one PNG file": animated("PNG"),
    "3 pictures in one TIFF file": animated("TIFF"),
    "pixels of the kind F": saved(Image.new("F", (4, 4), 0.5), "TIFF"),
    "a gamma of 1, not sRGB's": chunk(encode_png(np.zeros((4, 4, 3), np.uint8)), b"gAMA", struct.pack(">I", 100000)),
    r"HDR \(PQ\) colours": chunk(encode_png(np.zeros((4, 4, 3), np.uint8)), b"cICP", bytes([9, 16, 0, 1])),
    r"HDR \(HLG\) colours": chunk(encode_png(np.zeros((4, 4, 3), np.uint8)), b"cICP", bytes([9, 18, 0, 1])),
    "its colour profile cannot be used": saved(Image.new("RGB", (4, 4)), icc_profile=b"no profile" * 20),
    "a colour profile for RGB in a picture of CMYK": saved(Image.new("CMYK", (4, 4)), "TIFF", icc_profile=SRGB),
    "truncated": saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")[:-500],
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_shown_rightly_is_refused_at_the_start(why: str, tmp_path: Path) -> None:
    data = REFUSED[why]
    for read in (decode_image, lambda data: first_frame(data, 4, 4), lambda data: first_frame_png(data, 4, 4)):
        with pytest.raises(ValueError, match=why):
            read(data)
    (tmp_path / "good.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "bad.png").write_bytes(data)
    rows = [f'{{"image": "{name}.png", "prompt": "it walks"}}\n' for name in ("good", "bad", "good")]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    with pytest.raises(ConfigError, match=rf"prompts.jsonl:2: image .*bad.png: broken image: .*{why}") as error:
        FilePrompts(tmp_path / "prompts.jsonl", 0)
    assert "\n" not in str(error.value)


def test_a_png_of_the_right_size_is_checked_too() -> None:
    """Only a bare and whole one passes as it is: others may be cut short, have a profile, or hide colours."""
    plain = encode_png(RNG.integers(0, 256, (4, 8, 3), dtype=np.uint8))
    assert first_frame_png(plain, 4, 8) is plain
    with pytest.raises(ValueError, match="broken image"):
        first_frame_png(plain[:-30], 4, 8)
    for other in (saved(half_hidden()), chunk(plain, b"gAMA", struct.pack(">I", 45455))):
        assert first_frame_png(other, 4, 8) != other
        assert np.array_equal(pixels(first_frame_png(other, 4, 8)), pixels(other))


@pytest.mark.filterwarnings("ignore")  # Pillow's, about tags
@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "AVIF", "JPEG"])
def test_damaged_files_are_errors_in_one_line(kind: str) -> None:
    whole = saved(half_hidden().convert("RGB"), kind)
    for _ in range(100):
        data = bytearray(whole)
        for place in RNG.integers(0, len(data), 3):
            data[place] = RNG.integers(0, 256)
        found = None
        try:
            assert decode_image(bytes(data)).mode == "RGB"
        except ValueError as error:
            found = str(error)
        assert "\n" not in (found or "")


def test_a_phones_picture_with_a_second_one_for_the_depth_is_no_animation() -> None:
    data = animated("MPO")
    assert pixels(data).shape == (8, 8, 3)
