"""Fine-tuning of encoders: it learns what frozen features lack, resumes exactly, and its memory does not grow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.errors import ConfigError
from common.messages import Prompt
from common.training.fit import steps_done
from common.weights.tensors import state_digest
from rewarders.anime_reward import CLASSES, EncoderReward, KeyFrameAppeal, TrackedCharacter
from rewarders.head_files import load_heads, save_tuned
from rewarders.training.dataset import RatedDataset
from rewarders.training.encoders import EncoderHead, EncoderTraining, FoundInClips, TrainedModules, fine_tune
from rewarders.training.ranking_metrics import srcc
from rewarders.training.split import unseen
from rewarders.training.train import HeadTraining, seen_in_training, train_reward
from tests.support.rewarders.rated_clips import blue_clips, rated
from tests.support.tiny_encoders import (
    blind_to_blue,
    tiny_blip,
    tiny_clip,
    tiny_detector,
    tiny_idefics2,
    tiny_siglip,
    tiny_tracker,
    tiny_vit,
)

PLAN = EncoderTraining(epochs=4, batch=8, lr=4e-3)


def silent(line: str) -> None:
    del line


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return blind_to_blue(tiny_siglip(tmp_path_factory.mktemp("siglip")))


def appeal(siglip: str, seed: int = 0) -> KeyFrameAppeal:
    return KeyFrameAppeal.create({"vision": siglip}, seed=seed, options={"key_frames": 2})


def agreement(reward: EncoderReward, data: RatedDataset, rows: np.ndarray) -> float:
    scores = reward.score([clip for _, clip in data.clips(rows)], [data.prompt(i) for i in rows])  # type: ignore[misc]
    return srcc(np.array(scores), data.scores(reward.dimension)[rows])


def test_an_encoder_learns_what_frozen_features_lack(siglip: str, tmp_path: Path) -> None:
    data = rated(blue_clips(tmp_path, 60, "appeal"))
    reward = appeal(siglip)
    colours = [np.full((2, 32, 32, 3), (90, 120, blue), np.uint8) for blue in (40, 215)]
    prompts = [Prompt(0, "p", "x", None)] * 2
    assert torch.equal(*reward.features(colours, prompts).split(1))
    train_reward(data, reward, {}, tmp_path / "frozen", HeadTraining(epochs=10, batch=8), silent)
    rest = unseen(data, seen_in_training(tmp_path / "frozen", "appeal"))
    assert len(rest) >= 16
    assert abs(agreement(reward, data, rest)) < 0.5
    lines: list[str] = []
    fine_tune(data, reward, tmp_path / "tuned", PLAN, lines.append)
    assert "loss" in lines[1]
    assert "held-out SRCC" in lines[1]
    assert reward.score(colours[:1], prompts[:1]) < reward.score(colours[1:], prompts[1:])
    assert agreement(reward, data, rest) > 0.9
    assert not any(one.requires_grad for one in reward.vision.tower.parameters())


def test_a_resumed_fine_tuning_ends_in_the_same_weights(
    siglip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewarders.training.encoders.SAVE_EVERY", 2)  # within an epoch of 3 steps
    data, plan = rated(blue_clips(tmp_path, 12, "appeal")), EncoderTraining(epochs=2, batch=5, lr=1e-3)

    def cut(line: str) -> None:
        if "step 2/" in line:
            raise KeyboardInterrupt

    def weights(folder: str) -> str:
        reward = appeal(siglip)
        fine_tune(data, reward, tmp_path / folder, plan, silent)
        return state_digest(TrainedModules(reward).state_dict())

    with pytest.raises(KeyboardInterrupt):
        fine_tune(data, appeal(siglip), tmp_path / "cut", plan, cut)
    assert steps_done(tmp_path / "cut/training/appeal/appeal.safetensors") == 2
    whole = weights("whole")
    assert weights("cut") == whole
    assert weights("cut") == whole  # it was finished
    with pytest.raises(ConfigError, match="was trained with other made_of; delete it"):
        fine_tune(data, appeal(siglip, seed=1), tmp_path / "cut", plan, silent)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Class -> role -> folder; towers within larger models, and with no pooler, among them."""
    root = tmp_path_factory.mktemp("models")
    clip = tiny_clip(root / "clip")
    return {
        "VideoSmoothness": {"vision": tiny_idefics2(root / "idefics2")},
        "PromptedMotion": {"clip": clip},
        "KeyFrameAppeal": {"vision": tiny_vit(root / "vit")},
        "VideoTextConsistency": {"vision": clip, "text": clip},
        "VideoImageConsistency": {"vision": tiny_blip(root / "blip")},
        "TrackedCharacter": {
            "detector": tiny_detector(root / "detector"),
            "tracker": tiny_tracker(root / "tracker", sees_all=True),
            "vision": tiny_siglip(root / "siglip"),
        },
    }


@pytest.mark.parametrize("name", CLASSES)
def test_every_dimension_is_fine_tuned_saved_and_loaded(
    name: str, models: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    options = {"threshold": 0.0} if name == "TrackedCharacter" else {}
    reward = CLASSES[name].create(models[name], options=options)
    data = rated(blue_clips(tmp_path, 8, reward.dimension))
    before = {part: state_digest(one.state_dict()) for part, one in parts_of(reward).items()}
    fine_tune(data, reward, tmp_path / "out", EncoderTraining(epochs=1, batch=4, lr=1e-3), silent)
    after = {part: state_digest(one.state_dict()) for part, one in parts_of(reward).items()}
    assert {part for part in after if after[part] != before[part]} == {"head", *reward.TRAINED}
    saved = save_tuned(reward, tmp_path / "out")
    (back,) = load_heads(str(tmp_path / "out"))
    clips, prompts = zip(*((clip, data.prompt(i)) for i, clip in data.clips(range(4))), strict=True)
    scores = reward.score(clips, prompts)
    assert back.score(clips, prompts) == saved.score(clips, prompts) == scores
    assert back.digest == saved.digest != reward.digest
    for role in reward.TRAINED:
        files = {file.name for file in (tmp_path / "out" / f"{reward.dimension}-{role}").iterdir()}
        assert {"config.json", "model.safetensors"} <= files
    there = shutil.move(tmp_path / "out", tmp_path / "moved")
    assert load_heads(str(there))[0].score(clips, prompts) == scores


def parts_of(reward: EncoderReward) -> dict[str, torch.nn.Module]:
    frozen = {role: getattr(reward, role).model for role in reward.ROLES if role not in reward.TRAINED}
    return {"head": reward.head, **{role: one.tower for role, one in reward.encoders.items()}, **frozen}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_resumes_and_scores_in_float32(siglip: str, tmp_path: Path) -> None:
    data = rated(blue_clips(tmp_path, 20, "appeal"))

    def cut(line: str) -> None:
        if "step 3/" in line:
            raise KeyboardInterrupt

    def reward() -> KeyFrameAppeal:
        return KeyFrameAppeal.create({"vision": siglip}, "cuda", options={"key_frames": 2})

    with pytest.raises(KeyboardInterrupt):
        fine_tune(data, reward(), tmp_path / "out", PLAN, cut)
    tuned, lines = reward(), list[str]()
    fine_tune(data, tuned, tmp_path / "out", PLAN, lines.append)
    assert not any("step 3/" in line for line in lines)
    save_tuned(tuned, tmp_path / "out")
    rows = np.arange(len(data.rows))
    assert agreement(tuned, data, rows) > 0.5
    (back,) = load_heads(str(tmp_path / "out"), "cpu")
    clips, prompts = zip(*((clip, data.prompt(i)) for i, clip in data.clips(rows)), strict=True)
    assert np.allclose(back.score(clips, prompts), tuned.score(clips, prompts), atol=0.05)


def test_the_digest_covers_every_byte_of_the_encoders(siglip: str, tmp_path: Path) -> None:
    save_tuned(appeal(siglip), tmp_path)
    said = json.loads((tmp_path / "appeal.json").read_text())
    file = tmp_path / "appeal-vision" / "model.safetensors"
    assert said["models"] == {"vision": "appeal-vision"}
    assert said["encoders"]["vision"]["bytes"] == file.stat().st_size
    assert said["encoders"]["vision"]["parameters"] == sum(weights.numel() for weights in load_file(file).values())
    with file.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\x01")
    with pytest.raises(ConfigError, match=r"appeal\.json: its digest does not match"):
        load_heads(str(tmp_path))


def test_the_gradient_does_not_depend_on_the_frames_per_pass(siglip: str, tmp_path: Path) -> None:
    """Every pass sees few frames, and runs again in the backward pass; the gradient is that of the whole batch."""
    data = rated(blue_clips(tmp_path, 3, "appeal"))
    rows, gradients = np.arange(6), []
    for frames, passes in ((2, [2] * 6), (1, [1] * 12)):
        reward, seen = appeal(siglip), list[int]()
        reward.vision.per_pass = frames
        head = EncoderHead(reward, data, rows, data.scores("appeal"), FoundInClips(reward, data, tmp_path))
        reward.vision.tower.register_forward_pre_hook(
            lambda module, given, named, seen=seen: seen.append(len(named["pixel_values"])), with_kwargs=True
        )
        loss = head.loss(rows, None)
        assert seen == passes
        loss.backward()
        assert seen == 2 * passes
        gradients.append([one.grad for one in head.module.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert all(one is not None and one.abs().sum() > 0 for one in gradients[0])


def test_the_character_is_tracked_once_per_clip(
    models: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[int] = []
    locate = TrackedCharacter.locate

    def counted(self: TrackedCharacter, clip: np.ndarray, prompt: Prompt) -> np.ndarray:
        tracked.append(prompt.ordinal)
        return locate(self, clip, prompt)

    monkeypatch.setattr(TrackedCharacter, "locate", counted)
    data, plan = rated(blue_clips(tmp_path, 6, "character")), EncoderTraining(epochs=2, batch=4)
    for _ in range(2):
        reward = TrackedCharacter.create(models["TrackedCharacter"], options={"threshold": 0.0})
        fine_tune(data, reward, tmp_path / "out", plan, silent)
    assert sorted(tracked) == list(range(12))
    found = FoundInClips(reward, data, tmp_path / "out/training/character/found")
    ((_, clip),) = data.clips([3])
    assert isinstance(clip, np.ndarray)
    assert np.array_equal(found(3, clip), locate(reward, clip, data.prompt(3)))  # type: ignore[arg-type]


def test_clips_that_cannot_be_used_are_named(siglip: str, tmp_path: Path) -> None:
    data = rated(blue_clips(tmp_path, 8, "appeal"))
    (tmp_path / "clips/3-1.mp4").write_bytes(b"no video")
    (tmp_path / "clips/5-0.mp4").write_bytes(b"no video either")
    lines: list[str] = []
    plan = EncoderTraining(epochs=1, batch=4)
    fine_tune(data, appeal(siglip), tmp_path / "out", plan, lines.append)
    left = [line for line in lines if "left out" in line]
    assert [name in line for name, line in zip(("clips/3-1", "clips/5-0"), left, strict=True)] == [True] * 2
    for clip in tmp_path.glob("clips/*.mp4"):
        clip.write_bytes(b"gone")
    (tmp_path / "out/training/appeal/appeal.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"clips/.*\.mp4: .*; it could be decoded when training began"):
        fine_tune(data, appeal(siglip), tmp_path / "out", plan, silent)
