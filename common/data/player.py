"""A video file as a player shows it: which frames, when, which way up. Every reading of a video passes through here.

```
file ──> the one video stream ──> decoded frames ──> square pixels ──> display matrix ──> RGB, on white
                                     │ time stamps ──> Timeline
```

FFmpeg does all of it (PyAV's filter graph), so the pixels are those of the `ffmpeg` program. Sources of error in other
readers, and what is done here:

- Frames before an edit list's start are decoded but not shown; they are not frames.
- Time comes from time stamps, never from an index and an average rate. Container durations are not used.
- A frame that cannot be decoded makes the file unreadable. It is never replaced by its neighbour.
- What would be shown wrongly is refused by name: HDR and wide-gamut colour, Dolby Vision, angles other than quarter
  turns, files that change their format midway, several video streams of equal rank, animated pictures.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.error import ArgumentError
from av.error import MemoryError as FFmpegMemoryError
from av.stream import Disposition

from common.data.screen import Screen
from common.errors.oom import reraise_oom
from common.image_formats import clean_aperture
from common.images import picture_format

CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"  # others may open further files, as playlists do
ERRORS = {"err_detect": "crccheck+bitstream+buffer+explode"}  # damage is an error, and not concealed
CONCEALED = ("libdav1d", "libvpx", "libvpx-vp9")  # decoders that know no `ERRORS`; they fail by themselves
STILL = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
# Matroska's tracks, up to the first frames, and in them a crop of the top, bottom, left or right other than 0
TRACKS, CLUSTER, CROP = b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", rb"\x54[\xaa\xbb\xcc\xdd](?:\x81[^\0]|\x82(?!\0\0).)"
SLACK = 0.5  # seconds between a last frame and the stated duration that are not missed
LONGEST = 60.0  # seconds that one frame may be on screen; longer ones are broken time stamps


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown."""

    times: np.ndarray  # float64 [F], seconds from the first frame, increasing
    tick: float  # resolution of the time stamps in seconds
    nominal: float  # frames per second that the file states; 0 if it states none
    plain: bool  # whether every decoder shows the same: upright, square pixels, one stream, all packets shown

    @cached_property
    def constant(self) -> bool:
        """Whether every frame is less than half a frame away from its place at a constant rate."""
        even = np.linspace(0, self.times[-1], len(self.times))
        return bool(np.abs(self.times - even).max() <= max(self._gap / 2, self.tick))

    @cached_property
    def fps(self) -> float:
        """Frames per second: of all frames at a constant rate, else of the usual (median) pair of frames."""
        gap = self.times[-1] / max(1, len(self.times) - 1) if self.constant else self._gap
        steps = max(1, len(self.times) - 1) if self.constant else 1
        if self.nominal and abs(1 / self.nominal - gap) * steps <= self.tick + gap / 1000:
            return self.nominal
        return 1 / gap if gap else self.nominal or 1.0

    @property
    def end(self) -> float:
        """When the last frame ends, in seconds. It is on screen as long as the usual frame."""
        return float(self.times[-1]) + 1 / self.fps

    @cached_property
    def _gap(self) -> float:
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0

    def on_screen(self, seconds: np.ndarray) -> np.ndarray:
        """Indices of the frames on screen at these times: each is the last one that has begun."""
        return np.searchsorted(self.times, seconds + self.tick / 2, side="right") - 1

    def places(self, frames: int, fps: int, first: int = 0) -> list[int]:
        """Indices of `frames` frames at `fps` from frame `first` on. Raises `ValueError` if the video is too short."""
        count = len(self.times)
        start = float(self.times[first]) if first < count else self.end
        seconds = start + np.arange(frames) / fps
        if seconds[-1] + self.tick / 2 >= self.end:
            raise ValueError(
                f"{count} frames at {self.fps:g} frames per second are too few: the model takes {frames} at {fps}"
                f"{f' from frame {first + 1} on' if first else ''} (model.frames, model.fps)"
            )
        return self.on_screen(seconds).tolist()

    def evenly(self) -> list[int]:
        """Indices of the frames that show the whole video at the constant rate `fps`."""
        if self.constant:
            return list(range(len(self.times)))
        return self.on_screen(np.arange(max(1, round(self.end * self.fps))) / self.fps).tolist()


def timeline(data: bytes) -> Timeline:
    """Decodes all frames of a video file's bytes. Raises `ValueError` if it cannot be shown as its maker meant it."""
    stamps, screen = [], None
    with _opened(data) as (container, stream):
        packets = _Packets(container, stream)
        _check_whole(container, stream, len(data))
        for frame in packets.frames():
            screen = screen or Screen(stream, frame)
            screen.check(frame)
            stamps.append(frame.pts)
        if screen is None:
            raise ValueError(f"a video of {len(data)} bytes without frames")
        tick = float(stream.time_base or 0)
        nominal = float(stream.average_rate or stream.guessed_rate or 0)
        times = _times(_sorted(stamps) if container.format.name == "avi" else stamps, tick, nominal)
        _check_end(container, stream, float(times[-1]))
        whole = packets.count == len(times) and len(container.streams.video) == 1
    found = Timeline(times, tick, nominal, plain=False)
    return Timeline(times, tick, nominal, plain=whole and screen.plain and found.constant)


def frames_at(data: bytes, indices: Collection[int]) -> np.ndarray:
    """Frames uint8 ``[len(indices), H, W, 3]``. Raises `ValueError` as `timeline`, or if there are fewer frames."""
    wanted, found, count = set(indices), dict[int, np.ndarray](), 0
    with _opened(data) as (container, stream):
        screen = None
        for index, frame in enumerate(_Packets(container, stream).frames()):
            screen = screen or Screen(stream, frame)
            screen.check(frame)
            count = index + 1
            if index in wanted:
                found[index] = screen.show(frame)
            if len(found) == len(wanted):
                break
    if len(found) < len(wanted):
        raise ValueError(f"frames {list(indices)} of a video of {count} frames")
    return np.stack([found[index] for index in indices])


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    if kind := picture_format(data):
        raise ValueError(f"a picture ({kind}), not a video; convert an animated one: ffmpeg -i FILE clip.mp4")
    try:
        with _container(data) as container:
            stream = _chosen(list(container.streams.video))
            context = stream.codec_context
            context.flags |= Flags.unaligned  # crops at the left to the pixel, as the `ffmpeg` program does
            if context.codec.name not in CONCEALED:
                context.options = ERRORS
            _check_crop(bytes(data), container, stream)  # the exchange gives a view
            yield container, stream
    except (av.FFmpegError, IndexError, RuntimeError) as error:
        reraise_oom(error)
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{len(data)} bytes that are not a readable video: {why}") from None


def _container(data: bytes) -> Any:
    try:
        return av.open(io.BytesIO(data), "r", options={"format_whitelist": CONTAINERS})
    except FFmpegMemoryError:  # of a damaged size, which FFmpeg does not even try: nothing is decoded yet
        raise ValueError(f"{len(data)} bytes that are not a readable video: a size in its header is damaged") from None
    except ArgumentError:  # a format that FFmpeg knows, and that is not in the list
        raise ValueError(
            "a file of another kind than mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv and ogv: ffmpeg -i FILE clip.mp4"
        ) from None


def _chosen(streams: list[Any]) -> Any:
    """The stream that players show: not a cover picture, and of several the one that is marked as the default."""
    moving = [one for one in streams if one.codec_context is not None and not one.disposition & STILL]
    marked = [one for one in moving if one.disposition & Disposition.default]
    chosen = moving if len(moving) == 1 else marked
    if not moving:
        raise ValueError("no video stream in it, or none of a known codec")
    if len(chosen) != 1:
        sizes = ", ".join(f"{one.width}x{one.height}" for one in moving)
        raise ValueError(f"{len(moving)} video streams ({sizes}), and not one default: keep one, ffmpeg -map 0:v:N")
    return chosen[0]


class _Packets:
    """Decodes a stream, and counts the packets that it consists of."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream, self.count = container, stream, 0

    def frames(self) -> Iterator[Any]:
        """Yields the frames that are shown. Raises `ValueError` at one that is damaged or missing its end."""
        for packet in self._container.demux(self._stream):
            where = f" at {float(packet.pts * packet.time_base):.2f} s" if packet.pts is not None else ""
            if packet.size:
                self.count += 1
            if packet.is_corrupt:
                raise ValueError(f"the file is damaged or cut short{where}")
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                raise ValueError(f"a frame{where} cannot be decoded: {error.strerror}") from None
            for frame in frames:
                if frame.is_corrupt:
                    raise ValueError(f"a frame{where} cannot be decoded whole")
                yield frame


def _check_crop(data: bytes, container: Any, stream: Any) -> None:
    """Refuse a file that says which part of its frames to show. The `ffmpeg` program crops, its libraries do not."""
    if container.format.name.startswith("mov"):
        aperture = clean_aperture(data)
        cropped = aperture not in (None, (stream.codec_context.width, stream.codec_context.height, 0, 0))
    elif container.format.name.startswith("matroska"):
        header = data[max(0, data.find(TRACKS)) :]
        cropped = re.search(CROP, header[: max(0, header.find(CLUSTER))], re.DOTALL) is not None
    else:
        return
    if cropped:
        raise ValueError("its container crops the frames; write the file again: ffmpeg -i FILE clip.mp4")


def _check_whole(container: Any, stream: Any, length: int) -> None:
    """Refuse a file whose table of frames points behind its end."""
    table = stream.index_entries
    if container.format.name.startswith("mov") and len(table) and table[len(table) - 1].pos >= length:
        raise ValueError(f"the file is cut short: its last frame would be behind its {length} bytes")


def _check_end(container: Any, stream: Any, last: float) -> None:
    """Refuse a Matroska, FLV, ASF or AVI file whose last frame is far from the duration that it states."""
    stated = 0.0
    if container.format.name == "avi" and stream.average_rate:
        stated = stream.frames / float(stream.average_rate)
    elif container.format.name.startswith(("matroska", "flv", "asf")):
        alone = len(container.streams) == 1
        stated = _seconds(stream.metadata.get("DURATION", "")) or alone * (container.duration or 0) / av.time_base
    if stated - last > max(SLACK, 0.1 * stated):
        raise ValueError(f"the file is cut short: its last frame is at {last:.2f} s of {stated:.2f} s")


def _seconds(text: str) -> float:
    """Seconds of HH:MM:SS.fraction; 0 for other texts."""
    parts = text.split(":")
    try:
        return sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    except ValueError:
        return 0.0


def _sorted(stamps: list[Any]) -> list[Any]:
    """AVI has no time of display: FFmpeg gives that of decoding, which B-frames put into another order."""
    return stamps if None in stamps else sorted(stamps)


def _times(stamps: list[Any], tick: float, nominal: float) -> np.ndarray:
    if all(one is None for one in stamps) and nominal:
        return np.arange(len(stamps)) / nominal
    if any(one is None for one in stamps):
        raise ValueError("frames without time stamps: write the file again, ffmpeg -i FILE clip.mp4")
    times = np.array(stamps, np.float64) * tick
    gaps = np.diff(times)
    if (gaps <= 0).any():
        raise ValueError(f"frame {int(np.argmax(gaps <= 0)) + 1} has a time stamp that is not after the frame before")
    if len(gaps) and gaps.max() > LONGEST:
        raise ValueError(f"frame {int(gaps.argmax())} stays for {gaps.max():g} s; at most {LONGEST:g} s are taken")
    return times - times[0]
