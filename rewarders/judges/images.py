"""Image rewards, frame by frame: a value for each frame, and their weighted mean for the clip.

| kind | model folder | value of a frame | range |
|---|---|---|---|
| `clip_score` | any `CLIPModel` with its processor, also PickScore | 2.5 max(0, cos(image, text)) | 0..1 |
| `aesthetic` | the same, with LAION's head (`HEAD_FILE`) beside it | head(image / its norm) | 1..10 |

Frames count alike, or as in InstructVideo: exp(-distance to the middle frame). ImageReward and MPS need code of their
own: serve them (`rewarders/judges/remote.py` says how).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel

from common.config import ConfigError, JudgeConfig
from common.memory import pass_on
from common.messages import Prompt
from common.tensors import state_digest
from rewarders.judges.adapter import Needs

CLIP_SCALE = 2.5  # of CLIPScore (Hessel et al., 2021)
HEAD_FILE = "aesthetic.safetensors"  # published as a pickle, which nobody should load: docs/rewards.md converts it
CHUNK = 16  # frames in one forward pass, all of one clip


class FrameReward(ABC):
    """A `rewarders.base.Reward`: the weighted mean of a value per frame, from `CLIPModel`'s embeddings."""

    dimension: str
    needs: Needs

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """`ConfigError` when ``path`` is no CLIP model with its processor."""
        self.model = opened(CLIPModel, judge.path).to(device).eval().requires_grad_(False)
        self.processor = opened(AutoProcessor, judge.path)
        self._device, self._weights = device, judge.frame_weights
        self.digest = f"{state_digest(self.model.state_dict())} {self._weights}"

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `Reward.score`. A clip is embedded alone, so that its value does not hang on the batch."""
        return [self._clip(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _clip(self, clip: np.ndarray, prompt: Prompt) -> float:
        pieces = [self._embedded(clip[at : at + CHUNK]) for at in range(0, len(clip), CHUNK)]
        values = self.of_frames(torch.cat(pieces), prompt).float().cpu()
        return float((values * frame_weights(self._weights, len(clip))).sum())

    def _embedded(self, frames: np.ndarray) -> torch.Tensor:
        """Unit image embeddings, ``[F, D]``."""
        inputs = self.processor(images=list(frames), return_tensors="pt").to(self._device)
        return unit(self.model.get_image_features(**inputs).pooler_output)

    @abstractmethod
    def of_frames(self, images: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """A value per frame, ``[F]``, from unit image embeddings ``[F, D]``."""


class ClipScore(FrameReward):
    """How well the frames show what the caption says."""

    dimension = "clip_score"
    needs = Needs(high=1.0)

    def of_frames(self, images: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.of_frames`. A caption is cut at what the text encoder takes."""
        inputs = self.processor(text=[prompt.text], return_tensors="pt", truncation=True, padding=True)
        text = unit(self.model.get_text_features(**inputs.to(self._device)).pooler_output)
        return CLIP_SCALE * (images @ text[0]).clamp(min=0)


class Aesthetic(FrameReward):
    """How pleasing the frames are, by LAION's linear layers on the image embedding."""

    dimension = "aesthetic"
    needs = Needs(low=1.0, high=10.0)

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """`ConfigError` also when there is no head in the folder, or one for another embedding."""
        super().__init__(judge, device)
        self.head = _head(Path(judge.path), self.model.config.projection_dim).to(device)
        self.digest += f" {state_digest(self.head.state_dict())}"

    def of_frames(self, images: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """See `FrameReward.of_frames`."""
        return self.head(images.float())[:, 0]


def opened(kind: Any, path: str) -> Any:
    """``kind.from_pretrained(path)``. `ConfigError` names the path when it is missing, or holds something else."""
    if not path:
        raise ConfigError("path: a model folder or hub id is needed")
    try:
        return kind.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        pass_on(error)
        raise ConfigError(f"path = {path!r}: no {kind.__name__}: {' '.join(str(error).split())[:200]}") from None


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows of length 1."""
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def frame_weights(kind: str, frames: int) -> torch.Tensor:
    """``[F]``, sum 1: all alike, or ``central``: exp(-|i - middle|), InstructVideo's with lambda 1."""
    if kind == "uniform":
        return torch.full((frames,), 1.0 / frames)
    weights = torch.exp(-(torch.arange(frames) - (frames - 1) / 2).abs())
    return weights / weights.sum()


def _head(folder: Path, width: int) -> torch.nn.Sequential:
    """The linear layers of a head's file, in the order of their numbers; dropout between them does nothing here."""
    file = folder / HEAD_FILE
    if not file.is_file():
        raise ConfigError(f"path = {str(folder)!r}: no aesthetic head there ({HEAD_FILE})")
    try:
        state = load_file(file)
        names = sorted({name.rpartition(".")[0] for name in state}, key=lambda name: int(name.rpartition(".")[2]))
        shapes = [state[f"{name}.weight"].shape for name in names]
        layers = [torch.nn.Linear(inputs, outputs) for outputs, inputs in shapes]
        for name, layer in zip(names, layers, strict=True):
            layer.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
    except Exception as error:
        pass_on(error)
        raise ConfigError(f"{file}: no linear layers: {' '.join(str(error).split())[:200]}") from None
    if not layers or layers[0].in_features != width or layers[-1].out_features != 1:
        raise ConfigError(f"{file}: layers from {width} to 1 are needed for the model beside it")
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)
