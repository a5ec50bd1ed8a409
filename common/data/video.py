"""Encoding and decoding of clips as mp4: H.264, yuv444p, constant rate factor 10. `common/data/player.py` reads.

Chroma is not subsampled (4:4:4): sprites a few pixels wide would lose their colour, and reward models would see that.
Encoding is deterministic: one thread, no encoder signature, no creation time, and not libx264's AVX-512 code, whose
macroblock trees depend on uninitialized memory.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from PIL import Image

from common.data.player import frames_at, timeline

CPU = Path("/proc/cpuinfo")
NO_AVX512 = {"x264-params": "asm=avx2"} if CPU.exists() and "avx512" in CPU.read_text("utf-8") else {}
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")  # of the files that count as videos in a folder
CRF = 10
BITEXACT = {"fflags": "+bitexact"}  # no encoder signature, no creation time
COPIED = ("h264", "hevc", "av1", "mpeg4")  # codecs that are not encoded again
SHEET_FRAMES, SHEET_WIDTH = 9, 128  # contact sheet: frames per clip, and width of a frame in pixels
BROWSER_CRF, BROWSER_WIDTH = 20, 256  # videos for people: quality, and the width small clips are enlarged to
SIDE_WIDTH = 480  # width in pixels that large clips are shrunk to when two are shown side by side


def encode_mp4(frames: np.ndarray, fps: int | Fraction) -> bytes:
    """Encode uint8 `frames` [F, H, W, 3] at `fps` frames per second. Raises `ValueError` for another dtype or shape."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"a clip is uint8 [F, H, W, 3] with F, H, W >= 1; got {frames.dtype} {list(frames.shape)}")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options=BITEXACT) as container:
        stream = container.add_stream("libx264", rate=fps, options=NO_AVX512 | {"crf": str(CRF), "threads": "1"})
        stream.codec_context.flags |= Flags.bitexact
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def encode_for_browsers(frames: np.ndarray, fps: float) -> bytes:
    """Encode uint8 `frames` [F, H, W, 3] as an mp4 that every browser plays: H.264, yuv420p.

    yuv420p halves the chroma resolution, so small clips are first enlarged by an integer factor (nearest neighbour).
    """
    scale = max(1, BROWSER_WIDTH // frames.shape[2])
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options=BITEXACT) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(BROWSER_CRF), "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def anonymous_mp4(data: bytes) -> bytes:
    """A video's pictures alone, as mp4 without sound and tags, so that the file does not say what made it.

    Plain files (`Timeline.plain`) of codecs that mp4 holds are copied bit by bit; others are encoded as by
    `encode_mp4`, as a player shows them. Raises `ValueError` if the video is unreadable.
    """
    shown = timeline(data)
    copied = _picture_track(data) if shown.plain else None
    if copied is not None and clip_length(copied)[0] == len(shown.times):
        return copied
    clip, fps = decode_video(data)
    return encode_mp4(clip, Fraction(fps).limit_denominator(1001))


def _picture_track(data: bytes) -> bytes | None:
    """The packets of the video track in a new mp4 file; None if the codec does not belong there."""
    file = io.BytesIO()
    try:
        with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", format="mp4", options=BITEXACT) as copy:
            track = source.streams.video[0]
            if track.codec_context.name not in COPIED:
                return None
            stream = copy.add_stream_from_template(track)
            stream.metadata.clear()
            for packet in source.demux(track):
                if packet.dts is not None:  # the last one is empty
                    packet.stream = stream
                    copy.mux(packet)
    except (av.FFmpegError, IndexError, ValueError):
        return None
    return file.getvalue()


def side_by_side(clips: Sequence[np.ndarray], fps: float) -> bytes:
    """Clips uint8 [F, H, W, 3] of one size next to each other, and so in step; mp4 that every browser plays.

    The shortest one decides the length. Small clips are enlarged by a whole factor, large ones shrunk to `SIDE_WIDTH`.
    Raises `ValueError` for clips of different sizes.
    """
    sizes = {clip.shape[1:] for clip in clips}
    if len(sizes) > 1:
        raise ValueError(f"clips of different sizes: {' and '.join(str(list(size[:2])) for size in sorted(sizes))}")
    count, height, width = min(map(len, clips)), *clips[0].shape[1:3]
    frames = np.concatenate([clip[:count] for clip in clips], axis=2)
    if width > SIDE_WIDTH:
        size = (len(clips) * SIDE_WIDTH, round(height * SIDE_WIDTH / width))
        frames = np.stack([np.asarray(Image.fromarray(frame).resize(size, reducing_gap=2)) for frame in frames])
    scale = max(1, BROWSER_WIDTH // width)
    return encode_for_browsers(frames.repeat(scale, axis=1).repeat(scale, axis=2), fps)


def plays_everywhere(data: bytes) -> bool:
    """Whether every browser shows the frames that are read here: plain, H.264, yuv420p, mp4. False for broken files."""
    try:
        with av.open(io.BytesIO(data), "r") as container:
            codec = container.streams.video[0].codec_context
            common = "mp4" in container.format.name and (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        return common and timeline(data).plain
    except (av.FFmpegError, IndexError, ValueError):
        return False


def decode_clip(data: bytes) -> np.ndarray:
    """The frames of a video file's bytes, uint8 [F, H, W, 3]. Raises `ValueError` if it is unreadable."""
    return frames_at(data, range(len(timeline(data).times)))


def decode_video(data: bytes) -> tuple[np.ndarray, float]:
    """A video as players show it: frames uint8 [F, H, W, 3] at a constant rate, and the frames per second.

    These are the file's frames. Of a video with a variable rate they are the frames on screen at 0, 1/fps, 2/fps ... s,
    where fps is its usual rate. Raises `ValueError` if the file is unreadable.
    """
    shown = timeline(data)
    return frames_at(data, shown.evenly()), shown.fps


def clip_length(data: bytes) -> tuple[int, float]:
    """(frames, frames per second) of a video file's bytes. Raises `ValueError` if it is unreadable."""
    shown = timeline(data)
    return len(shown.times), shown.fps


def contact_sheet(clips: Sequence[np.ndarray]) -> Image.Image:
    """A contact sheet with one row per clip, uint8 [F, H, W, 3] of equal size: up to `SHEET_FRAMES` frames of each."""
    frames, height, width = clips[0].shape[:3]
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, SHEET_FRAMES)).round().astype(int))
    row_height = max(1, round(height * SHEET_WIDTH / width))
    sheet = Image.new("RGB", (len(chosen) * SHEET_WIDTH, len(clips) * row_height))
    filter_ = Image.Resampling.NEAREST if width < SHEET_WIDTH else Image.Resampling.LANCZOS
    for row, clip in enumerate(clips):
        for column, index in enumerate(chosen):
            picture = Image.fromarray(clip[index]).resize((SHEET_WIDTH, row_height), filter_)
            sheet.paste(picture, (column * SHEET_WIDTH, row * row_height))
    return sheet
