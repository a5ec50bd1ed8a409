"""The kept candidates of a group as one video for browsers, made on request and cached."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from common.data.video import decode_video, side_by_side
from common.errors import StorageError
from common.exchange.queries import read_blob

KEPT = 64  # videos: those made last


class Gone(LookupError):
    """There is nothing to show any more."""


class VideoCache:
    """Holds a scratch folder until it is closed. Thread-safe: one video is made at a time, others wait for it."""

    def __init__(self, blobs: Path) -> None:
        """`blobs` is the run's folder of blobs; it is only read."""
        self._blobs, self._lock, self._made = blobs, Lock(), dict[str, Path]()
        self._scratch = tempfile.TemporaryDirectory(prefix="douga-watch-")

    def video(self, files: Sequence[str | None]) -> Path:
        """An mp4 of the clips in these blobs, side by side. Raises `Gone` when one is not there any more."""
        with self._lock:
            name = "-".join(map(str, files))
            if name not in self._made:
                self._made[name] = self._make(files)
            self._made[name] = self._made.pop(name)  # most recently used last
            while len(self._made) > KEPT:
                self._made.pop(next(iter(self._made))).unlink(missing_ok=True)
            return self._made[name]

    def _make(self, files: Sequence[str | None]) -> Path:
        present = [file for file in files if file is not None]
        if len(present) < len(files):
            raise Gone("clip is gone")
        try:
            decoded = [decode_video(read_blob(self._blobs / file)) for file in present]
            made = side_by_side([frames for frames, _ in decoded], decoded[0][1])
        except StorageError:
            raise Gone("clip is gone") from None
        except (ValueError, RuntimeError) as error:
            raise Gone(f"clip cannot be shown: {error}") from None
        path = Path(self._scratch.name) / f"{'-'.join(present)}.mp4"
        path.write_bytes(made)
        return path

    def close(self) -> None:
        """Remove the scratch folder."""
        self._scratch.cleanup()
