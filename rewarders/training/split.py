"""Splits a ratings file into training, validation and test parts that share no prompt, first frame or character.

```
rows ── a leak key in common, directly or through other rows ──> groups ── whole, stratified ──> three parts
```

So a head trained on one part has seen no first frame, caption or character of another, and all clips of one first frame
are on one side, whichever generators made them. AnimeReward's validation set is made alike: "no overlap between the
initial images and prompts" (section 3.2).

Stratified means that every action and every source has about the same share in each part. It is the greedy method of
Sechidis et al., "On the stratification of multi-label data" (2011), with groups in the place of examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from common.digests import digest
from common.errors import ConfigError
from rewarders.training.dataset import RatedDataset
from rewarders.training.pictures import LENGTH, same

SHARES = (0.7, 0.15, 0.15)  # training, validation, test
ALL = "all"  # the stratum of every row


@dataclass(frozen=True)
class Split:
    """Row indices of the three parts; no group has rows in two of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Seen:
    """What a head has seen: hashed prompts and characters, and fingerprints of first frames ``[m, 2, LENGTH]``."""

    keys: frozenset[str]
    frames: np.ndarray

    @classmethod
    def of(cls, rated: RatedDataset, rows: Iterable[int]) -> Seen:
        """What rows show."""
        chosen = np.fromiter(rows, int)
        keys = {hashed(key) for i in chosen for key in rated.text_keys(i)}
        return cls(frozenset(keys), np.unique(rated.fingerprints[chosen], axis=0))

    def with_other(self, other: Seen | None) -> Seen:
        """What both have seen; None has seen nothing."""
        if other is None:
            return self
        frames = np.unique(np.concatenate([self.frames, other.frames]), axis=0)
        return Seen(self.keys | other.keys, frames)

    def record(self) -> dict[str, Any]:
        """As JSON, brief and without the text."""
        return {"seen": sorted(self.keys), "seen_frames": [one.tobytes().hex() for one in self.frames]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Seen:
        """The inverse of `record`. Raises `KeyError` for a record of a version that did not store first frames."""
        frames = np.frombuffer(bytes.fromhex("".join(record["seen_frames"])), np.uint8)
        return cls(frozenset(record["seen"]), frames.reshape(-1, 2, LENGTH))


def hashed(key: str) -> str:
    """A short name of a leak key."""
    return digest(key.encode())[:16]


def unseen(rated: RatedDataset, seen: Seen | None) -> np.ndarray:
    """Returns the indices of rows that share no prompt, first frame or character with `seen`; all, if it is None."""
    rows = range(len(rated.rows))
    if seen is None:
        return np.array(rows)
    known = set(same(rated.fingerprints, seen.frames)[:, 0].tolist())
    return np.array([i for i in rows if i not in known and seen.keys.isdisjoint(map(hashed, rated.text_keys(i)))], int)


def split_rated(rated: RatedDataset, seed: int) -> Split:
    """Returns the parts of a dataset. Raises `ConfigError` if it has fewer than three groups."""
    return split(rated.leak_keys(), seed, str(rated.table.file), rated.strata())


def split(
    leak_keys: Sequence[frozenset[str]], seed: int, where: str, strata: Sequence[Sequence[str]] | None = None
) -> Split:
    """Assigns the groups, largest first, each to the part that lacks most of what it has.

    A part lacks 1 - held / (share x total) of a stratum; a group has its rows of each stratum. Raises `ConfigError`,
    beginning with `where`, if the rows form fewer than three groups.
    """
    group = _group_numbers(leak_keys)
    sizes = np.bincount(group)
    if len(sizes) < len(SHARES):
        raise ConfigError(
            f"{where}: {len(leak_keys)} rated clips form {len(sizes)} groups that share no first frame, prompt or "
            f"character; training, validation and test need {len(SHARES)}{_largest_group_hint(leak_keys)}"
        )
    has = _counts(group, strata or [()] * len(leak_keys))
    wanted = np.outer(SHARES, has.sum(0))
    held = np.zeros_like(wanted)
    part_of = np.zeros(len(sizes), int)
    for one in np.lexsort((np.random.default_rng(seed).random(len(sizes)), -sizes)):
        part_of[one] = np.argmax((1 - held / wanted) @ has[one])
        held[part_of[one]] += has[one]
    return Split(*(np.flatnonzero(part_of[group] == part) for part in range(len(SHARES))))


def summary(rated: RatedDataset, parts: Split) -> list[str]:
    """The sizes of the parts, and the actions and sources that validation or test lack."""
    sizes = {"training": parts.train, "validation": parts.validation, "test": parts.test}
    said = ["split: " + ", ".join(f"{len(rows)} clips for {name}" for name, rows in sizes.items())]
    strata = rated.strata()
    every = dict.fromkeys(name for one in strata for name in one)
    for part in ("validation", "test"):
        held = {name for i in sizes[part] for name in strata[i]}
        if lacking := [name for name in every if name not in held]:
            said.append(f"no clip for {part} ({len(lacking)}): {', '.join(lacking)}")
    return said


def _group_numbers(leak_keys: Sequence[frozenset[str]]) -> np.ndarray:
    """Returns each row's group number: the connected components of the graph of rows and leak keys."""
    names = {key: i for i, key in enumerate(dict.fromkeys(key for one in leak_keys for key in one))}
    edges = [(row, len(leak_keys) + names[key]) for row, one in enumerate(leak_keys) for key in one]
    rows, columns = np.array(edges).T
    nodes = len(leak_keys) + len(names)
    _, component = connected_components(csr_array((np.ones(len(edges)), (rows, columns)), (nodes, nodes)), False)
    return np.unique(component[: len(leak_keys)], return_inverse=True)[1]


def _counts(group: np.ndarray, strata: Sequence[Sequence[str]]) -> np.ndarray:
    """The rows of each group in each stratum, ``[groups, strata]``; the first stratum has all rows."""
    names = {name: i for i, name in enumerate(dict.fromkeys((ALL, *(name for one in strata for name in one))))}
    counts = np.zeros((group.max() + 1, len(names)))
    for number, one in zip(group, strata, strict=True):
        counts[number, [names[name] for name in (ALL, *one)]] += 1
    return counts


def _largest_group_hint(leak_keys: Sequence[frozenset[str]]) -> str:
    """Names the leak key that most rows share."""
    key, most = Counter(sorted(key for one in leak_keys for key in one)).most_common(1)[0]
    return f" ({most} share the {key[:60]!r})" if most > 1 else ""
