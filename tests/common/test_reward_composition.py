"""From raw scores to one reward, worked out by hand."""

from __future__ import annotations

import pytest

from common.config import DIMENSIONS, RewardConfig, load_config
from common.errors import ConfigError
from common.reward_composition import clip_reward, expected_scores, mean_score, reward_weights, weighted_mean

SCORED = (*DIMENSIONS, "vs.visual", "vs.dynamic", "aesthetic")


def reward(**flags: str) -> RewardConfig:
    two = {"reward.judges.vs.kind": "videoscore", "reward.judges.aesthetic.kind": "aesthetic"}
    return load_config(None, two | {f"reward.{name}": value for name, value in flags.items()}).reward


def test_judges_split_their_weight_among_their_outputs():
    config = reward(**{"judges.vs.weight": "3", "weights.text": "0"})
    weights = reward_weights(config, SCORED)
    assert weights == {
        **dict.fromkeys([name for name in DIMENSIONS if name != "text"], 1.0),
        "vs.visual": 1.5,
        "vs.dynamic": 1.5,
        "aesthetic": 1.0,
    }
    assert weighted_mean(dict.fromkeys(SCORED, 0.0) | {"vs.visual": 1.0}, weights) == pytest.approx(1.5 / 9)


def test_outputs_may_have_separate_weights():
    config = reward(
        path="", **{"judges.vs.weight": "4", "judges.vs.outputs.visual": "3", "judges.vs.outputs.dynamic": "1"}
    )
    assert reward_weights(config, SCORED) == {"vs.visual": 3.0, "vs.dynamic": 1.0, "aesthetic": 1.0}
    only = reward(path="", **{"judges.vs.outputs.visual": "3"})
    assert reward_weights(only, SCORED) == {"vs.visual": 1.0, "aesthetic": 1.0}


def test_a_judge_without_weight_is_scored_and_does_not_count():
    assert "aesthetic" not in reward_weights(reward(**{"judges.aesthetic.weight": "0"}), SCORED)


@pytest.mark.parametrize(
    ("feedback", "weights"),
    [
        ("motion", {"motion": 1.0}),
        ("vs.dynamic", {"vs.dynamic": 1.0}),
        ("vs", {"vs.visual": 0.5, "vs.dynamic": 0.5}),
        ("aesthetic", {"aesthetic": 1.0}),
        ("global", dict.fromkeys(SCORED, 1.0)),
    ],
)
def test_feedback_of_one_dimension_or_of_all_alike(feedback, weights):
    config = reward(feedback=feedback, **{"weights.motion": "0", "judges.vs.weight": "1"})
    assert reward_weights(config, SCORED) == weights


@pytest.mark.parametrize(
    ("flags", "scored", "line"),
    [
        ({}, ("motion",), r"reward\.weights\.appeal = 1\.0: no reward head scores appeal; available scores: motion"),
        ({"path": ""}, ("vs.visual",), r"reward\.judges\.aesthetic\.weight = 1: the judge gives no such score"),
        ({"judges.vs.outputs.colour": "1"}, SCORED, r"reward\.judges\.vs\.outputs\.colour: the judge gives no such"),
        ({"feedback": "vs.colour"}, SCORED, r"reward\.feedback = 'vs\.colour': nothing scores it"),
    ],
)
def test_weighted_scores_must_exist(flags, scored, line):
    with pytest.raises(ConfigError, match=line):
        reward_weights(reward(**flags), scored)


def test_presets_stand_for_weights():
    config = reward(preset="equal")
    assert config.head_weights == dict.fromkeys(DIMENSIONS, 1.0)


def test_what_a_configuration_alone_expects():
    config = reward(**{"weights.text": "0", "feedback": "text", "judges.vs.outputs.visual": "1"})
    assert expected_scores(config) == [*DIMENSIONS, "vs.visual", "aesthetic"]
    assert expected_scores(reward(path="")) == ["vs", "aesthetic"]


def test_a_clips_reward_is_the_clamped_mean_of_what_counts() -> None:
    weights = {"weights.smoothness": "0", "weights.motion": "3", "weights.appeal": "1", "weights.text": "0"}
    config = load_config(None, {f"reward.{name}": value for name, value in weights.items()} | {
        "reward.weights.image": "0", "reward.weights.character": "0"}).reward  # fmt: skip
    assert clip_reward(config, {"motion": 20.0, "appeal": 80.0, "text": 90.0}) == pytest.approx(0.35)  # (0.6 + 0.8) / 4
    assert clip_reward(config, {"motion": -4.0, "appeal": 120.0}) == pytest.approx(0.25)  # 0 and 1
    assert mean_score(config, {"motion": -4.0, "appeal": 120.0}) == pytest.approx(27.0)  # (-12 + 120) / 4
    with pytest.raises(
        ConfigError, match=r"reward\.weights\.appeal = 1\.0: no reward head scores appeal; available scores: motion"
    ):
        clip_reward(config, {"motion": 20.0})
