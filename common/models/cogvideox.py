"""CogVideoX pipeline folders: loading their parts, their shapes, and the only place that calls the transformer.

Three model families share this code. Differences are read from the configs, never from the model's name:

| family | image latent | positions | extras |
|---|---|---|---|
| 5B-I2V (1.0) | concatenated on channels | rotary, plus learned ones if the config says so | 8k+1 frames |
| 1.5-5B-I2V | concatenated; scaled by 1/factor | rotary, grid_type "slice" | `patch_size_t`, `ofs` |
| 2B (text-to-video) | none | sincos | – |

Shape symbols: B batch, F latent frames, C latent channels, h x w latent size, H x W pixels, L text tokens, D text
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from common.models.fingerprint import model_folder, model_parts
from common.models.json_files import read_json
from common.models.pipeline_folder import SCHEDULERS, defaults, load_tokenizer, read_folder
from common.models.pretrained import check_weights, load_model, move
from common.models.shapes import front_padding, latent_shape, tiles

OFS = 2.0  # the offset that CogVideoX 1.5 was trained with

Scheduler = CogVideoXDPMScheduler | CogVideoXDDIMScheduler


@dataclass(frozen=True)
class ModelFolder:
    """A pipeline folder: its configs are read, its weights are not loaded yet. Create it with `open_model`."""

    path: Path
    transformer_config: dict[str, Any] = field(repr=False)  # with the class's defaults filled in
    vae_config: dict[str, Any] = field(repr=False)
    scheduler_config: dict[str, Any] = field(repr=False)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Fingerprints of the parts. They identify the model independently of its path."""
        return model_parts(self.path)

    @property
    def image_conditioned(self) -> bool:
        """Whether the model is image-to-video: the first frame's latent is concatenated with the noisy latents."""
        return self.transformer_config["in_channels"] == 2 * self.vae_config["latent_channels"]

    @property
    def max_text_length(self) -> int:
        """L: every caption is padded or truncated to this many tokens."""
        return int(self.transformer_config["max_text_seq_length"])

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(F, C, h, w) of a clip, without CogVideoX 1.5's padding. Raises `ConfigError` if the size does not fit."""
        return latent_shape(self.path.name, self.transformer_config, self.vae_config, frames, height, width)

    def load_transformer(self, dtype: torch.dtype | str, device: torch.device | str) -> CogVideoXTransformer3DModel:
        """The denoiser, in eval mode."""
        return self._load_model(CogVideoXTransformer3DModel, "transformer", device, torch_dtype=torch_dtype(dtype))

    def empty_transformer(self, dtype: torch.dtype | str) -> CogVideoXTransformer3DModel:
        """The denoiser on the meta device: names, shapes and dtypes without weights. No file is read."""
        with torch.device("meta"):
            model: Any = CogVideoXTransformer3DModel.from_config(self.transformer_config)
        torch.nn.Module.to(model, torch_dtype(dtype))  # in place; diffusers' own `to` warns of modules that it has not
        return model

    def load_vae(
        self, dtype: torch.dtype | str, device: torch.device | str, tiling: bool = False
    ) -> AutoencoderKLCogVideoX:
        """The video autoencoder, frozen. With `tiling` it works on overlapping tiles."""
        model = self._load_model(AutoencoderKLCogVideoX, "vae", device, torch_dtype=torch_dtype(dtype))
        if tiling:
            model.enable_tiling(**tiles(self.vae_config))
        return model.requires_grad_(False)

    def load_text_encoder(self, dtype: torch.dtype | str, device: torch.device | str) -> T5EncoderModel:
        """The caption encoder, frozen."""
        model = self._load_model(T5EncoderModel, "text_encoder", device, dtype=torch_dtype(dtype))
        return model.requires_grad_(False)

    def load_tokenizer(self) -> T5Tokenizer:
        """The caption tokenizer."""
        vocabulary = read_json(self.path / "text_encoder" / "config.json").get("vocab_size", T5Config().vocab_size)
        return load_tokenizer(self.path / "tokenizer", vocabulary, self.max_text_length)

    def _load_model(self, kind: Any, part: str, device: torch.device | str, **options: Any) -> Any:
        """Load one part in eval mode.

        Raises `ConfigError` if its weights are missing, broken, not finite, all zeros or of another architecture, or if
        there is no such device.
        """
        folder = str(self.path / part)
        model, _ = load_model(kind, folder, folder, local_files_only=True, **options)
        check_weights(model, folder)
        return move(model, device).eval()

    def make_scheduler(self, kind: Literal["dpm", "ddim"]) -> Scheduler:
        """A DPM or DDIM scheduler with the checkpoint's noise schedule."""
        return SCHEDULERS[kind](**{name: self.scheduler_config[name] for name in defaults(SCHEDULERS[kind])})


def torch_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """``"bfloat16"`` or ``torch.bfloat16`` -> ``torch.bfloat16``."""
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def open_model(path: str | Path) -> ModelFolder:
    """Read a CogVideoX pipeline folder and check that it is whole; see `pipeline_folder.py`. Loads no weights.

    Args:
        path: a folder, a hub id in the local cache, or "toon" for the embedded model.

    Raises:
        ConfigError: the folder is missing, broken, or holds another kind of model.
    """
    folder = model_folder(path)
    return ModelFolder(folder, *read_folder(folder))


def compile_blocks(transformer: Any) -> None:
    """`torch.compile` the transformer's blocks in place. Compilation happens at the first call with each shape."""
    for block in transformer.transformer_blocks:  # identical blocks share the compiled code
        block.compile(dynamic=False)


# The model call.


def predict_v(
    transformer: torch.nn.Module,
    latents: torch.Tensor,
    image_latent: torch.Tensor | None,
    timesteps: torch.Tensor,
    prompt_embeds: torch.Tensor,
) -> torch.Tensor:
    """Predict v, differentiably.

    Args:
        transformer: the denoiser, or a wrapper with `.module` such as a DeepSpeed engine.
        latents: noisy latents [B, F, C, h, w], for CogVideoX 1.5 with their padding (`pad_front`).
        image_latent: VAE-scaled first frame [B, 1, C, h, w]; None for text-to-video models. It is concatenated with the
            first latent frame on the channel dimension; the other frames get zeros.
        timesteps: int64 [B].
        prompt_embeds: [B, L, D].

    Returns:
        v [B, F, C, h, w].

    Raises:
        ValueError: F is not a multiple of the model's `patch_size_t`.
    """
    config: Any = getattr(transformer, "module", transformer).config
    if front_padding(config, latents.shape[1]):
        raise ValueError(f"{latents.shape[1]} latent frames: the model takes a multiple of {config['patch_size_t']}")
    rotary, inputs = rotary_table(config, tuple(latents.shape[1:]), latents.device), latents
    if image_latent is not None:
        rest = torch.zeros_like(latents[:, 1:])
        inputs = torch.cat([latents, torch.cat([image_latent.to(latents.dtype), rest], 1)], 2)
    return transformer(
        hidden_states=inputs,
        encoder_hidden_states=prompt_embeds,
        timestep=timesteps,
        ofs=None if config["ofs_embed_dim"] is None else inputs.new_full((1,), OFS),
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]


def pad_front(x0: torch.Tensor, padding: int) -> torch.Tensor:
    """Prepend `padding` copies of the first latent frame to clean latents `x0` [B, F, C, h, w].

    CogVideoX 1.5 puts `patch_size_t` latent frames into one token, and `common.models.shapes.front_padding` says how
    many are missing. Its trainer copies the clean frame and then draws noise for every frame; noise that padding and
    first frame share would be an input that sampling never makes.
    """
    return torch.cat([x0[:, :1].expand(-1, padding, -1, -1, -1), x0], 1) if padding else x0


def rotary_table(
    config: Mapping[str, Any], shape: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Rotary cosines and sines, each [tokens, head width], for latents of `shape` (F, C, h, w), F including padding.

    Returns None for models with sincos positions. Tables are cached.
    """
    if not config["use_rotary_positional_embeddings"]:
        return None
    frames, _, height, width = shape
    patch, patch_t = config["patch_size"], config["patch_size_t"]
    base = (config["sample_height"] // patch, config["sample_width"] // patch)
    grid = (height // patch, width // patch)
    return _rotary(config["attention_head_dim"], frames, patch_t, grid, base, device)


@lru_cache(maxsize=32)
def _rotary(
    head: int, frames: int, patch_t: int | None, grid: tuple[int, int], base: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # The cache outlives the caller, and a tensor created in inference mode could not be used in a training step.
    with torch.inference_mode(False), torch.no_grad():
        if patch_t is None:
            crop, kind, most = get_resize_crop_region_for_grid(grid, base[1], base[0]), "linspace", None
        else:
            crop, kind, most, frames = None, "slice", base, (frames + patch_t - 1) // patch_t
        table = get_3d_rotary_pos_embed(head, crop, grid, frames, grid_type=kind, max_size=most, device=device)  # type: ignore[arg-type]
        return table[0], table[1]


# Captions, pixels and latents.


def encode_text(
    tokenizer: T5Tokenizer, text_encoder: T5EncoderModel, texts: Sequence[str], max_length: int
) -> torch.Tensor:
    """Prompt embeddings [B, max_length, D]. Captions are padded or truncated to `max_length`; there is no mask."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return text_encoder(tokens.to(text_encoder.device))[0]


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels [..., H, W, 3] to float32 [..., 3, H, W] in [-1, 1]."""
    return (pixels.float() / 255.0 * 2.0 - 1.0).movedim(-1, -3)


def to_pixels(values: torch.Tensor) -> torch.Tensor:
    """float [..., 3, H, W] to uint8 pixels [..., H, W, 3], clamped."""
    return ((values.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)


def encode_image(vae: AutoencoderKLCogVideoX, images: torch.Tensor) -> torch.Tensor:
    """VAE-scaled latents [B, 1, C, h, w] of first frames [B, 3, H, W] in [-1, 1]: the posterior's mode."""
    mode = vae.encode(images.unsqueeze(2).to(vae.dtype)).latent_dist.mode()  # type: ignore[union-attr]
    return mode.transpose(1, 2) * image_factor(vae.config)


def image_factor(vae_config: Mapping[str, Any]) -> float:
    """The factor of image latents.

    CogVideoX 1.5 was trained with image latents divided by the factor that video latents are multiplied with.
    """
    factor = vae_config["scaling_factor"]
    return 1 / factor if vae_config["invert_scale_latents"] else factor


def encode_video(vae: AutoencoderKLCogVideoX, clips: torch.Tensor) -> torch.Tensor:
    """VAE-scaled latents [B, F, C, h, w] of clips [B, frames, 3, H, W] in [-1, 1]: the posterior's mode."""
    mode = vae.encode(clips.transpose(1, 2).to(vae.dtype)).latent_dist.mode()  # type: ignore[union-attr]
    return mode.transpose(1, 2) * vae.config["scaling_factor"]


def decode_latents(vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
    """Clips [B, frames, 3, H, W], nominally in [-1, 1], of VAE-scaled latents [B, F, C, h, w]; differentiable."""
    scaled = 1 / vae.config["scaling_factor"] * latents.transpose(1, 2).to(vae.dtype)  # the pipelines' order: same bits
    return vae.decode(scaled).sample.transpose(1, 2)  # type: ignore[union-attr]


def build_tokenizer(words: Sequence[str], max_length: int) -> T5Tokenizer:
    """A T5 tokenizer with a vocabulary of whole words: <pad> 0, </s> 1, <unk> 2, then `words` in order."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = special + [(f"\u2581{word}", -1.0) for word in words]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)
