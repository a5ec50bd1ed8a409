"""Trains the toon world's base model: a tiny but real CogVideoX image-to-video pipeline.

It trains the VAE on rendered clips, then text encoder and transformer together on the latents (v-prediction). Like web
videos, the clips vary in quality: two in five have a defect. The base model therefore sometimes generates flicker,
warped limbs and changing characters, which alignment can reduce.
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

from common.files import replacing
from common.models.cogvideox import build_tokenizer, encode_image, encode_video, predict_v, to_unit
from common.models.noise_schedule import NoiseSchedule
from common.toon.world import (
    ACTIONS,
    CHARACTERS,
    FRAMES,
    HEIGHT,
    SCENES,
    WIDTH,
    Shot,
    caption,
    draw_defects,
    draw_shot,
    figure_mask,
    render,
)
from common.training.fit import FitConfig, fit

Log = Callable[[str], None]
FIGURE_WEIGHT = 4.0  # extra loss weight of the figure's pixels; the background has weight 1
CROP = 32
TEXT_TOKENS = 12  # the longest caption has 9 words
CAPTION_DROP = 0.1
BASE_PLAN = FitConfig(steps=2000, lr=4e-3, weight_decay=0.01)
BASE_BATCH = 16
VAE_PLAN = FitConfig(steps=2400, lr=3e-3)
CUT_PLAN = FitConfig(steps=300, lr=1.5e-3)
WIDE, CHANNELS = 8, 4  # latent channels during VAE training, and of the final VAE
VAE_BATCHES = ((1600, 4, CROP), (2200, 8, CROP), (2400, 4, 0))  # until step, batch size, crop in pixels (0: none)


@dataclass(frozen=True)
class ClipSet:
    """Rendered clips with captions: the training data of the base model."""

    clips: torch.Tensor  # uint8 [K, FRAMES, HEIGHT, WIDTH, 3]
    figure: torch.Tensor  # bool [K, FRAMES, HEIGHT, WIDTH]: pixels that differ from the scene's background
    captions: list[str]


def draw_clips(count: int, seed: int) -> ClipSet:
    """Render `count` clips of the train split, two in five with a defect. Deterministic in `seed`."""
    rng = np.random.default_rng([seed, 1])
    clips = np.empty((count, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    figure = np.empty((count, FRAMES, HEIGHT, WIDTH), bool)
    captions = []
    for i in range(count):
        shot = draw_shot(rng, "train")
        clips[i] = render(shot, draw_defects(rng), seed=int(rng.integers(2**31)))
        figure[i] = figure_mask(clips[i], shot.scene)
        captions.append(caption(shot))
    return ClipSet(torch.from_numpy(clips), torch.from_numpy(figure), captions)


def new_vae(channels: int = CHANNELS) -> AutoencoderKLCogVideoX:
    """A VAE with two levels. It compresses 2 x 2 pixels, and 2 frames after the first, to `channels` values."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,  # type: ignore[arg-type]
        up_block_types=("CogVideoXUpBlock3D",) * 2,  # type: ignore[arg-type]
        block_out_channels=(16, 32),  # type: ignore[arg-type]
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=1.0,
    )


def train_vae(
    data: ClipSet, folder: Path, seed: int, plan: FitConfig = VAE_PLAN, cut_plan: FitConfig = CUT_PLAN, log: Log = print
) -> AutoencoderKLCogVideoX:
    """Train a VAE with `WIDE` latent channels, project it to `CHANNELS` principal axes, and fine-tune it.

    The wide VAE trains faster, but a small transformer learns narrow latents faster. Training uses crops around the
    figure first, then full frames, because the normalisation statistics differ between the two.
    """
    torch.manual_seed(seed)
    wide = new_vae(WIDE)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 2, step])
        batch, side = next((b, c) for until, b, c in VAE_BATCHES if step * VAE_PLAN.steps < until * plan.steps)
        return vae_loss(wide, *_crops(data, rng, batch, side))

    fit("vae", wide, loss_of, plan, folder, log)
    vae = cut_channels(wide, data)

    def loss_after_cut(step: int) -> torch.Tensor:
        return vae_loss(vae, *_crops(data, np.random.default_rng([seed, 3, step]), 4, 0))

    fit("vae-cut", vae, loss_after_cut, cut_plan, folder, log)
    vae.register_to_config(scaling_factor=1.0 / float(posterior_means(vae, data).std()))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def cut_channels(wide: AutoencoderKLCogVideoX, data: ClipSet) -> AutoencoderKLCogVideoX:
    """Project the VAE's latents z to their `CHANNELS` principal axes: z = U y + m, y = U^T (z - m).

    Only linear layers produce or read the latents, so the axes U ``[WIDE, CHANNELS]`` and the mean m are folded into
    them. The result differs only by the dropped axes and by padding at the frame's edge.
    """
    z = posterior_means(wide, data).movedim(1, -1).flatten(0, -2)
    mean = z.mean(0)
    axes = torch.linalg.eigh((z - mean).T @ (z - mean)).eigenvectors[:, -CHANNELS:]
    state = wide.state_dict()
    for name, layer in wide.named_modules():
        if isinstance(layer, nn.Conv3d) and layer.bias is not None and layer.in_channels == WIDE:  # reads latents
            state[f"{name}.weight"] = torch.einsum("ok...,kc->oc...", layer.weight, axes)
            state[f"{name}.bias"] = layer.bias + torch.einsum("ok...,k->o", layer.weight, mean)
    out = "encoder.conv_out.conv"  # outputs the means and log variances of the latents
    whole = torch.block_diag(axes.T, axes.T.square())
    state[f"{out}.weight"] = torch.einsum("co,o...->c...", whole, state[f"{out}.weight"])
    state[f"{out}.bias"] = whole @ (state[f"{out}.bias"] - torch.cat([mean, torch.zeros(WIDE)]))
    narrow = new_vae(CHANNELS)
    narrow.load_state_dict(state)
    return narrow


def vae_loss(vae: AutoencoderKLCogVideoX, video: torch.Tensor, figure: torch.Tensor) -> torch.Tensor:
    """Weighted absolute + squared error, absolute error of the image gradients (edges), and a small KL term."""
    posterior = _posterior(vae, video)
    error = _decoded(vae, posterior.mode()) - video
    weight = 1 + FIGURE_WEIGHT * figure
    pixels = ((error.abs() + error.square()) * weight).mean()
    across = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
    down = (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return pixels + 0.5 * (across + down) + 1e-6 * posterior.kl().mean()


def _crops(data: ClipSet, rng: np.random.Generator, batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of clips ``[B, 3, F, h, w]``, cropped to `side` x `side` near the figure (0: full), and figure masks."""
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
def posterior_means(vae: AutoencoderKLCogVideoX, data: ClipSet, count: int = 128) -> torch.Tensor:
    """Posterior means of the first `count` clips, ``[count, C, f, h, w]``."""
    return torch.cat([_posterior(vae, part).mode() for part in _to_video(data.clips[:count]).split(16)])


@torch.inference_mode()
def figure_psnr(vae: AutoencoderKLCogVideoX, data: ClipSet) -> tuple[float, float]:
    """PSNR of the reconstructions in dB, over all pixels and over the figure's pixels only."""
    video = _to_video(data.clips)
    parts = [_decoded(vae, _posterior(vae, part).mode()) for part in video.split(16)]
    error = ((torch.cat(parts).clamp(-1, 1) - video) / 2).square().mean(1)
    return float(-10 * error.mean().log10()), float(-10 * error[data.figure].mean().log10())


# The transformer and its text encoder.


def new_tokenizer() -> T5Tokenizer:
    """A whole-word tokenizer with all words of the toon world's captions."""
    captions = [caption(Shot(c, s, a, 0)) for c in CHARACTERS for s in SCENES for a in ACTIONS]
    return build_tokenizer(sorted({word for text in captions for word in text.split()}), TEXT_TOKENS)


def new_text_encoder(vocabulary: int) -> T5EncoderModel:
    """A T5 encoder with two layers of width 48."""
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=48, d_kv=16, num_heads=3, d_ff=96, num_layers=2, dropout_rate=0.0)
    )


def new_transformer() -> CogVideoXTransformer3DModel:
    """A transformer with four blocks of width 256 on patches of 4 x 4 latents: 240 tokens per clip.

    A token has 64 noisy values and 64 values of the first frame, so a much narrower model would lose information.
    """
    return CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=96,
        text_embed_dim=48,
        num_layers=4,
        sample_width=WIDTH // 2,
        sample_height=HEIGHT // 2,
        sample_frames=FRAMES,
        patch_size=4,
        temporal_compression_ratio=2,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )


def new_scheduler() -> CogVideoXDPMScheduler:
    """The noise schedule of the CogVideoX-5B-I2V checkpoint."""
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


def new_schedule() -> NoiseSchedule:
    """The schedule of `new_scheduler` for training."""
    return NoiseSchedule.from_config(dict(new_scheduler().config))


@dataclass(frozen=True)
class LatentSet:
    """The encoded clips: the transformer's training data."""

    videos: torch.Tensor  # [K, F, C, h, w], VAE-scaled
    images: torch.Tensor  # [K, 1, C, h, w], only the first frames
    tokens: torch.Tensor  # int64 [K, L]
    empty: torch.Tensor  # int64 [L], the empty caption


@torch.inference_mode()
def encode_clips(vae: AutoencoderKLCogVideoX, data: ClipSet, folder: Path) -> LatentSet:
    """Encode all clips and first frames. Caches the latents in `folder` for a resumed build."""
    path = folder / "latents.safetensors"
    if not path.exists():
        videos, images = [], []
        for part in data.clips.split(16):
            clips = to_unit(part)
            videos.append(encode_video(vae, clips))
            images.append(encode_image(vae, clips[:, 0]))
        with replacing(path) as draft:
            save_file({"videos": torch.cat(videos).contiguous(), "images": torch.cat(images).contiguous()}, draft)
    stored = load_file(path)
    tokens = new_tokenizer()([*data.captions, ""], padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    return LatentSet(stored["videos"], stored["images"], tokens.input_ids[:-1], tokens.input_ids[-1])


def train_base(
    latents: LatentSet, folder: Path, seed: int, plan: FitConfig = BASE_PLAN, log: Log = print
) -> tuple[T5EncoderModel, CogVideoXTransformer3DModel]:
    """Train text encoder and transformer together on the v error, with uniform t and caption dropout."""
    torch.manual_seed(seed)
    text = new_text_encoder(len(new_tokenizer()))
    both = nn.ModuleDict({"text": text, "transformer": new_transformer()})
    schedule = new_schedule()

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(latents.tokens), (BASE_BATCH,), generator=generator)
        tokens = latents.tokens[chosen].clone()
        tokens[torch.rand(BASE_BATCH, generator=generator) < CAPTION_DROP] = latents.empty
        x0 = latents.videos[chosen]
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(schedule.steps, (BASE_BATCH,), generator=generator)
        embeds = both["text"](tokens)[0]
        v = predict_v(both["transformer"], schedule.add_noise(x0, eps, t), latents.images[chosen], t, embeds)
        return (v - schedule.v_target(x0, eps, t)).square().mean()

    fit("base", both, loss_of, plan, folder, log, matrices=block_matrices(both["transformer"]))
    return both["text"].eval(), both["transformer"].eval()  # type: ignore[return-value]


def block_matrices(transformer: nn.Module) -> list[nn.Parameter]:
    """The weight matrices of attention and feed-forward layers, without those of the modulation layers."""
    named = transformer.named_parameters()
    return [p for name, p in named if p.ndim == 2 and "transformer_blocks" in name and ".linear." not in name]


def save_pipeline(
    folder: Path, vae: AutoencoderKLCogVideoX, text: T5EncoderModel, transformer: CogVideoXTransformer3DModel
) -> None:
    """Save a standard `CogVideoXImageToVideoPipeline` folder, in float16 to halve its size."""
    pipeline = CogVideoXImageToVideoPipeline(new_tokenizer(), text, vae, transformer, new_scheduler())  # type: ignore[arg-type]
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
