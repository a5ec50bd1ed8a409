"""Trains the toon world's base model: a tiny but real CogVideoX image-to-video pipeline.

First the VAE on rendered clips, then text encoder and transformer together on its latents (v-prediction). The
clips are of mixed quality, as the videos of the web are: half of them carry one or two defects. So the base
model draws flicker, warped limbs and changing characters now and then, and alignment has something to remove.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from common.diffusion import NoiseSchedule
from common.fit import Fit, fit
from common.models import build_tokenizer, encode_image, encode_video, predict_v, to_unit
from common.toon.world import (
    ACTIONS,
    CHARACTERS,
    FRAMES,
    HEIGHT,
    SCENES,
    WIDTH,
    Shot,
    background,
    caption,
    draw_defects,
    draw_shot,
    render,
)

Log = Callable[[str], None]
FIGURE_WEIGHT = 4.0  # the figure's pixels count this much more than the background's
CROP = 32
TEXT_TOKENS = 12  # the longest caption has 9 words
CAPTION_DROP = 0.1
BASE_PLAN = Fit(steps=4000, lr=1.5e-3, warmup=100, weight_decay=0.01)
BASE_BATCH = 16
VAE_PLAN = Fit(steps=2400, lr=3e-3)
VAE_BATCHES = ((1600, 4, CROP), (2200, 8, CROP), (2400, 4, 0))  # until step, clips, side of the crop (0: whole)


@dataclass(frozen=True)
class ClipSet:
    """Rendered clips with captions: the training data of the base model."""

    clips: torch.Tensor  # uint8 [K, FRAMES, HEIGHT, WIDTH, 3]
    figure: torch.Tensor  # bool [K, FRAMES, HEIGHT, WIDTH]: what is not the scene's own background
    captions: list[str]


def draw_clips(count: int, seed: int) -> ClipSet:
    """Render `count` clips of the train split, half of them with defects; a function of `seed`."""
    rng = np.random.default_rng([seed, 1])
    clips = np.empty((count, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    figure = np.empty((count, FRAMES, HEIGHT, WIDTH), bool)
    captions = []
    for i in range(count):
        shot = draw_shot(rng, "train")
        clips[i] = render(shot, draw_defects(rng), seed=int(rng.integers(2**31)))
        figure[i] = np.abs(clips[i] - background(shot.scene)).max(-1) > 12
        captions.append(caption(shot))
    return ClipSet(torch.from_numpy(clips), torch.from_numpy(figure), captions)


def new_vae() -> AutoencoderKLCogVideoX:
    """Two levels: every 2 x 2 pixels and (after the first) 2 frames become one latent of 8 channels."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,  # type: ignore[arg-type]
        up_block_types=("CogVideoXUpBlock3D",) * 2,  # type: ignore[arg-type]
        block_out_channels=(16, 32),  # type: ignore[arg-type]
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=1.0,
    )


def train_vae(data: ClipSet, folder: Path, seed: int, plan: Fit = VAE_PLAN, log: Log = print) -> AutoencoderKLCogVideoX:
    """Train the VAE on crops around the figure, at the end on whole frames (the norms' statistics differ)."""
    torch.manual_seed(seed)
    vae = new_vae()

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 2, step])
        batch, side = next((b, c) for until, b, c in VAE_BATCHES if step * VAE_PLAN.steps < until * plan.steps)
        return vae_loss(vae, *_crops(data, rng, batch, side))

    fit("vae", vae, loss_of, plan, folder, log)
    vae.register_to_config(scaling_factor=1.0 / _latent_std(vae, data))
    return vae.eval().requires_grad_(False)


def vae_loss(vae: AutoencoderKLCogVideoX, video: torch.Tensor, figure: torch.Tensor) -> torch.Tensor:
    """Weighted absolute + squared error, absolute error of the gradients (edges), and a breath of KL."""
    posterior = _posterior(vae, video)
    error = _decoded(vae, posterior.mode()) - video
    weight = 1 + FIGURE_WEIGHT * figure
    pixels = ((error.abs() + error.square()) * weight).mean()
    across = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
    down = (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return pixels + 0.5 * (across + down) + 1e-6 * posterior.kl().mean()


def _crops(data: ClipSet, rng: np.random.Generator, batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of clips, cut to `side` x `side` near the figure (0: whole), and figure masks ``[B, 1, F, h, w]``."""
    chosen = rng.integers(len(data.captions), size=batch)
    clips, masks = [], []
    for i in chosen:
        rows, columns = slice(None), slice(None)
        if side:
            middle = int(data.figure[i, FRAMES // 2].float().sum(0).argmax())
            left = int(np.clip(middle - side // 2 + rng.integers(-8, 9), 0, WIDTH - side))
            top = int(rng.integers(HEIGHT - side + 1))
            rows, columns = slice(top, top + side), slice(left, left + side)
        clips.append(data.clips[i, :, rows, columns])
        masks.append(data.figure[i, :, rows, columns])
    return _to_video(torch.stack(clips)), torch.stack(masks)[:, None].float()


def _to_video(clips: torch.Tensor) -> torch.Tensor:
    """uint8 ``[B, F, H, W, 3]`` -> float ``[B, 3, F, H, W]`` in [-1, 1], as the VAE wants it."""
    return to_unit(clips).transpose(1, 2).contiguous()


def _posterior(vae: AutoencoderKLCogVideoX, video: torch.Tensor) -> Any:
    return vae.encode(video).latent_dist  # type: ignore[union-attr]


def _decoded(vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents).sample  # type: ignore[union-attr]


@torch.inference_mode()
def _latent_std(vae: AutoencoderKLCogVideoX, data: ClipSet, count: int = 128) -> float:
    parts = _to_video(data.clips[:count]).split(16)
    return float(torch.cat([_posterior(vae, part).mode() for part in parts]).std())


@torch.inference_mode()
def figure_psnr(vae: AutoencoderKLCogVideoX, data: ClipSet) -> tuple[float, float]:
    """Peak signal-to-noise ratio of reconstructions in dB: of all pixels, and of the figure's alone."""
    video = _to_video(data.clips)
    parts = [_decoded(vae, _posterior(vae, part).mode()) for part in video.split(16)]
    error = ((torch.cat(parts).clamp(-1, 1) - video) / 2).square().mean(1)
    return float(-10 * error.mean().log10()), float(-10 * error[data.figure].mean().log10())


# The transformer and its text encoder.


def new_tokenizer() -> T5Tokenizer:
    """Whole words: every word that a caption of the toon world can hold."""
    captions = [caption(Shot(c, s, a, 0)) for c in CHARACTERS for s in SCENES for a in ACTIONS]
    return build_tokenizer(sorted({word for text in captions for word in text.split()}), TEXT_TOKENS)


def new_text_encoder(vocabulary: int) -> T5EncoderModel:
    """Two T5 layers of width 48."""
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=48, d_kv=16, num_heads=3, d_ff=96, num_layers=2, dropout_rate=0.0)
    )


def new_transformer() -> CogVideoXTransformer3DModel:
    """Six blocks of width 192 on patches of 4 x 4 latents: 240 tokens a clip."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=16,
        out_channels=8,
        time_embed_dim=96,
        text_embed_dim=48,
        num_layers=6,
        sample_width=WIDTH // 2,
        sample_height=HEIGHT // 2,
        sample_frames=FRAMES,
        patch_size=4,
        temporal_compression_ratio=2,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=True,
    )


def new_scheduler() -> CogVideoXDPMScheduler:
    """The 5B-I2V checkpoint's own noise schedule."""
    return CogVideoXDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )


@dataclass(frozen=True)
class LatentSet:
    """The clips as the transformer sees them."""

    videos: torch.Tensor  # [K, F, C, h, w], VAE-scaled
    images: torch.Tensor  # [K, 1, C, h, w], the first frames alone
    tokens: torch.Tensor  # int64 [K, L]
    empty: torch.Tensor  # int64 [L], the empty caption


@torch.inference_mode()
def encode_clips(vae: AutoencoderKLCogVideoX, data: ClipSet, folder: Path) -> LatentSet:
    """Encode every clip and first frame once; kept in `folder` for a resumed build."""
    path = folder / "latents.safetensors"
    if not path.exists():
        videos, images = [], []
        for part in data.clips.split(16):
            clips = to_unit(part)
            videos.append(encode_video(vae, clips))
            images.append(encode_image(vae, clips[:, 0]))
        scratch = path.with_suffix(".tmp")
        save_file({"videos": torch.cat(videos).contiguous(), "images": torch.cat(images).contiguous()}, scratch)
        scratch.replace(path)
    stored = load_file(path)
    tokens = new_tokenizer()([*data.captions, ""], padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    return LatentSet(stored["videos"], stored["images"], tokens.input_ids[:-1], tokens.input_ids[-1])


def train_base(
    latents: LatentSet, folder: Path, seed: int, plan: Fit = BASE_PLAN, log: Log = print
) -> tuple[T5EncoderModel, CogVideoXTransformer3DModel]:
    """Train text encoder and transformer together: mean squared error of v, t uniform, some captions dropped."""
    torch.manual_seed(seed)
    text = new_text_encoder(len(new_tokenizer()))
    both = nn.ModuleDict({"text": text, "transformer": new_transformer()})
    schedule = NoiseSchedule.from_config(dict(new_scheduler().config))

    def loss_of(step: int) -> torch.Tensor:
        dice = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(latents.tokens), (BASE_BATCH,), generator=dice)
        tokens = latents.tokens[chosen].clone()
        tokens[torch.rand(BASE_BATCH, generator=dice) < CAPTION_DROP] = latents.empty
        x0 = latents.videos[chosen]
        eps = torch.randn(x0.shape, generator=dice)
        t = torch.randint(schedule.steps, (BASE_BATCH,), generator=dice)
        embeds = both["text"](tokens)[0]
        v = predict_v(both["transformer"], schedule.add_noise(x0, eps, t), latents.images[chosen], t, embeds)
        return (v - schedule.v_target(x0, eps, t)).square().mean()

    fit("base", both, loss_of, plan, folder, log)
    return both["text"].eval(), both["transformer"].eval()  # type: ignore[return-value]


def save_pipeline(
    folder: Path, vae: AutoencoderKLCogVideoX, text: T5EncoderModel, transformer: CogVideoXTransformer3DModel
) -> None:
    """Write an ordinary `CogVideoXImageToVideoPipeline` folder; transformer and VAE in float16 to halve its size."""
    pipeline = CogVideoXImageToVideoPipeline(new_tokenizer(), text, vae, transformer, new_scheduler())  # type: ignore[arg-type]
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
