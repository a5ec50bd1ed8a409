"""The rules that detect reward hacking, as pure functions of the readings taken so far.

A **reading** measures one version of the policy on a fixed set of prompts and seeds: the trained reward, the scores of
a held-out judge that is never trained on, and the motion of the clips. It also contains the trained reward of the base
model's clips, rescored at the same time. The reading of step 0 is the base model itself.

| rule | triggers when |
|---|---|
| judge ANSWER | the score fell more than `max_judge_drop` points below its best reading while the trained reward rose |
| motion | the clips have less than the share `motion_floor` of the motion of the base model's clips |
| scorer | the base model's clips score differently than at the start: the scorer changed, not the policy |

Comparisons are paired by prompt and seed. A rule triggers only if the 95 % interval over the prompts excludes "no
change" (`common/intervals.py`), so the noise of few prompts does not trigger it. Many readings are compared, and the
best of many is biased upwards, so an **alarm** needs `patience` consecutive readings that trigger the same rule. If the
rule keeps triggering, the alarm repeats every `patience` readings.

The policy's trained reward is measured relative to the base model's in the same reading, so that drift of the scorer is
not attributed to the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common.config import GuardrailsConfig
from common.intervals import Interval, paired_interval
from deploy.run_dir.jsonl import GUARD, read_json_lines

REWARD = "reward"  # key of the weighted mean of a clip's trained scores, 0 to 100
MOTION, SCORER = "motion", "scorer"


@dataclass(frozen=True, slots=True)
class ClipMeasurement:
    """Measurements of one clip."""

    trained: dict[str, float]  # `REWARD` and the dimensions, 0 to 100
    judged: dict[str, float]  # scores of the held-out judge; empty without a judge
    motion: float  # mean absolute difference of consecutive frames, 0 to 255


@dataclass(frozen=True, slots=True)
class Reading:
    """Measurements of all probe clips of one version and of the base model, each by prompt ordinal."""

    step: int  # optimizer steps taken; 0: the base model itself
    pushes: int
    version: int
    policy: dict[int, ClipMeasurement]
    base: dict[int, ClipMeasurement]
    shown: dict[str, str] = field(default_factory=dict)  # rule -> finding, as text
    alarms: tuple[str, ...] = ()  # rules of `shown` that raise an alarm


PromptValue = Callable[[Reading, int], float]  # (reading, prompt ordinal) -> value


def judge_rule(answer: str) -> str:
    """Name of the rule for one score of the held-out judge."""
    return f"judge {answer}"


def concluded(history: Sequence[Reading], reading: Reading, rules: GuardrailsConfig) -> Reading:
    """Returns `reading` with its findings and alarms. `history` is sorted by step and starts with the base model."""
    shown = findings(history, reading, rules)
    alarms = tuple(rule for rule in shown if (1 + _streak(history, rule)) % rules.patience == 0)
    return replace(reading, shown=shown, alarms=alarms)


def _streak(history: Sequence[Reading], rule: str) -> int:
    """Number of consecutive readings up to the last one that triggered the rule."""
    count = 0
    for one in reversed(history):
        if rule not in one.shown:
            break
        count += 1
    return count


def findings(history: Sequence[Reading], reading: Reading, rules: GuardrailsConfig) -> dict[str, str]:
    """Returns rule -> finding, as text. Rules that do not trigger are left out."""
    answers = sorted({name for one in reading.policy.values() for name in one.judged})
    found = {judge_rule(name): _fallen(history, reading, name, rules.max_judge_drop) for name in answers}
    found |= {MOTION: _frozen(reading, rules.motion_floor), SCORER: _drifted(history, reading, rules.max_score_drift)}
    return {rule: finding for rule, finding in found.items() if finding}


def _fallen(history: Sequence[Reading], now: Reading, answer: str, most: float) -> str:
    """Compares with the earlier reading that scored best in `answer`. Returns "" if the rule does not trigger."""
    judged = [one for one in history if all(answer in clip.judged for clip in one.policy.values())]
    falls = [(_mean_change(one, now, _judged(answer)), one) for one in judged if len(_common(one, now)) >= 2]
    if not falls:
        return ""
    _, best = min(falls, key=lambda pair: pair[0])  # one interval, not one per earlier reading
    fall, rise = _change(best, now, _judged(answer)), _change(best, now, _gain)
    if fall is None or rise is None or fall.mean >= -most or fall.high >= 0 or rise.low <= 0:
        return ""
    return (
        f"held-out {answer} {_as_text(fall)} points since step {best.step}, "
        f"while the trained reward changed by {_as_text(rise)}"
    )


def _frozen(now: Reading, floor: float) -> str:
    ordinals = sorted(now.policy)
    base, policy = ([side[ordinal].motion for ordinal in ordinals] for side in (now.base, now.policy))
    if len(ordinals) < 2 or paired_interval([floor * value for value in base], policy).high >= 0:
        return ""
    return f"{100 * sum(policy) / sum(base):.0f} % of the base clips' motion, the floor is {100 * floor:g} %"


def _drifted(history: Sequence[Reading], now: Reading, most: float) -> str:
    """Reports the dimension that changed most. Returns "" if none changed significantly."""
    if not history:
        return ""
    names = sorted(set.intersection(*(set(clip.trained) for one in (history[0], now) for clip in one.base.values())))
    changes = [(name, change) for name in names if (change := _change(history[0], now, _base_score(name)))]
    sure = [(name, one) for name, one in changes if abs(one.mean) > most and not one.low <= 0 <= one.high]
    if not sure:
        return ""
    name, change = max(sure, key=lambda pair: abs(pair[1].mean))
    return f"the same base clips score {_as_text(change)} points in {name} since the start: the scorer changed"


def _change(before: Reading, after: Reading, value: PromptValue) -> Interval | None:
    """Change over the prompts that both readings contain; None with fewer than two."""
    ordinals = _common(before, after)
    if len(ordinals) < 2:
        return None
    return paired_interval(
        [value(before, ordinal) for ordinal in ordinals], [value(after, ordinal) for ordinal in ordinals]
    )


def _mean_change(before: Reading, after: Reading, value: PromptValue) -> float:
    ordinals = _common(before, after)
    return sum(value(after, ordinal) - value(before, ordinal) for ordinal in ordinals) / len(ordinals)


def _common(before: Reading, after: Reading) -> list[int]:
    return [ordinal for ordinal in sorted(after.policy) if ordinal in before.policy]


def _judged(answer: str) -> PromptValue:
    return lambda reading, ordinal: reading.policy[ordinal].judged[answer]


def _gain(reading: Reading, ordinal: int) -> float:
    return reading.policy[ordinal].trained[REWARD] - reading.base[ordinal].trained[REWARD]


def _base_score(name: str) -> PromptValue:
    return lambda reading, ordinal: reading.base[ordinal].trained[name]


def _as_text(change: Interval) -> str:
    return f"{change.mean:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"


# Series for the report.


def mean_change(reading: Reading, answer: str | None = None) -> float:
    """Policy minus base in points, mean over the prompts: the trained reward, or one score of the judge."""
    gains = [
        _gain(reading, ordinal)
        if answer is None
        else reading.policy[ordinal].judged[answer] - reading.base[ordinal].judged[answer]
        for ordinal in reading.policy
    ]
    return sum(gains) / len(gains)


def motion_share(reading: Reading) -> float:
    """Motion of the policy's clips divided by that of the base model's, >= 0; 1 if the base clips do not move."""
    base = sum(reading.base[ordinal].motion for ordinal in reading.policy)
    return sum(one.motion for one in reading.policy.values()) / base if base else 1.0


# On disk.


def to_record(reading: Reading) -> dict[str, Any]:
    """Returns a JSON object. The inverse of `from_record`."""
    return asdict(reading) | {"alarms": list(reading.alarms)}


def from_record(record: Mapping[str, Any]) -> Reading:
    """Returns the reading of one record of ``guardrails.jsonl``."""
    policy, base = (
        {int(ordinal): ClipMeasurement(**one) for ordinal, one in record[side].items()} for side in ("policy", "base")
    )
    return Reading(
        step=record["step"],
        pushes=record["pushes"],
        version=record["version"],
        policy=policy,
        base=base,
        shown=record["shown"],
        alarms=tuple(record["alarms"]),
    )


def in_order(readings: Sequence[Reading]) -> list[Reading]:
    """Returns the valid readings by step, from readings in the order of writing.

    A reading of step s invalidates earlier records of steps >= s: the run was rolled back. A reading of step 0 only
    replaces step 0, because guardrails may be enabled in the middle of a run.
    """
    kept: list[Reading] = []
    for one in readings:
        kept = [other for other in kept if (other.step != 0 if one.step == 0 else other.step < one.step)] + [one]
    return sorted(kept, key=lambda one: one.step)


def read_readings(folder: Path) -> list[Reading]:
    """Returns the valid readings of a run folder, sorted by step."""
    return in_order([from_record(record) for record in read_json_lines(folder / GUARD)])
