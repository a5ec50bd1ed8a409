"""The report: counted and left-out clips, and the figures of judges with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from common.data.ratings import read_ratings, write_ratings
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip, JudgeResult
from rewarders.training.pixel_baselines import SIGNALS
from rewarders.training.report import report
from rewarders.training.split import Seen
from tests.support.rewarders.rated_clips import grey_clips, rated


def approx(value: float) -> object:
    return pytest.approx(value, abs=0.02)


class Level:
    """Scores a clip by its grey level; may refuse some prompt, or be upside down."""

    def __init__(self, dimension: str, sign: int = 1, refuses: str = "") -> None:
        self.dimension, self.digest = dimension, dimension
        self._sign, self._refuses = sign, refuses

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        if any(prompt.text == self._refuses for prompt in prompts):
            raise ValueError("refused")
        level = [float(clip.mean()) / 2.55 for clip in clips]
        return level if self._sign > 0 else [100 - one for one in level]


def silent(line: str) -> None:
    del line


def test_good_and_bad_judges(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 6, 3, real=True))
    found = report([Level("light"), Level("dark")], data, {}, silent, 100)
    assert list(found["dimensions"]) == ["light", "dark", "overall"]
    assert found["clips"] == 18
    light, dark = found["dimensions"]["light"], found["dimensions"]["dark"]
    assert (light["clips"], light["prompts"]) == (18, 6)
    best, worst = light["judges"]["reward"], dark["judges"]["reward"]
    assert best["SRCC"]["value"] == pytest.approx(1, abs=0.01)
    assert best["ECE"]["value"] < 1
    assert [best[name]["value"] for name in ("pairwise", "MRR", "Recall@1")] == [1, 1, 1]
    assert worst["SRCC"]["value"] == pytest.approx(-1, abs=0.01)
    # Two candidates beside the source video: the wrong one is always first.
    assert [worst[name]["value"] for name in ("pairwise", "MRR", "Recall@1")] == [0, 0.5, 0]
    assert sum(one["clips"] for one in light["calibration"]) == 18
    assert set(light["judges"]) == {"reward", *SIGNALS}
    assert light["judges"]["first-frame distance"]["SRCC"]["value"] is not None
    assert "ECE" not in light["judges"]["edges"]
    # Opinions of light and dark cancel out: people give 50 to every clip, whatever its mean score.
    bins = found["dimensions"]["overall"]["calibration"]
    assert len(bins) > 3
    assert all(one["opinion"] == pytest.approx(50, abs=0.1) for one in bins)


def test_left_out_clips_are_counted(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 6, 3))
    seen = Seen.of(data, [0])
    found = report([Level("light", refuses="grey 5"), Level("text")], data, {"light": seen}, silent, 100)
    assert list(found["dimensions"]) == ["light"]
    assert found["dimensions"]["light"]["clips"] == 12
    assert found["left_out"] == {
        "bad rows": 0,
        "not rated": 0,
        "seen in training": {"light": 3},
        "not scored": {"light": 3},
    }


def test_nothing_to_report(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 3, 1))
    with pytest.raises(ConfigError, match=r"rates light, dark; rewards: text$"):
        report([Level("text")], data, {}, silent)
    seen = Seen.of(data, range(len(data.rows)))
    with pytest.raises(ConfigError, match="every rated clip shares a first frame, prompt or character with training"):
        report([Level("light")], data, {"light": seen}, silent)


class Two:
    """A judge of two outputs: the grey level, and its opposite. Refuses the prompts that end with `refuses`."""

    outputs = ("up", "down")
    digest = "two"

    def __init__(self, refuses: str = "never") -> None:
        self._refuses = refuses

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        levels = [float(clip.frames.mean()) / 2.55 for clip in clips]
        return [
            "refused" if prompt.text.endswith(self._refuses) else {"up": level, "down": 100 - level}
            for level, prompt in zip(levels, prompts, strict=True)
        ]


def test_a_judge_is_compared_with_every_dimension(tmp_path: Path) -> None:
    """MRR and Recall@1 of OnlineVPO's table 2: the right output always finds the best candidate, the other never."""
    data = rated(grey_clips(tmp_path, 6, 3, real=True))
    found = report([Level("light")], data, {}, silent, 100, [Two()])["dimensions"]
    assert list(found) == ["light", "dark", "overall"]
    assert list(found["light"]["judges"])[:3] == ["reward", "up", "down"]
    assert "reward" not in found["dark"]["judges"]  # it has no head
    for dimension, right, wrong in (("light", "up", "down"), ("dark", "down", "up")):
        best, worst = found[dimension]["judges"][right], found[dimension]["judges"][wrong]
        assert [best[name]["value"] for name in ("MRR", "Recall@1")] == [1, 1]
        assert [worst[name]["value"] for name in ("MRR", "Recall@1")] == [0.5, 0]
        assert best["SRCC"]["value"] == pytest.approx(1, abs=0.01)
    assert found["dark"]["calibration"] == []


def test_judges_alone_and_clips_that_they_refuse(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 6, 3, real=True))
    found = report([], data, {}, silent, 100, [Two(refuses="5")])
    assert found["left_out"]["not scored"] == {"light": 3, "dark": 3}
    assert found["dimensions"]["light"]["clips"] == 15
    assert list(found["dimensions"]["overall"]["judges"])[:2] == ["up", "down"]


def test_agreement_within_generators_and_actions(tmp_path: Path) -> None:
    """A judge that is right about one generator's clips and upside down about the other's."""
    file = grey_clips(tmp_path, 6, 4)
    rows = [
        row.model_copy(update={"source": ("vidu", "hailuo")[i % 2], "category": ("waving", None)[i // 12]})
        for i, row in enumerate(read_ratings(file).rows)
    ]
    write_ratings(file, rows)

    class Partial(Level):
        def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
            right = super().score(clips, prompts)
            known = {row.clip: row.source for row in rows}
            return [
                one if known[prompt.id] == "vidu" else 100 - one for one, prompt in zip(right, prompts, strict=True)
            ]

    found = report([Partial("light")], rated(file), {}, silent, 100, [Two()])["dimensions"]["light"]
    assert found["by_source"] == {
        "hailuo": {"clips": 12, "SRCC": {"reward": approx(-1), "up": approx(1), "down": approx(-1)}},
        "vidu": {"clips": 12, "SRCC": {"reward": approx(1), "up": approx(1), "down": approx(-1)}},
    }
    assert list(found["by_category"]) == ["waving"]
    assert found["by_category"]["waving"]["clips"] == 12
    assert found["judges"]["reward"]["SRCC"]["value"] < 0.9
