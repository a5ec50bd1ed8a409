"""Video files as people have them: any container and codec, turned, stretched, cut, of a variable rate, damaged."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

QUARTERS = np.array([[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [200, 200, 40]]], np.uint8)  # one in each corner


def quarters(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames with one colour in each corner; a white column moves to the right, 4 pixels a frame."""
    frame = QUARTERS.repeat(height // 2, 0).repeat(width // 2, 1)
    clip = np.stack([frame] * count)
    for place in range(count):
        clip[place, :, 4 * place : 4 * place + 4] = 255
    return clip


def video(
    frames: np.ndarray,
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 8,
    times: Sequence[float] | None = None,
    matrix: tuple[int, ...] | None = None,
    square: Fraction | None = None,
    options: dict[str, str] | None = None,
    piped: bool = False,
    colours: dict[str, int] | None = None,
) -> bytes:
    """Encode uint8 or RGBA `frames` [F, H, W, C]: shown at `times` (seconds), turned by a display matrix of 9 numbers.

    `square` is the sample aspect ratio. A `piped` file cannot seek back, so it has no duration.
    """
    file = _Pipe() if piped else io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream: Any = made.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        unit = Fraction(1, rate if container == "avi" else 1000)
        stream.time_base = stream.codec_context.time_base = unit
        if square is not None:
            stream.codec_context.sample_aspect_ratio = square
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for place, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), _layout(pixels))
            picture.pts = round((Fraction(place, rate) if times is None else times[place]) / unit)
            picture.time_base = unit
            made.mux(stream.encode(picture))
        made.mux(stream.encode(None))
    return file.getvalue()


def cut(data: bytes, start: float, container: str = "mp4") -> bytes:
    """A stream-copied cut: the packets from the key frame before `start` on, and those before `start` not shown."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format=container) as made:
        track = source.streams.video[0]
        stream = made.add_stream_from_template(track)
        source.seek(round(start / track.time_base), stream=track)
        shift = round(start / track.time_base)
        for packet in source.demux(track):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                made.mux(packet)
    return file.getvalue()


def filtered(filters: str, *parts: bytes) -> bytes:
    """The packets of H.264 files one after the other, passed through a bitstream filter, in one transport stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as made:
        stream: Any = None
        for number, part in enumerate(parts):
            with av.open(io.BytesIO(part)) as source:
                track = source.streams.video[0]
                stream = stream or made.add_stream_from_template(track)
                graph = av.BitStreamFilterContext(filters, track)
                for packet in [one for given in [*source.demux(track), None] for one in graph.filter(given)]:
                    shift = round(number * float(source.duration or 0) / 1e6 / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    made.mux(packet)
    return file.getvalue()


def without_frame(data: bytes, number: int) -> bytes:
    """The same file with the bytes of one packet overwritten."""
    with av.open(io.BytesIO(data)) as source:
        packet = [one for one in source.demux(video=0) if one.size][number]
        start = data.index(bytes(packet))
        return data[:start] + b"\xff" * packet.size + data[start + packet.size :]


def with_aperture(data: bytes, width: int, height: int) -> bytes:
    """The same mp4 of H.264 with a `clap` box: a player shows the middle of each frame, of this size."""
    box = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    place, end, parents = 0, len(data), []
    for name, header in (("moov", 8), ("trak", 8), ("mdia", 8), ("minf", 8), ("stbl", 8), ("stsd", 16), ("avc1", 86)):
        while data[place + 4 : place + 8] != name.encode():
            place += struct.unpack_from(">I", data, place)[0]
        parents.append(place)
        end, place = place + struct.unpack_from(">I", data, place)[0], place + header
    found = bytearray(data[:end] + box + data[end:])
    for parent in parents:
        struct.pack_into(">I", found, parent, struct.unpack_from(">I", found, parent)[0] + len(box))
    return bytes(found)


def joined(first: np.ndarray, second: np.ndarray, default: Sequence[int]) -> bytes:
    """A Matroska file with two video streams, of which those in `default` are marked as such."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as made:
        streams: list[Any] = [made.add_stream("libx264", rate=8) for _ in (first, second)]
        for place, (stream, frames) in enumerate(zip(streams, (first, second), strict=True)):
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.disposition = av.stream.Disposition.default if place in default else av.stream.Disposition(0)
        for stream, frames in zip(streams, (first, second), strict=True):
            for pixels in frames:
                made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            made.mux(stream.encode(None))
    return file.getvalue()


def by_ffmpeg(data: bytes, *filters: str) -> np.ndarray:
    """What FFmpeg itself reads from a file: its `movie` source, then filters; uint8 [F, H, W, 3]. It does not turn."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        graph = av.filter.Graph()
        nodes = [graph.add("movie", file.name), *(graph.add(*one.split("=", 1)) for one in filters)]
        nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        found = []
        while True:
            try:
                found.append(graph.pull().to_ndarray())
            except (av.EOFError, av.BlockingIOError):
                return np.stack(found)


class _Pipe(io.RawIOBase):
    """A file that can only be written on."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def getvalue(self) -> bytes:
        return b"".join(self._parts)


def _layout(pixels: np.ndarray) -> str:
    return {3: "rgb24", 4: "rgba"}[pixels.shape[-1]]
