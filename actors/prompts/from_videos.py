"""Builds a prompt file from a folder of videos: each video's third frame is the image, its caption the text.

The third frame is used because first frames are often black or part of a fade. Captions come from a captions file, a
``.txt`` file next to the video, or a captioner (any callable that takes frames).
"""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Protocol

import numpy as np

from actors.prompts.pictures import Tell, silent
from common.data.caption_files import CaptionFiles
from common.data.folders import files_of, same_form
from common.data.player import frames_at, timeline
from common.data.tables import BadRows, printable, read_table, text_of, unread_columns
from common.data.video import VIDEO_SUFFIXES
from common.errors import ConfigError
from common.images import encode_png

THIRD = 2  # index of the third frame
COLUMNS = ("prompt", "character", "category")  # of a captions file
CAPTIONER_FRAMES = 8  # frames passed to a captioner, evenly spread over the video


class Captioner(Protocol):
    """A callable that captions clips."""

    def __call__(self, frames: np.ndarray) -> str:
        """One caption for consecutive uint8 frames [F, H, W, 3], 1 <= F <= 8."""
        ...


def from_videos(
    folder: Path, out: Path, captions: Path | None = None, captioner: Captioner | None = None, tell: Tell = silent
) -> Path:
    """Write `out`/prompts.jsonl and one PNG per video in `folder`, in order of file names.

    A video's caption comes from `captions` (JSONL or CSV with the column video, and optionally prompt, character and
    category), otherwise from its ``.txt`` file, otherwise from `captioner`. `tell` gets a line about captions of no
    video, and about columns that nothing reads.

    Returns:
        The path of the JSONL file.

    Raises:
        ConfigError: names the first video that is broken, too short or without a caption.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of videos")
    videos = files_of(folder, VIDEO_SUFFIXES)
    if not videos:
        raise ConfigError(f"{folder}: no videos in it; looked for {', '.join(VIDEO_SUFFIXES)}")
    given = {} if captions is None else _captions(captions, {same_form(video.name) for video in videos}, tell)
    texts = CaptionFiles(videos)
    for line in texts.strays():
        tell(line)
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for video in videos:
        data = video.read_bytes()
        first = _third_frame(video, data)
        columns = given.get(same_form(video.name), {})
        text = columns.get("prompt") or texts.caption(video)
        if not text and captioner:
            text = captioner(_captioner_frames(data)).strip()
        if not text:
            raise ConfigError(f"{video}: no caption; give a captions file, a {video.stem}.txt, or a captioner")
        image = f"{video.name}.png"
        (out / image).write_bytes(encode_png(first))
        row = {"image": image, "id": video.name} | columns | {"prompt": text}
        lines.append(json.dumps(row, ensure_ascii=False))
    file = out / "prompts.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _third_frame(video: Path, data: bytes) -> np.ndarray:
    try:
        return frames_at(data, [THIRD])[0]
    except ValueError as error:
        raise ConfigError(f"{video}: no third frame: {error}") from None


def _captioner_frames(data: bytes) -> np.ndarray:
    shown = timeline(data)
    return frames_at(data, sorted(set(shown.on_screen(np.linspace(0, shown.times[-1], CAPTIONER_FRAMES)).tolist())))


def _captions(file: Path, videos: Set[str], tell: Tell) -> dict[str, dict[str, str]]:
    """Video name -> prompt, character and category, as far as given. Raises `ConfigError` that names all bad rows."""
    captions: dict[str, dict[str, str]] = {}
    bad, unread, strays = BadRows(file), set[str](), []
    for line, data in read_table(file, "captions file", bad):
        unread |= data.keys() - {"video", *COLUMNS, ""}
        try:
            video = text_of(data, "video")
            if video is None:
                raise ValueError("no 'video'")
            columns = {name: text_of(data, name, numbers=name != "prompt") for name in COLUMNS}
            name = same_form(Path(video).name)
            if name in captions:
                raise ValueError(f"video {name} is there twice")
            captions[name] = {name: text for name, text in columns.items() if text}
            if name not in videos:
                strays.append(f"line {line}: {name}")
        except ValueError as fault:
            bad.add(line, fault)
    bad.check()
    if unread:
        tell(unread_columns(file, unread))
    if strays:
        tell(
            printable(f"{file}: {len(strays)} of {len(captions)} rows are of no video in the folder; first {strays[0]}")
        )
    return captions
