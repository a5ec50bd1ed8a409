"""VBench's consistency metrics: cosines between the image embeddings of a clip's frames.

e_t is the embedding of frame t of F, of length 1, e_0 that of the prompt's image, and c(a, b) = max(0, e_a . e_b):

```
subject_consistency, background_consistency:  1/(F-1) sum over t = 2..F of (c(t, t-1) + c(t, 1)) / 2
i2v_subject:       0.4 max over t = 1..F of c(t, 0)  +  0.3 mean over t = 2..F of c(t, t-1)  +  0.3 min of the same
```

| kind | embedding | a frame, for a model of s pixels |
|---|---|---|
| `subject_consistency` | class token of a `ViTModel`; DINO ViT-B/16 | shorter side s, bilinear; nothing is cropped |
| `background_consistency` | image embedding of a `CLIPModel`; CLIP ViT-B/32 | shorter side s, bicubic; the middle |
| `i2v_subject` | as `subject_consistency` | shorter side s 256/224, bicubic, antialiased; the middle |

The middle is s x s pixels. Mean and standard deviation are those of the folder's image processor. Raw values are 0..1,
mapped to 0..100, as papers report them.

Source: Huang et al. 2024 (VBench), Huang et al. 2025 (VBench++), and their public code. i2v_subject is that of the code
since July 2024; its first version had 1/2 max + 1/2 mean. The maximum makes it lenient: a clip that shows the image in
one frame has all of the first part. Deviations: `transformers` interpolates DINO's position embeddings slightly
differently from DINO's own code. Whether VBench antialiases the frames of i2v_subject depends on its torchvision: it
does from 0.17 on. VBench averages the two consistencies over all frames of all clips; that is the mean over clips if
all have the same number of frames. With the model of another folder the numbers are not VBench's.

All three are 1 for a frozen clip, so they mean something only beside a measure of motion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoImageProcessor, CLIPModel, ViTModel

from common.config import JudgeConfig
from common.messages import Prompt
from common.weights.tensors import state_digest
from rewarders.first_frame import reference_frame
from rewarders.interface import Clip, JudgeResult
from rewarders.judges.adapter import InputSpec
from rewarders.judges.pretrained import from_pretrained, load_frozen

CHUNK = 16  # frames in one forward pass
TO_IMAGE, MEAN_STEP, WORST_STEP = 0.4, 0.3, 0.3  # weights of i2v_subject's parts


class FrameEncoder(ABC):
    """A frozen image encoder. `digest` identifies its weights."""

    def __init__(self, path: str, device: str) -> None:
        """Raises `ConfigError` if `path` holds no such model with its image processor."""
        self.model: Any = self.load(path).to(device)
        self.processor = from_pretrained(AutoImageProcessor, path, backend="pil")  # for its mean and deviation only
        self.digest = state_digest(self.model.state_dict())
        self._device = device

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Embeddings of length 1, float64 ``[F, D]``, of uint8 frames ``[F, H, W, 3]``."""
        rows = [self.embeddings(self._input(frames[at : at + CHUNK])) for at in range(0, len(frames), CHUNK)]
        return torch.nn.functional.normalize(torch.cat(rows).double(), dim=1).cpu().numpy()

    def _input(self, frames: np.ndarray) -> torch.Tensor:
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in (self.processor.image_mean, self.processor.image_std))
        return ((self.resized(frames) / 255 - mean) / std).to(self._device, self.model.dtype)

    @abstractmethod
    def load(self, path: str) -> Any:
        """Loads the model."""

    @abstractmethod
    def side(self) -> int:
        """Height and width of the model's training images in pixels."""

    @abstractmethod
    def resized(self, frames: np.ndarray) -> torch.Tensor:
        """What the model sees of uint8 frames ``[F, H, W, 3]``: float32 ``[F, 3, h, w]``, 0..255."""

    @abstractmethod
    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings of any length, ``[F, D]``."""


class Dino(FrameEncoder):
    """A ViT without a head, such as DINO: the class token."""

    def load(self, path: str) -> Any:
        """See `FrameEncoder.load`."""
        return load_frozen(ViTModel, path, add_pooling_layer=False)

    def side(self) -> int:
        """See `FrameEncoder.side`."""
        return int(self.model.config.image_size)

    def resized(self, frames: np.ndarray) -> torch.Tensor:
        """See `FrameEncoder.resized`."""
        return to_shorter_side(frames, self.side(), "bilinear", antialias=False)

    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `FrameEncoder.embeddings`."""
        return self.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


class DinoMiddle(Dino):
    """The same for the middle of a frame, as VBench-I2V shows it to DINO."""

    def resized(self, frames: np.ndarray) -> torch.Tensor:
        """See `FrameEncoder.resized`."""
        side = self.side()
        return middle(to_shorter_side(frames, side * 256 // 224, "bicubic", antialias=True), side)


class ClipImages(FrameEncoder):
    """CLIP: the projected image embedding."""

    def load(self, path: str) -> Any:
        """See `FrameEncoder.load`."""
        return load_frozen(CLIPModel, path)

    def side(self) -> int:
        """See `FrameEncoder.side`."""
        return int(self.model.config.vision_config.image_size)

    def resized(self, frames: np.ndarray) -> torch.Tensor:
        """See `FrameEncoder.resized`."""
        return middle(to_shorter_side(frames, self.side(), "bicubic", antialias=False), self.side())

    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `FrameEncoder.embeddings`."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output


class SubjectConsistency:
    """A `rewarders.interface.Judge` with one output: whether the frames show the same subject."""

    name: ClassVar[str] = "subject_consistency"
    encoder_class: ClassVar[type[FrameEncoder]] = Dino
    version = 2  # increase it with every change that alters a value
    needs = InputSpec(low=0.0, high=1.0)

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` if ``path`` holds no such model with its image processor."""
        self.encoder = self.encoder_class(judge.path, device)
        self.outputs, self.digest = (self.name,), f"{self.name} {self.version} {self.encoder.digest}"

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
    encoder_class = DinoMiddle

    def value(self, clip: Clip, prompt: Prompt) -> float | str:
        """See `SubjectConsistency.value`."""
        if prompt.image is None:
            return f"prompt {prompt.id} has no image"
        rows = self.encoder(clip.frames)
        image = self.encoder(reference_frame(clip.frames, prompt)[None])
        steps = to_previous(rows)
        return float(TO_IMAGE * similarity(rows, image).max() + MEAN_STEP * steps.mean() + WORST_STEP * steps.min())


def similarity(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines of rows ``[n, D]`` with `others` ``[n or 1, D]``, all of length 1; negative ones count as 0. ``[n]``."""
    return np.maximum(0.0, (rows * others).sum(1))


def to_previous(rows: np.ndarray) -> np.ndarray:
    """`similarity` of every row but the first with the one before it, ``[n - 1]``."""
    return similarity(rows[1:], rows[:-1])


def to_shorter_side(frames: np.ndarray, side: int, mode: str, antialias: bool) -> torch.Tensor:
    """Resizes uint8 ``[F, H, W, 3]`` until the shorter side has `side` pixels: ``[F, 3, h, w]``, whole numbers 0..255.

    The aspect ratio is kept. This is torchvision's Resize for uint8 tensors.
    """
    height, width = frames.shape[1:3]
    shorter = min(height, width)
    size = (int(side * height / shorter), int(side * width / shorter))
    pixels = torch.tensor(frames).permute(0, 3, 1, 2).float()
    return torch.nn.functional.interpolate(pixels, size, mode=mode, antialias=antialias).clamp(0, 255).round()


def middle(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """The middle ``[F, 3, side, side]`` of ``[F, 3, h, w]``."""
    top, left = (round((length - side) / 2) for length in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]
