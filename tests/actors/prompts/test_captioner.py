"""The Qwen2-VL captioner over a tiny random model of the real classes: it runs, sees the frames, and is greedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.prompts.captioner import Qwen2VLCaptioner
from common.errors import ConfigError
from tests.support.tiny_captioner import tiny_qwen
from tests.support.torn import without


def test_it_describes_what_it_sees(tmp_path: Path) -> None:
    captioner = Qwen2VLCaptioner(str(tiny_qwen(tmp_path)))
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    caption = captioner(frames)
    assert caption == captioner(frames)
    assert caption != captioner(np.zeros_like(frames))
    seen = captioner._images(images=list(frames), return_tensors="pt")["image_grid_thw"]
    turn = captioner._chat_turn(seen)
    assert turn.count("<|image_pad|>") == int(seen.prod(1).sum()) // 4
    assert turn.count("<|vision_start|>") == 3


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^captioner .*: cannot be loaded as AutoImageProcessor: ") as error:
        Qwen2VLCaptioner(str(tmp_path))
    assert "\n" not in str(error.value)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    name = "model.visual.patch_embed.proj.weight"
    without(tiny_qwen(tmp_path), name.replace("model.", ""))
    with pytest.raises(ConfigError) as error:
        Qwen2VLCaptioner(str(tmp_path))
    model = "Qwen2VLForConditionalGeneration"
    assert str(error.value) == f"captioner {tmp_path}: not a complete {model}: weights missing: {name}"
