"""Candidate sets with small made-up content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.candidate_set.folder import writing_to
from common.candidate_set.rows import SetSettings
from common.exchange.api import CollectedGroup
from common.messages import Candidate, Conditioning, Prompt, Purpose, Score, SerializedTensor

WEIGHTS = "ab" * 16
MODEL = {"transformer": "a1", "vae": "b2"}


def settings(**changed: object) -> SetSettings:
    """Settings of a set; `changed` as in `sampler__steps=2`."""
    keys = {"model.frames": 9, "sampler.steps": 4}
    return SetSettings(MODEL, keys | {name.replace("__", "."): value for name, value in changed.items()})


def tensor(*values: int) -> SerializedTensor:
    return SerializedTensor("uint8", (1, 1, len(values)), bytes(values))


def group(
    number: int, scores: Sequence[float], text: str = "a cat walks", name: str = "appeal", seed: int = 0
) -> CollectedGroup:
    """A group of one candidate per score, for prompt `number`; their seeds start with 10 `number` + `seed`."""
    prompt = Prompt(number, f"prompt-{number}", f"{text} {number}", b"png", Purpose.COLLECT, category="walk")
    candidates = tuple(
        Candidate(
            f"{number}-{index}",
            number,
            index,
            10 * number + seed + index,
            3,
            tensor(number, index),
            b"mp4" * (index + 1),
        )
        for index in range(len(scores))
    )
    given = tuple(Score(one.id, "judge-1", {name: value}) for one, value in zip(candidates, scores, strict=True))
    return CollectedGroup(number, prompt, Conditioning(tensor(1, number), tensor(2, number)), candidates, given)


def make_set(folder: Path, groups: Sequence[CollectedGroup], weights: str = WEIGHTS, **changed: object) -> Path:
    """Writes a set with these groups."""
    with writing_to(folder, settings(**changed)) as writer:
        for one in groups:
            writer.append(one, weights)
    return folder
