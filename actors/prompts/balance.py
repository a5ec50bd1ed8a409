"""Balances a prompt file over actions: at most so many prompts of each, and says which actions have too few.

AnimeReward's data set has 30 to 50 videos for each of more than 100 actions (section 3.2).

Which prompts of an action are taken depends on the seed and their ids alone, so new prompts replace few old ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.prompts.source import complete_rows, portable_row
from actors.prompts.vocabulary import Vocabulary
from common.digests import digest
from common.errors import ConfigError, one_per_line
from common.errors.disk import writing
from common.files import write_whole


@dataclass(frozen=True)
class Balance:
    """How many prompts of each action there are and were taken."""

    found: dict[str, int]  # every action of the vocabulary, also those without prompts
    taken: dict[str, int]
    least: int
    most: int

    def lines(self) -> list[str]:
        """What a person should know: totals, and the actions with too many, too few or no prompts."""
        some = sum(count > 0 for count in self.found.values())
        total = f"{sum(self.taken.values())} of {sum(self.found.values())} prompts"
        said = [f"{total}, of {some} of {len(self.found)} actions; wanted are {self.least} to {self.most} of each"]
        many = [f"{action} {count}" for action, count in self.found.items() if count > self.most]
        few = [f"{action} {count}" for action, count in self.found.items() if 0 < count < self.least]
        none = [action for action, count in self.found.items() if not count]
        named = (("too many, drawn", many), ("too few, all taken", few), ("none", none))
        return said + [f"{what} ({len(names)}): {', '.join(names)}" for what, names in named if names]


def balance(file: Path, out: Path, vocabulary: Vocabulary, least: int, most: int, seed: int = 0) -> Balance:
    """Writes `out`: at most `most` prompts of each action, in the order of `file`, with all columns.

    Prompts of an action with fewer than `least` are all taken; `Balance` names it. Raises `ConfigError` if `file` is
    bad, a row has no action of the vocabulary, or the limits are not 1 <= least <= most.
    """
    if not 1 <= least <= most:
        raise ConfigError(f"--least {least} --most {most}: 1 <= least <= most is needed")
    if out.suffix != ".jsonl" or (out.exists() and out.samefile(file)):
        raise ConfigError(f"--out {out}: a new file that ends in .jsonl is needed")
    rows = _labelled(file, out, vocabulary)
    chosen = {id for action in vocabulary.actions for id in _drawn(rows, action, most, seed)}
    taken = [row for row in rows if row["id"] in chosen]
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in taken))
    return Balance(_counts(rows, vocabulary), _counts(taken, vocabulary), least, most)


def _labelled(file: Path, out: Path, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """All rows, each with its action as the vocabulary writes it."""
    rows, bad = [], []
    for row, data in complete_rows(file):
        try:
            rows.append(portable_row(row, data, out.parent) | {"category": vocabulary.action(row.category)})
        except ValueError as error:
            bad.append(f"{file}:{row.line}: {error}")
    if bad:
        raise ConfigError(one_per_line(f"{file}: {len(bad)} prompts without a known action", bad))
    return rows


def _drawn(rows: Sequence[dict[str, Any]], action: str, most: int, seed: int) -> list[str]:
    ids = [row["id"] for row in rows if row["category"] == action]
    return sorted(ids, key=lambda id: digest(f"{seed}|{id}".encode()))[:most]


def _counts(rows: Sequence[dict[str, Any]], vocabulary: Vocabulary) -> dict[str, int]:
    counts = dict.fromkeys(vocabulary.actions, 0)
    for row in rows:
        counts[row["category"]] += 1
    return counts
