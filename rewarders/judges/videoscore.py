"""VideoScore: an Idefics2 that reads a caption and frames, with a linear layer for five values from 1 to 4.

| checkpoint | frames | range |
|---|---|---|
| TIGER-Lab/VideoScore | 16 (the default here) | 1..4, so 100 (s - 1) / 3 |
| TIGER-Lab/VideoScore-v1.1 | ``frames = 48`` | the same |

The published checkpoints use a class of Mantis that transformers lacks: Idefics2 with a layer ``score`` on the last
token. This module implements it. The prompt that they were trained on is part of the model: the model folder must hold
it as ``prompt.txt``, word for word as on the model card, with ``{text}`` for the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, Idefics2Config, Idefics2Model
from transformers.models.idefics2.modeling_idefics2 import Idefics2PreTrainedModel

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from common.weights.tensors import state_digest
from rewarders.interface import Clip, JudgeResult
from rewarders.judges.adapter import InputSpec
from rewarders.judges.pretrained import CAPTION, from_pretrained, load_frozen, prompt_template


class Idefics2Regression(Idefics2PreTrainedModel):
    """Idefics2 with ``num_labels`` values, computed from the last token."""

    config_class = Idefics2Config

    def __init__(self, config: Idefics2Config) -> None:
        super().__init__(config)
        self.model = Idefics2Model(config)
        text: Any = config.text_config
        self.score = torch.nn.Linear(text.hidden_size, int(config.num_labels or 0), bias=False)
        self.post_init()

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Returns ``[B, num_labels]``, for inputs without padding at the end."""
        return self.score(self.model(**inputs).last_hidden_state[:, -1])


class VideoScore:
    """A `rewarders.interface.Judge` with five outputs."""

    outputs = ("visual", "temporal", "dynamic", "text", "factual")  # in the order of the published layer
    needs = InputSpec(frames=16, low=1.0, high=4.0)

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` if ``path`` lacks such a model, its processor or ``prompt.txt``."""
        self._model: Any = load_frozen(Idefics2Regression, judge.path).to(device)
        if self._model.config.num_labels != len(self.outputs):
            raise ConfigError(
                f"path = {judge.path!r}: the model has {self._model.config.num_labels} outputs; VideoScore has 5"
            )
        self._processor: Any = from_pretrained(AutoProcessor, judge.path)
        self._prompt, self._device = prompt_template(judge.path), device
        self.digest = f"{state_digest(self._model.state_dict())} {self._prompt}"

    @torch.inference_mode()
    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`. Clips are judged one by one, so that values do not depend on the batch."""
        return [self._result(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _result(self, clip: Clip, prompt: Prompt) -> dict[str, float]:
        frames = [Image.fromarray(frame) for frame in clip.frames]
        text = self._prompt.replace(CAPTION, prompt.text) + "<image> " * len(frames)
        inputs = self._processor(text=text, images=frames, return_tensors="pt").to(self._device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return dict(zip(self.outputs, self._model(**inputs)[0].float().tolist(), strict=True))
