"""Pictures as float tensors: the image preprocessing of `transformers` with a gradient, for rewards whose gradient an
algorithm follows.

```
frames in 0..1 ──> resize (bicubic, antialiased) ──> crop the centre ──> (x - mean) / std
```

Deviation: PIL rounds resized pixels to 8 bits; here they stay floats, so scores differ in the third digit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from common.errors import ConfigError

MODES = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}


def preprocessed(frames: torch.Tensor, processor: Any) -> torch.Tensor:
    """Returns the input ``[F, 3, h, w]`` that `processor` makes of float frames ``[F, 3, H, W]`` in 0..1.

    Raises `ConfigError` for a processor with other steps than resizing, cropping and normalising.
    """
    if processor.do_resize:
        frames = resized(
            frames,
            _size_for(processor, frames.shape[2], frames.shape[3]),
            mode_of(Image.Resampling(int(processor.resample))),
        )
    if getattr(processor, "do_center_crop", False):
        frames = _centre(frames, processor.crop_size["height"], processor.crop_size["width"])
    if not processor.do_normalize:
        return frames
    mean, std = (torch.tensor(one).to(frames).view(-1, 1, 1) for one in (processor.image_mean, processor.image_std))
    return (frames - mean) / std


def resized(frames: torch.Tensor, size: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """Resizes float frames ``[F, 3, H, W]`` to `size` (h, w), antialiased, like PIL's filter of that name."""
    if tuple(frames.shape[2:]) == size:
        return frames
    return interpolate(frames, size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def mode_of(how: Image.Resampling) -> str:
    """The `interpolate` mode of a PIL filter. Raises `ConfigError` for another one than bicubic and bilinear."""
    if how not in MODES:
        raise ConfigError(f"its image processor resizes with {how.name}; a gradient needs BICUBIC or BILINEAR")
    return MODES[how]


def to_bytes(frames: torch.Tensor) -> np.ndarray:
    """Converts float ``[..., 3, H, W]`` in 0..1 to uint8 ``[..., H, W, 3]``."""
    return (frames.detach().movedim(-3, -1) * 255).round().byte().cpu().numpy()


def from_bytes(frames: np.ndarray) -> torch.Tensor:
    """Converts uint8 ``[..., H, W, 3]`` to float32 ``[..., 3, H, W]`` in 0..1."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 255


def _size_for(processor: Any, height: int, width: int) -> tuple[int, int]:
    """The size (h, w) that the processor resizes to: a fixed one, or one of the given shorter side."""
    size = processor.size
    shorter = getattr(size, "shortest_edge", None) or size.get("shortest_edge")
    if not shorter:
        return size["height"], size["width"]
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def _centre(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    top, left = (frames.shape[2] - height) // 2, (frames.shape[3] - width) // 2
    if top < 0 or left < 0:
        raise ConfigError(f"its image processor crops {height}x{width} from {list(frames.shape[2:])}")
    return frames[:, :, top : top + height, left : left + width]
