"""diffusers' pipelines, the reference for our sampler, our training call and our exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from common.models.cogvideox import SCHEDULERS
from tests.support.tiny import FRAMES, HEIGHT, TEXT_LENGTH, WIDTH


def open_pipeline(folder: Path) -> Any:
    """Open a folder with the pipeline class that its index names."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_latents(
    pipe: Any,
    image: np.ndarray | None,
    text: str,
    seeds: Sequence[int],
    *,
    kind: str = "dpm",
    steps: int = 4,
    guidance: float = 1.0,
    **more: Any,
) -> torch.Tensor:
    """The pipeline's latents [N, F, C, h, w], one clip per seed, without the front padding of CogVideoX 1.5.

    `image` is the first frame, uint8 [HEIGHT, WIDTH, 3]; None for text-to-video. `more` goes to the pipeline's call.
    """
    pipe.scheduler = SCHEDULERS[kind].from_config(pipe.scheduler.config)
    images = {} if image is None else {"image": [Image.fromarray(image)] * len(seeds)}
    latents = pipe(
        prompt=[text] * len(seeds),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=TEXT_LENGTH,
        output_type="latent",
        **images,
        **more,
    ).frames
    return latents[:, -((FRAMES - 1) // pipe.vae_scale_factor_temporal + 1) :]
