"""A random Stable Diffusion pipeline small enough for unit tests, as a folder: images of 32 x 32 pixels by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

OWN_SIZE = 32  # pixels, of images without a given size
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 16,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
}


def tiny_text_to_image(folder: Path, seed: int = 0, *, refuses_all: bool = False) -> Path:
    """Save a pipeline and return its folder. With `refuses_all` it has a safety checker that refuses every image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        checker = _refusing() if refuses_all else None
        parts: dict[str, Any] = {
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(**TOWER, vocab_size=len(_vocabulary()), max_position_embeddings=16, eos_token_id=1)
            ),
            "tokenizer": CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=16),
            "unet": UNet2DConditionModel(
                sample_size=OWN_SIZE // 2,
                block_out_channels=(8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                attention_head_dim=2,
                cross_attention_dim=16,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            ),
            "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
            "safety_checker": checker,
            "feature_extractor": CLIPImageProcessorPil(size=OWN_SIZE, crop_size=OWN_SIZE) if checker else None,
        }
    StableDiffusionPipeline(**parts, requires_safety_checker=refuses_all).save_pretrained(folder)
    return folder


def _vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return {word: number for number, word in enumerate(words)}


def _refusing() -> StableDiffusionSafetyChecker:
    tower = TOWER | {"image_size": OWN_SIZE, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tower, text_config=TOWER, projection_dim=16))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2.0)  # thresholds that every cosine exceeds
    return checker
