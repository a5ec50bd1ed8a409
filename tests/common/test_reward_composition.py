"""Rewards computed from raw scores, compared with values calculated by hand."""

from __future__ import annotations

import pytest

from common.config import DIMENSIONS, RewardConfig, load_config, parse_config, to_toml
from common.config.reward import RewardWeights
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


def test_a_judge_with_weight_zero_is_scored_but_does_not_count():
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
def test_feedback_from_one_score_or_from_all_equally(feedback, weights):
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


@pytest.mark.parametrize(
    ("preset", "proportion"),  # Table 5 of the AnimeReward paper, in its order of the dimensions
    [
        ("no_dynamics", "0:0:1:1:1:1"),
        ("more_motion", "3:5:3:3:3:3"),
        ("more_appeal", "3:3:6:4:4:4"),
        ("equal", "1:1:1:1:1:1"),
    ],
)
def test_presets_are_the_papers_weightings(preset: str, proportion: str):
    weights = load_config(None, {"reward.preset": preset}).reward.head_weights
    assert RewardConfig().preset == "equal"
    assert list(weights) == ["smoothness", "motion", "appeal", "text", "image", "character"]
    assert ":".join(f"{weight:g}" for weight in weights.values()) == proportion


def test_a_presets_clip_reward():
    """By hand: (3 * 40 + 5 * 80 + 3 * (10 + 20 + 30 + 60)) / 20 = 44."""
    scores = dict(zip(DIMENSIONS, (40.0, 80.0, 10.0, 20.0, 30.0, 60.0), strict=True))
    config = load_config(None, {"reward.preset": "more_motion"}).reward
    assert clip_reward(config, scores) == pytest.approx(0.44)


def test_single_weights_override_a_preset():
    config = load_config(None, {"reward.preset": "more_motion", "reward.weights.text": "0", "reward.weights.motion": 9})
    assert config.reward.head_weights == {
        "smoothness": 3, "motion": 9, "appeal": 3, "text": 0, "image": 3, "character": 3,
    }  # fmt: skip
    again = parse_config(to_toml(config), "config.toml")  # as a run saves it
    assert again == config
    assert RewardConfig(preset="more_motion", weights=RewardWeights(text=0, motion=9)) == config.reward


def test_a_preset_as_a_flag_overrides_the_files_weights():
    """Flags override the file, which names all weights if a run has saved it."""
    file = to_toml(load_config(None, {"reward.preset": "more_motion", "reward.weights.text": "0"}))
    flags = {"reward.preset": "more_appeal", "reward.weights.image": "2"}
    assert list(parse_config(file, "config.toml", flags).reward.head_weights.values()) == [3, 3, 6, 4, 2, 4]
    assert parse_config(file, "config.toml", {"reward.weights.image": "2"}).reward.weights.image == 2


def test_expected_scores_of_a_configuration():
    config = reward(**{"weights.text": "0", "feedback": "text", "judges.vs.outputs.visual": "1"})
    assert expected_scores(config) == [*DIMENSIONS, "vs.visual", "aesthetic"]
    assert expected_scores(reward(path="")) == ["vs", "aesthetic"]


def test_a_clips_reward_is_the_clamped_weighted_mean() -> None:
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
