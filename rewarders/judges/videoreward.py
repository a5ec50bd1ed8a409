"""VideoReward (Liu et al., 2025, "Improving Video Generation with Human Feedback"): Qwen2-VL with three reward tokens.

```
frames at 2 fps, 100352..200704 pixels each --> pairs of frames --> patches --> vision tower --> <|video_pad|> tokens
prompt template with the caption --> ... <|VQ_reward|> ... <|MQ_reward|> ... <|TA_reward|> ...
raw value of d in {VQ, MQ, TA}:  r_d = w . h(position of its token)      h: the last hidden states, w: `rm_head`
output:                          z_d = (r_d - mean_d) / deviation_d
```

| output | token | mean | deviation |
|---|---|---|---|
| visual | VQ, visual quality | 3.6757 | 2.2476 |
| motion | MQ, motion quality | 1.1646 | 1.3811 |
| text | TA, text alignment | 2.8105 | 2.5121 |

The prompt template is part of the model: ``prompt.txt`` in its folder holds the whole chat turn as the published code
builds it, with ``{text}`` for the caption and ``<|video_pad|>`` for the clip.

Deviations from the published code: frames are taken at multiples of 1/2 s (an odd number of frames is resampled evenly
over the same time to an even one, because they come in pairs); a clip shorter than 2 s is shown with the frames it has,
not four; resizing is PIL's bicubic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLConfig, Qwen2VLModel, Qwen2VLPreTrainedModel

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from common.weights.tensors import state_digest
from rewarders.interface import Clip, JudgeResult
from rewarders.judges.adapter import InputSpec
from rewarders.judges.pretrained import CAPTION, from_pretrained, load_frozen, prompt_template

VIDEO_TOKEN = "<|video_pad|>"
REWARD_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
MEANS, DEVIATIONS = (3.6757, 1.1646, 2.8105), (2.2476, 1.3811, 2.5121)
PIXELS = {
    "shortest_edge": 128 * 28 * 28,
    "longest_edge": 448 * 448,
}  # limits of a frame's area
PAIR = 2  # frames in one patch
VIDEO_TYPE = 2  # Qwen2-VL's token type of video tokens; text is 0
OLD_NAMES = {r"^visual\.": "model.visual.", r"^model\.(?!language_model\.|visual\.)": "model.language_model."}


class Qwen2VLReward(Qwen2VLPreTrainedModel):
    """Qwen2-VL with a linear layer ``rm_head``: one output for all reward tokens or one each (``num_labels``)."""

    config_class = Qwen2VLConfig

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        self.model = Qwen2VLModel(config)
        text: Any = config.text_config
        self.rm_head = torch.nn.Linear(text.hidden_size, int(config.num_labels or 0), bias=False)
        self.post_init()

    def forward(self, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Returns the raw values ``[3]`` at the token `positions` ``[3]`` of one clip's inputs."""
        hidden = self.model(**inputs, use_cache=False).last_hidden_state[0, positions]
        values = self.rm_head(hidden)
        return values.diagonal() if values.shape[1] > 1 else values[:, 0]


class VideoReward:
    """A `rewarders.interface.Judge` with three outputs, z-scores by the published means and deviations."""

    outputs = ("visual", "motion", "text")
    needs = InputSpec(fps=2.0, multiple=PAIR, low=-3.0, high=3.0)

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` if ``path`` lacks such a model, its image processor, tokenizer or ``prompt.txt``."""
        self._model: Any = load_frozen(Qwen2VLReward, judge.path, key_mapping=OLD_NAMES).to(device)
        if self._model.config.num_labels not in (1, len(REWARD_TOKENS)):
            raise ConfigError(
                f"path = {judge.path!r}: rm_head has {self._model.config.num_labels} outputs; must be 1 or 3"
            )
        self._image_processor: Any = from_pretrained(AutoImageProcessor, judge.path, backend="pil")
        self._tokenizer: Any = from_pretrained(AutoTokenizer, judge.path)
        self._template, self._device = prompt_template(judge.path, VIDEO_TOKEN, *REWARD_TOKENS), device
        unknown = [mark for mark in (VIDEO_TOKEN, *REWARD_TOKENS) if mark not in self._tokenizer.get_vocab()]
        if unknown:
            raise ConfigError(f"path = {judge.path!r}: its tokenizer has no {unknown[0]}")
        self.digest = f"{state_digest(self._model.state_dict())} {self._template}"

    @torch.inference_mode()
    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`. Clips are judged one by one, so that values do not depend on the batch."""
        return [self._result(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _result(self, clip: Clip, prompt: Prompt) -> JudgeResult:
        reserved = [mark for mark in (VIDEO_TOKEN, *REWARD_TOKENS) if mark in prompt.text]
        if reserved:
            return f"the caption contains {reserved[0]}, a token that the prompt template uses"
        raw = self._model(**self._inputs(clip.frames, prompt.text)).float().tolist()
        rows = zip(self.outputs, raw, MEANS, DEVIATIONS, strict=True)
        return {name: (value - mean) / deviation for name, value, mean, deviation in rows}

    def _inputs(self, frames: np.ndarray, caption: str) -> dict[str, torch.Tensor]:
        patches, grid = video_patches(self._image_processor, frames)
        pads = VIDEO_TOKEN * (int(grid.prod()) // self._image_processor.merge_size**2)
        text = self._template.replace(VIDEO_TOKEN, pads).replace(CAPTION, caption)
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        marks = torch.tensor(self._tokenizer.convert_tokens_to_ids(list(REWARD_TOKENS)))
        inputs = {
            "input_ids": ids,
            "mm_token_type_ids": VIDEO_TYPE * (ids == self._tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)).int(),
            "pixel_values_videos": patches.to(self._model.dtype),
            "video_grid_thw": grid[None],
            "positions": (ids == marks[:, None]).int().argmax(1),
        }
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}


def video_patches(image_processor: Any, frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Converts uint8 ``[F, H, W, 3]``, F even, to patches ``[F/2 h w, 3 * 2 * p * p]`` and the grid (F/2, h, w) in
    patches.

    The processor's video path needs torchvision. Its image path turns a frame into the patches of a video that shows it
    twice, ``[h w, 3, 2, p p]``: a pair of frames takes time 0 from its first frame and time 1 from its second.
    """
    processed = image_processor(images=list(frames), size=PIXELS, return_tensors="pt")
    twice = processed["pixel_values"].unflatten(0, (len(frames) // PAIR, PAIR, -1)).unflatten(-1, (3, PAIR, -1))
    pairs = torch.stack([twice[:, time, :, :, time] for time in range(PAIR)], dim=3)
    _, height, width = processed["image_grid_thw"][0].tolist()
    return pairs.flatten(0, 1).flatten(1), torch.tensor([len(frames) // PAIR, height, width])
