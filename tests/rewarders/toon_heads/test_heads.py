"""The heads as reward models: shapes, ranges, the same score in any batch, and their files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import DIMENSIONS
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt
from common.toon.prompts import prompt_of
from common.toon.world import Defects, Shot, caption, render
from rewarders.head_files import load_heads, save_heads
from rewarders.interface import Reward
from rewarders.toon_heads.heads import HEADS, ToonHead
from rewarders.toon_heads.network import bag_of_words, vocabulary

SHOTS = [
    Shot("robot", "snow", "walk_right", 2),
    Shot("zombie", "cave", "jump", 9),
    Shot("male_person", "night", "climb", 7),
]
CLIPS = [render(shot, Defects(warp=0.4 * i, flicker=0.3 * i), i) for i, shot in enumerate(SHOTS)]
PROMPTS = [prompt_of(shot, i) for i, shot in enumerate(SHOTS)]


def new_heads(seed: int = 0) -> list[ToonHead]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [ToonHead(name).eval() for name in HEADS]


def test_six_models_one_per_dimension() -> None:
    rewards: list[Reward] = [*new_heads()]
    assert tuple(reward.dimension for reward in rewards) == DIMENSIONS
    assert len({reward.digest for reward in rewards}) == 6
    for head in new_heads():
        assert 30_000 <= sum(parameter.numel() for parameter in head.parameters()) <= 150_000


@pytest.mark.parametrize("head", new_heads(), ids=lambda head: head.dimension)
def test_a_score_is_the_same_in_any_batch(head: ToonHead) -> None:
    together = head.score(CLIPS * 3, PROMPTS * 3)
    alone = [head.score([clip], [prompt])[0] for clip, prompt in zip(CLIPS, PROMPTS, strict=True)]
    assert together == alone * 3
    assert head.score(CLIPS[::-1], PROMPTS[::-1]) == alone[::-1]
    assert len(set(alone)) == 3
    assert all(0 <= value <= 100 for value in alone)
    assert head.score([], []) == []


def test_the_prompt_matters_to_heads_with_a_caption() -> None:
    left = [Prompt(p.ordinal, p.id, "someone walks left", p.image) for p in PROMPTS]
    away = [Prompt(p.ordinal, p.id, p.text, encode_png(np.zeros((48, 64, 3), np.uint8))) for p in PROMPTS]
    own = [Prompt(p.ordinal, p.id, p.text) for p in PROMPTS]
    for head in new_heads():
        before = head.score(CLIPS, PROMPTS)
        assert (head.score(CLIPS, left) != before) == (head.dimension in ("text", "motion"))
        assert (head.score(CLIPS, away) != before) == (head.dimension != "smoothness")
        assert head.score(CLIPS, own) == before  # rendered clips start with the very first frame


def test_a_first_frame_of_another_size_is_cropped_like_the_models() -> None:
    flat = Prompt(0, "flat", "x", encode_png(np.full((48, 64, 3), 90, np.uint8)))
    wide = np.full((48, 160, 3), 90, np.uint8)
    wide[:, :32] = wide[:, -32:] = 255  # outside of the crop; squeezed, it would be in the picture
    large = Prompt(0, "flat", "x", encode_png(wide))
    image = ToonHead("image").eval()
    assert image.score(CLIPS[:1], [flat]) == image.score(CLIPS[:1], [large])


def test_refused_clips() -> None:
    head = ToonHead("motion")
    with pytest.raises(ValueError, match="motion: 1 clips but 2 prompts"):
        head.score(CLIPS[:1], PROMPTS[:2])
    with pytest.raises(ValueError, match=r"motion: a clip is uint8 \[5, 48, 64, 3\], not uint8 \[9, 48, 64, 3\]"):
        head.score([CLIPS[0][:5]], PROMPTS[:1])
    with pytest.raises(ValueError, match="motion: a clip is float32"):
        head.score([CLIPS[0].astype(np.float32)], PROMPTS[:1])
    with pytest.raises(ValueError, match="prompt x: broken image"):
        head.score(CLIPS[:1], [Prompt(0, "x", "x", b"no png")])


def test_weights_that_are_not_finite_give_nan() -> None:
    head = ToonHead("appeal").eval()
    with torch.no_grad():
        head.places.fill_(math.nan)
    assert all(math.isnan(value) for value in head.score(CLIPS, PROMPTS))


def test_words() -> None:
    assert vocabulary() == ("climbs", "jumps", "left", "right", "runs", "up", "walks")
    assert bag_of_words([caption(SHOTS[0]), "A robot, it jumps.", "nothing known"]).tolist() == [
        [0, 0, 0, 1, 0, 0, 1],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_saved_heads_load_with_equal_scores(tmp_path: Path) -> None:
    heads = new_heads(3)
    save_heads(heads, tmp_path)
    back = load_heads(str(tmp_path))
    assert [head.digest for head in back] == [head.digest for head in heads]
    assert [head.score(CLIPS, PROMPTS) for head in back] == [head.score(CLIPS, PROMPTS) for head in heads]
    assert all(path.stat().st_size < 600_000 for path in tmp_path.glob("*.safetensors"))
    assert json.loads((tmp_path / "text.json").read_text())["words"] == list(vocabulary())


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of reward heads at"):
        load_heads(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"smoothness\.json and smoothness\.safetensors are both required"):
        load_heads(str(tmp_path))
    save_heads(new_heads(), tmp_path)
    (tmp_path / "image.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"image\.safetensors: not the weights of the image head"):
        load_heads(str(tmp_path))
    save_heads(new_heads(1)[4:5], tmp_path)
    (tmp_path / "text.safetensors").write_bytes((tmp_path / "motion.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"text\.json: differs from text\.safetensors and this program in digest"):
        load_heads(str(tmp_path))
