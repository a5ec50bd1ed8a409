"""How a model is usually sampled: what its folder and the machine say, and what CogVideoX's authors use.

| setting | from |
|---|---|
| frames, height, width | the transformer's config; where positions are learned, the only size that works |
| fps | the family: 8, or 16 for CogVideoX 1.5 |
| dtype | float32 on the CPU, else the checkpoint's; float16 becomes bfloat16 |
| scheduler | the checkpoint's |
| steps, guidance | 50 and 6, the defaults of the published pipelines |
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.models.cogvideox import ModelFolder
from common.models.shapes import frame_step, spatial_ratio

CLIP_1_5 = (768, 1360)  # height, width that CogVideoX 1.5 was trained on; its config names only the largest
STEPS, GUIDANCE = 50, 6.0


@dataclass(frozen=True)
class UsualSettings:
    """Settings of one model on one machine."""

    frames: int
    height: int
    width: int
    fps: int
    dtype: str
    device: str
    scheduler: str
    only_size: bool  # learned positions: no other size works

    def keys(self) -> dict[str, str]:
        """As configuration keys, with `STEPS` and `GUIDANCE`."""
        names = ("frames", "height", "width", "fps", "dtype", "device")
        model = {f"model.{name}": str(getattr(self, name)) for name in names}
        how = {"scheduler": self.scheduler, "steps": str(STEPS), "guidance": str(GUIDANCE)}
        return model | {f"sampler.{name}": value for name, value in how.items()}


def usual_settings(model: ModelFolder, device: str) -> UsualSettings:
    """Reads the configs and the head of a weight file. Raises `ConfigError` if there are no weights."""
    config, ratio = model.transformer_config, spatial_ratio(model.vae_config)
    most = (config["sample_height"] * ratio, config["sample_width"] * ratio)
    newer = bool(config["patch_size_t"])
    height, width = CLIP_1_5 if newer and most >= CLIP_1_5 else most
    unit, step = ratio * config["patch_size"], frame_step(model.vae_config)
    stored = _stored_dtype(model.path)
    ddim = "DDIM" in str(model.scheduler_config.get("_class_name", ""))
    return UsualSettings(
        frames=(config["sample_frames"] - 1) // step * step + 1,
        height=height // unit * unit,
        width=width // unit * unit,
        fps=16 if newer else 8,
        dtype="float32" if device == "cpu" or stored == "F32" else "bfloat16",
        device=device,
        scheduler="ddim" if ddim else "dpm",
        only_size=bool(config["use_learned_positional_embeddings"]),
    )


def _stored_dtype(folder: Path) -> str:
    """The dtype of most tensors in a transformer's first weight file, as safetensors writes it: F32, F16, BF16."""
    files = sorted((folder / "transformer").glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder / 'transformer'}: no weights (*.safetensors) in it")
    with files[0].open("rb") as file:
        head = file.read(8)
        try:
            described = json.loads(file.read(struct.unpack("<Q", head)[0]))
            kinds = [one["dtype"] for name, one in described.items() if name != "__metadata__"]
        except (ValueError, struct.error, KeyError, MemoryError, OverflowError):
            raise ConfigError(f"{files[0]}: not a safetensors file") from None
    return max(kinds, key=kinds.count, default="F32")
