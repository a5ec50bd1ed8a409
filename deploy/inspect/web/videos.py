"""Makes one video of a group's kept candidates, side by side, on request, and caches it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from common.data.video import decode_video, side_by_side
from common.errors import StorageError
from common.exchange.queries import read_blob

KEPT = 64  # maximum number of cached videos
GONE = "the clip no longer exists"


class ClipGoneError(LookupError):
    """The clip was deleted or cannot be shown."""


class VideoCache:
    """An LRU cache of videos in a scratch folder, until it is closed. Thread-safe: videos are made one at a time."""

    def __init__(self, blobs: Path) -> None:
        """`blobs` is the run's blob folder; it is only read."""
        self._blobs, self._lock, self._made = blobs, Lock(), dict[str, Path]()
        self._scratch = tempfile.TemporaryDirectory(prefix="douga-watch-")

    def video(self, files: Sequence[str | None]) -> Path:
        """Returns an mp4 file of the clips in these blobs, side by side.

        Raises `ClipGoneError` if a clip is missing or broken.
        """
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
            raise ClipGoneError(GONE)
        try:
            decoded = [decode_video(read_blob(self._blobs / file)) for file in present]
            made = side_by_side([frames for frames, _ in decoded], decoded[0][1])
        except StorageError:
            raise ClipGoneError(GONE) from None
        except (ValueError, RuntimeError) as error:
            raise ClipGoneError(f"the clip cannot be shown: {error}") from None
        path = Path(self._scratch.name) / f"{'-'.join(present)}.mp4"
        path.write_bytes(made)
        return path

    def close(self) -> None:
        """Removes the scratch folder."""
        self._scratch.cleanup()
