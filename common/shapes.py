"""The shapes of a CogVideoX model from its published configs. No torch: `douga plan` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.config import ConfigError

Config = Mapping[str, Any]  # a part's config.json, with the class's defaults filled in


def spatial_ratio(vae: Config) -> int:
    """Pixels per latent, on a side."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def latent_shape(
    name: str, transformer: Config, vae: Config, frames: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """(F, C, h, w) of a clip, without the padding of CogVideoX 1.5.

    `ConfigError` when the size does not fit the model, which it calls `name`.
    """
    temporal, ratio = int(vae["temporal_compression_ratio"]), spatial_ratio(vae)
    if (frames - 1) % temporal:
        raise ConfigError(f"model.frames = {frames}: {name} needs {temporal}k+1 frames")
    unit = ratio * transformer["patch_size"]
    for side, value in (("height", height), ("width", width)):
        if value % unit:
            raise ConfigError(f"model.{side} = {value}: {name} needs a multiple of {unit} pixels")
    only = (transformer["sample_height"] * ratio, transformer["sample_width"] * ratio)
    if transformer["use_learned_positional_embeddings"] and (height, width) != only:
        raise ConfigError(
            f"model.height x model.width = {height}x{width}: {name} has learned positions, "
            f"only {only[0]}x{only[1]} works"
        )
    return (frames - 1) // temporal + 1, int(vae["latent_channels"]), height // ratio, width // ratio


def front_padding(transformer: Config, frames: int) -> int:
    """Latent frames that the model call puts in front of `frames`: 0 unless the config has a `patch_size_t`."""
    unit = transformer["patch_size_t"]
    return -frames % unit if unit else 0
