"""The report of `douga reward eval`: heads and judges beside pixel baselines, on clips unseen in training.

```
{"ratings": FILE, "clips": n, "left_out": {"seen in training": n, "not scored": n, ...},
 "dimensions": {"smoothness": {"clips": n, "prompts": n, "calibration": [...],
                               "judges": {"reward": {"SRCC": {"value", "low", "high"}, ...}, "frozen encoders": {...},
                                          "vs.temporal": {...}, "optical flow": {...}},
                               "by_source": {"cogvideox-5b": {"clips": n, "SRCC": {"reward": r, ...}}, ...},
                               "by_category": {"waving": {...}, ...}},
                ..., "overall": the mean of the dimensions}}
```

A head is compared with the ratings of its own dimension ("reward"), the outputs of judges with those of every one.
"frozen encoders" is the head from which one with fine-tuned encoders started.

`rewarders/training/ranking_metrics.py` defines the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.config import RewardConfig
from common.data.ratings import BadRow, dimensions
from common.errors import ConfigError
from common.messages import Prompt, ScoreTask
from rewarders.first_frame import reference_frame
from rewarders.interface import Judge, Reward
from rewarders.rewarder import Rewarder
from rewarders.training import pixel_baselines
from rewarders.training.dataset import RatedDataset
from rewarders.training.ranking_metrics import RESAMPLES, ScoredClips, calibration, ranking_metrics, srcc
from rewarders.training.split import Seen, unseen

REWARD, FROZEN, OVERALL = "reward", "frozen encoders", "overall"
BATCH = 16  # clips per scoring batch
EVERY = 10.0  # seconds between progress lines


def report(
    rewards: Sequence[Reward],
    rated: RatedDataset,
    seen: Mapping[str, Seen | None],
    log: Callable[[str], None],
    resamples: int = RESAMPLES,
    judges: Sequence[Judge] = (),
    frozen: Sequence[Reward] = (),
) -> dict[str, Any]:
    """Returns how `rewards` and `judges` agree with the ratings, in the format above.

    `frozen` has heads that some of `rewards` started from before their encoders were fine-tuned.
    `seen` has, per dimension, what the head saw in training; clips that show some of it are left out. Raises
    `ConfigError` if no dimension has both ratings and a reward or judge, or if no clip is left.
    """
    by_dimension = {reward.dimension: reward for reward in rewards}
    judged = dimensions(rated.rows) if judges else _judged(by_dimension, rated)
    all_rows = np.arange(len(rated.rows))
    fresh = {name: np.isin(all_rows, unseen(rated, seen.get(name))) for name in judged}
    wanted = {name: fresh[name] & ~np.isnan(rated.scores(name)) for name in judged}
    rows = np.flatnonzero(np.any(list(wanted.values()), axis=0))
    if not len(rows):
        raise ConfigError(
            f"{rated.table.file}: every rated clip shares a first frame, prompt or character with training"
        )
    heads = [by_dimension[name] for name in judged if name in by_dimension]
    before = {one.dimension: BeforeTuning(one) for one in frozen if one.dimension in judged}
    scores, plain = _measured([*heads, *before.values(), *judges], rated, rows, log)
    outputs = [output for judge in judges for output in judge.outputs]
    others = Others(
        {output: scores[output] for output in outputs},
        {name: scores[one.dimension] for name, one in before.items()},
        plain,
    )
    unasked = np.zeros(len(rated.rows))  # of a dimension without a head
    asked = {name: [scores.get(name, unasked), others.frozen.get(name, unasked)] for name in judged}
    scored = {name: ~np.isnan([*asked[name], *others.judges.values()]).any(0) for name in judged}
    parts: dict[str, Part] = {
        name: (scores.get(name), rated.scores(name), wanted[name] & scored[name]) for name in judged
    }
    if len(judged) > 1:
        parts[OVERALL] = _overall(parts)
    lost = {name: int((wanted[name] & ~scored[name]).sum()) for name in judged}
    return {
        "ratings": str(rated.table.file),
        "clips": len(rows),
        "left_out": {
            "bad rows": len(rated.table.bad),
            "not rated": len(rated.table.rows) - len(rated.rows),
            "seen in training": {name: int((~fresh[name]).sum()) for name in judged},
            "not scored": lost,
        },
        "dimensions": {name: _section(name, *part, rated, others, resamples, log) for name, part in parts.items()},
    }


def _judged(rewards: Mapping[str, Reward], rated: RatedDataset) -> list[str]:
    """Returns the dimensions that have both ratings and a reward. Raises `ConfigError` if there are none."""
    names = dimensions(rated.rows)
    judged = [name for name in names if name in rewards]
    if not judged:
        raise ConfigError(f"{rated.table.file}: rates {', '.join(names)}; rewards: {', '.join(rewards)}")
    return judged


# The head's scores (None without a head), opinions, and which clips have all scores: [n] each.
Part = tuple[np.ndarray | None, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Others:
    """What is measured besides heads, ``[n]`` each by name."""

    judges: Mapping[str, np.ndarray]
    frozen: Mapping[str, np.ndarray]  # by dimension
    baselines: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BeforeTuning:
    """A head under another name, to be scored beside the one that was fine-tuned from it."""

    reward: Reward

    @property
    def dimension(self) -> str:
        """The head's dimension and `FROZEN`."""
        return f"{self.reward.dimension} {FROZEN}"

    @property
    def digest(self) -> str:
        """See `Reward.digest`."""
        return self.reward.digest

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `Reward.score`."""
        return self.reward.score(clips, prompts)


def _overall(parts: Mapping[str, Part]) -> Part:
    """Returns the means over the dimensions, for the clips that have all of them."""
    heads, opinions, there = zip(*parts.values(), strict=True)
    whole = None if any(head is None for head in heads) else np.mean(heads, axis=0)
    return whole, np.mean(opinions, axis=0), np.all(there, axis=0)


def _section(
    name: str,
    scores: np.ndarray | None,
    opinions: np.ndarray,
    there: np.ndarray,
    rated: RatedDataset,
    others: Others,
    resamples: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    groups, candidates, wanted = rated.groups()[there], rated.candidates()[there], opinions[there]
    if not there.any():
        return {"clips": 0, "prompts": 0, "calibration": [], "judges": {}, "by_source": {}, "by_category": {}}
    log(f"{name}: {there.sum()} clips of {len(np.unique(groups))} prompts")
    favoured = {
        signal: pixel_baselines.with_positive_srcc(values[there], wanted) for signal, values in others.baselines.items()
    }
    head = {} if scores is None else {REWARD: scores[there]}
    if name in others.frozen:
        head[FROZEN] = others.frozen[name][there]
    asked = head | {output: values[there] for output, values in others.judges.items()}
    judges = {
        judge: ranking_metrics(ScoredClips(values, wanted, groups, candidates), resamples)
        for judge, values in (asked | favoured).items()
    }
    for signal in favoured:
        judges[signal].pop("ECE")  # a baseline has no scale to calibrate
    return {
        "clips": int(there.sum()),
        "prompts": len(np.unique(groups)),
        "calibration": [] if scores is None else [asdict(one) for one in calibration(scores[there], wanted)],
        "judges": {judge: {m: asdict(one) for m, one in found.items()} for judge, found in judges.items()},
        "by_source": _agreement_by([rated.rows[i].source for i in np.flatnonzero(there)], asked, wanted),
        "by_category": _agreement_by([rated.rows[i].category for i in np.flatnonzero(there)], asked, wanted),
    }


def _agreement_by(
    labels: Sequence[str | None], asked: Mapping[str, np.ndarray], opinions: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Returns the number of clips and each judge's SRCC within each label; None where it is undefined."""
    found = {}
    for label in sorted({one for one in labels if one is not None}):
        there = np.array([one == label for one in labels])
        values = {judge: srcc(scores[there], opinions[there]) for judge, scores in asked.items()}
        known = {judge: None if np.isnan(value) else value for judge, value in values.items()}
        found[label] = {"clips": int(there.sum()), "SRCC": known}
    return found


def _measured(
    rewards: Sequence[Reward | Judge], rated: RatedDataset, rows: np.ndarray, log: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns scores by dimension and baselines by name, ``[n]`` each; NaN where there is none."""
    rewarder = Rewarder(rewards, RewardConfig())
    scores = {name: np.full(len(rated.rows), np.nan) for name in rewarder.dimensions}
    plain = {name: np.full(len(rated.rows), np.nan) for name in pixel_baselines.SIGNALS}
    said, order = time.monotonic(), rated.by_first_frame(rows)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        prompts = {i: rated.prompt(i) for i in part}
        tasks = [ScoreTask(rated.rows[i].clip, prompts[i], rated.clip_bytes(i)) for i in part]
        for i, score in zip(part, rewarder.score(tasks), strict=True):
            for name, value in score.values.items():
                scores[name][i] = value
        for i, clip in rated.clips(part):
            if isinstance(clip, BadRow):
                log(f"left out: {clip}")
                continue
            for name, value in pixel_baselines.measure_signals(clip, reference_frame(clip, prompts[i])).items():
                plain[name][i] = value
        if time.monotonic() - said > EVERY:
            log(f"scored {start + len(part)}/{len(order)} clips")
            said = time.monotonic()
    return scores, plain
