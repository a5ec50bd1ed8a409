"""The guardrails' rules on hand-written readings."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from common.config import GuardrailsConfig, load_config
from common.errors import ConfigError
from common.intervals import paired_interval
from deploy.guardrails import rules
from deploy.guardrails.rules import (
    ClipMeasurement,
    Reading,
    concluded,
    findings,
    from_record,
    in_order,
    mean_change,
    motion_share,
    to_record,
)

RULES = GuardrailsConfig(prompts=4, max_judge_drop=5.0, motion_floor=0.5, max_score_drift=1.0, patience=2)
BASE_REWARD, BASE_JUDGED, BASE_MOTION = (50.0, 52.0, 54.0, 56.0), (70.0, 72.0, 74.0, 76.0), (4.0, 5.0, 6.0, 5.0)


def side(
    reward: tuple[float, ...] = BASE_REWARD,
    judged: tuple[float, ...] = BASE_JUDGED,
    motion: tuple[float, ...] = BASE_MOTION,
) -> dict[int, ClipMeasurement]:
    rows = enumerate(zip(reward, judged, motion, strict=True))
    return {place: ClipMeasurement({"reward": r, "smoothness": r}, {"motion": j}, m) for place, (r, j, m) in rows}


def reading(step: int, base: dict[int, ClipMeasurement] | None = None, **policy: tuple[float, ...]) -> Reading:
    return Reading(step, step, step, side(**policy), base or side())


START = reading(0)
HACKED = {"reward": (55.0, 58.0, 59.0, 62.0), "judged": (60.0, 61.0, 66.0, 67.0)}  # +5.5, and -9.5


def test_a_falling_judge_with_a_rising_reward_triggers() -> None:
    shown = findings([START], reading(5, **HACKED), RULES)
    assert list(shown) == ["judge motion"]
    assert shown["judge motion"].startswith("held-out motion -9.5 [")
    assert "points since step 0, while the trained reward changed by +5.5 [" in shown["judge motion"]


@pytest.mark.parametrize(
    "policy",
    [
        {"reward": HACKED["reward"], "judged": (66.0, 68.0, 70.0, 72.0)},  # fell by 4, max_judge_drop = 5
        {"reward": BASE_REWARD, "judged": HACKED["judged"]},  # the reward did not rise
        {"reward": (45.0, 48.0, 49.0, 52.0), "judged": HACKED["judged"]},  # both fell
        {"reward": HACKED["reward"], "judged": (30.0, 72.0, 78.0, 80.0)},  # -8 in the mean, but from one clip alone
        {"reward": (80.0, 51.0, 53.0, 55.0), "judged": HACKED["judged"]},  # so the reward
        {"reward": HACKED["reward"], "judged": (75.0, 77.0, 79.0, 81.0)},  # both rose
    ],
)
def test_other_changes_do_not_trigger(policy) -> None:
    assert findings([START], reading(5, **policy), RULES) == {}


def test_the_judge_is_compared_with_its_best_reading() -> None:
    """It rose first and falls now: it is above the base, but the reward still rises."""
    best = reading(5, reward=(51.0, 53.0, 55.0, 57.0), judged=(80.0, 82.0, 84.0, 86.0))
    now = reading(10, reward=(55.0, 57.5, 59.0, 61.5), judged=(72.0, 74.0, 75.0, 77.0))
    assert findings([START], now, RULES) == {}
    assert "-8.5 [-9.0, -8.0] points since step 5" in findings([START, best], now, RULES)["judge motion"]


def test_the_cost_of_a_reading_does_not_grow_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals take the time, and a week has thousands of readings."""
    calls, made = list[int](), list[int]()
    monkeypatch.setattr(rules, "paired_interval", lambda *sides: calls.append(1) or paired_interval(*sides))
    for count in (2, 200):
        findings([START, *(reading(step) for step in range(1, count))], reading(count, **HACKED), RULES)
        made.append(len(calls))
    assert made[1] == 2 * made[0] > 0


def test_motion_below_the_floor_triggers() -> None:
    assert findings([START], reading(5, motion=(1.0, 1.5, 2.0, 1.0)), RULES) == {
        "motion": "28 % of the base clips' motion, the floor is 50 %"
    }
    assert findings([START], reading(5, motion=(2.4, 3.0, 3.5, 3.0)), RULES) == {}
    # One clip moves, so the interval includes the floor.
    assert findings([START], reading(5, motion=(0.0, 0.0, 0.0, 14.0)), RULES) == {}
    assert (
        findings([START], reading(5, motion=(1.0, 1.5, 2.0, 1.0)), RULES.model_copy(update={"motion_floor": 0})) == {}
    )


def test_changed_scores_of_the_base_clips_trigger_the_scorer_rule() -> None:
    moved = reading(5, base=side(reward=(53.0, 54.5, 57.5, 58.0)), reward=(53.0, 54.5, 57.5, 58.0))
    shown = findings([START], moved, RULES)
    assert list(shown) == ["scorer"]
    assert shown["scorer"].startswith("the same base clips score +2.8 [")
    little = reading(5, base=side(reward=(50.9, 52.9, 54.9, 56.9)))
    assert findings([START], little, RULES) == {}  # max_score_drift = 1
    noisy = reading(5, base=side(reward=(60.0, 49.0, 52.0, 58.0)))
    assert findings([START], noisy, RULES) == {}  # +1.75, some up and some down


def test_scorer_drift_is_not_counted_as_a_gain_of_the_policy() -> None:
    drifting = tuple(value + 6 for value in BASE_REWARD)
    shown = findings([START], reading(5, base=side(reward=drifting), reward=drifting, judged=HACKED["judged"]), RULES)
    assert list(shown) == ["scorer"]


def test_an_alarm_needs_patience_consecutive_readings() -> None:
    history = [START]
    for step, policy in enumerate([HACKED, {}, HACKED, HACKED, HACKED, HACKED], start=1):
        history.append(concluded(history, reading(step, **policy), RULES))
    assert [bool(one.shown) for one in history] == [False, True, False, True, True, True, True]
    assert [one.step for one in history if one.alarms] == [4, 6]
    assert history[4].alarms == ("judge motion",)
    assert concluded([START], reading(1, **HACKED), RULES.model_copy(update={"patience": 1})).alarms == (
        "judge motion",
    )


def test_only_prompts_in_both_readings_are_compared() -> None:
    now = reading(5, **HACKED)
    two = replace(now, policy={place: now.policy[place] for place in (2, 3)})
    assert "held-out motion -8.5 [-9.0, -8.0] points" in findings([START], two, RULES)["judge motion"]
    one = replace(now, policy={3: now.policy[3]})
    assert findings([START], one, RULES) == {}


def test_a_new_judge_has_no_history() -> None:
    other = reading(5, **HACKED)
    renamed = replace(other, policy={p: replace(m, judged={"appeal": 1.0}) for p, m in other.policy.items()})
    assert findings([START], renamed, RULES) == {}


def test_a_reading_survives_the_round_trip_through_a_record() -> None:
    one = concluded([START, reading(4, **HACKED)], reading(5, **HACKED), RULES)
    assert from_record(json.loads(json.dumps(to_record(one)))) == one


def test_a_repeated_step_invalidates_later_readings() -> None:
    written = [reading(5), reading(10), reading(15), reading(0), reading(10, **HACKED)]
    assert in_order(written) == [reading(0), reading(5), reading(10, **HACKED)]


def test_the_series_of_the_report() -> None:
    one = reading(5, motion=(2.0, 2.0, 3.0, 3.0), **HACKED)
    assert mean_change(one) == 5.5
    assert mean_change(one, "motion") == -9.5
    assert motion_share(one) == 0.5


def test_a_single_prompt_triggers_no_rule() -> None:
    with pytest.raises(ConfigError, match=r"guardrails.*prompts = 1: a confidence interval needs 2 or more"):
        load_config(None, {"guardrails.prompts": "1"})
