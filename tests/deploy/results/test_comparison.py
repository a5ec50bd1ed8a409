"""The verdict on literal figures: which pass and which do not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from rich.console import Console

from common.config import load_config
from common.data.video import encode_mp4
from common.errors import RunFailed
from common.exchange.api import ScoredCandidate
from common.intervals import Interval, mean_interval, paired_interval
from common.messages import Candidate, SerializedTensor
from common.toon.prompts import prompt_of
from common.toon.world import Defects, Shot, render
from deploy.results import comparison
from deploy.results.comparison import Compared

SHOT = Shot("robot", "meadow", "walk_right", 4)
STEADY = Interval(0.2, -0.4, 0.8)
MANY = Compared(asked=96, clips=96, prompts=96)


def records(reward, oracle):
    """One record per prompt of literal (base, aligned) rewards and oracle answers (identity, motion, smoothness)."""
    names = ("identity", "motion", "smoothness")
    return [
        {"prompt": f"prompt {place}"}
        | {
            side: {"learned": {"reward": r[i]}, "oracle": dict(zip(names, o[i], strict=True))}
            for i, side in enumerate(comparison.SIDES)
        }
        for place, (r, o) in enumerate(zip(reward, oracle, strict=True))
    ]


def conclude(made, left_out=()):
    return comparison.conclude(made, len(made) + len(left_out), left_out)


def test_a_rise_with_a_steady_oracle_passes():
    verdict = comparison.decide(
        Interval(3.0, 2.0, 4.0), {"identity": STEADY, "motion": STEADY, "smoothness": STEADY}, MANY
    )
    assert verdict.passed
    expected = (
        "Aligned: mean reward +3.00 [+2.00, +4.00] on 96 held-out prompts, and the oracle's identity, motion, "
        "smoothness held."
    )
    assert verdict.message == expected


@pytest.mark.parametrize("low", [0.0, -0.01])
def test_a_reward_interval_that_touches_zero_fails(low):
    verdict = comparison.decide(Interval(1.0, low, 2.0), {"motion": STEADY}, MANY)
    assert not verdict.passed
    assert "the 95 % interval is not above 0" in verdict.message


@pytest.mark.parametrize(("low", "passed"), [(-0.99, True), (-1.0, False), (-1.01, False)])
@pytest.mark.parametrize("name", ["identity", "motion", "smoothness"])
def test_each_oracle_answer_may_fall_by_less_than_one_point(name, low, passed):
    held = dict.fromkeys(("identity", "motion", "smoothness"), STEADY) | {name: Interval(0.0, low, 1.0)}
    verdict = comparison.decide(Interval(3.0, 2.0, 4.0), held, MANY)
    assert verdict.passed is passed
    assert (f"oracle {name}" in verdict.message) is not passed


def test_prompts_without_oracle_are_judged_by_the_reward_alone_and_it_says_so():
    assert comparison.decide(Interval(3.0, 2.0, 4.0), {}, MANY).message.endswith("no oracle judges these prompts.")
    assert not comparison.decide(Interval(-3.0, -4.0, -2.0), {}, MANY).passed


def test_a_policy_that_freezes_to_please_the_reward_fails():
    # Reward up by 8 to 12 on every prompt, identity and smoothness up as well: a still picture of the right figure.
    reward = [(50, 58), (52, 62), (48, 60), (51, 61)] * 6
    oracle = [((60, 80, 70), (75, 5, 99)), ((62, 70, 72), (78, 2, 98))] * 12
    conclusion = conclude(records(reward, oracle))
    assert conclusion["oracle"]["motion"]["change"]["mean"] == -71.5
    assert not conclusion["verdict"]["passed"]
    assert "oracle motion -71.5" in conclusion["verdict"]["message"]
    assert "AnimeReward" not in conclusion["verdict"]["message"]  # it rose, so it is not a reason


def test_a_policy_that_moves_well_passes():
    reward = [(50, 58), (52, 62), (48, 60), (51, 61)] * 6
    oracle = [((60, 80, 70), (75, 84, 75)), ((62, 70, 72), (78, 69, 73))] * 12
    conclusion = conclude(records(reward, oracle))
    assert conclusion["verdict"]["passed"]
    assert conclusion["learned"]["reward"]["base"]["mean"] == 50.25
    assert conclusion["learned"]["reward"]["change"]["mean"] == 10.0
    assert conclusion["oracle"]["motion"]["change"]["mean"] == 1.5
    assert conclusion["prompts"] == 24


def test_nothing_learned_is_exactly_zero_and_fails():
    conclusion = conclude(records([(50, 50), (60, 60)] * 4, [((1, 2, 3), (1, 2, 3))] * 8))
    assert conclusion["learned"]["reward"]["change"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert not conclusion["verdict"]["passed"]


@pytest.mark.parametrize("shared", [0, 1])
def test_sides_that_lost_different_prompts_have_no_verdict(shared):
    lost = [
        {"side": "base", "id": "p1", "text": "a", "reason": "no figure"},
        {"side": "aligned", "id": "p2", "text": "b", "reason": "too dark"},
    ]
    with pytest.raises(RunFailed) as caught:
        conclude(records([(50, 58)] * shared, [((60, 80, 70), (75, 5, 99))] * shared), lost)
    assert str(caught.value) == (
        f"no verdict: {shared} of {2 + shared} held-out clips have a score on both sides, of {shared} distinct "
        "prompts; 2 are needed. Left out, without a score: p1 (base: no figure), p2 (aligned: too dark). The weights "
        "are kept: douga export"
    )


def scored(clip, seed=5, shot=SHOT, ordinal=0):
    values = dict.fromkeys(("smoothness", "motion", "appeal", "text", "image"), 50.0) | {"character": 80.0}
    latents = SerializedTensor("uint8", (1,), b"\0")
    candidate = Candidate("0-0-v0", 0, 0, seed, 0, latents, encode_mp4(clip, 8))
    return ScoredCandidate(prompt_of(shot, ordinal), candidate, values)


def test_the_oracle_measures_toon_clips_of_the_worlds_size():
    moving, frozen = render(SHOT), render(SHOT, Defects(freeze=1.0))
    (record,) = comparison.by_prompt(comparison.pairs_of([scored(moving)], [scored(frozen)]), load_config())
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
        comparison.pairs_of([scored(clip, seed=5)], [scored(clip, seed=6)])


def test_the_table_shows_both_judges():
    conclusion = conclude(records([(50, 58), (52, 62)] * 4, [((60, 80, 70), (75, 5, 99))] * 8))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(comparison.table(conclusion))
    text = console.export_text()
    assert "learned reward" in text
    assert "-75.00 [-75.00, -75.00]" in text
    assert "+9.00 [" in text


# Distinct prompts, and clips without a score.


def test_a_prompt_counts_once_however_many_clips_it_has():
    """By hand: prompt a changes by 2 and 4 (mean 3), b by 9; the mean over prompts is 6, over clips it would be 5."""
    made = records([(50, 52), (50, 54), (10, 19)], [((1, 1, 1), (1, 1, 1))] * 3)
    for record, prompt in zip(made, "aab", strict=True):
        record["prompt"] = prompt
    conclusion = conclude(made)
    assert (conclusion["asked"], conclusion["clips"], conclusion["prompts"]) == (3, 3, 2)
    assert conclusion["learned"]["reward"]["base"]["mean"] == 30.0
    assert conclusion["learned"]["reward"]["change"] == {"mean": 6.0, "low": 3.0, "high": 9.0}
    assert comparison.compared_text(conclusion) == "3 clips of 2 held-out prompts"
    assert "3 clips of 2 held-out prompts, same seeds" in str(comparison.table(conclusion).title)


@pytest.mark.parametrize(("prompts", "passed"), [(9, False), (10, True)])
def test_fewer_than_ten_distinct_prompts_verify_nothing(prompts, passed):
    made = records([(50, 60)] * 96, [((1, 1, 1), (1, 1, 1))] * 96)
    for place, record in enumerate(made):
        record["prompt"] = str(place % prompts)
    verdict = conclude(made)["verdict"]
    assert verdict["passed"] is passed
    assert (f"{prompts} distinct held-out prompts: an interval needs 10 or more" in verdict["message"]) is not passed
    assert ("on 96 clips of 10 held-out prompts" in verdict["message"]) is passed


def test_a_clip_without_a_score_is_left_out_on_both_sides_and_named():
    clip = render(SHOT)
    base, aligned = ([scored(clip, ordinal=place) for place in places] for places in ((0, 1, 3), (0, 2, 3)))
    assert [(one.prompt.ordinal, two.prompt.ordinal) for one, two in comparison.pairs_of(base, aligned)] == [
        (0, 0),
        (3, 3),
    ]
    left_out = [
        {"side": "base", "id": "two", "text": "a robot", "reason": "nan score: motion"},
        {"side": "aligned", "id": "one", "text": "a zombie", "reason": "no answer"},
    ]
    conclusion = conclude(records([(50, 60)] * 18, [((1, 1, 1), (1, 1, 1))] * 18), left_out)
    assert conclusion["left_out"] == left_out
    assert conclusion["verdict"]["passed"]
    named = "Left out, without a score: two (base: nan score: motion), one (aligned: no answer)."
    assert conclusion["verdict"]["message"].endswith(named)


def test_a_model_whose_clips_often_have_no_score_is_not_verified():
    left_out = [{"side": "aligned", "id": str(i), "text": "x", "reason": "nan"} for i in range(7)]
    verdict = conclude(records([(50, 60)] * 20, [((1, 1, 1), (1, 1, 1))] * 20), left_out)["verdict"]
    assert not verdict["passed"]
    assert "more than 10 % of the clips have no score" in verdict["message"]
    assert verdict["message"].endswith("4 (aligned: nan) and 2 more.")


NOTHING = {  # what clips score in a comparison without an effect: base and aligned could be swapped
    "normal": lambda rng, size: rng.normal(50, 10, size),
    "skewed": lambda rng, size: 100 - rng.lognormal(1, 1, size),
    "heavy tails": lambda rng, size: 50 + rng.standard_cauchy(size),
    "saturated": lambda rng, size: np.where(rng.random(size) < 0.9, 100.0, 60.0),
    "two values": lambda rng, size: np.where(rng.random(size) < 0.5, 100.0, 0.0),
}


def scores_of(rng, scores, prompts, clips):
    """Scores ``[2, clips]`` of both sides and the owner of each: `clips` of a prompt on average, correlated."""
    counts = np.full(prompts, clips) if clips == 1 else rng.integers(1, 2 * clips, prompts)
    owners = np.repeat(np.arange(prompts), counts)
    shared = scores(rng, (2, prompts))[:, owners]  # the policies differ from prompt to prompt, not on average
    own = scores(rng, (2, len(owners)))
    return (shared + own) / 2 if clips > 1 else own, owners


def share_aligned(monkeypatch, name, prompts, clips, trials, distinct=True):
    """The share of `trials` comparisons without an effect that end as aligned."""
    monkeypatch.setattr(comparison, "mean_interval", partial(mean_interval, resamples=2))  # not in the verdict
    monkeypatch.setattr(comparison, "paired_interval", partial(paired_interval, resamples=500))
    rng, passed = np.random.default_rng((prompts, clips)), 0
    for _ in range(trials):
        (base, aligned), owners = scores_of(rng, NOTHING[name], prompts, clips)
        made = [
            {"prompt": str(owner if distinct else clip)}
            | {"base": {"learned": {"reward": before}, "oracle": {}}}
            | {"aligned": {"learned": {"reward": after}, "oracle": {}}}
            for clip, (owner, before, after) in enumerate(zip(owners, base, aligned, strict=True))
        ]
        passed += conclude(made)["verdict"]["passed"]
    return passed / trials


@pytest.mark.parametrize(
    ("prompts", "clips", "trials"), [(10, 1, 1000), (20, 1, 1000), (20, 5, 500), (100, 1, 300), (200, 1, 200)]
)
@pytest.mark.parametrize("name", NOTHING)
def test_without_an_effect_few_comparisons_end_as_aligned(monkeypatch, name, prompts, clips, trials):
    """At most 2.5 % are expected; of `trials` a little more."""
    assert share_aligned(monkeypatch, name, prompts, clips, trials) <= 0.04


def test_without_an_effect_as_many_comparisons_as_promised_end_as_aligned(monkeypatch):
    """So the rule is not safe because it never says yes: 2.5 % are expected."""
    assert 0.01 < share_aligned(monkeypatch, "normal", 1000, 1, 250) <= 0.04


def test_clips_of_a_prompt_taken_for_prompts_would_end_as_aligned_too_often(monkeypatch):
    assert share_aligned(monkeypatch, "normal", 20, 5, 300, distinct=False) > 0.1
