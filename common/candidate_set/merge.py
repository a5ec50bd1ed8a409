"""Joins candidate sets: copies files and rows of several sets into one, without repeating a candidate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from common.candidate_set.folder import SetWriter, read_set, with_scores, writing_to
from common.candidate_set.rows import EMPTY, CandidateRow
from common.files import replacing, sync

BATCH = 64  # candidates between two writes of rows


def merge(out: Path, sources: Sequence[Path], notify: Callable[[str], None]) -> int:
    """Adds the candidates of `sources` to the set `out`, which is created if it is missing. Repeat it to resume.

    A candidate that is in `out` already only gets the scores that it lacks. Returns how many candidates were added.

    Raises:
        ConfigError: a source was made with other settings.
        CorruptDataError: a source is damaged.
    """
    sets = [read_set(source) for source in sources]
    for one in sets[1:]:
        one.settings.check_same(one.folder, sets[0].settings)
    added = 0
    with writing_to(out, sets[0].settings) as writer:
        for one in sets:
            new = [row for row in one.rows.values() if row.name not in writer.set.rows]
            if (one.folder / EMPTY).exists():
                writer.keep_empty_prompt(one.empty_prompt())
            for first in range(0, len(new), BATCH):
                _copy(writer, one.folder, new[first : first + BATCH])
            _add_missing_scores(writer, list(one.rows.values()))
            added += len(new)
            notify(f"{one.folder}: {len(new)} of {len(one.rows)} candidates added")
    return added


def _copy(writer: SetWriter, source: Path, rows: Sequence[CandidateRow]) -> None:
    for name in dict.fromkeys(file for row in rows for file in row.files()):
        path = writer.set.folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            with replacing(path) as draft:
                shutil.copyfile(source / name, draft)
                sync(draft)
    writer.add(rows)


def _add_missing_scores(writer: SetWriter, rows: Sequence[CandidateRow]) -> None:
    """Adds the scores of dimensions that the candidates in the set do not have yet."""
    changed = []
    for row in rows:
        here = writer.set.rows[row.name]
        new = row.scores.keys() - here.scores.keys()
        if new:
            scored_by = {key: by for key, by in row.scored_by.items() if key in new}
            changed.append(with_scores(here, {key: row.scores[key] for key in new}, scored_by))
    if changed:
        writer.replace(changed)
