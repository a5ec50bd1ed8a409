"""Shapes of a CogVideoX model, computed from its configs. Imports no torch, so that `douga plan` answers at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from common.errors import ConfigError

Config = Mapping[str, Any]  # a part's config.json, with the class's defaults filled in


def spatial_ratio(vae: Config) -> int:
    """Pixels per latent along one side."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def tiles(vae: Config) -> dict[str, Any]:
    """Arguments of diffusers' `enable_tiling`: its tiles of half the VAE's sample size, and its overlaps or a bit more.

    diffusers rounds steps in pixels and in latents apart. If they do not fit, it returns clips of another size, or
    fails; so tiles and overlaps are whole latents here. CogVideoX's own are: 40 of 240 and 72 of 360 pixels.
    """
    ratio, found = spatial_ratio(vae), {}
    for side, share in (("height", 1 / 6), ("width", 1 / 5)):
        latents = max(2, vae[f"sample_{side}"] // 2 // ratio)
        overlaps = range(max(1, math.ceil(latents * share)), latents)
        found[f"tile_sample_min_{side}"] = latents * ratio
        found[f"tile_overlap_factor_{side}"] = next(one / latents for one in overlaps if _fits(one, latents, ratio))
    return found


def _fits(overlap: int, latents: int, ratio: int) -> bool:
    """Whether diffusers makes of overlap / latents the steps that are meant. It rounds down, what is inexact by one."""
    share, pixels, step = overlap / latents, latents * ratio, latents - overlap
    steps = {int(latents * (1 - share)), latents - int(latents * share)}
    return steps == {step} and {int(pixels * (1 - share)), pixels - int(pixels * share)} == {step * ratio}


def frame_step(vae: Config) -> int:
    """Clips have a multiple of this many frames, and one more: an odd number of latent frames.

    The decoder takes two latent frames at a time. Of an odd number it gives the first one's single frame alone; of an
    even number it would give 4 frames for the first as well, so that 13 frames became 16.
    """
    return 2 * int(vae["temporal_compression_ratio"])


def latent_shape(
    name: str, transformer: Config, vae: Config, frames: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """(F, C, h, w) of a clip, without the padding of CogVideoX 1.5.

    Raises:
        ConfigError: the size does not fit the model. The message calls the model `name`.
    """
    temporal, ratio = int(vae["temporal_compression_ratio"]), spatial_ratio(vae)
    unit, frame_unit = ratio * transformer["patch_size"], frame_step(vae)
    excess = (frames - 1) % frame_unit
    if excess:
        _refuse(name, "frames", frames, f"{frame_unit}k+1 frames", frames - excess, frame_unit)
    for side, value in (("height", height), ("width", width)):
        if value % unit:
            _refuse(name, side, value, f"a multiple of {unit} pixels", value - value % unit, unit)
    _check_positions(name, transformer, ratio, frames, height, width)
    return (frames - 1) // temporal + 1, int(vae["latent_channels"]), height // ratio, width // ratio


def _refuse(name: str, key: str, value: int, rule: str, below: int, unit: int) -> NoReturn:
    near = f"{below} or {below + unit}" if below else str(unit)
    raise ConfigError(f"model.{key} = {value}: {name} needs {rule}: {near}")


def _check_positions(name: str, transformer: Config, ratio: int, frames: int, height: int, width: int) -> None:
    """Check the clip size against the position embeddings.

    Learned positions exist for one clip size only; diffusers silently falls back to sincos positions for other frame
    counts. The rotary table of CogVideoX 1.5 is sliced from the table of the sample size, so it cannot be larger.
    """
    most = (transformer["sample_height"] * ratio, transformer["sample_width"] * ratio)
    only = (transformer["sample_frames"], *most)
    if transformer["use_learned_positional_embeddings"] and (frames, height, width) != only:
        raise ConfigError(
            f"model.frames x height x width = {frames}x{height}x{width}: {name} has learned positions, "
            f"only {only[0]}x{only[1]}x{only[2]} works"
        )
    sliced = transformer["use_rotary_positional_embeddings"] and transformer["patch_size_t"]
    if sliced and (height > most[0] or width > most[1]):
        raise ConfigError(
            f"model.height x model.width = {height}x{width}: the rotary positions of {name} go up to "
            f"{most[0]}x{most[1]}"
        )


def front_padding(transformer: Config, frames: int) -> int:
    """Number of latent frames that the model call prepends to `frames`: 0 unless the config has a `patch_size_t`."""
    unit = transformer["patch_size_t"]
    return -frames % unit if unit else 0
