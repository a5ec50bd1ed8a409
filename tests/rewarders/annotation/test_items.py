"""Rubrics from files, and which clips are compared."""

from __future__ import annotations

import pytest

from common.config import DIMENSIONS
from common.errors import ConfigError
from rewarders.annotation.items import SurveyClip, make_pairs
from rewarders.annotation.rubric import open_rubric


def clip(
    name: str, prompt: str, source: str = "a", category: str | None = None, image: bytes | None = None
) -> SurveyClip:
    return SurveyClip(name, prompt, source, category=category, first_frame=None if image is None else lambda: image)


def names(clips: list[SurveyClip], most: int = 100) -> list[tuple[str, str]]:
    return [(pair.first.name, pair.second.name) for pair in make_pairs(clips, most, seed=0)]


def test_clips_of_one_prompt_are_compared_across_sources():
    clips = [clip("1", "x", "a"), clip("2", "x", "b"), clip("3", "x", "b"), clip("4", "y", "a"), clip("5", "y", "b")]
    assert names(clips) == [("1", "2"), ("1", "3"), ("4", "5")]


def test_clips_of_one_source_are_compared_with_each_other():
    assert names([clip("1", "x"), clip("2", "x"), clip("3", "x")]) == [("1", "2"), ("1", "3"), ("2", "3")]


def test_prompts_with_one_clip_are_compared_within_their_category():
    clips = [clip("1", "x", category="walk"), clip("2", "y", category="walk"), clip("3", "z", category="jump")]
    assert names(clips) == [("1", "2")]


def test_clips_of_one_caption_and_two_first_frames_are_not_two_attempts_at_one_thing():
    """One caption per action and an image per clip, as in HuViDPO: they are compared within the category, if at all."""
    clips = [clip("1", "x", image=b"a"), clip("2", "x", image=b"b"), clip("3", "x", image=b"a")]
    assert names(clips) == [("1", "3")]
    clips = [clip(name, "x", category="walk", image=name.encode()) for name in "12"]
    assert names(clips) == [("1", "2")]
    assert names([clip("1", "x", image=b"a"), clip("2", "x")]) == []


def test_a_part_of_the_pairs_is_drawn_the_same_way_every_time():
    clips = [clip(str(number), "x") for number in range(9)]
    assert len(set(names(clips, 10))) == 10
    assert names(clips, 10) == names(clips[::-1], 10)


def test_keys_do_not_reveal_names():
    one = clip("base/1.mp4", "x")
    assert "base" not in one.key
    assert one.key == clip("base/1.mp4", "another").key != clip("base/2.mp4", "x").key


def test_the_built_in_rubrics():
    assert open_rubric("anime").names == DIMENSIONS
    assert len(open_rubric("huvidpo").names) == 3


def test_huvidpos_rubric_is_the_papers():
    """HuViDPO, appendix C.2, word for word: question, then what 1, 3 and 5 points mean."""
    assert [(one.name, one.question, one.low, one.middle, one.high) for one in open_rubric("huvidpo").dimensions] == [
        (
            "text",
            "Video-Text Alignment: Does the video accurately reflect the description?",
            "The video does not align with the description; it is almost impossible to recognize elements from the "
            "text in the video.",
            "The video partially aligns with the description, showing some relevant content, but with noticeable "
            "mismatches or missing details.",
            "The video perfectly aligns with the description, accurately reflecting all key elements of the text.",
        ),
        (
            "appeal",
            "Visual Quality: How clear and visually appealing is the video?",
            "The video is blurry, with severe pixelation or visual defects.",
            "The video quality is acceptable; the main content is recognizable, though some details are rough.",
            "The video quality is excellent, with high clarity and well-represented details.",
        ),
        (
            "smoothness",
            "Frame Consistency: How smooth and seamless are the transitions between frames?",
            "Frames are highly inconsistent, appearing jumpy or choppy, disrupting the viewing experience.",
            "Frames are somewhat consistent, but transitions have some roughness or slight jumps.",
            "Frames are consistently smooth, delivering a natural and seamless viewing experience.",
        ),
    ]


def test_an_own_rubric(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[[dimensions]]\nname = "fun"\nquestion = "Is it fun?"\n', "utf-8-sig")
    assert open_rubric(str(file)).names == ("fun",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "mine"', "dimensions: Field required"),
        ('name = "Mine!"\n[[dimensions]]\nname = "fun"\nquestion = "?"', "name: String should match"),
        ('name = "m"\n' + '[[dimensions]]\nname = "fun"\nquestion = "?"\n' * 2, "the dimension 'fun' occurs twice"),
        ('name = "m"\n[[dimensions]]\nname = "fun"\nquestion = "?"\nscale = 7', "dimensions.0.scale: Extra inputs"),
    ],
)
def test_a_bad_rubric_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.toml: ") as caught:
        open_rubric(str(file))
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="allowed: anime, huvidpo or a TOML file"):
        open_rubric(str(tmp_path / "none.toml"))
