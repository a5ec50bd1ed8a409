"""Which frames of a clip are seen: all of a model's clip, so no defect can hide between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.toon.prompts import prompt_of
from common.toon.world import SCENES, Shot, render
from rewarders.anime_reward import CLASSES, KeyFrameAppeal, VideoSmoothness
from rewarders.anime_reward.video import frame_indices
from rewarders.head_files import load_heads, save_heads

Models = Mapping[str, dict[str, str]]
LENGTH = 49  # frames of CogVideoX-5B-I2V
SHOT = Shot("robot", "snow", "walk_right", 2)
PROMPT = prompt_of(SHOT, 0)


def long_clip(shot: Shot, length: int = LENGTH) -> np.ndarray:
    """A clip of `length` frames, slowed down."""
    frames = render(shot)
    return frames[np.linspace(0, len(frames) - 1, length).round().astype(int)]


def melted(clip: np.ndarray, start: int) -> np.ndarray:
    """The clip with its middle, where the character is, smeared from frame `start` on."""
    bad = clip.copy()
    middle = bad[start:, :, 8:56]
    middle[:] = np.stack([np.roll(middle[:, row], 5 * row, 1) for row in range(middle.shape[1])], 1)
    return bad


@pytest.mark.parametrize("count", [9, 49, 81])
def test_every_frame_of_a_models_clip_is_seen(count: int) -> None:
    assert frame_indices(count) == list(range(count))


def test_of_longer_clips_both_ends_and_both_parities_are_seen() -> None:
    assert frame_indices(161, 81) == [*(2 * i - i % 2 for i in range(80)), 160]  # 0, 1, 4, 5, 8, ... 157, 160
    assert frame_indices(49, 8) == [0, 5, 12, 19, 26, 33, 40, 48]
    assert frame_indices(9, 2) == [0, 8]
    assert frame_indices(9, 1) == [0]
    for count in range(2, 140):
        for limit in range(2, count):
            chosen = frame_indices(count, limit)
            assert len(chosen) == limit
            assert (chosen[0], chosen[-1]) == (0, count - 1)
            assert all((later - earlier) % 2 == 1 for earlier, later in pairwise(chosen[:-1]))
            assert all(earlier < later for earlier, later in pairwise(chosen))
            assert max(later - earlier for earlier, later in pairwise(chosen)) <= (count - 1) / (limit - 1) + 2


@pytest.mark.parametrize("name", CLASSES)
def test_every_dimension_sees_every_frame(name: str, models: Models) -> None:
    """A change of one frame, whichever, changes the features: there is no place to hide."""
    reward = CLASSES[name].create(models[name], options={"threshold": 0.0} if name == "TrackedCharacter" else None)
    clip = long_clip(SHOT, 13)
    rows = [reward.features([clip], [PROMPT])]
    for i in range(len(clip)):
        changed = clip.copy()
        changed[i] = 255 - changed[i]
        rows.append(reward.features([changed], [PROMPT]))
    assert all(not torch.equal(row, rows[0]) for row in rows[1:])


def test_a_clip_that_melts_late_loses_appeal(models: Models) -> None:
    reward = KeyFrameAppeal.create(models["KeyFrameAppeal"], seed=1)
    clean = [render(Shot(name, scene, "walk_right", 0)) for name in ("robot", "zombie") for scene in SCENES]
    rows = reward.features([*clean, *(melted(clip, 0) for clip in clean)], [PROMPT] * 2 * len(clean))
    wanted = torch.tensor([95.0] * len(clean) + [5.0] * len(clean))
    optimizer = torch.optim.AdamW(reward.head.parameters(), lr=5e-3)
    reward.head.train()
    for _ in range(60):
        optimizer.zero_grad()
        reward.loss(rows, wanted).backward()
        optimizer.step()
    good = long_clip(Shot("robot", "snow", "walk_right", 0))
    late = melted(good, 31)
    whole, damaged = reward.score([good, late], [PROMPT] * 2)
    assert whole - damaged > 15
    # The mean over frames: 31 clean ones and 18 melted ones.
    parts = reward.score([good[:31], late[31:]], [PROMPT] * 2)
    assert damaged == pytest.approx((31 * parts[0] + 18 * parts[1]) / 49, abs=2e-3)


@pytest.mark.parametrize("count", [LENGTH, 161])
def test_brightness_that_alternates_from_frame_to_frame_is_seen(models: Models, count: int) -> None:
    """Whether all frames are used (49) or a part (161): the first differences are large, as in no steady clip."""
    reward = VideoSmoothness.create(models["VideoSmoothness"])
    steady = np.repeat(render(SHOT)[:1], count, 0)
    flickering = steady.copy()
    flickering[1::2] //= 2
    still, flicker = reward.features([steady, flickering], [PROMPT] * 2)
    slots, width = reward.head.slots, reward.vision.width
    seen = min(count, slots)

    def steps(row: torch.Tensor) -> torch.Tensor:
        frames = row[slots : slots * (1 + width)].view(slots, width)[:seen]
        return (frames[1:] - frames[:-1]).norm(dim=1)

    assert steps(still).max() == 0
    assert steps(flicker)[:-1].min() > 0.1 * flicker[slots : slots + width].norm()


def test_a_head_records_the_frames_that_it_was_trained_on(models: Models, tmp_path: Path) -> None:
    save_heads([VideoSmoothness.create(models["VideoSmoothness"])], tmp_path)
    file = tmp_path / "smoothness.json"
    said = json.loads(file.read_text())
    assert said["options"] == {"frames": 81}
    assert said["method"] == {"frames": "first to last, odd steps"}
    load_heads(str(tmp_path))
    for other in ({"method": {"frames": "every second"}}, {"method": {}}, {"method": 3}):
        file.write_text(json.dumps(said | other))
        with pytest.raises(ConfigError, match=r"smoothness\.json: .* train the head again") as error:
            load_heads(str(tmp_path))
        assert "\n" not in str(error.value)
    del said["method"]  # as written before heads recorded it
    file.write_text(json.dumps(said))
    with pytest.raises(
        ConfigError,
        match=r"smoothness\.json: trained with frames = unknown; this program has 'first to last, odd steps': train",
    ):
        load_heads(str(tmp_path))
