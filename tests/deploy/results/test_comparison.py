"""The verdict on literal figures: which pass and which do not."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from common.bootstrap import Interval
from common.config import load_config
from common.data.video import encode_mp4
from common.exchange.api import ScoredCandidate
from common.messages import Candidate, SerializedTensor
from common.toon.prompts import prompt_of
from common.toon.world import Defects, Shot, render
from deploy.results import comparison

SHOT = Shot("robot", "meadow", "walk_right", 4)
STEADY = Interval(0.2, -0.4, 0.8)


def records(reward, oracle):
    """One record per prompt of literal (base, aligned) rewards and oracle answers (identity, motion, smoothness)."""
    names = ("identity", "motion", "smoothness")
    return [
        {
            side: {"learned": {"reward": r[i]}, "oracle": dict(zip(names, o[i], strict=True))}
            for i, side in enumerate(comparison.SIDES)
        }
        for r, o in zip(reward, oracle, strict=True)
    ]


def test_a_rise_with_a_steady_oracle_passes():
    verdict = comparison.decide(Interval(3.0, 2.0, 4.0), {"identity": STEADY, "motion": STEADY, "smoothness": STEADY})
    assert verdict.passed
    expected = "Aligned: mean AnimeReward +3.00 [+2.00, +4.00], and the oracle's identity, motion, smoothness held."
    assert verdict.message == expected


@pytest.mark.parametrize("low", [0.0, -0.01])
def test_a_reward_interval_that_touches_zero_fails(low):
    verdict = comparison.decide(Interval(1.0, low, 2.0), {"motion": STEADY})
    assert not verdict.passed
    assert "the 95 % interval is not above 0" in verdict.message


@pytest.mark.parametrize(("low", "passed"), [(-0.99, True), (-1.0, False), (-1.01, False)])
@pytest.mark.parametrize("name", ["identity", "motion", "smoothness"])
def test_each_oracle_answer_may_fall_by_less_than_one_point(name, low, passed):
    held = dict.fromkeys(("identity", "motion", "smoothness"), STEADY) | {name: Interval(0.0, low, 1.0)}
    verdict = comparison.decide(Interval(3.0, 2.0, 4.0), held)
    assert verdict.passed is passed
    assert (f"oracle {name}" in verdict.message) is not passed


def test_prompts_without_oracle_are_judged_by_the_reward_alone_and_it_says_so():
    assert comparison.decide(Interval(3.0, 2.0, 4.0), {}).message.endswith("no oracle judges these prompts.")
    assert not comparison.decide(Interval(-3.0, -4.0, -2.0), {}).passed


def test_a_policy_that_freezes_to_please_the_reward_fails():
    # Reward up by 8 to 12 on every prompt, identity and smoothness up as well: a still picture of the right figure.
    reward = [(50, 58), (52, 62), (48, 60), (51, 61)] * 6
    oracle = [((60, 80, 70), (75, 5, 99)), ((62, 70, 72), (78, 2, 98))] * 12
    conclusion = comparison.conclude(records(reward, oracle))
    assert conclusion["oracle"]["motion"]["change"]["mean"] == -71.5
    assert not conclusion["verdict"]["passed"]
    assert "oracle motion -71.5" in conclusion["verdict"]["message"]
    assert "AnimeReward" not in conclusion["verdict"]["message"]  # it rose, so it is not a reason


def test_a_policy_that_moves_well_passes():
    reward = [(50, 58), (52, 62), (48, 60), (51, 61)] * 6
    oracle = [((60, 80, 70), (75, 84, 75)), ((62, 70, 72), (78, 69, 73))] * 12
    conclusion = comparison.conclude(records(reward, oracle))
    assert conclusion["verdict"]["passed"]
    assert conclusion["learned"]["reward"]["base"]["mean"] == 50.25
    assert conclusion["learned"]["reward"]["change"]["mean"] == 10.0
    assert conclusion["oracle"]["motion"]["change"]["mean"] == 1.5
    assert conclusion["prompts"] == 24


def test_nothing_learned_is_exactly_zero_and_fails():
    conclusion = comparison.conclude(records([(50, 50), (60, 60)] * 4, [((1, 2, 3), (1, 2, 3))] * 8))
    assert conclusion["learned"]["reward"]["change"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert not conclusion["verdict"]["passed"]


def scored(clip, seed=5, shot=SHOT):
    values = dict.fromkeys(("smoothness", "motion", "appeal", "text", "image"), 50.0) | {"character": 80.0}
    latents = SerializedTensor("uint8", (1,), b"\0")
    candidate = Candidate("0-0-v0", 0, 0, seed, 0, latents, encode_mp4(clip, 8))
    return ScoredCandidate(prompt_of(shot, 0), candidate, values)


def test_the_oracle_measures_toon_clips_of_the_worlds_size():
    moving, frozen = render(SHOT), render(SHOT, Defects(freeze=1.0))
    (record,) = comparison.by_prompt([scored(moving)], [scored(frozen)], load_config())
    assert record["id"] == "toon-robot-meadow-walk_right-x4-p0"
    assert record["base"]["learned"]["reward"] == 55.0
    assert record["base"]["oracle"]["motion"] > 90
    assert record["aligned"]["oracle"]["motion"] < 10
    assert record["aligned"]["oracle"]["identity"] > 50


@pytest.mark.parametrize("flags", [{"prompts": "mine.jsonl"}, {"model.width": "128"}])
def test_other_prompts_or_sizes_have_no_oracle(flags):
    config = load_config(None, flags)
    assert comparison.measure(scored(np.zeros((9, 48, 64, 3), np.uint8)), config)["oracle"] == {}


def test_clips_of_other_seeds_or_prompts_are_no_pair():
    clip = render(SHOT)
    with pytest.raises(ValueError, match="do not pair up"):
        comparison.by_prompt([scored(clip, seed=5)], [scored(clip, seed=6)], load_config())


def test_the_table_shows_both_judges():
    conclusion = comparison.conclude(records([(50, 58), (52, 62)] * 4, [((60, 80, 70), (75, 5, 99))] * 8))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(comparison.table(conclusion, 8))
    text = console.export_text()
    assert "learned reward" in text
    assert "-75.00 [-75.00, -75.00]" in text
    assert "+9.00 [" in text
