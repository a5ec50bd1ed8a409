"""The figures of an evaluation: one value per clip, then means over prompts with intervals, and comparisons.

    m_i(p)      mean of model i's clips of prompt p
    mean        average of m_i(p) over the prompts, with a bootstrap interval over prompts
    change      average of m_i(p) - m_base(p), paired by prompt, with an interval
    win, lose   share of the prompts with |m_i(p) - m_base(p)| >= TIE; the others are ties

A prompt is a caption with its first frame. A prompt that lacks a clip or a score in any model is left out of all of
them: otherwise the columns of the table would be about different prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from common.bootstrap import bootstrap_mean, paired_bootstrap
from common.candidate_set.folder import CandidateSet
from common.candidate_set.rows import CandidateRow
from common.config import DIMENSIONS, RunConfig
from common.data.video import decode_clip
from common.errors import ConfigError
from common.reward_composition import mean_score
from deploy.guardrails.rules import REWARD

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


def measure(label: str, candidates: CandidateSet, config: RunConfig | None) -> MeasuredModel:
    """Every clip's scores, their weighted mean under `config`, and the oracle's figures for toon prompts."""
    values = {}
    for name, row in candidates.rows.items():
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
    left_out: Mapping[str, Sequence[str]]  # label -> ids of prompts that it lacks
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]]
    changes: Mapping[str, Mapping[str, Mapping[str, float]]]  # label -> prompt key -> name -> change
    sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # metric over all clips -> label -> value
    controls: Mapping[str, Mapping[str, Mapping[str, float]]] = field(
        default_factory=dict
    )  # score -> control -> result

    def to_json(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        return asdict(self)


def compare(models: Sequence[MeasuredModel], against: str) -> Evaluation:
    """Compares all models with the one called `against`.

    Raises `ConfigError` if fewer than 2 prompts have clips of all models, or no figure is common to all of them.
    """
    base = next(model for model in models if model.label == against)
    clips = {model.label: model.by_prompt() for model in models}
    names = _names(models)
    prompts = [key for key in clips[against] if all(key in found for found in clips.values())]
    if len(prompts) < 2 or not names:
        what = "no score" if len(prompts) > 1 else f"{len(prompts)} prompts"
        raise ConfigError(f"{', '.join(clips)}: {what} in common; compare models on the same prompts, with 2 or more")
    means = {model.label: _means(model, clips[model.label], prompts, names) for model in models}
    figures = {name: {label: _figure(found[name], means[against][name], label != against)
                      for label, found in means.items()} for name in names}  # fmt: skip
    every = {key: rows[0].prompt_id for found in clips.values() for key, rows in found.items()}
    left_out = {label: [name for key, name in every.items() if key not in found] for label, found in clips.items()}
    return Evaluation(
        labels=[model.label for model in models],
        against=against,
        prompts=prompts,
        clips=sum(len(clips[base.label][key]) for key in prompts),
        left_out={label: missing for label, missing in left_out.items() if missing},
        figures=figures,
        changes=_changes(means, against, prompts),
    )


def _names(models: Sequence[MeasuredModel]) -> list[str]:
    """The figures that every clip of every model has, in the order of the first model's first clip."""
    rows = [values for model in models for values in model.values.values()]
    return [name for name in rows[0] if all(name in row for row in rows)] if rows else []


def _means(
    model: MeasuredModel, clips: Mapping[str, Sequence[CandidateRow]], prompts: Sequence[str], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Name -> the mean of the model's clips of each prompt, [P]."""
    return {
        name: np.array([fmean(model.values[row.name][name] for row in clips[key]) for key in prompts]) for name in names
    }


def _figure(values: np.ndarray, base: np.ndarray, compared: bool) -> dict[str, Any]:
    found: dict[str, Any] = asdict(bootstrap_mean(values))
    if compared:
        change = values - base
        win, lose = float(np.mean(change >= TIE)), float(np.mean(change <= -TIE))
        found |= {"change": asdict(paired_bootstrap(base, values)), "win": win, "lose": lose, "tie": 1 - win - lose}
    return found


def _changes(
    means: Mapping[str, Mapping[str, np.ndarray]], against: str, prompts: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    return {
        label: {
            key: {name: float(values[place] - means[against][name][place]) for name, values in found.items()}
            for place, key in enumerate(prompts)
        }
        for label, found in means.items()
        if label != against
    }
