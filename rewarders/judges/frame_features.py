"""VBench's consistency metrics: cosines between the image embeddings of a clip's frames.

e_t is the embedding of frame t of F, of length 1, e_0 that of the prompt's image, and c(a, b) = max(0, e_a . e_b):

```
subject_consistency, background_consistency:  1/(F-1) sum over t = 2..F of (c(t, t-1) + c(t, 1)) / 2
i2v_subject:                                  1/2 max over t = 1..F of c(t, 0)  +  1/2 mean over t = 2..F of c(t, t-1)
```

| kind | embedding | VBench's model |
|---|---|---|
| `subject_consistency`, `i2v_subject` | the class token of a `ViTModel` | facebook/dino-vitb16 |
| `background_consistency` | the image embedding of a `CLIPModel` | openai/clip-vit-base-patch32 |

For the ViT a frame's shorter side is resized to the model's (224 pixels), bilinear, and nothing is cropped. For CLIP
the folder's image processor decides. Raw values are 0..1, mapped to 0..100, as papers report them.

Source: Huang et al. 2024 (VBench), and the public code of VBench and VBench-I2V. The first half of i2v_subject is a
maximum there too: a clip that shows the image in one frame has all of it. Deviations: PIL resizes, not torch;
`transformers` interpolates DINO's position embeddings slightly differently from DINO's own code. VBench averages the
two consistencies over all frames of all clips; that is the mean over clips if all have the same number of frames. With
the model of another folder the numbers are not VBench's.

All three are 1 for a frozen clip, so they mean something only beside a measure of motion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, ViTModel

from common.config import JudgeConfig
from common.messages import Prompt
from common.weights.tensors import state_digest
from rewarders.first_frame import reference_frame
from rewarders.interface import Clip, JudgeResult
from rewarders.judges.adapter import InputSpec
from rewarders.judges.pretrained import from_pretrained, load_frozen

CHUNK = 16  # frames in one forward pass


class FrameEncoder(ABC):
    """A frozen image encoder. `digest` identifies its weights."""

    def __init__(self, path: str, device: str) -> None:
        """Raises `ConfigError` if `path` holds no such model with its image processor."""
        self.model: Any = self.load(path).to(device)
        # always PIL: torchvision resizes differently, and scores must not depend on what is installed
        self.processor = from_pretrained(AutoImageProcessor, path, backend="pil")
        self.digest = state_digest(self.model.state_dict())
        self._device = device

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Embeddings of length 1, float64 ``[F, D]``, of uint8 frames ``[F, H, W, 3]``."""
        rows = [self.embeddings(self._input(frames[at : at + CHUNK])) for at in range(0, len(frames), CHUNK)]
        return torch.nn.functional.normalize(torch.cat(rows).double(), dim=1).cpu().numpy()

    def _input(self, frames: np.ndarray) -> torch.Tensor:
        return self.pixels(frames).to(self._device, self.model.dtype)

    @abstractmethod
    def load(self, path: str) -> Any:
        """Loads the model."""

    @abstractmethod
    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """The model's input float32 ``[F, 3, h, w]`` for uint8 frames ``[F, H, W, 3]``."""

    @abstractmethod
    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings of any length, ``[F, D]``."""


class Dino(FrameEncoder):
    """A ViT without a head, such as DINO: the class token."""

    def load(self, path: str) -> Any:
        """See `FrameEncoder.load`."""
        return load_frozen(ViTModel, path, add_pooling_layer=False)

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """See `FrameEncoder.pixels`."""
        shorter = int(self.model.config.image_size)
        scaled = np.stack([_shorter_side(frame, shorter) for frame in frames]).astype(np.float32) / 255
        mean, std = (np.asarray(one, np.float32) for one in (self.processor.image_mean, self.processor.image_std))
        return torch.from_numpy((scaled - mean) / std).permute(0, 3, 1, 2)

    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `FrameEncoder.embeddings`."""
        return self.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


class ClipImages(FrameEncoder):
    """CLIP: the projected image embedding."""

    def load(self, path: str) -> Any:
        """See `FrameEncoder.load`."""
        return load_frozen(CLIPModel, path)

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """See `FrameEncoder.pixels`."""
        return self.processor(images=list(frames), return_tensors="pt")["pixel_values"]

    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `FrameEncoder.embeddings`."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output


class SubjectConsistency:
    """A `rewarders.interface.Judge` with one output: whether the frames show the same subject."""

    name: ClassVar[str] = "subject_consistency"
    encoder_class: ClassVar[type[FrameEncoder]] = Dino
    needs = InputSpec(low=0.0, high=1.0)

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` if ``path`` holds no such model with its image processor."""
        self.encoder = self.encoder_class(judge.path, device)
        self.outputs, self.digest = (self.name,), f"{self.name} {self.encoder.digest}"

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`. Clips are judged one by one, so that values do not depend on the batch."""
        return [self._result(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _result(self, clip: Clip, prompt: Prompt) -> JudgeResult:
        if len(clip.frames) < 2:
            return "a clip of 1 frame; at least 2 are needed"
        value = self.value(clip, prompt)
        return value if isinstance(value, str) else {self.name: value}

    def value(self, clip: Clip, prompt: Prompt) -> float | str:
        """The raw value of a clip with at least two frames, or why it has none."""
        rows = self.encoder(clip.frames)
        return float((to_previous(rows) + similarity(rows[1:], rows[:1])).mean() / 2)


class BackgroundConsistency(SubjectConsistency):
    """Whether the frames show the same scene: the same formula over CLIP's image embeddings."""

    name = "background_consistency"
    encoder_class = ClipImages


class I2vSubject(SubjectConsistency):
    """Whether the clip shows the subject of the prompt's image. A prompt without an image gets no score."""

    name = "i2v_subject"

    def value(self, clip: Clip, prompt: Prompt) -> float | str:
        """See `SubjectConsistency.value`."""
        if prompt.image is None:
            return f"prompt {prompt.id} has no image"
        rows = self.encoder(clip.frames)
        image = self.encoder(reference_frame(clip.frames, prompt)[None])
        return float(similarity(rows, image).max() / 2 + to_previous(rows).mean() / 2)


def similarity(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines of rows ``[n, D]`` with `others` ``[n or 1, D]``, all of length 1; negative ones count as 0. ``[n]``."""
    return np.maximum(0.0, (rows * others).sum(1))


def to_previous(rows: np.ndarray) -> np.ndarray:
    """`similarity` of every row but the first with the one before it, ``[n - 1]``."""
    return similarity(rows[1:], rows[:-1])


def _shorter_side(frame: np.ndarray, side: int) -> np.ndarray:
    """Resizes ``[H, W, 3]`` until its shorter side has `side` pixels; the aspect ratio is kept."""
    height, width = frame.shape[:2]
    shorter = min(height, width)
    size = (int(side * width / shorter), int(side * height / shorter))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
