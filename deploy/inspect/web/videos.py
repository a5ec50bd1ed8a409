"""Pairs as browsers play them: winner and loser in one picture, made when somebody looks, and kept for a while."""

from __future__ import annotations

import tempfile
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

    def video(self, winner: str | None, loser: str | None) -> Path:
        """An mp4 file of the clips in two blobs, named by their files. `Gone` when they are not there any more."""
        with self._lock:
            name = f"{winner}-{loser}"
            if name not in self._made:
                self._made[name] = self._make(winner, loser)
            self._made[name] = self._made.pop(name)  # looked at last
            while len(self._made) > KEPT:
                self._made.pop(next(iter(self._made))).unlink(missing_ok=True)
            return self._made[name]

    def _make(self, winner: str | None, loser: str | None) -> Path:
        if winner is None or loser is None:
            raise Gone("clip is gone")
        try:
            (one, fps), (other, _) = (decode_video(read_blob(self._blobs / file)) for file in (winner, loser))
            made = side_by_side(one, other, fps)
        except StorageError:
            raise Gone("clip is gone") from None
        except (ValueError, RuntimeError) as error:
            raise Gone(f"clip cannot be shown: {error}") from None
        path = Path(self._scratch.name) / f"{winner}-{loser}.mp4"
        path.write_bytes(made)
        return path

    def close(self) -> None:
        """Remove the scratch folder."""
        self._scratch.cleanup()
