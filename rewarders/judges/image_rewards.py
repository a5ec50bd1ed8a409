"""Image rewards, frame by frame: a value for each frame, and their weighted mean for the clip.

| kind | model | value of a frame | becomes 0..100 |
|---|---|---|---|
| `clip_score` | any `CLIPModel`, also PickScore's | 2.5 max(0, cos(image, text)) | 0..1 |
| `hps` | HPSv2's `CLIPModel` | 100 cos(image between black bars, text) | 10..40 |
| `aesthetic` | a `CLIPModel` | f(image / its norm), f: LAION's linear layers | 1..10 |
| `image_reward` | `BlipForImageTextRetrieval` | (f(h) - 0.1672) / 1.0333, f: ImageReward's linear layers | -3..3 |

h is the first token of the caption after BLIP's text encoder, whose layers attend to the image. The linear layers lie
beside the model, in `AESTHETIC_FILE` and `IMAGE_REWARD_FILE`.
CLIPScore: Hessel et al., 2021. HPSv2: Wu et al., 2023. ImageReward: Xu et al., 2023. Frames count alike, or as in
InstructVideo: exp(-distance to the middle frame). docs/published-rewards.md says how to get there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, BlipForImageTextRetrieval, CLIPModel

from common.config import JudgeConfig
from common.messages import Prompt
from common.weights.tensors import state_digest
from rewarders.judges.adapter import InputSpec, resize
from rewarders.judges.checkpoints import linear_layers, opened, whole

CLIP_SCALE = 2.5  # of CLIPScore
AESTHETIC_FILE, IMAGE_REWARD_FILE = "aesthetic.safetensors", "image_reward.safetensors"
# ImageReward was trained on so many tokens; its values on its own training images have this mean and deviation.
TOKENS, MEAN, DEVIATION = 35, 0.16717362830052426, 1.0333394966054072
CHUNK = 16  # frames in one forward pass, all of one clip


class FrameReward(ABC):
    """A `rewarders.interface.Reward`: the weighted mean of a value per frame."""

    dimension: str
    needs: InputSpec
    kind: ClassVar[Any]  # the model's class

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """`ConfigError` when ``path`` is no such model with its image processor and tokenizer."""
        self.model = whole(self.kind, judge.path).to(device)
        # PIL's everywhere: torchvision's pixels differ, and scores must not hang on what is installed
        self.pictures = opened(AutoImageProcessor, judge.path, backend="pil")
        self.words = opened(AutoTokenizer, judge.path)
        self._device, self._weights = device, judge.frame_weights
        self.digest = f"{state_digest(self.model.state_dict())} {self._weights}"

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `Reward.score`. A clip is seen alone, so that its value does not hang on the batch."""
        return [self._clip(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _clip(self, clip: np.ndarray, prompt: Prompt) -> float:
        pieces = [self.of_frames(self.pixels(clip[at : at + CHUNK]), prompt) for at in range(0, len(clip), CHUNK)]
        values = torch.cat(pieces).float().cpu()
        return float((values * frame_weights(self._weights, len(clip))).sum())

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """What the model sees of uint8 frames ``[F, H, W, 3]``: ``[F, 3, h, w]``, normalised."""
        return self.pictures(images=list(frames), return_tensors="pt")["pixel_values"].to(self._device)

    def tokens(self, prompt: Prompt, **limits: Any) -> dict[str, torch.Tensor]:
        """The caption, cut at what the text encoder takes: ``input_ids`` and ``attention_mask``, ``[1, L]`` each."""
        found = self.words([prompt.text], return_tensors="pt", truncation=True, **limits)
        return {name: found[name].to(self._device) for name in ("input_ids", "attention_mask")}

    def add_layers(self, file: Path, width: int) -> torch.nn.Module:
        """The linear layers beside the model, which count in the digest; see `linear_layers`."""
        layers = linear_layers(file, width).to(self._device)
        self.digest += f" {state_digest(layers.state_dict())}"
        return layers

    @abstractmethod
    def of_frames(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """A value per frame, ``[F]``, from what `pixels` made of them."""


class ClipReward(FrameReward):
    """One that looks at `CLIPModel`'s embeddings."""

    kind = CLIPModel

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit image embeddings, ``[F, D]``."""
        return unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def cosines(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """Of each frame and the caption, ``[F]``."""
        text = unit(self.model.get_text_features(**self.tokens(prompt)).pooler_output)
        return self.embedded(pixels) @ text[0]


class ClipScore(ClipReward):
    """How well the frames show what the caption says."""

    dimension = "clip_score"
    needs = InputSpec(high=1.0)

    def of_frames(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.of_frames`."""
        return CLIP_SCALE * self.cosines(pixels, prompt).clamp(min=0)


class Hps(ClipReward):
    """How much people would like the frames for this caption, by HPSv2, which sees a frame whole, between black bars.

    Published averages of image generators lie in 23..29 (v2) and 18..34 (v2.1): `needs` leaves room around them.
    """

    dimension = "hps"
    needs = InputSpec(low=10.0, high=40.0)

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """See `FrameReward.pixels`."""
        return super().pixels(letterboxed(frames, self.model.config.vision_config.image_size))

    def of_frames(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.of_frames`."""
        return 100.0 * self.cosines(pixels, prompt)


class Aesthetic(ClipReward):
    """How pleasing the frames are, by LAION's linear layers on the image embedding."""

    dimension = "aesthetic"
    needs = InputSpec(low=1.0, high=10.0)

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """`ConfigError` also when there are no such layers in the folder, or those for another embedding."""
        super().__init__(judge, device)
        self.layers = self.add_layers(Path(judge.path) / AESTHETIC_FILE, self.model.config.projection_dim)

    def of_frames(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.of_frames`."""
        return self.layers(self.embedded(pixels).float())[:, 0]


class ImageReward(FrameReward):
    """How much people would like the frames for this caption: BLIP's text encoder reads it while it sees the frame."""

    dimension = "image_reward"
    needs = InputSpec(low=-3.0, high=3.0)  # three deviations
    kind = BlipForImageTextRetrieval

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """`ConfigError` also when there are no such layers in the folder, or those for another text encoder."""
        super().__init__(judge, device)
        self.layers = self.add_layers(Path(judge.path) / IMAGE_REWARD_FILE, self.model.config.text_config.hidden_size)

    def of_frames(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.of_frames`."""
        seen = self.model.vision_model(pixel_values=pixels).last_hidden_state
        asked = {name: row.expand(len(seen), -1) for name, row in self.tokens(prompt, max_length=TOKENS).items()}
        read = self.model.text_encoder(**asked, encoder_hidden_states=seen).last_hidden_state
        return (self.layers(read[:, 0].float())[:, 0] - MEAN) / DEVIATION


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows of length 1."""
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def letterboxed(frames: np.ndarray, side: int) -> np.ndarray:
    """uint8 ``[F, H, W, 3]`` -> ``[F, side, side, 3]``: the longer side fits, black bars fill the shorter one."""
    scale = side / max(frames.shape[1:3])
    height, width = (max(1, round(scale * length)) for length in frames.shape[1:3])
    top, left = (side - height) // 2, (side - width) // 2
    bars = ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0))
    return np.pad(resize(frames, (height, width)), bars)


def frame_weights(kind: str, frames: int) -> torch.Tensor:
    """``[F]``, sum 1: all alike, or ``central``: exp(-|i - middle|), InstructVideo's with lambda 1."""
    if kind == "uniform":
        return torch.full((frames,), 1.0 / frames)
    weights = torch.exp(-(torch.arange(frames) - (frames - 1) / 2).abs())
    return weights / weights.sum()
