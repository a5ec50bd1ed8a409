"""All six classes: their scores depend on the clip only, invalid input is refused, and saved files load."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import DIMENSIONS
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt
from common.toon.prompts import prompt_of
from common.toon.world import Defects, Shot, render
from rewarders.anime_reward import CLASSES, EncoderReward, VideoSmoothness, VideoTextConsistency
from rewarders.anime_reward.trainable import TrainableReward
from rewarders.gradient.pixels import from_bytes
from rewarders.head_files import load_heads, save_heads
from tests.support.tiny_encoders import tiny_clip, tiny_idefics2, tiny_idefics2_tower, tiny_siglip

Models = Mapping[str, dict[str, str]]
SHOTS = [Shot("robot", "snow", "walk_right", 2), Shot("zombie", "cave", "jump", 9)]
CLIPS = [render(shot, Defects(warp=0.4 * i, flicker=0.3 * i), i) for i, shot in enumerate(SHOTS)]
PROMPTS = [prompt_of(shot, i) for i, shot in enumerate(SHOTS)]
FOUND = {"TrackedCharacter": {"threshold": 0.0}}  # a random detector is sure of nothing


def make(name: str, models: Models, seed: int = 0) -> EncoderReward:
    return CLASSES[name].create(models[name], seed=seed, options=FOUND.get(name))


def test_one_class_per_dimension() -> None:
    assert tuple(kind.dimension for kind in CLASSES.values()) == DIMENSIONS


@pytest.mark.parametrize("name", CLASSES)
def test_a_score_depends_on_its_clip_only(name: str, models: Models) -> None:
    reward: TrainableReward = make(name, models)
    short = CLIPS[0][:3]
    clips, prompts = [*CLIPS, short], [*PROMPTS, PROMPTS[0]]
    together = reward.score(clips, prompts)
    assert together == [reward.score([clip], [prompt])[0] for clip, prompt in zip(clips, prompts, strict=True)]
    assert together[::-1] == reward.score(clips[::-1], prompts[::-1])
    assert len(set(together)) == 3
    assert all(0 <= value <= 100 for value in together)
    rows = reward.features(clips, prompts)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    assert torch.equal(rows[1:2], reward.features(CLIPS[1:], PROMPTS[1:]))
    assert [round(reward.head(row[None]).item(), 3) for row in rows] == together
    assert reward.score([], []) == []


@pytest.mark.parametrize("name", CLASSES)
def test_the_seed_draws_the_head(name: str, models: Models) -> None:
    torch.manual_seed(1)
    first = make(name, models)
    torch.manual_seed(2)
    assert make(name, models).digest == first.digest
    if name != "TrackedCharacter":  # it starts as the plain cosine
        assert make(name, models, seed=1).digest != first.digest


@pytest.mark.parametrize("name", CLASSES)
def test_every_head_learns(name: str, models: Models) -> None:
    reward = make(name, models)
    clips = [render(shot, Defects(swap=swap), 3) for shot in SHOTS for swap in (0.0, 0.9)]
    rows = reward.features(clips, [prompt for prompt in PROMPTS for _ in range(2)])
    wanted = torch.tensor([90.0, 10.0, 70.0, 30.0])
    optimizer = torch.optim.Adam(reward.head.parameters(), lr=1e-2)
    reward.head.train()
    before = reward.loss(rows, wanted).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = reward.loss(rows, wanted)
        loss.backward()
        optimizer.step()
    assert loss.item() < before
    scores = reward.score(clips, [prompt for prompt in PROMPTS for _ in range(2)])
    assert scores[0] > scores[1]
    assert scores[2] > scores[3]


@pytest.mark.parametrize("name", CLASSES)
def test_saved_rewards_load_with_equal_scores(name: str, models: Models, tmp_path: Path) -> None:
    reward = make(name, models, seed=3)
    save_heads([reward], tmp_path)
    (back,) = load_heads(str(tmp_path))
    assert (back.dimension, back.digest) == (reward.dimension, reward.digest)
    assert back.score(CLIPS, PROMPTS) == reward.score(CLIPS, PROMPTS)


def test_a_folder_with_its_models_can_be_moved(tmp_path: Path) -> None:
    here = tmp_path / "here"
    reward = VideoSmoothness.create({"vision": tiny_siglip(here / "siglip")})
    save_heads([reward], here)
    assert json.loads((here / "smoothness.json").read_text())["models"] == {"vision": "siglip"}
    there = shutil.move(here, tmp_path / "there")
    (back,) = load_heads(str(there))
    assert back.score(CLIPS, PROMPTS) == reward.score(CLIPS, PROMPTS)
    tiny_siglip(there / "siglip", seed=9)
    with pytest.raises(ConfigError, match=r"smoothness\.json: its digest does not match"):
        load_heads(str(there))


def test_everything_that_changes_scores_changes_the_digest(models: Models, tmp_path: Path) -> None:
    one = make("VideoSmoothness", models)
    assert one.digest == VideoSmoothness.create(models["VideoSmoothness"]).digest
    assert one.digest != VideoSmoothness.create(models["VideoSmoothness"], options={"frames": 8}).digest
    assert one.digest != VideoSmoothness.create({"vision": tiny_siglip(tmp_path / "other", seed=5)}).digest


def test_towers_of_several_families_work(models: Models, tmp_path: Path) -> None:
    whole, tower = tiny_idefics2(tmp_path / "whole"), tiny_idefics2_tower(tmp_path / "tower")
    clip = tiny_clip(tmp_path / "clip")
    seen = []
    for where in (whole, tower, clip, models["VideoImageConsistency"]["vision"]):
        reward = VideoSmoothness.create({"vision": where}, options={"frames": 3})
        seen.append(reward.features(CLIPS, PROMPTS))
        assert seen[-1].shape == (2, 3 * 17)
    assert torch.equal(seen[0], seen[1])
    text = VideoTextConsistency.create({"vision": clip, "text": clip})
    other = [Prompt(0, "a", "zombie runs", PROMPTS[0].image)]
    assert text.score(CLIPS[:1], other) != text.score(CLIPS[:1], PROMPTS[:1])


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models in the hub's cache are found without a network, and saved heads name them by id."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match="vision model 'me/tiny': no such folder, and not on the hub"):
        VideoSmoothness.create({"vision": "me/tiny"})
    kept = tmp_path / "hub" / "models--me--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    tiny_siglip(kept / "snapshots" / ("a" * 40))
    reward = VideoSmoothness.create({"vision": "me/tiny"})
    save_heads([reward], tmp_path / "heads")
    assert json.loads((tmp_path / "heads" / "smoothness.json").read_text())["models"] == {"vision": "me/tiny"}
    assert load_heads(str(tmp_path / "heads"))[0].digest == reward.digest


def test_refused_clips(models: Models) -> None:
    reward = make("VideoImageConsistency", models)
    with pytest.raises(ValueError, match="image: 1 clips but 2 prompts"):
        reward.score(CLIPS[:1], PROMPTS)
    with pytest.raises(ValueError, match=r"image: a clip is float32 \[9, 48, 64, 3\], not uint8 \[F, H, W, 3\]"):
        reward.score([CLIPS[0].astype(np.float32)], PROMPTS[:1])
    with pytest.raises(ValueError, match=r"image: a clip is uint8 \[0, 48, 64, 3\]"):
        reward.score([CLIPS[0][:0]], PROMPTS[:1])
    with pytest.raises(ValueError, match="prompt x: broken image"):
        reward.score(CLIPS[:1], [Prompt(0, "x", "x", b"no png")])


def test_weights_that_are_not_finite_give_nan(models: Models) -> None:
    reward = make("KeyFrameAppeal", models)
    torch.nn.init.constant_(next(reward.head.parameters()), float("nan"))
    assert all(math.isnan(value) for value in reward.score(CLIPS, PROMPTS))


def test_unsuitable_models_are_refused(models: Models, tmp_path: Path) -> None:
    siglip, bert = models["VideoSmoothness"]["vision"], models["VideoTextConsistency"]["text"]
    tracker = models["TrackedCharacter"]["tracker"]
    with pytest.raises(ConfigError, match="VideoTextConsistency: needs the models vision, text, got vision"):
        VideoTextConsistency.create({"vision": siglip})
    with pytest.raises(ConfigError, match=r"vision model '/no/where': no such folder, and not a hub id"):
        VideoSmoothness.create({"vision": "/no/where"})
    with pytest.raises(ConfigError, match=r"vision model .*: BertModel has no vision tower"):
        VideoSmoothness.create({"vision": bert})
    with pytest.raises(ConfigError, match=r"clip model .*: SiglipVisionModel has no joint embedding space"):
        CLASSES["PromptedMotion"].create({"clip": siglip})
    with pytest.raises(ConfigError, match=r"detector model .*: not .*GroundingDinoForObjectDetection"):
        CLASSES["TrackedCharacter"].create(models["TrackedCharacter"] | {"detector": tracker})
    with pytest.raises(ConfigError, match=r"VideoSmoothness: option frames = 0; allowed: frames \(such as 81\)"):
        VideoSmoothness.create({"vision": siglip}, options={"frames": 0})
    torn = tmp_path / "torn"
    shutil.copytree(siglip, torn)
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"vision model .*torn: cannot be loaded as AutoModel") as caught:
        VideoSmoothness.create({"vision": str(torn)})
    assert "\n" not in str(caught.value)


def test_damaged_head_files_are_refused(models: Models, tmp_path: Path) -> None:
    save_heads([make("VideoSmoothness", models)], tmp_path)
    about = tmp_path / "smoothness.json"
    said = json.loads(about.read_text())

    def refused(match: str, **changes: object) -> None:
        about.write_text(json.dumps(said | changes))
        with pytest.raises(ConfigError, match=match) as caught:
            load_heads(str(tmp_path))
        assert "\n" not in str(caught.value)

    refused(
        r"smoothness\.json: format 1, class 'Nobody'; allowed for smoothness in format 1: VideoSmoothness",
        **{"class": "Nobody"},
    )
    refused("class 'KeyFrameAppeal'; allowed for smoothness in format 1", **{"class": "KeyFrameAppeal"})
    refused(r"smoothness\.json: vision model '\./gone': no such folder, and not a hub id", models={"vision": "./gone"})
    refused(r"option frames = 9.5", options={"frames": 9.5})
    refused(r"its digest does not match", options={"frames": 12})
    wide = tiny_siglip(tmp_path / "wide", hidden_size=32)
    refused(
        r"safetensors: not the weights of the smoothness head: narrow\.weight is \(64, 16\), expected \(64, 32\)",
        models={"vision": wide},
    )
    about.write_text("{")
    with pytest.raises(ConfigError, match=r"smoothness\.json: not valid JSON"):
        load_heads(str(tmp_path))
    about.write_text(json.dumps(said))
    (tmp_path / "smoothness.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"smoothness\.json and smoothness\.safetensors are both required"):
        load_heads(str(tmp_path))


def test_a_first_frame_of_another_size(models: Models) -> None:
    """It is cropped as the model's was: what is outside of the crop does not count."""
    reward = make("VideoImageConsistency", models)
    wide = np.full((48, 160, 3), 90, np.uint8)
    wide[:, :32] = wide[:, -32:] = 255
    flat, large = (Prompt(0, "flat", "x", encode_png(image)) for image in (np.full((48, 64, 3), 90, np.uint8), wide))
    assert reward.score(CLIPS[:1], [flat]) == reward.score(CLIPS[:1], [large])


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_with_a_gradient_the_score_is_nearly_the_same(name: str, models: Models, with_image: bool) -> None:
    """PIL rounds resized pixels, the differentiable path does not. Every frame has the clip's score."""
    reward = make(name, models)
    prompts = PROMPTS if with_image else [replace(prompt, image=None) for prompt in PROMPTS]
    x = from_bytes(np.stack(CLIPS)).requires_grad_()
    frames = reward.frame_scores(x, prompts)
    assert frames.shape == x.shape[:2]
    assert frames.mean(1).tolist() == pytest.approx(reward.score(CLIPS, prompts), abs=0.5)
    (gradient,) = torch.autograd.grad(frames.sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
