"""Image reward models as judges of clips: one value per frame, and their weighted mean for the clip.

| kind | model | value of a frame | range mapped to 0..100 |
|---|---|---|---|
| `clip_score` | any `CLIPModel`, also PickScore's | 2.5 max(0, cos(image, text)) | 0..1 |
| `hps` | HPSv2's `CLIPModel` | 100 cos(letterboxed image, text) | 10..40 |
| `aesthetic` | a `CLIPModel` | f(image embedding / its norm), f: LAION's linear layers | 1..10 |
| `image_reward` | `BlipForImageTextRetrieval` | (f(h) - 0.1672) / 1.0333, f: ImageReward's linear layers | -3..3 |

h is the caption's first token after BLIP's text encoder, whose layers attend to the image. The linear layers are files
in the model folder, `AESTHETIC_FILE` and `IMAGE_REWARD_FILE`. CLIPScore: Hessel et al., 2021. HPSv2: Wu et al., 2023.
ImageReward: Xu et al., 2023. Frames have equal weights, or InstructVideo's: exp(-distance to the middle frame).
docs/published-rewards.md describes how to convert the published files.
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
from rewarders.gradient.pixels import preprocessed, resized
from rewarders.judges.adapter import InputSpec, resize
from rewarders.judges.pretrained import from_pretrained, linear_layers, load_frozen

CLIP_SCALE = 2.5  # the factor of CLIPScore
AESTHETIC_FILE, IMAGE_REWARD_FILE = "aesthetic.safetensors", "image_reward.safetensors"
# ImageReward was trained with at most this many tokens; its values have this mean and standard deviation there.
TOKENS, MEAN, DEVIATION = 35, 0.16717362830052426, 1.0333394966054072
CHUNK = 16  # frames of one clip in one forward pass


class FrameReward(ABC):
    """A `rewarders.interface.Reward`: the weighted mean of one value per frame."""

    dimension: str
    needs: InputSpec
    model_class: ClassVar[Any]  # the model's class
    most_tokens: ClassVar[int | None] = None  # of a caption; None: as many as the tokenizer says

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` if ``path`` does not hold such a model with its image processor and tokenizer."""
        self.model = load_frozen(self.model_class, judge.path).to(device)
        # always PIL: torchvision resizes differently, and scores must not depend on what is installed
        self.image_processor = from_pretrained(AutoImageProcessor, judge.path, backend="pil")
        self.tokenizer = from_pretrained(AutoTokenizer, judge.path)
        self._device, self._weights = device, judge.frame_weights
        self.digest = f"{state_digest(self.model.state_dict())} {self._weights}"

    @classmethod
    def text_reader(cls, judge: JudgeConfig) -> tuple[Any, int] | None:
        """The tokenizer, and how many tokens of a caption are read; None for models that read none. No weights."""
        tokenizer = from_pretrained(AutoTokenizer, judge.path, local_files_only=True)
        return tokenizer, min(tokenizer.model_max_length, cls.most_tokens or tokenizer.model_max_length)

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `Reward.score`. Clips are scored one by one, so that a score does not depend on the batch."""
        return [self._clip(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _clip(self, clip: np.ndarray, prompt: Prompt) -> float:
        chunks = [self.frame_values(self.pixels(clip[at : at + CHUNK]), prompt) for at in range(0, len(clip), CHUNK)]
        values = torch.cat(chunks).float().cpu()
        return float((values * frame_weights(self._weights, len(clip))).sum())

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Converts uint8 frames ``[F, H, W, 3]`` to the model's normalised input ``[F, 3, h, w]``."""
        return self.image_processor(images=list(frames), return_tensors="pt")["pixel_values"].to(self._device)

    def frame_scores(self, clips: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """See `DifferentiableReward.frame_scores`. ``frame_weights`` count as in `score`."""
        rows = [self.frame_values(self.tensor_pixels(clip), one) for clip, one in zip(clips, prompts, strict=True)]
        count = clips.shape[1]
        return torch.stack(rows).float() * (count * frame_weights(self._weights, count)).to(clips.device)

    def tensor_pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """`pixels` of float frames ``[F, 3, H, W]`` in 0..1, with a gradient."""
        return preprocessed(frames, self.image_processor).to(self._device, self.model.dtype)

    def tokens(self, prompt: Prompt, **limits: Any) -> dict[str, torch.Tensor]:
        """Tokenizes the caption, truncated to the text encoder's limit: ``input_ids`` and ``attention_mask``, ``[1,
        L]``."""
        found = self.tokenizer([prompt.text], return_tensors="pt", truncation=True, **limits)
        return {name: found[name].to(self._device) for name in ("input_ids", "attention_mask")}

    def add_layers(self, file: Path, width: int) -> torch.nn.Module:
        """Loads linear layers from the model folder and adds them to the digest; see `linear_layers`."""
        layers = linear_layers(file, width).to(self._device)
        self.digest += f" {state_digest(layers.state_dict())}"
        return layers

    @abstractmethod
    def frame_values(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """Returns one value per frame, ``[F]``, for the output of `pixels`."""


class ClipReward(FrameReward):
    """A reward over `CLIPModel`'s embeddings."""

    model_class = CLIPModel

    def image_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image embeddings of length 1, ``[F, D]``."""
        return to_unit_length(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def cosines(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """Cosine similarity of each frame with the caption, ``[F]``."""
        text = to_unit_length(self.model.get_text_features(**self.tokens(prompt)).pooler_output)
        return self.image_embeddings(pixels) @ text[0]


class ClipScore(ClipReward):
    """How well the frames match the caption."""

    dimension = "clip_score"
    needs = InputSpec(high=1.0)

    def frame_values(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.frame_values`."""
        return CLIP_SCALE * self.cosines(pixels, prompt).clamp(min=0)


class Hps(ClipReward):
    """HPSv2: how much people would prefer the frames for this caption. Frames are letterboxed, so nothing is cropped.

    Published averages of image generators are 23..29 (v2) and 18..34 (v2.1); the range in `needs` leaves a margin.
    """

    dimension = "hps"
    needs = InputSpec(low=10.0, high=40.0)

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """See `FrameReward.pixels`."""
        return super().pixels(letterboxed(frames, self.model.config.vision_config.image_size))

    def tensor_pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """See `FrameReward.tensor_pixels`."""
        side = self.model.config.vision_config.image_size
        size, bars = letterbox(frames.shape[2:4], side)
        return super().tensor_pixels(torch.nn.functional.pad(resized(frames, size), (*bars[1], *bars[0])))

    def frame_values(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.frame_values`."""
        return 100.0 * self.cosines(pixels, prompt)


class Aesthetic(ClipReward):
    """How aesthetic the frames are: LAION's linear layers over the image embedding."""

    dimension = "aesthetic"
    needs = InputSpec(low=1.0, high=10.0)

    @classmethod
    def text_reader(cls, judge: JudgeConfig) -> None:
        """See `FrameReward.text_reader`."""
        return None

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` also if the layers are missing or do not fit the embedding."""
        super().__init__(judge, device)
        self.layers = self.add_layers(Path(judge.path) / AESTHETIC_FILE, self.model.config.projection_dim)

    def frame_values(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.frame_values`."""
        return self.layers(self.image_embeddings(pixels).float())[:, 0]


class ImageReward(FrameReward):
    """How much people would prefer the frames for this caption; BLIP's text encoder attends to the frame."""

    dimension = "image_reward"
    needs = InputSpec(low=-3.0, high=3.0)  # three standard deviations
    model_class = BlipForImageTextRetrieval
    most_tokens = TOKENS

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` also if the layers are missing or do not fit the text encoder."""
        super().__init__(judge, device)
        self.layers = self.add_layers(Path(judge.path) / IMAGE_REWARD_FILE, self.model.config.text_config.hidden_size)

    def frame_values(self, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.frame_values`."""
        seen = self.model.vision_model(pixel_values=pixels).last_hidden_state
        text = {name: row.expand(len(seen), -1) for name, row in self.tokens(prompt, max_length=TOKENS).items()}
        read = self.model.text_encoder(**text, encoder_hidden_states=seen).last_hidden_state
        return (self.layers(read[:, 0].float())[:, 0] - MEAN) / DEVIATION


def to_unit_length(embeddings: torch.Tensor) -> torch.Tensor:
    """Scales rows to length 1."""
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def letterbox(size: Sequence[int], side: int) -> tuple[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]]:
    """How frames of `size` (H, W) fit into a square: their new size, and the bars (above, below), (left, right)."""
    scale = side / max(size)
    height, width = (max(1, round(scale * length)) for length in size)
    top, left = (side - height) // 2, (side - width) // 2
    return (height, width), ((top, side - height - top), (left, side - width - left))


def letterboxed(frames: np.ndarray, side: int) -> np.ndarray:
    """Fits uint8 ``[F, H, W, 3]`` into ``[F, side, side, 3]``, with black bars beside the shorter side."""
    size, bars = letterbox(frames.shape[1:3], side)
    return np.pad(resize(frames, size), ((0, 0), *bars, (0, 0)))


def frame_weights(kind: str, frames: int) -> torch.Tensor:
    """Returns weights ``[F]`` with sum 1: equal, or for ``central`` InstructVideo's exp(-|i - middle|)."""
    if kind == "uniform":
        return torch.full((frames,), 1.0 / frames)
    weights = torch.exp(-(torch.arange(frames) - (frames - 1) / 2).abs())
    return weights / weights.sum()
