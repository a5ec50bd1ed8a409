"""Captions by Qwen2-VL, loaded from a local folder or hub id.

Frames are passed as separate images of one chat turn. The model's own processor class is not used: its video part
requires torchvision, which may be missing on CPU machines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

from common.models.cogvideox import torch_dtype
from common.models.pretrained import from_pretrained, load_model

INSTRUCTION = (
    "These are frames of one short video, in order. Describe in one sentence who does what, and where. "
    "Answer with the description alone."
)
MAX_TOKENS = 96


class Qwen2VLCaptioner:
    """A `Captioner`. `path` is the folder or hub id of a Qwen2-VL model. `ConfigError` if it cannot be loaded."""

    def __init__(self, path: str, dtype: str = "float32", device: str = "cpu") -> None:
        where = f"captioner {path}"
        self._images: Any = from_pretrained(AutoImageProcessor, path, where)
        self._tokenizer: Any = from_pretrained(AutoTokenizer, path, where)
        model, _ = load_model(Qwen2VLForConditionalGeneration, path, where, dtype=torch_dtype(dtype))
        self._model: Any = model.to(device).eval()

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> str:
        """The caption of uint8 `frames` [F, H, W, 3]. Greedy decoding: the same frames give the same caption."""
        pictures = [Image.fromarray(frame) for frame in frames]
        inputs = self._images(images=pictures, return_tensors="pt").to(self._model.device)
        tokens = self._tokenizer(self._chat_turn(inputs["image_grid_thw"]), return_tensors="pt").to(self._model.device)
        answer = self._model.generate(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=inputs["pixel_values"].to(self._model.dtype),
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=(tokens["input_ids"] == self._model.config.image_token_id).long(),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
        )
        generated = answer[0, tokens["input_ids"].shape[1] :]
        return " ".join(self._tokenizer.decode(generated, skip_special_tokens=True).split())

    def _chat_turn(self, grids: torch.Tensor) -> str:
        """The chat turn, with one image token per merged patch of each image. `grids` [F, 3] holds (t, h, w)."""
        merged = self._images.merge_size**2
        pads = ["<|image_pad|>" * int(grid.prod() // merged) for grid in grids]
        pictures = "".join(f"<|vision_start|>{pad}<|vision_end|>" for pad in pads)
        return f"<|im_start|>user\n{pictures}{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
