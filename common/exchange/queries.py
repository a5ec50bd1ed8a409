"""Read-only queries on a run's ledger: held-out clips, the newest selected groups, active leases.

The exchange keeps clips of finished probes and evaluations. Of training groups it keeps only the clips of the newest
`group_blobs.SHOWN` selected ones, and no longer than their latents.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgpack

from common.exchange.api import State
from common.exchange.storage.blobs import BlobHandle
from common.exchange.storage.group_blobs import IMAGE, clip_name
from common.exchange.storage.ledger import FIRST_EVALUATION
from common.exchange.storage.ledger_reader import LedgerReader, open_readonly, stored_selection
from common.messages import Purpose

CLIPS = """
SELECT c.id, g.version, g.prompt, clips.file AS clip, images.file AS image
FROM candidates c JOIN groups g USING (ordinal)
JOIN group_blobs r ON r.ordinal = c.ordinal AND r.name = 'clip/' || c.candidate_index
JOIN blobs clips ON clips.digest = r.digest
LEFT JOIN group_blobs i ON i.ordinal = c.ordinal AND i.name = ? LEFT JOIN blobs images ON images.digest = i.digest
WHERE g.purpose != ? AND g.state = ? ORDER BY c.ordinal, c.candidate_index
"""


LEASES = "SELECT leased_by, MIN(lease_expires) AS lease_expires, COUNT(*) AS n"
SCORING = f"{LEASES}, 0 AS what FROM candidates WHERE leased_by IS NOT NULL GROUP BY leased_by"
LEARNING = f"{LEASES}, step AS what FROM groups WHERE state = 'training' GROUP BY leased_by, step"
SAMPLING = (
    "SELECT u.leased_by, u.ordinal, u.lease_expires, g.purpose FROM unsampled u JOIN groups g USING (ordinal) "
    "WHERE u.leased_by IS NOT NULL"
)
LOST = float("-inf")  # expiry that `release` sets


@dataclass(frozen=True)
class HeldOutClip:
    """One clip of a finished probe or evaluation. `read` returns the mp4, `read_image` the first frame as PNG."""

    candidate: str
    version: int  # of the policy that sampled it; 0 is the base model
    prompt_id: str
    text: str
    character: str | None
    category: str | None
    read: Callable[[], bytes]
    read_image: Callable[[], bytes] | None


def heldout_clips(folder: Path) -> list[HeldOutClip]:
    """All clips of finished probes and evaluations. Raises `NotBegun` or `ConfigError` like `open_readonly`."""
    with open_readonly(folder) as ledger:
        rows = ledger.all(CLIPS, IMAGE, Purpose.TRAIN, State.DONE)
    return [_clip(folder / "blobs", row) for row in rows]


def _clip(blobs: Path, row: sqlite3.Row) -> HeldOutClip:
    prompt = msgpack.unpackb(row["prompt"])
    image = None if row["image"] is None else partial(read_blob, blobs / row["image"])
    return HeldOutClip(
        candidate=row["id"],
        version=row["version"],
        prompt_id=prompt["id"],
        text=prompt["text"],
        character=prompt["character"],
        category=prompt["category"],
        read=partial(read_blob, blobs / row["clip"]),
        read_image=image,
    )


def read_blob(path: Path) -> bytes:
    """The content of a blob that holds one file. Raises `StorageError` if it is missing or damaged."""
    return bytes(BlobHandle(str(path)).read_one().data)


@dataclass(frozen=True)
class KeptCandidate:
    """A candidate that the algorithm selected for training."""

    id: str
    index: int
    reward: float  # R~, 0..1
    weight: float  # `Selection.weights`
    scores: Mapping[str, float]  # raw, per dimension
    file: str | None  # name of its clip in blobs/; None if the clip was deleted


@dataclass(frozen=True)
class RecentGroup:
    """A selected group and its current state."""

    ordinal: int
    text: str
    version: int  # of the policy that sampled its clips
    state: str
    kept: tuple[KeptCandidate, ...]  # in the order of the selection


def newest_groups(ledger: LedgerReader, count: int) -> list[RecentGroup]:
    """The `count` newest training groups that have a selection, newest first."""
    rows = ledger.all(
        "SELECT * FROM groups NOT INDEXED WHERE ordinal < ? AND selection IS NOT NULL ORDER BY ordinal DESC LIMIT ?",
        *(FIRST_EVALUATION, count),
    )
    return [_recent(ledger, row) for row in rows]


def _recent(ledger: LedgerReader, group: sqlite3.Row) -> RecentGroup:
    selection, rewards = stored_selection(group)
    rows = {row["candidate_index"]: row for row in ledger.candidates(group["ordinal"])}
    parts = zip(selection.candidates, rewards, selection.weights, strict=True)
    return RecentGroup(
        ordinal=group["ordinal"],
        text=msgpack.unpackb(group["prompt"])["text"],
        version=group["version"],
        state=group["state"],
        kept=tuple(_kept(ledger, rows[index], reward, weight) for index, reward, weight in parts),
    )


def _kept(ledger: LedgerReader, candidate: sqlite3.Row, reward: float, weight: float) -> KeptCandidate:
    clip = ledger.first(
        "SELECT file FROM group_blobs JOIN blobs USING (digest) WHERE ordinal = ? AND name = ?",
        *(candidate["ordinal"], clip_name(candidate["candidate_index"])),
    )
    return KeptCandidate(
        id=candidate["id"],
        index=candidate["candidate_index"],
        reward=reward,
        weight=weight,
        scores=json.loads(candidate["scores"] or "{}"),
        file=None if clip is None else clip["file"],
    )


@dataclass(frozen=True, slots=True)
class Work:
    """The work that a worker holds a lease on."""

    kind: str  # "sampling", "scoring", "learning"
    what: int  # sampling: the group's ordinal; scoring: 0; learning: the step
    purpose: str  # of the sampled group; "train" for scoring and learning
    done: int  # sampling: candidates submitted already; else 0
    of: int  # sampling: candidates of the group; scoring: clips; learning: pairs
    lost: bool = False  # the worker is dead; the next lease call releases its lease


def work_in_progress(ledger: LedgerReader) -> dict[str, Work]:
    """Work by worker name. Includes leases of dead workers."""
    found: dict[str, Work] = {}
    for row in ledger.all(SAMPLING):
        done, lost = len(ledger.candidates(row["ordinal"])), row["lease_expires"] == LOST
        of = done + len(ledger.unsampled(row["ordinal"]))
        found[row["leased_by"]] = Work("sampling", row["ordinal"], row["purpose"], done, of, lost)
    for kind, sql in (("scoring", SCORING), ("learning", LEARNING)):
        for row in ledger.all(sql):
            lost = row["lease_expires"] == LOST
            found[row["leased_by"]] = Work(kind, row["what"] or 0, Purpose.TRAIN, 0, row["n"], lost)
    return found
