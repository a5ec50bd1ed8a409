"""Turns decoded frames into RGB as a player shows them: square pixels, the display matrix, colours, transparency.

A frame that needs tone or gamut mapping, or a turn that is not a quarter one, is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from PIL import Image

from common.images import on_background

UNIT = 1 << 16  # of a display matrix
TURNS = {  # display matrix (a, b, c, d) -> filters, as in FFmpeg's ffmpeg_filter.c
    (1, 0, 0, 1): (),
    (0, 1, -1, 0): (("transpose", "clock"),),
    (0, -1, 1, 0): (("transpose", "cclock"),),
    (0, 1, 1, 0): (("transpose", "cclock_flip"),),
    (0, -1, -1, 0): (("transpose", "clock_flip"),),
    (-1, 0, 0, -1): (("hflip", ""), ("vflip", "")),
    (-1, 0, 0, 1): (("hflip", ""),),
    (1, 0, 0, -1): (("vflip", ""),),
}
# ITU-T H.273 codes that are not shown as sRGB or BT.709 would be: they need tone or gamut mapping
TRANSFERS = {8: "linear", 9: "logarithmic", 10: "logarithmic", 16: "PQ (HDR)", 17: "SMPTE 428", 18: "HLG (HDR)"}
PRIMARIES = {8: "film", 9: "BT.2020", 10: "SMPTE 428", 11: "DCI-P3", 12: "Display P3", 22: "EBU 3213"}
DOLBY = ("dvh1", "dvhe", "dva1", "dvav", "dav1")  # codec tags of Dolby Vision
MATRICES = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE 2085", 12: "chromaticity-derived", 14: "ICtCp"}


class Screen:
    """The way of a stream's frames to RGB. `plain` says whether every decoder takes the same way."""

    def __init__(self, stream: Any, first: Any) -> None:
        """`first` is the stream's first frame. Raises `ValueError` if it cannot be shown rightly."""
        _check_colours(stream, first)
        self._context = stream.codec_context
        self._format = self._of(first)
        self._alpha = first.format.has_palette or any(one.is_alpha for one in first.format.components)
        if stream.metadata.get("alpha_mode", "0") != "0":
            raise ValueError("a video with a transparent layer that decoders leave out; write it on a background")
        width, height = _square(stream, first)
        turns = TURNS[_matrix(first)]
        self.plain = not turns and not self._alpha and (width, height) == (first.width, first.height)
        self._graph = graph = Graph()
        nodes = [graph.add_buffer(template=stream, width=first.width, height=first.height, format=first.format)]
        if (width, height) != (first.width, first.height):
            nodes.append(graph.add("scale", f"{width}:{height}:flags=bicubic"))
        nodes += [graph.add(name, how) for name, how in turns]
        nodes += [graph.add("format", "rgba" if self._alpha else "rgb24"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()

    def check(self, frame: Any) -> None:
        """Raise `ValueError` for a frame of another format than the first, or of two fields."""
        if frame.interlaced_frame:
            raise ValueError(
                "interlaced: a frame shows two moments; deinterlace it: "
                "ffmpeg -i FILE -vf bwdif=mode=send_frame clip.mp4"
            )
        if self._of(frame) != self._format:
            raise ValueError("the video changes its size, turn, colours or shape of pixels midway")

    def show(self, frame: Any) -> np.ndarray:
        """The frame as uint8 ``[H, W, 3]``."""
        self._graph.push(frame)
        pixels = self._graph.pull().to_ndarray()
        return np.asarray(on_background(Image.fromarray(pixels, "RGBA"))) if self._alpha else pixels

    def _of(self, frame: Any) -> tuple[object, ...]:
        colours = int(frame.color_trc), int(frame.color_primaries), int(frame.colorspace), int(frame.color_range)
        square = self._context.sample_aspect_ratio or 1
        return frame.width, frame.height, frame.format.name, _matrix(frame), colours, square


def _check_colours(stream: Any, frame: Any) -> None:
    found = [
        TRANSFERS.get(int(frame.color_trc)),
        PRIMARIES.get(int(frame.color_primaries)),
        MATRICES.get(int(frame.colorspace)),
        "Dolby Vision" if frame.side_data.get(Type.DOVI_METADATA) or stream.codec_context.codec_tag in DOLBY else None,
    ]
    if named := [one for one in found if one]:
        raise ValueError(f"{' and '.join(named)} colours, which need tone mapping: convert the video to BT.709")


def _square(stream: Any, frame: Any) -> tuple[int, int]:
    """The size with square pixels: the narrower side is enlarged."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
    if not ratio or not 1 / 16 <= ratio <= 16:
        return frame.width, frame.height
    if ratio >= 1:
        return round(frame.width * ratio), frame.height
    return frame.width, round(frame.height / ratio)


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    raw = frame.side_data.get(Type.DISPLAYMATRIX)
    if raw is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(raw), np.int32)[[0, 1, 3, 4]] / UNIT
    a, b, c, d = (int(one) for one in values.round())
    found = a, b, c, d
    if np.abs(values - found).max() > 0.01 or found not in TURNS:
        raise ValueError("turned by an angle that is not a quarter turn, or scaled, by its display matrix")
    return found
