"""The held-out clips of a run folder, without taking part in the run: read-only, also while the run goes on.

Training clips are gone as soon as their group is paired; those of finished probes and evaluations stay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgpack

from common.config import ConfigError
from common.exchange.blobs import OpenBlob
from common.exchange.client import State
from common.exchange.ledger import LEDGER, LEDGER_VERSION
from common.exchange.sampling import IMAGE
from common.messages import Purpose

CLIPS = """
SELECT c.id, g.version, g.prompt, clips.file AS clip, images.file AS image
FROM candidates c JOIN groups g USING (ordinal)
JOIN refs r ON r.ordinal = c.ordinal AND r.name = 'clip/' || c.place JOIN blobs clips ON clips.digest = r.digest
LEFT JOIN refs i ON i.ordinal = c.ordinal AND i.name = ? LEFT JOIN blobs images ON images.digest = i.digest
WHERE g.purpose != ? AND g.state = ? ORDER BY c.ordinal, c.place
"""


@dataclass(frozen=True)
class HeldOutClip:
    """One clip of a finished probe or evaluation; `read` gives the mp4, `read_image` the first frame's PNG."""

    candidate: str
    version: int  # of the policy that made it; 0 is the base model
    prompt_id: str
    text: str
    character: str | None
    category: str | None
    read: Callable[[], bytes]
    read_image: Callable[[], bytes] | None


def heldout_clips(folder: Path) -> list[HeldOutClip]:
    """All there are now. `ConfigError` when the folder has no ledger that can be read."""
    path = folder / LEDGER
    if not path.is_file():
        raise ConfigError(f"{path}: missing; the run has not begun")
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as ledger:
            ledger.row_factory = sqlite3.Row
            found = ledger.execute("PRAGMA user_version").fetchone()[0]
            if found != LEDGER_VERSION:
                raise ConfigError(f"{path}: ledger of schema {found}, this program reads {LEDGER_VERSION}")
            rows = ledger.execute(CLIPS, (IMAGE, Purpose.TRAIN, State.DONE)).fetchall()
        ledger.close()
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return [_clip(folder / "blobs", row) for row in rows]


def _clip(blobs: Path, row: sqlite3.Row) -> HeldOutClip:
    prompt = msgpack.unpackb(row["prompt"])
    image = None if row["image"] is None else partial(_read, blobs / row["image"])
    return HeldOutClip(
        *(row["id"], row["version"], prompt["id"], prompt["text"], prompt["character"], prompt["category"]),
        *(partial(_read, blobs / row["clip"]), image),
    )


def _read(path: Path) -> bytes:
    return bytes(OpenBlob(path).read_one().data)
