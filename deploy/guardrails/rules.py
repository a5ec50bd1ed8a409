"""When a run hacks its reward: the guardrails' rules, as pure functions of the readings taken so far.

A **reading** is the same few prompts and seeds under one version of the policy, in numbers: the trained reward, a
held-out judge that is never trained on, and how much moves; and the trained reward of the base model's clips, scored
anew. Beside it stands the base model's own reading, step 0.

| rule | what shows |
|---|---|
| judge ANSWER | since the reading best in it, it fell by more than `fall` points while the trained reward rose |
| motion | less than `motion_floor` of what moves in the base model's clips |
| scorer | the base model's clips get other scores than at the start: the scorer changed, not the policy |

What is compared is compared clip by clip, prompt and seed being the same, and counts only where the 95 % paired
bootstrap interval over the prompts excludes "no change" (`common/bootstrap.py`): the noise of few prompts does not
show. Because the best of many readings looks better than it was, and many readings are looked at, an **alarm** needs
the same rule to show in `patience` readings in a row; while it goes on to show it comes again after as many.

The trained reward of the policy is taken less that of the base model in the same reading, so that a change of the
scorer is none of the policy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common.bootstrap import Interval, paired_bootstrap
from common.config import GuardConfig
from deploy.run_dir.jsonl import GUARD, read_json_lines

REWARD = "reward"  # of a clip's trained scores: the weighted mean, 0..100
MOTION, SCORER = "motion", "scorer"


@dataclass(frozen=True, slots=True)
class Measured:
    """One clip in numbers."""

    trained: dict[str, float]  # `REWARD` and the dimensions, 0..100
    judged: dict[str, float]  # the held-out judge's answers; empty where none judges
    motion: float  # mean absolute difference of neighbouring frames, 0..255


@dataclass(frozen=True, slots=True)
class Reading:
    """All probe clips under one version, and the base model's; by the prompt's place, which both have."""

    step: int  # optimizer steps taken; 0: the base model itself
    pushes: int
    version: int
    policy: dict[int, Measured]
    base: dict[int, Measured]
    shown: dict[str, str] = field(default_factory=dict)  # rule -> what shows
    alarms: tuple[str, ...] = ()  # the rules of `shown` that alarm


Value = Callable[[Reading, int], float]  # of a reading's prompt


def judge_rule(answer: str) -> str:
    """The name of the rule about one answer of the held-out judge."""
    return f"judge {answer}"


def concluded(history: Sequence[Reading], reading: Reading, rules: GuardConfig) -> Reading:
    """`reading` with what it shows and its alarms, after the readings of `history`: rising steps, the base's first."""
    shown = findings(history, reading, rules)
    alarms = tuple(rule for rule in shown if (1 + _streak(history, rule)) % rules.patience == 0)
    return replace(reading, shown=shown, alarms=alarms)


def _streak(history: Sequence[Reading], rule: str) -> int:
    """In how many of the last readings in a row the rule showed."""
    count = 0
    for one in reversed(history):
        if rule not in one.shown:
            break
        count += 1
    return count


def findings(history: Sequence[Reading], reading: Reading, rules: GuardConfig) -> dict[str, str]:
    """Rule -> what shows in `reading`, in words; rules that show nothing are left out."""
    answers = sorted({name for one in reading.policy.values() for name in one.judged})
    found = {judge_rule(name): _fallen(history, reading, name, rules.fall) for name in answers}
    found |= {MOTION: _frozen(reading, rules.motion_floor), SCORER: _drifted(history, reading, rules.drift)}
    return {rule: words for rule, words in found.items() if words}


def _fallen(history: Sequence[Reading], now: Reading, answer: str, most: float) -> str:
    """Compared with the earlier reading that was best in this answer."""
    judged = [one for one in history if all(answer in clip.judged for clip in one.policy.values())]
    falls = [(_mean_change(one, now, _judged(answer)), one) for one in judged if len(_common(one, now)) >= 2]
    if not falls:
        return ""
    _, best = min(falls, key=lambda pair: pair[0])  # an interval for each of them would take longer with every reading
    fall, rise = _change(best, now, _judged(answer)), _change(best, now, _gain)
    if fall is None or rise is None or fall.mean >= -most or fall.high >= 0 or rise.low <= 0:
        return ""
    return (
        f"held-out {answer} {_words(fall)} points since step {best.step}, "
        f"while the trained reward changed by {_words(rise)}"
    )


def _frozen(now: Reading, floor: float) -> str:
    places = sorted(now.policy)
    base, policy = ([side[place].motion for place in places] for side in (now.base, now.policy))
    if len(places) < 2 or paired_bootstrap([floor * value for value in base], policy).high >= 0:
        return ""
    return f"{100 * sum(policy) / sum(base):.0f} % of the base clips' motion, the floor is {100 * floor:g} %"


def _drifted(history: Sequence[Reading], now: Reading, most: float) -> str:
    """The dimension that changed most, if one did."""
    if not history:
        return ""
    names = sorted(set.intersection(*(set(clip.trained) for one in (history[0], now) for clip in one.base.values())))
    changes = [(name, change) for name in names if (change := _change(history[0], now, _base_score(name)))]
    sure = [(name, one) for name, one in changes if abs(one.mean) > most and not one.low <= 0 <= one.high]
    if not sure:
        return ""
    name, change = max(sure, key=lambda pair: abs(pair[1].mean))
    return f"the same base clips score {_words(change)} points in {name} since the start: the scorer changed"


def _change(before: Reading, after: Reading, value: Value) -> Interval | None:
    """Over the prompts that both readings have; None with fewer than two."""
    places = _common(before, after)
    if len(places) < 2:
        return None
    return paired_bootstrap([value(before, place) for place in places], [value(after, place) for place in places])


def _mean_change(before: Reading, after: Reading, value: Value) -> float:
    places = _common(before, after)
    return sum(value(after, place) - value(before, place) for place in places) / len(places)


def _common(before: Reading, after: Reading) -> list[int]:
    return [place for place in sorted(after.policy) if place in before.policy]


def _judged(answer: str) -> Value:
    return lambda reading, place: reading.policy[place].judged[answer]


def _gain(reading: Reading, place: int) -> float:
    return reading.policy[place].trained[REWARD] - reading.base[place].trained[REWARD]


def _base_score(name: str) -> Value:
    return lambda reading, place: reading.base[place].trained[name]


def _words(change: Interval) -> str:
    return f"{change.mean:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"


# What a report draws.


def mean_change(reading: Reading, answer: str | None = None) -> float:
    """Policy less base, points, mean over the prompts: of the trained reward, or of an answer of the judge."""
    gains = [
        _gain(reading, place)
        if answer is None
        else reading.policy[place].judged[answer] - reading.base[place].judged[answer]
        for place in reading.policy
    ]
    return sum(gains) / len(gains)


def motion_share(reading: Reading) -> float:
    """The policy's motion as a share of the base model's."""
    base = sum(reading.base[place].motion for place in reading.policy)
    return sum(one.motion for one in reading.policy.values()) / base if base else 1.0


# On disk.


def to_record(reading: Reading) -> dict[str, Any]:
    """As a JSON object; `from_record` gives the same reading back."""
    return asdict(reading) | {"alarms": list(reading.alarms)}


def from_record(record: Mapping[str, Any]) -> Reading:
    """The reading of a record of ``guard.jsonl``."""
    policy, base = ({int(place): Measured(**one) for place, one in record[side].items()} for side in ("policy", "base"))
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
    """What counts of the readings as they were written: one of step s ends what came of later steps before it.

    The base model's, step 0, may come late, where guardrails were switched on on the way.
    """
    kept: list[Reading] = []
    for one in readings:
        kept = [other for other in kept if (other.step != 0 if one.step == 0 else other.step < one.step)] + [one]
    return sorted(kept, key=lambda one: one.step)


def read_readings(folder: Path) -> list[Reading]:
    """What counts of a run's readings, by rising step."""
    return in_order([from_record(record) for record in read_json_lines(folder / GUARD)])
