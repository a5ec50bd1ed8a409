"""Random CogVideoX pipelines small enough for unit tests: 9 frames of 48 x 64 pixels, a few thousand weights.

The parts are the real diffusers and transformers classes; only the sizes are toys. The folder that
`tiny_pipeline` writes loads with `CogVideoXImageToVideoPipeline.from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel

from common.models.cogvideox import build_tokenizer

FRAMES, HEIGHT, WIDTH = 9, 48, 64
WORDS = ("a", "the", "robot", "zombie", "walks", "runs", "jumps", "right", "left", "in", "on", "meadow", "snow", "cave")
TEXT_LENGTH, TEXT_WIDTH, CHANNELS = 12, 32, 4

# The differences between the families' transformers; pass one as **overrides to `tiny_pipeline`.
LEARNED: dict[str, Any] = {"use_learned_positional_embeddings": True}
V1_5: dict[str, Any] = {"patch_size_t": 2, "ofs_embed_dim": 16}
TEXT_TO_VIDEO: dict[str, Any] = {"in_channels": CHANNELS, "use_rotary_positional_embeddings": False}

# The families as **arguments of `tiny_pipeline`. Keys of the published configs that determine the computation are kept;
# sizes are shrunk in proportion:
#
# | config key | 2B | 5B-I2V | 1.5-5B-I2V | tiny |
# |---|---|---|---|---|
# | transformer: in_channels (latent channels 16) | 16 | 32 | 32 | once or twice 4 |
# | use_rotary_positional_embeddings | false | true | true | kept |
# | use_learned_positional_embeddings | false | true | false | kept |
# | patch_size_t, patch_bias | none, true | none, true | 2, false | kept |
# | ofs_embed_dim (time_embed_dim 512) | none | none | 512 | none, none, 16 (16) |
# | sample_height x sample_width, in latents | 60x90 | 60x90 | 300x300, larger than any clip | 12x16, 12x16, 24x24 |
# | sample_frames | 49: the clip's | 49: the clip's | 81 | 9 |
# | latent frames | 13, odd | 13, odd | 21, padded to 22 | 3; 1.5: padded to 4 |
# | spatial_interpolation_scale (sincos positions) | 1.875 | 1.875 | 1.875 | kept: the class default |
# | vae: scaling_factor | 1.15258426 | 0.7 | 0.7 | kept |
# | vae: invert_scale_latents | false | false | true | kept |
# | scheduler: snr_shift_scale | 3.0 | 1.0 | 1.0 | kept |
# | prediction_type, zero SNR, spacing | v, yes, trailing | same | same | kept |
FAMILIES: dict[str, dict[str, Any]] = {
    "2B": TEXT_TO_VIDEO | {"vae": {"scaling_factor": 1.15258426}, "scheduler": {"snr_shift_scale": 3.0}},
    "5B-I2V": LEARNED,
    "1.5-5B-I2V": V1_5
    | {"patch_bias": False, "sample_height": 24, "sample_width": 24, "vae": {"invert_scale_latents": True}},
}


def tiny_pipeline(
    folder: Path,
    seed: int = 0,
    *,
    vae: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    posterior_logvar: float | None = -30.0,
    perturb: float = 0.0,
    **overrides: Any,
) -> Path:
    """Save a random pipeline under `folder` and return the folder.

    `overrides` change the transformer's config, `vae` and `scheduler` theirs. With the default `posterior_logvar` the
    VAE's posterior is so narrow that a sample equals the mode; None keeps the random one. `perturb` is the size of the
    noise added to weights that are initialized to 0, 1 or a pattern: biases, norms, learned positions.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "tokenizer": build_tokenizer(WORDS, TEXT_LENGTH),
            "text_encoder": _text_encoder(),
            "vae": _vae(posterior_logvar, vae or {}),
            "transformer": CogVideoXTransformer3DModel(**(_TRANSFORMER | overrides)),
            "scheduler": CogVideoXDPMScheduler(**(_SCHEDULER | dict(scheduler or {}))),
        }
        _perturb(parts["transformer"], perturb)
    takes_image = parts["transformer"].config["in_channels"] == 2 * CHANNELS
    pipeline = CogVideoXImageToVideoPipeline if takes_image else CogVideoXPipeline
    pipeline(**parts).save_pretrained(folder)
    return folder


_TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 2 * CHANNELS,
    "out_channels": CHANNELS,
    "time_embed_dim": 16,
    "text_embed_dim": TEXT_WIDTH,
    "num_layers": 2,
    "sample_width": WIDTH // 4,
    "sample_height": HEIGHT // 4,
    "sample_frames": FRAMES,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": TEXT_LENGTH,
    "use_rotary_positional_embeddings": True,
}


def _perturb(transformer: CogVideoXTransformer3DModel, size: float) -> None:
    with torch.no_grad():
        for name, tensor in transformer.state_dict().items():
            if tensor.ndim == 1 or "pos_embedding" in name:
                tensor.add_(torch.randn_like(tensor), alpha=size)


# The noise schedule of CogVideoX-5B.
_SCHEDULER: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "snr_shift_scale": 1.0,
}


def _text_encoder() -> T5EncoderModel:
    sizes: dict[str, Any] = {"d_model": TEXT_WIDTH, "d_ff": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(WORDS) + 3, dropout_rate=0.0, **sizes)).eval()


def _vae(logvar: float | None, overrides: Mapping[str, Any]) -> AutoencoderKLCogVideoX:
    sizes: dict[str, Any] = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 3,
        "up_block_types": ("CogVideoXUpBlock3D",) * 3,
        "block_out_channels": (4, 8, 8),
        "latent_channels": CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "temporal_compression_ratio": 4,
        "sample_height": HEIGHT,
        "sample_width": WIDTH,
        "scaling_factor": 0.7,
    }
    vae = AutoencoderKLCogVideoX(**(sizes | dict(overrides))).eval()
    if logvar is not None:
        head = vae.encoder.conv_out.conv
        channels = vae.config["latent_channels"]
        assert head.bias is not None
        with torch.no_grad():
            head.weight[channels:] = 0.0
            head.bias[channels:] = logvar
    return vae
