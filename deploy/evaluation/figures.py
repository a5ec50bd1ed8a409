"""The figures of an evaluation: one value per clip, then means over prompts with intervals, and comparisons.

    m_i(p)      mean of model i's clips of prompt p
    mean        average of m_i(p) over the prompts, with a 95 % interval over prompts
    change      average of m_i(p) - m_base(p), paired by prompt, with an interval
    win, lose   share of the prompts with |m_i(p) - m_base(p)| >= TIE; the others are ties

A prompt is a caption with its first frame. A prompt that lacks a clip in any model is left out of all of them, and of a
figure if it lacks a score there: otherwise the columns of the table would be about different prompts. So figures may
have different prompts: VBench measures most dimensions on a part of its prompts. What is left out is named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np

from common.candidate_set.folder import CandidateSet
from common.candidate_set.rows import CandidateRow
from common.config import DIMENSIONS, RunConfig
from common.data.video import decode_clip
from common.errors import ConfigError
from common.intervals import mean_interval, paired_interval
from common.reward_composition import mean_score
from deploy.guardrails.rules import REWARD
from deploy.run_dir.progress import Progress, tracked

TIE = 0.5  # points of 100
ORACLE = "oracle."  # prefix of the names of the oracle's figures


@dataclass(frozen=True)
class MeasuredModel:
    """One model's clips. `values` has for every candidate its figures, 0..100, by name."""

    label: str
    candidates: CandidateSet
    values: Mapping[str, Mapping[str, float]]

    def by_prompt(self) -> dict[str, list[CandidateRow]]:
        """The candidates of every prompt, by the prompt's key, in the order of the set."""
        found: dict[str, list[CandidateRow]] = defaultdict(list)
        for row in self.candidates.rows.values():
            found[row.prompt_key].append(row)
        return dict(found)


def measure(
    label: str, candidates: CandidateSet, config: RunConfig | None, progress: Progress | None = None
) -> MeasuredModel:
    """Every clip's scores, their weighted mean under `config`, and the oracle's figures for toon prompts."""
    from common.toon.oracle import oracle_applies  # noqa: PLC0415 - torch

    values = {}
    rows = candidates.rows.items()
    if progress is not None and config is not None and oracle_applies(config):
        rows = tracked(progress, f"oracle of {label}", rows, len(rows))
    for name, row in rows:
        ordered = {key: row.scores[key] for key in (*DIMENSIONS, *row.scores) if key in row.scores}
        values[name] = _reward(row, config) | ordered | _oracle(candidates, row, config)
    return MeasuredModel(label, candidates, values)


def _reward(row: CandidateRow, config: RunConfig | None) -> dict[str, float]:
    try:
        return {} if config is None else {REWARD: mean_score(config.reward, row.scores)}
    except ConfigError:
        return {}  # a set with other scores than the configuration's


def _oracle(candidates: CandidateSet, row: CandidateRow, config: RunConfig | None) -> dict[str, float]:
    from common.toon.oracle import judge, oracle_applies  # noqa: PLC0415 - torch
    from common.toon.prompts import shot_of  # noqa: PLC0415

    if config is None or not oracle_applies(config):
        return {}
    found = asdict(judge(decode_clip(candidates.clip(row)), shot_of(candidates.prompt(row))))
    return {f"{ORACLE}{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class Evaluation:
    """The table. `figures`: name -> label -> mean, low, high and, but for the base, change, win, tie, lose."""

    labels: Sequence[str]
    against: str
    prompts: Sequence[str]  # keys, in the order of the base's set
    clips: int  # of each model, at most
    asked: int  # `clips` with those of the prompts that are left out
    same_seeds: bool  # whether the clips of every prompt were sampled with the same seeds by all models
    left_out: Mapping[str, Mapping[str, str]]  # label -> id of a prompt -> why it has no clip or no reward
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]]
    counted: Mapping[str, int]  # name -> number of prompts whose clips all have this figure in all models
    changes: Mapping[str, Mapping[str, Mapping[str, float]]]  # label -> prompt key -> name -> change, if counted
    sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # metric over all clips -> label -> value
    controls: Mapping[str, Mapping[str, Mapping[str, float]]] = field(
        default_factory=dict
    )  # score -> control -> result

    def to_json(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        return asdict(self)


def compare(
    models: Sequence[MeasuredModel], against: str, refused: Mapping[str, Mapping[str, str]] | None = None
) -> Evaluation:
    """Compares all models with the one called `against`. `refused`: label -> id of a prompt -> why it has no clip.

    Raises `ConfigError` if fewer than 2 prompts have clips of all models.
    """
    clips = {model.label: model.by_prompt() for model in models}
    prompts = [key for key in clips[against] if all(key in found for found in clips.values())]
    means = {model.label: [_means(model, clips[model.label][key]) for key in prompts] for model in models}
    counted = _counted(means)
    if len(prompts) < 2:
        raise ConfigError(
            f"{', '.join(clips)}: {len(prompts)} prompts in common; compare models on the same prompts, with 2 or more"
        )
    left_out = _left_out(clips, _unrewarded(prompts, means) if REWARD in counted else {}, refused or {})
    return Evaluation(
        labels=[model.label for model in models],
        against=against,
        prompts=prompts,
        clips=sum(len(clips[against][key]) for key in prompts),
        asked=_asked(clips, left_out),
        same_seeds=all(len({_seeds(found[key]) for found in clips.values()}) == 1 for key in prompts),
        left_out={label: missing for label, missing in left_out.items() if missing},
        figures={name: _figures(name, places, means, against) for name, places in counted.items()},
        counted={name: len(places) for name, places in counted.items()},
        changes=_changes(means, against, prompts, counted),
    )


PromptRows = Mapping[str, Sequence[CandidateRow]]  # of one model: its candidates by the prompt's key


def _seeds(rows: Sequence[CandidateRow]) -> tuple[int, ...]:
    return tuple(sorted(row.seed for row in rows))


def _asked(clips: Mapping[str, PromptRows], left_out: Mapping[str, Mapping[str, str]]) -> int:
    """Clips of each model, at most, with those of prompts that no model has."""
    keys = dict.fromkeys(chain(*clips.values()))
    sizes = [max(len(found.get(key, ())) for found in clips.values()) for key in keys]
    known = {rows[0].prompt_id for found in clips.values() for rows in found.values()}
    nowhere = {name for missing in left_out.values() for name in missing} - known
    return sum(sizes) + len(nowhere) * max(sizes)


def _unrewarded(prompts: Sequence[str], means: Mapping[str, PromptMeans]) -> dict[str, set[str]]:
    """Label -> keys of prompts whose clips do not all have a reward."""
    return {label: {key for key, mean in zip(prompts, found, strict=True) if REWARD not in mean}
            for label, found in means.items()}  # fmt: skip


def _left_out(
    clips: Mapping[str, PromptRows], unrewarded: Mapping[str, Set[str]], refused: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """`Evaluation.left_out`, with every label."""
    every = {key: rows[0].prompt_id for found in clips.values() for key, rows in found.items()}
    found: dict[str, dict[str, str]] = {}
    for label, own in clips.items():
        found[label] = {name: "no clip" for key, name in every.items() if key not in own}
        found[label] |= {every[key]: f"no {REWARD}" for key in unrewarded.get(label, ())}
        found[label] |= refused.get(label, {})
    return found


PromptMeans = Sequence[Mapping[str, float]]  # of one model: for each prompt, name -> mean of its clips


def _means(model: MeasuredModel, rows: Sequence[CandidateRow]) -> dict[str, float]:
    """Name -> mean over a prompt's clips, for the figures that all of them have."""
    found = [model.values[row.name] for row in rows]
    return {name: fmean(one[name] for one in found) for name in found[0] if all(name in one for one in found)}


def _counted(means: Mapping[str, PromptMeans]) -> dict[str, list[int]]:
    """Name -> places of the prompts that have it in all models; only figures with 2 or more of them."""
    both = list(zip(*means.values(), strict=True))
    names = dict.fromkeys(name for found in both for one in found for name in one)
    places = {name: [place for place, found in enumerate(both) if all(name in one for one in found)] for name in names}
    return {name: found for name, found in places.items() if len(found) > 1}


def _figures(
    name: str, places: Sequence[int], means: Mapping[str, PromptMeans], against: str
) -> dict[str, dict[str, Any]]:
    values = {label: np.array([found[place][name] for place in places]) for label, found in means.items()}
    return {label: _figure(one, values[against], label != against) for label, one in values.items()}


def _figure(values: np.ndarray, base: np.ndarray, compared: bool) -> dict[str, Any]:
    found: dict[str, Any] = asdict(mean_interval(values))
    if compared:
        change = values - base
        win, lose = float(np.mean(change >= TIE)), float(np.mean(change <= -TIE))
        found |= {"change": asdict(paired_interval(base, values)), "win": win, "lose": lose, "tie": 1 - win - lose}
    return found


def _changes(
    means: Mapping[str, PromptMeans], against: str, prompts: Sequence[str], counted: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, dict[str, float]]]:
    changes: dict[str, dict[str, dict[str, float]]] = {}
    for label in [label for label in means if label != against]:
        changes[label] = {key: {} for key in prompts}
        for name, places in counted.items():
            for place in places:
                changes[label][prompts[place]][name] = means[label][place][name] - means[against][place][name]
    return changes
