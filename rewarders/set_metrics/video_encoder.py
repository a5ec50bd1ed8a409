"""Features of a clip from a VideoMAE folder.

```
clip --> fps (optional): nearest frames --> the first num_frames frames --> the folder's image processor --> VideoMAE
     --> mean over tokens --> the classifier's normalisation, if the folder has a classifier --> [D]
```

These are the features that the classifier reads, as in the content-debiased FVD of Ge et al. 2024. Its encoder is
VideoMAE-v2 ViT-g, fine-tuned on Something-Something v2, for 16 frames squeezed to 224 x 224, with colours in 0..1: the
preprocessor_config.json of such a folder has ``"size": {"height": 224, "width": 224}``, and false for
``do_center_crop`` and ``do_normalize``.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, VideoMAEForVideoClassification, VideoMAEModel

from common.digests import digest
from common.errors import ConfigError
from common.weights.tensors import state_digest
from rewarders.interface import Clip
from rewarders.judges.adapter import InputSpec, adapt_clip
from rewarders.judges.pretrained import from_pretrained, load_frozen

PROCESSING = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


class VideoEncoder:
    """A frozen VideoMAE. `digest` covers its weights, its preprocessing and the frame rate."""

    def __init__(self, path: str, device: str, fps: float = 0.0) -> None:
        """`fps` is the rate at which clips are read; 0 is their own. Raises `ConfigError` for any other folder."""
        config = from_pretrained(AutoConfig, path)
        if config.model_type != "videomae":
            raise ConfigError(f"path = {path!r}: a model of type {config.model_type}; must be a VideoMAE")
        classifies = VideoMAEForVideoClassification.__name__ in (config.architectures or ())
        model = load_frozen(VideoMAEForVideoClassification if classifies else VideoMAEModel, path).to(device)
        self._tower, self._norm = (model.videomae, model.fc_norm) if classifies else (model, None)
        # always PIL: torchvision resizes differently, and features must not depend on what is installed
        self._processor = from_pretrained(AutoImageProcessor, path, backend="pil")
        self._device, self._fps = device, fps
        self.frames: int = config.num_frames
        self.width: int = config.hidden_size
        self.digest = digest(state_digest(model.state_dict()).encode(), self._processing().encode())
        self._check(path, config.image_size)

    def window(self, clip: Clip) -> Clip:
        """The frames that are read. Raises `ValueError` for a clip that is too short or too slow."""
        seen = adapt_clip(clip, InputSpec(fps=self._fps))
        if len(seen.frames) < self.frames:
            raise ValueError(
                f"a clip of {len(seen.frames)} frames at {seen.fps:g} per second; {self.frames} are needed"
            )
        return Clip(seen.frames[: self.frames], seen.fps)

    @torch.inference_mode()
    def __call__(self, window: Clip) -> np.ndarray:
        """Features float64 ``[D]`` of a `window`."""
        tokens = self._tower(pixel_values=self._pixels(window.frames)).last_hidden_state.mean(1)
        row = tokens if self._norm is None else self._norm(tokens)
        return row[0].double().cpu().numpy()

    def _pixels(self, frames: np.ndarray) -> torch.Tensor:
        pixels = self._processor(list(frames), return_tensors="pt")["pixel_values"]
        return pixels.to(self._device, self._tower.dtype)

    def _processing(self) -> str:
        stated = self._processor.to_dict()
        return json.dumps([stated.get(key) for key in PROCESSING] + [self._fps], default=dict)

    def _check(self, path: str, size: int) -> None:
        found = tuple(self._pixels(np.zeros((self.frames, size, 2 * size, 3), np.uint8)).shape[-2:])
        if found != (size, size):
            raise ConfigError(
                f"path = {path!r}: the image processor makes {found[0]} x {found[1]} pixels; the model needs {size} x "
                f"{size}"
            )
