"""VideoReward (Liu et al., 2025, "Improving Video Generation with Human Feedback"): a Qwen2-VL with three read-outs.

```
frames at 2 fps, 100352..200704 pixels each --> pairs of frames --> patches --> vision tower --> <|video_pad|> tokens
question with the caption in it --> ... <|VQ_reward|> ... <|MQ_reward|> ... <|TA_reward|> ...
raw value of d in {VQ, MQ, TA}:  r_d = w . h(position of its token)      h: the last hidden states, w: `rm_head`
output:                          z_d = (r_d - mean_d) / deviation_d
```

| output | token | mean | deviation |
|---|---|---|---|
| visual | VQ, visual quality | 3.6757 | 2.2476 |
| motion | MQ, motion quality | 1.1646 | 1.3811 |
| text | TA, text alignment | 2.8105 | 2.5121 |

The question is part of the model: ``prompt.txt`` in its folder holds the whole turn, as the published code builds it,
with ``{text}`` in the place of the caption and ``<|video_pad|>`` in that of the clip.

Deviations from the published code: frames stand at multiples of 1/2 s (an odd number of them is spread anew over the
same time, so that they come in pairs), and a clip of less than 2 s is not shown four frames but what it has; bicubic
resizing is PIL's.
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
from rewarders.interface import Clip, Opinion
from rewarders.judges.adapter import InputSpec
from rewarders.judges.checkpoints import CAPTION, opened, question, whole

CLIP_MARK = "<|video_pad|>"
MARKS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
MEANS, DEVIATIONS = (3.6757, 1.1646, 2.8105), (2.2476, 1.3811, 2.5121)
PIXELS = {"shortest_edge": 128 * 28 * 28, "longest_edge": 448 * 448}  # of a frame; the names are the processor's
PAIR = 2  # frames in one patch
VIDEO = 2  # how Qwen2-VL marks a token of a video, beside 0 for text
OLD_NAMES = {r"^visual\.": "model.visual.", r"^model\.(?!language_model\.|visual\.)": "model.language_model."}


class Qwen2VLReward(Qwen2VLPreTrainedModel):
    """Qwen2-VL with a layer ``rm_head`` of one output for all read-outs, or of one for each (``num_labels`` 1 or 3)."""

    config_class = Qwen2VLConfig

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        self.model = Qwen2VLModel(config)
        text: Any = config.text_config
        self.rm_head = torch.nn.Linear(text.hidden_size, int(config.num_labels or 0), bias=False)
        self.post_init()

    def forward(self, places: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """The raw values ``[3]`` at the positions `places` ``[3]`` of one clip's inputs."""
        hidden = self.model(**inputs, use_cache=False).last_hidden_state[0, places]
        values = self.rm_head(hidden)
        return values.diagonal() if values.shape[1] > 1 else values[:, 0]


class VideoReward:
    """A `rewarders.interface.Judge` of three outputs, in deviations from the mean of what the model was normalised
    on."""

    outputs = ("visual", "motion", "text")
    needs = InputSpec(fps=2.0, multiple=PAIR, low=-3.0, high=3.0)

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """`ConfigError` when ``path`` is no such model, or has no image processor, tokenizer or ``prompt.txt``."""
        self._model: Any = whole(Qwen2VLReward, judge.path, key_mapping=OLD_NAMES).to(device)
        if self._model.config.num_labels not in (1, len(MARKS)):
            raise ConfigError(
                f"path = {judge.path!r}: rm_head of {self._model.config.num_labels} outputs; 1 or 3 are read"
            )
        self._pictures: Any = opened(AutoImageProcessor, judge.path, backend="pil")
        self._words: Any = opened(AutoTokenizer, judge.path)
        self._question, self._device = question(judge.path, CLIP_MARK, *MARKS), device
        unknown = [mark for mark in (CLIP_MARK, *MARKS) if mark not in self._words.get_vocab()]
        if unknown:
            raise ConfigError(f"path = {judge.path!r}: its tokenizer has no {unknown[0]}")
        self.digest = f"{state_digest(self._model.state_dict())} {self._question}"

    @torch.inference_mode()
    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[Opinion]:
        """See `Judge.judge`. A clip is read alone, so that its values do not hang on the batch."""
        return [self._opinion(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _opinion(self, clip: Clip, prompt: Prompt) -> Opinion:
        stray = [mark for mark in (CLIP_MARK, *MARKS) if mark in prompt.text]
        if stray:
            return f"the caption holds {stray[0]}, which the question uses"
        raw = self._model(**self._inputs(clip.frames, prompt.text)).float().tolist()
        rows = zip(self.outputs, raw, MEANS, DEVIATIONS, strict=True)
        return {name: (value - mean) / deviation for name, value, mean, deviation in rows}

    def _inputs(self, frames: np.ndarray, caption: str) -> dict[str, torch.Tensor]:
        patches, grid = video_patches(self._pictures, frames)
        pads = CLIP_MARK * (int(grid.prod()) // self._pictures.merge_size**2)
        asked = self._question.replace(CLIP_MARK, pads).replace(CAPTION, caption)
        ids = self._words(asked, return_tensors="pt")["input_ids"]
        marks = torch.tensor(self._words.convert_tokens_to_ids(list(MARKS)))
        inputs = {
            "input_ids": ids,
            "mm_token_type_ids": VIDEO * (ids == self._words.convert_tokens_to_ids(CLIP_MARK)).int(),
            "pixel_values_videos": patches.to(self._model.dtype),
            "video_grid_thw": grid[None],
            "places": (ids == marks[:, None]).int().argmax(1),
        }
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}


def video_patches(pictures: Any, frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 ``[F, H, W, 3]``, F even -> patches ``[F/2 h w, 3 * 2 * p * p]`` and the grid (F/2, h, w) in patches.

    The processor's own half for videos wants torchvision. Its half for images makes of a frame the patches of a video
    that shows it twice, ``[h w, 3, 2, p p]``: a pair of frames takes the first time of one and the second of the other.
    """
    made = pictures(images=list(frames), size=PIXELS, return_tensors="pt")
    twice = made["pixel_values"].unflatten(0, (len(frames) // PAIR, PAIR, -1)).unflatten(-1, (3, PAIR, -1))
    pairs = torch.stack([twice[:, time, :, :, time] for time in range(PAIR)], dim=3)
    _, height, width = made["image_grid_thw"][0].tolist()
    return pairs.flatten(0, 1).flatten(1), torch.tensor([len(frames) // PAIR, height, width])
