"""The embedded weights: an ordinary pipeline folder, small, good enough to train on, and imperfect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline

from common.models.cogvideox import (
    ModelFolder,
    encode_image,
    encode_video,
    open_model,
    predict_v,
    to_unit,
)
from common.toon.world import DIMENSIONS, Shot, caption, render
from deploy.rewards.build_toon import WEIGHTS
from learner import toon_pretrain
from rewarders.head_files import load_heads
from rewarders.toon_heads.training.dataset import draw_samples
from rewarders.toon_heads.training.evaluate import evaluate_heads

LIMIT = 25_000_000  # bytes of all files together


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return open_model("toon")


def test_they_are_small() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {"pipeline", "heads"} <= {path.name for path in WEIGHTS.iterdir()}
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


def test_diffusers_loads_the_pipeline() -> None:
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(WEIGHTS / "pipeline", torch_dtype=torch.float32)
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"


def test_the_vae_keeps_the_figure(model: ModelFolder) -> None:
    _, figure = toon_pretrain.figure_psnr(model.load_vae("float32", "cpu"), toon_pretrain.draw_clips(16, 7))
    assert figure > 23


def test_the_transformer_knows_what_the_caption_asks_for(model: ModelFolder) -> None:
    """From half noise the clip is told better with its own caption than with another action's."""
    shots = [Shot("robot", "cave", action, 12) for action in ("walk_right", "walk_left", "jump", "climb")]
    vae, transformer = model.load_vae("float32", "cpu"), model.load_transformer("float32", "cpu")
    text, tokenizer = model.load_text_encoder("float32", "cpu"), model.load_tokenizer()
    clips = to_unit(torch.from_numpy(np.stack([render(shot) for shot in shots])))
    with torch.inference_mode():
        x0, image = encode_video(vae, clips), encode_image(vae, clips[:, 0])
        schedule = toon_pretrain.new_schedule()
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        t = torch.full((len(shots),), 700)
        errors = []
        for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
            words = [caption(shots[i]) for i in order]
            ids = tokenizer(
                words, padding="max_length", max_length=toon_pretrain.TEXT_TOKENS, return_tensors="pt"
            ).input_ids
            v = predict_v(transformer, schedule.add_noise(x0, eps, t), image, t, text(ids)[0])
            errors.append((v - schedule.v_target(x0, eps, t)).square().mean((1, 2, 3, 4)))
    right, wrong = errors
    assert (right < wrong).all()


def test_every_head_ranks_clips_of_characters_it_never_saw() -> None:
    ranks = evaluate_heads(load_heads("toon"), draw_samples(1024, 1, "test", degraded=0.0))
    assert {name: rank for name, rank in ranks.items() if not rank >= 0.8} == {}
    assert list(ranks) == list(DIMENSIONS)
