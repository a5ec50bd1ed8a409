"""Serves clips in a format that browsers can play. Other clips are transcoded once, into a scratch folder.

Our own clips are H.264 in 4:4:4 (`common/data/video.py`), which Chromium plays and phones do not.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from common.data.player import frames_at
from common.data.video import decode_video, encode_for_browsers, plays_everywhere
from common.images import first_frame_png
from rewarders.annotation.items import SurveyClip
from rewarders.annotation.survey import UnknownItemError


class PlaybackCheck:
    """Owns the scratch folder until it is closed. Thread-safe."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="douga-annotate-")

    def video(self, clip: SurveyClip) -> Path:
        """Returns an mp4 file of the clip that every browser plays.

        Raises `UnknownItemError` if the clip can no longer be read.
        """
        made = Path(self._scratch.name) / f"{clip.key}.mp4"
        if made.exists():
            return made
        try:
            data = clip.read()
            playable = plays_everywhere(data)
            if playable and clip.file is not None:
                return clip.file
            self._write(made, data if playable else encode_for_browsers(*decode_video(data)))
        except (OSError, ValueError, RuntimeError) as error:
            raise UnknownItemError(f"the clip cannot be read: {error}") from None
        return made

    def _write(self, path: Path, data: bytes) -> None:
        """Writes atomically, because two requests may create the same file."""
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(part).replace(path)

    def first_frame(self, clip: SurveyClip) -> bytes:
        """Returns the first frame at the clip's size, PNG: what the model was conditioned on.

        Raises `UnknownItemError` if the clip has none or is unreadable.
        """
        if clip.first_frame is None:
            raise UnknownItemError("this clip has no first-frame image")
        try:
            height, width = frames_at(clip.read(), [0])[0].shape[:2]
            return first_frame_png(clip.first_frame(), height, width)
        except (OSError, ValueError, RuntimeError) as error:
            raise UnknownItemError(f"the first frame cannot be read: {error}") from None

    def close(self) -> None:
        """Removes the scratch folder."""
        self._scratch.cleanup()
