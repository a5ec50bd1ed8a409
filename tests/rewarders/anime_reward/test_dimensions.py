"""Each dimension: what it can learn, what it detects, and which clips score 100 by construction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt
from common.toon.prompts import prompt_of
from common.toon.world import Defects, Shot, render
from rewarders.anime_reward import (
    TrackedCharacter,
    VideoImageConsistency,
    VideoSmoothness,
)
from rewarders.anime_reward.tracking import cut_out
from rewarders.anime_reward.video import Pixels
from tests.support.tiny_encoders import tiny_tracker

Models = Mapping[str, dict[str, str]]
SHOT = Shot("robot", "snow", "walk_right", 2)
CLIP, PROMPT = render(SHOT), prompt_of(SHOT, 0)
STILL = np.repeat(CLIP[:1], 9, 0)
PEOPLE = ("robot", "zombie", "male_person", "female_person")
ACTIONS = ("walk_right", "run_left", "jump", "climb")


def test_smoothness_learns_to_tell_flicker(models: Models) -> None:
    """Frozen random embeddings, a head of 50 steps, and characters and scenes that it was not trained on."""
    reward = VideoSmoothness.create(models["VideoSmoothness"], seed=1)
    clips, scores = flickering(PEOPLE[:2], ("snow", "cave", "sunset"), range(96))
    rows = reward.features(clips, [PROMPT] * len(clips))
    optimizer = torch.optim.AdamW(reward.head.parameters(), lr=5e-3)
    reward.head.train()
    for _ in range(50):
        optimizer.zero_grad()
        reward.loss(rows, scores).backward()
        optimizer.step()
    unseen, truths = flickering(PEOPLE[2:], ("night", "meadow"), range(100, 132))
    given = torch.tensor(reward.score(unseen, [PROMPT] * len(unseen)))
    clean, bad = given[truths == 100], given[truths == 0]
    assert (clean[:, None] > bad).float().mean() > 0.9


def flickering(people: tuple[str, ...], scenes: tuple[str, ...], seeds: range) -> tuple[list[np.ndarray], torch.Tensor]:
    """Clips of which every second flickers, and their scores."""
    shots = [Shot(people[i % 2], scenes[i // 2 % len(scenes)], ACTIONS[i // 4 % 4], i % 11) for i in seeds]
    clips = [render(shot, Defects(flicker=float(i % 2)), i) for i, shot in zip(seeds, shots, strict=True)]
    return clips, torch.tensor([100.0 * (1 - i % 2) for i in seeds])


def test_a_still_clip_scores_100_in_image(models: Models) -> None:
    reward = VideoImageConsistency.create(models["VideoImageConsistency"])
    for factor in (1.0, 30.0):  # whatever was learned
        reward.head.project.weight.data *= factor
        assert reward.score([STILL], [PROMPT]) == [100.0]
        assert reward.score([CLIP], [PROMPT]) < [100.0]
    away = Prompt(0, "away", "x", encode_png(np.zeros((48, 64, 3), np.uint8)))
    assert reward.score([STILL], [away]) < [100.0]


def test_pixels_are_what_the_models_processor_makes() -> None:

    theirs = SiglipImageProcessorPil(size={"height": 32, "width": 32})(
        images=Image.fromarray(CLIP[0]), return_tensors="pt"
    )
    ours = Pixels(32, (0.5,) * 3, (0.5,) * 3)(CLIP[:1])
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-6)


def character(models: Models, **options: object) -> TrackedCharacter:
    return TrackedCharacter.create(models["TrackedCharacter"], options={"threshold": 0.0, **options})


def test_the_same_character_all_through_scores_100(models: Models) -> None:
    reward = character(models)
    assert reward.score([STILL], [PROMPT]) == [100.0]
    assert reward.score([CLIP], [PROMPT]) < [100.0]
    assert not reward.missed


def test_the_gallery_takes_precedence_over_the_first_frame(models: Models, tmp_path: Path) -> None:
    picture = np.concatenate([STILL[0], np.full((48, 64, 1), 255, np.uint8)], 2)
    framed = np.pad(picture, ((8, 8), (8, 8), (0, 0)), constant_values=0)  # transparent about it: left out
    Image.fromarray(framed).save(tmp_path / "robot.png")
    Image.fromarray(render(Shot("zombie", "cave", "jump", 1))[4]).save(tmp_path / "zombie.png")
    reward, plain = character(models, gallery=str(tmp_path)), character(models)
    assert reward.score([STILL], [PROMPT]) == [100.0]
    named = Prompt(0, "z", "x", PROMPT.image, character="zombie")
    unknown = Prompt(0, "u", "x", PROMPT.image, character="nobody")
    assert reward.score([STILL], [named])[0] < 100
    assert reward.score([CLIP], [unknown]) == plain.score([CLIP], [PROMPT])
    before = reward.digest
    assert before != plain.digest
    Image.fromarray(STILL[0]).save(tmp_path / "zombie.png")
    assert character(models, gallery=str(tmp_path)).digest != before


def test_a_missing_character_scores_0(models: Models, tmp_path: Path) -> None:
    nobody = character(models, threshold=1.0)
    assert nobody.score([STILL, CLIP], [PROMPT] * 2) == [0.0, 0.0]
    assert nobody.missed == {"no character in the first frame": 2}
    blind = tiny_tracker(tmp_path / "blind", sees_none=True)
    lost = TrackedCharacter.create(models["TrackedCharacter"] | {"tracker": blind}, options={"threshold": 0.0})
    assert lost.score([STILL], [PROMPT]) == [0.0]
    assert lost.missed == {"lost in every frame": 1}


def test_lost_frames_count_as_0(models: Models) -> None:
    reward = character(models)
    row = reward.features([STILL], [PROMPT])
    row[0, 3:6] = -1.0  # three of the nine frames
    assert reward.head(row).item() == pytest.approx(100 * 6 / 9, abs=1e-3)


def test_invalid_galleries_are_refused(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gallery '/no/where': not a folder with pictures NAME\.png"):
        character(models, gallery="/no/where")
    (tmp_path / "robot.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"robot\.png: cannot be decoded as a picture"):
        character(models, gallery=str(tmp_path))


def test_figures_are_cut_out_and_squared() -> None:
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3) + 1
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2] = mask[2, 3] = True
    square = cut_out(picture, mask)
    assert square.shape == (3, 3, 3)
    assert (square[:, 0] == picture[1:4, 2]).all()
    assert (square[1, 1] == picture[2, 3]).all()
    assert square[:, 2].max() == square[0, 1].max() == square[2, 1].max() == 0
