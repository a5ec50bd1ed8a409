"""A candidate set's folder: open, read, append groups, add scores, check.

```
append(group):  files, fsync ──> rows, fsync         a row exists only if its files are complete
with_scores():  all rows to a new file ──> rename    readers see the old scores or the new ones
```

A process may be killed at any point: the next writer cuts off a torn last row and overwrites files without a row.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from common.candidate_set.rows import (
    CLIPS,
    EMPTY,
    LATENTS,
    PROMPTS,
    ROWS,
    SETTINGS,
    CandidateRow,
    SetSettings,
    candidate_name,
    folder_of,
    read_rows,
    read_settings,
)
from common.data.prompt_keys import prompt_key
from common.digests import digest
from common.errors import ConfigError, CorruptDataError
from common.errors.disk import writing
from common.exchange.api import CollectedGroup
from common.exchange.storage.run_lock import hold
from common.files import replacing, sync, write_whole
from common.messages import Candidate, Conditioning, Prompt, Purpose, Score, SerializedTensor
from common.weights.tensors import from_array, to_array

LOCK = ".lock"  # of a set's folder
EMBEDS, IMAGE_LATENT, LATENT = "prompt_embeds", "image_latent", "latents"  # names of tensors


@dataclass
class CandidateSet:
    """A set in memory: its settings and rows. Clips and tensors stay on disk until they are read."""

    folder: Path
    settings: SetSettings
    rows: dict[str, CandidateRow] = field(default_factory=dict)  # by name, in the order of the file

    def groups(self) -> dict[tuple[str, str], list[CandidateRow]]:
        """The candidates of each group, sorted by seed index, in the order of the file."""
        found: dict[tuple[str, str], list[CandidateRow]] = defaultdict(list)
        for row in self.rows.values():
            found[row.group].append(row)
        return {key: sorted(rows, key=lambda row: (row.index, row.seed)) for key, rows in found.items()}

    @property
    def digest(self) -> str:
        """Hex digest of all rows."""
        return digest("".join(f"{row.model_dump_json()}\n" for row in self.rows.values()).encode())

    def prompt(self, row: CandidateRow) -> Prompt:
        """The prompt of a candidate, with ordinal 0."""
        image = None if row.first_frame is None else self._bytes(row.first_frame)
        return Prompt(0, row.prompt_id, row.prompt, image, character=row.character, category=row.category)

    def clip(self, row: CandidateRow) -> bytes:
        """A candidate's clip, mp4. Raises `CorruptDataError` if it is not the one that was written."""
        return self._checked(row.clip, row.clip_digest)

    def latents(self, row: CandidateRow) -> SerializedTensor:
        """A candidate's latents [F, C, h, w]. Raises `CorruptDataError` if they are not those that were written."""
        return self._tensors(row.latents, self._checked(row.latents, row.latents_digest))[LATENT]

    def conditioning(self, row: CandidateRow) -> Conditioning:
        """The encoded prompt of a candidate."""
        found = self._tensors(row.condition, self._bytes(row.condition))
        return Conditioning(found[EMBEDS], found.get(IMAGE_LATENT))

    def empty_prompt(self) -> SerializedTensor:
        """The embedding [L, D] of the empty caption. Raises `CorruptDataError` if the set has none."""
        return self._tensors(EMPTY, self._bytes(EMPTY))[EMBEDS]

    def bytes_on_disk(self) -> int:
        """Size of the rows and of all files that they refer to, in bytes."""
        names = {ROWS, SETTINGS, EMPTY, *(name for row in self.rows.values() for name in row.files())}
        return sum(path.stat().st_size for name in names if (path := self.folder / name).exists())

    def faults(self) -> Iterator[str]:
        """What is wrong with the files of each damaged row. Reads every byte of the set."""
        for row in self.rows.values():
            try:
                for read in (self.clip, self.latents, self.conditioning, self.prompt):
                    read(row)
            except (CorruptDataError, ConfigError) as error:
                yield str(error)

    def _checked(self, name: str, expected: str) -> bytes:
        data = self._bytes(name)
        if digest(data) != expected:
            raise CorruptDataError(f"{self.folder / name}: differs from its digest in {ROWS}")
        return data

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise CorruptDataError(f"{self.folder / name}: cannot be read: {error.strerror}") from None

    def _tensors(self, name: str, data: bytes) -> dict[str, SerializedTensor]:
        try:
            return {key: to_array(tensor) for key, tensor in safetensors.torch.load(data).items()}
        except SafetensorError as error:
            raise CorruptDataError(f"{self.folder / name}: not a safetensors file: {error}") from None


def read_set(folder: Path) -> CandidateSet:
    """Opens a set: its folder, or a run folder that has one.

    Raises `NotFoundError`, or `CorruptDataError` naming file and line.
    """
    folder = folder_of(folder)
    return CandidateSet(folder, read_settings(folder), read_rows(folder))


class SetWriter:
    """Appends to a set. Create with `writing_to`, which locks the folder."""

    def __init__(self, candidates: CandidateSet) -> None:
        self.set = candidates
        self._repair()

    def _repair(self) -> None:
        """Cuts off a row that a killed writer left incomplete."""
        path = self.set.folder / ROWS
        if path.exists():
            data = path.read_bytes()
            end = data.rfind(b"\n") + 1
            if end < len(data):
                with writing(path):
                    os.truncate(path, end)

    def append(self, group: CollectedGroup, weights: str) -> int:
        """Stores a group that the policy with the digest `weights` sampled. Returns how many candidates were new."""
        key = prompt_key(group.prompt)
        new = [
            (candidate, score)
            for candidate, score in zip(group.candidates, group.scores, strict=True)
            if candidate_name(key, weights, candidate.seed) not in self.set.rows
        ]
        if new:
            self._keep_prompt(key, group)
            self.add([self._row(key, group, weights, *one) for one in new])
        return len(new)

    def _keep_prompt(self, key: str, group: CollectedGroup) -> None:
        condition, encoded = self.set.folder / PROMPTS / f"{key}.safetensors", group.conditioning
        if not condition.exists():
            tensors = {EMBEDS: encoded.prompt_embeds}
            if encoded.image_latent is not None:
                tensors[IMAGE_LATENT] = encoded.image_latent
            self._write(condition, _serialized(tensors))
        if group.prompt.image is not None:
            self._write(condition.with_suffix(".png"), group.prompt.image)

    @property
    def has_empty_prompt(self) -> bool:
        """Whether the set has the embedding of the empty caption."""
        return (self.set.folder / EMPTY).exists()

    def keep_empty_prompt(self, embeds: SerializedTensor) -> None:
        """Stores the embedding of the empty caption, which guidance and caption dropout need."""
        path = self.set.folder / EMPTY
        path.parent.mkdir(exist_ok=True)
        self._write(path, _serialized({EMBEDS: embeds}))

    def _row(self, key: str, group: CollectedGroup, weights: str, candidate: Candidate, score: Score) -> CandidateRow:
        prompt, name = group.prompt, candidate_name(key, weights, candidate.seed)
        clip, latents = f"{CLIPS}/{name}.mp4", f"{LATENTS}/{name}.safetensors"
        data = _serialized({LATENT: candidate.latents})
        self._write(self.set.folder / clip, candidate.clip)
        self._write(self.set.folder / latents, data)
        return CandidateRow(
            prompt_key=key,
            prompt_id=prompt.id,
            prompt=prompt.text,
            first_frame=None if prompt.image is None else f"{PROMPTS}/{key}.png",
            character=prompt.character,
            category=prompt.category,
            condition=f"{PROMPTS}/{key}.safetensors",
            clip=clip,
            clip_digest=digest(candidate.clip),
            latents=latents,
            latents_digest=digest(data),
            seed=candidate.seed,
            index=candidate.index,
            version=candidate.policy_version,
            weights=weights,
            scores=score.values,
            scored_by=dict.fromkeys(score.values, score.reward_version),
            **_training_of(group, candidate.index),
        )

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as draft:
            draft.write_bytes(data)
            sync(draft)

    def add(self, rows: Iterable[CandidateRow]) -> None:
        """Appends rows whose files are in place."""
        rows, path = list(rows), self.set.folder / ROWS
        with writing(path), path.open("ab") as file:
            file.write("".join(f"{row.model_dump_json()}\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.set.rows |= {row.name: row for row in rows}

    def replace(self, rows: Iterable[CandidateRow]) -> None:
        """Replaces rows of the same names, atomically."""
        changed = {row.name: row for row in rows}
        self.set.rows |= changed
        write_whole(self.set.folder / ROWS, "".join(f"{row.model_dump_json()}\n" for row in self.set.rows.values()))

    def add_scores(self, scores: Mapping[str, Score]) -> None:
        """Adds scores to candidates, by name. A dimension that was scored before gets the new value."""
        self.replace(
            with_scores(self.set.rows[name], score.values, dict.fromkeys(score.values, score.reward_version))
            for name, score in scores.items()
        )


def with_scores(row: CandidateRow, scores: Mapping[str, float], scored_by: Mapping[str, str]) -> CandidateRow:
    """The row with more scores, or other ones. Raises `ValueError` for a score that is not finite."""
    more = {"scores": {**row.scores, **scores}, "scored_by": {**row.scored_by, **scored_by}}
    return CandidateRow.model_validate(row.model_dump() | more)


def _training_of(group: CollectedGroup, index: int) -> dict[str, Any]:
    """The fields of a candidate's row that say what a run trained on."""
    if group.prompt.purpose is not Purpose.TRAIN:
        return {}
    selection = group.selection
    if selection is None or index not in selection.candidates:
        return {"ordinal": group.ordinal}
    place = selection.candidates.index(index)
    return {"ordinal": group.ordinal, "selected": place, "weight": selection.weights[place]}


def _serialized(tensors: Mapping[str, SerializedTensor]) -> bytes:
    return safetensors.torch.save({name: from_array(tensor) for name, tensor in tensors.items()})


@contextmanager
def writing_to(folder: Path, settings: SetSettings | None = None) -> Iterator[SetWriter]:
    """Opens a set for writing and locks it; with `settings`, creates it if it is missing.

    Raises `ConfigError` if another process writes to it, or if it was made with other settings.
    """
    folder = folder_of(folder)
    if settings is None:
        read_settings(folder)  # raises, before a folder is created
    with hold(folder, LOCK, "wait for it"):
        if settings is not None and not (folder / SETTINGS).exists():
            write_whole(folder / SETTINGS, settings.to_json())
        found = read_set(folder)
        if settings is not None:
            found.settings.check_same(folder, settings)
        yield SetWriter(found)
