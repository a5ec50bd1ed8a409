"""Runs on recorded human pairs, and fine-tuning on clips, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.offline import OfflineSampler, frames_of
from actors.sampler import Sampler
from common.config import ModelConfig, load_config, parse_config, to_toml
from common.data.offline_pairs import OfflinePairs
from common.data.ratings import RatedClip, write_ratings
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.exchange.local import LocalExchange
from common.images import encode_png
from common.messages import Prompt
from common.models.cogvideox import encode_video, open_model, to_unit
from common.weights.tensors import from_array
from deploy.cli.main import main
from deploy.run_dir.jsonl import read_json_lines
from deploy.run_dir.layout import TOON
from deploy.runtime import serial
from deploy.runtime.external_workers import ExternalWorkers, fingerprint_of
from learner import learner
from tests.support import toy
from tests.support.rewarders.survey import frames
from tests.support.tiny import tiny_pipeline

STAGE_1 = TOON.with_name("huvidpo-stage1.toml")
LORA = {"sampler.candidates": 2, "learner.train": "lora", "algorithm.name": "dpo", "learner.lr": 1e-2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A tiny model, and four rated clips of a category with captions and first frames."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_pipeline(folder / "model", perturb=0.3)
    rate_clips(folder / "clips")
    return folder


def rate_clips(clips: Path) -> None:
    """Four clips of twelve frames, their captions and their ratings."""
    clips.mkdir()
    rows = []
    for number in range(4):
        (clips / f"{number}.mp4").write_bytes(encode_mp4(frames(number, 12), 8))
        (clips / f"{number}.txt").write_text("robot walks")
        ratings = {"ann": {"text": number + 1}, "ben": {"text": min(5, number + 2)}}
        text = ("robot walks", "zombie jumps")[number % 2]
        rows.append(RatedClip(clip=f"{number}.mp4", prompt=text, category="walk", source="a", ratings=ratings))
    write_ratings(clips / "ratings.jsonl", rows)


def config(parts: Path, root: Path, **flags):
    return toy.config(
        root, **{"model.path": parts / "model", "pairs": parts / "clips" / "ratings.jsonl"} | LORA | flags
    )


def test_the_learner_gets_the_rated_pairs_with_their_own_conditioning(parts, tmp_path):
    how = config(parts, tmp_path)
    offline = OfflinePairs(Path(how.pairs), how.model, how.seed)
    roles = serial.open_roles(how, toy.rewards())
    exchange = LocalExchange(tmp_path / "ledger", how, roles.prompts)
    try:
        while roles.sampler.work(exchange):
            pass
        while roles.rewarder.work(exchange):
            pass
        given = exchange.lease_batch("learner-0", 1, 2)
    finally:
        exchange.close()
    plain = Sampler(open_model(how.model.path), how)
    for one in given:
        pair = offline(one.ordinal)
        assert pair.rejected is not None
        assert one.rewards == pytest.approx((pair.chosen.score / 100, pair.rejected.score / 100))
        assert one.selection.candidates == (0, 1)
        texts = from_array(one.conditioning.prompt_embeds)
        images = from_array(one.conditioning.image_latent)
        for place, end in enumerate(pair.clips):
            assert torch.equal(texts[place], from_array(plain._embed(end.text)))
            pixels = frames_of(end.clip, how.model)
            first = plain._encode(Prompt(0, "alone", end.text, encode_png(pixels[0]))).image_latent
            assert first is not None
            assert torch.equal(images[place], from_array(first))
            latents = one.latents[place]
            with torch.inference_mode():
                clip = encode_video(plain._vae, to_unit(torch.from_numpy(pixels))[None])[0]
            assert torch.equal(from_array(latents), clip)


def test_each_clip_is_encoded_once(parts, tmp_path, monkeypatch):
    encoded = []
    real = OfflineSampler._encode_clip
    monkeypatch.setattr(
        OfflineSampler, "_encode_clip", lambda self, clip: (encoded.append(clip.name), real(self, clip))[1]
    )
    serial.run(config(parts, tmp_path), toy.rewards())
    assert sorted(encoded) == sorted(set(encoded))
    assert len(encoded) >= 2


def test_a_lora_run_on_rated_clips_learns_to_prefer_what_people_preferred(parts, tmp_path):
    how = config(parts, tmp_path, **{"steps": 12, "algorithm.beta": 500, "algorithm.refresh_every": 0})
    outcome = serial.run(how, toy.rewards())
    assert outcome.result is not None
    logits = [record["metrics"]["dpo_logits"] for record in read_json_lines(how.folder / "metrics.jsonl")]
    assert logits[0] == 0
    assert np.mean(logits[-4:]) > 0.05


def test_a_killed_run_ends_with_the_same_weights(parts, tmp_path):
    whole = serial.run(config(parts, tmp_path / "whole"), toy.rewards())
    how = config(parts, tmp_path / "cut")
    cut = serial.run(how, toy.rewards(), stop=toy.after(14, lambda: True))
    assert cut.result is None
    again = serial.run(how, toy.rewards())
    assert whole.result is not None
    assert again.result is not None
    assert again.result["weights_digest"] == whole.result["weights_digest"]


def test_finetuning_brings_the_clips_error_down(parts, tmp_path, monkeypatch):
    clips = tmp_path / "real"
    clips.mkdir()
    for name in ("0.mp4", "0.txt"):
        (clips / name).write_bytes((parts / "clips" / name).read_bytes())
    own = {"algorithm.name": "sft", "sampler.candidates": 1, "learner.train": "full", "steps": 30}
    how = config(parts, tmp_path, **own | {"pairs": clips})
    passed, real = [], learner.predict_v
    monkeypatch.setattr(
        learner, "predict_v", lambda model, x_t, *more: (passed.append(len(x_t)), real(model, x_t, *more))[1]
    )
    serial.run(how, toy.rewards())
    assert passed == [2] * 30  # one pass over the two clips of a step, by the policy only
    losses = [record["loss"] for record in read_json_lines(how.folder / "metrics.jsonl")]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


def test_clips_are_resampled_to_the_models_size_and_rate(tmp_path):
    clip = frames(1, 24, 96, 96)
    (tmp_path / "a.mp4").write_bytes(encode_mp4(clip, 16))
    seen = frames_of(tmp_path / "a.mp4", ModelConfig(frames=9, height=48, width=64, fps=8))
    assert seen.shape == (9, 48, 64, 3)
    right = [np.where(frame[..., 0] < 200)[1].max() for frame in seen]
    assert np.diff(right) == pytest.approx(4 * 64 / 96, abs=1.5)  # 2 pixels a frame, every second frame, of 96 now 64


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"sampler.candidates": 4}, "a group is a pair; sampler.candidates = 4 must be 2"),
        ({"pairs": "nowhere.jsonl"}, "pairs nowhere.jsonl: no such file"),
        ({"pairs": "CLIPS"}, "a folder of clips has no preferences"),
    ],
)
def test_invalid_settings_are_reported(parts, tmp_path, flags, said):
    flags = {name: parts / "clips" if value == "CLIPS" else value for name, value in flags.items()}
    with pytest.raises(ConfigError, match=said):
        serial.open_roles(config(parts, tmp_path, **flags), toy.rewards())


def test_external_workers_need_the_same_pairs(parts, tmp_path):
    how = config(parts, tmp_path, **{"model.path": "toon"})
    rate_clips(tmp_path / "theirs")
    ratings = tmp_path / "theirs" / "ratings.jsonl"
    theirs = parse_config(to_toml(how), "the run", {"pairs": str(ratings)})
    registry = ExternalWorkers(how, None, lambda _: None)  # type: ignore[arg-type]
    for role in ("sampler", "rewarder"):
        assert fingerprint_of(theirs, role) == fingerprint_of(how, role)
    rows = ratings.read_text().splitlines()
    ratings.write_text("\n".join(rows[:-1]))
    for role, key in (("sampler", "model.path"), ("rewarder", "reward.path")):
        with pytest.raises(ConfigError, match=f"{key} or pairs: not the same files as the run's"):
            registry.join(role, fingerprint_of(theirs, role))


@pytest.fixture
def clips_here(tmp_path, monkeypatch):
    """The working folder has a folder of clips, and a file of pairs."""
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    Path("rated.jsonl").touch()


@pytest.mark.usefixtures("clips_here")
def test_the_commands(monkeypatch):
    asked = []
    monkeypatch.setattr("deploy.cli.run.start", lambda config: asked.append(config) or 0)
    assert main(["run", str(TOON), "--pairs", "rated.jsonl", "--mode", "serial"]) == 0
    assert main(["run", str(TOON), "--pairs", "rated.jsonl"]) == 0
    assert main(["finetune", "clips", str(STAGE_1), "--steps", "7"]) == 0
    serially, run, finetune = asked
    assert (run.pairs, run.mode, run.sampler.candidates) == ("rated.jsonl", "cluster", 2)
    assert serially.mode == "serial"
    assert (finetune.pairs, finetune.algorithm.name, finetune.steps) == ("clips", "sft", 7)
    assert (finetune.name, finetune.learner.lr, finetune.model.height) == ("huvidpo-stage1", 3e-5, 480)
    assert load_config().pairs == ""


@pytest.mark.usefixtures("clips_here")
@pytest.mark.parametrize(
    ("words", "example"),
    [(["run", "--pairs", "rated.jsonl"], "huvidpo-stage2.toml"), (["finetune", "clips"], "huvidpo-stage1.toml")],
)
def test_ones_own_clips_are_not_trained_with_the_toon_runs_settings(capsys, words, example):
    assert main([*words, "--steps", "1"]) == 2
    said = capsys.readouterr().err
    assert "needs a CONFIG.toml, because the default one is for the toon model; write one with douga init" in said
    assert Path(said.split("copy ")[1].strip()).is_file()
    assert said.strip().endswith(example)
