"""Pictures whose files say more than Pillow interprets: depth, hidden colours, primaries, previews, other formats."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.images import decode_image
from tests.common.test_image_files import RNG, chunk, of_gamma, saved

SHORT, LONG = 3, 4  # types of TIFF tags


def pixels(data: bytes) -> list[list[int]]:
    return np.asarray(decode_image(data)).reshape(-1, 3).tolist()


def grey(*levels: int) -> list[list[int]]:
    return [[level] * 3 for level in levels]


def png(width: int, depth: int, kind: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row."""
    header = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data


def tiff(
    width: int, bits: int, row: bytes, black_is_zero: bool = True, more: Sequence[tuple[int, int, int]] = ()
) -> bytes:
    """A grey TIFF of one row; `more` are (tag, type, value)."""
    tags = [(256, SHORT, width), (257, SHORT, 1), (258, SHORT, bits), (259, SHORT, 1), (262, SHORT, int(black_is_zero))]
    tags += [(277, SHORT, 1), (278, SHORT, 1), (279, LONG, len(row)), *more]
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = [struct.pack("<HHII", *tag[:2], 1, tag[2]) for tag in sorted([*tags, (273, LONG, start)])]
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4) + row


def tga(bits: int, pixel: bytes) -> bytes:
    """A TGA of one pixel, without a word about transparency."""
    return bytes([0, 0, 2, *[0] * 9]) + struct.pack("<HHBB", 1, 1, bits, 0x20) + pixel


def test_a_hidden_shade_of_few_bits() -> None:
    """PNG gives it in the file's bits; Pillow's pixels are stretched to 8."""
    assert pixels(png(4, 4, 0, bytes([0x0F, 0x37]), (b"tRNS", b"\0\x03"))) == grey(0, 255, 255, 119)
    assert pixels(png(4, 2, 0, bytes([0b00011011]), (b"tRNS", b"\0\x01"))) == grey(0, 255, 170, 255)
    assert pixels(png(4, 1, 0, bytes([0b01010000]), (b"tRNS", b"\0\x00"))) == grey(255, 255, 255, 255)
    assert pixels(png(2, 8, 0, bytes([7, 9]), (b"tRNS", b"\0\x07"))) == grey(255, 9)


def test_grey_of_other_depths() -> None:
    assert pixels(tiff(2, 12, bytes([0xFF, 0xF0, 0x00]))) == grey(255, 0)
    assert pixels(tiff(3, 16, struct.pack("<3H", 0, 257, 65535), black_is_zero=False)) == grey(255, 254, 0)
    assert pixels(tiff(2, 8, bytes([0, 255]), black_is_zero=False)) == grey(255, 0)
    assert pixels(b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023)) == grey(0, 128, 255)
    assert pixels(b"P5 3 1 100\n" + bytes([0, 50, 100])) == grey(0, 128, 255)


@pytest.mark.parametrize(
    ("red", "refused"), [((0.64, 0.33), False), ((0.63, 0.34), False), ((0.68, 0.32), True), ((0.734, 0.265), True)]
)
def test_primaries_without_a_profile(red: tuple[float, float], refused: bool) -> None:
    values = [round(one * 100000) for one in (0.3127, 0.329, *red, 0.3, 0.6, 0.15, 0.06)]
    data = png(
        1, 8, 2, bytes([10, 250, 10]), (b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *values))
    )
    if not refused:
        assert pixels(data) == [[10, 250, 10]]
        return
    with pytest.raises(ValueError, match=r"wide-gamut colours \(cHRM\)"):
        decode_image(data)


def test_cicp_goes_before_a_colour_profile() -> None:
    profile = b"iCCP", b"x\0\0" + zlib.compress(of_gamma(1.0))
    assert pixels(png(1, 8, 2, bytes([55] * 3), profile)) == grey(128)
    assert pixels(png(1, 8, 2, bytes([55] * 3), profile, (b"cICP", bytes([1, 13, 0, 1])))) == grey(55)


XMP = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><a tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_an_orientation_that_browsers_do_not_read_is_refused(kind: str) -> None:
    """One in EXIF goes before it."""
    image = Image.fromarray(RNG.integers(0, 256, (8, 16, 3), dtype=np.uint8))
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
    with pytest.raises(ValueError, match="an orientation that only some programs read"):
        decode_image(chunk(saved(image), b"iTXt", text) if kind == "PNG" else saved(image, kind, xmp=XMP))
    exif = Image.Exif()
    exif[0x0112] = 8
    data = saved(image, kind, exif=exif) if kind == "PNG" else saved(image, kind, exif=exif, xmp=XMP)
    assert decode_image(chunk(data, b"iTXt", text) if kind == "PNG" else data).size == (8, 16)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF", "PNG"])
def test_an_end_of_zeros_is_an_unfinished_download(kind: str) -> None:
    """The file has its whole size; decoders show grey, and most say nothing."""
    thumbnail, picture = saved(Image.new("RGB", (9, 9)), "JPEG"), RNG.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    options = {"comment": thumbnail} if kind == "JPEG" else {}  # it has an end of its own
    data = saved(Image.fromarray(picture), kind, **options)
    assert decode_image(data).size == (128, 128)
    half = len(data) // 2
    with pytest.raises(ValueError, match=r"truncated|broken data"):
        decode_image(data[:half] + bytes(len(data) - half))


def partial_gif() -> bytes:
    """A picture of 2 x 2 in a screen of 4 x 4; the rest is transparent in a viewer."""
    file = io.BytesIO()
    Image.new("P", (2, 2)).save(file, "GIF")
    return file.getvalue()[:6] + struct.pack("<HH", 4, 4) + file.getvalue()[10:]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (png(1, 16, 2, bytes(6), (b"tRNS", bytes(6))), "a hidden colour in 16 bits per channel"),
        (png(1, 8, 2, bytes(3), (b"cICP", bytes([1, 13, 0, 0]))), "narrow range of video"),
        (tiff(2, 8, bytes(2), more=[(254, LONG, 1)]), "a preview inside a camera's raw file"),
        (tiff(2, 8, bytes(2), more=[(50706, LONG, 1)]), "a preview inside a camera's raw file"),
        (tiff(2, 16, bytes(4), more=[(339, SHORT, 2)]), "pixels of the kind I"),
        (tga(32, bytes(4)), "a fourth channel that may be transparency or not"),
        (
            saved(Image.new("RGBA", (1, 1)), "TIFF").replace(struct.pack("<H", 338), struct.pack("<H", 340)),
            "a fourth channel that may be transparency",
        ),
        (partial_gif(), "a GIF whose picture does not fill its size"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\nshowpage\n",
            "not a whole picture of a kind",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "kind that is read: JPEG, PNG, WEBP"),
        (b"", "not a whole picture of a kind that is read"),
    ],
    ids=range(11),
)
def test_what_would_be_shown_wrongly_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=f"^broken image: .*{why}"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["AVIF", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_that_are_no_exif_in_the_file_or_a_chunk(kind: str, orientation: int) -> None:
    """AVIF has boxes for them, PNG a chunk. They are shown like those of a JPEG."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32] = 200
    files = {}
    for name in (kind, "JPEG"):
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image).save(file, name, exif=exif)
        files[name] = np.asarray(decode_image(file.getvalue()), int)
    assert files[kind].shape == files["JPEG"].shape
    assert np.abs(files[kind] - files["JPEG"]).mean() < 8


def test_a_large_picture_is_no_warning(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("1", (10000, 10000)).save(file)
    code = "import sys; from common.images import decode_image; print(decode_image(open(*sys.argv[1:]).read()).size)"
    done = subprocess.run(
        [sys.executable, "-c", code, file, "rb"], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("(10000, 10000)\n", "")
