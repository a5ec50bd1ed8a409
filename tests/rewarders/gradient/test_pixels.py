"""The preprocessing with a gradient, against the image processors of `transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from common.errors import ConfigError
from rewarders.gradient.pixels import preprocessed

ROWS, COLUMNS = np.meshgrid(np.linspace(0, 3, 30), np.linspace(0, 4, 40), indexing="ij")
WAVES = [np.sin(ROWS + phase)[..., None] * np.cos(COLUMNS[..., None] + np.arange(3)) for phase in range(2)]
FRAMES = (127 + 100 * np.stack(WAVES)).astype(np.uint8)  # [2, 30, 40, 3]; smooth: PIL also clips between its two passes
CROP = {"size": {"shortest_edge": 16}, "crop_size": {"height": 12, "width": 14}}
CASES = [
    CLIPImageProcessorPil(**CROP),
    CLIPImageProcessorPil(**CROP, do_normalize=False),
    CLIPImageProcessorPil(do_resize=False, crop_size={"height": 12, "width": 14}),
    ViTImageProcessorPil(size={"height": 10, "width": 24}, resample=2),
    ViTImageProcessorPil(size={"height": 60, "width": 70}, resample=3),
]


def tensors(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255


@pytest.mark.parametrize("processor", CASES)
@pytest.mark.parametrize("tall", [False, True])
def test_it_is_the_processors_output_but_for_rounding(processor: Any, tall: bool) -> None:
    frames = FRAMES.transpose(0, 2, 1, 3).copy() if tall else FRAMES
    theirs = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    ours = preprocessed(tensors(frames), processor)
    assert ours.shape == theirs.shape
    deviation = max(processor.image_std) if processor.do_normalize else 1.0
    assert ((ours - theirs).abs().max() * deviation * 255).item() < 1.6  # levels of 255; rounded twice by PIL


def test_there_is_a_gradient() -> None:
    x = tensors(FRAMES).requires_grad_()
    preprocessed(x, CASES[0]).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_another_filter_is_refused() -> None:
    with pytest.raises(ConfigError, match="resizes with LANCZOS; a gradient needs BICUBIC or BILINEAR"):
        preprocessed(tensors(FRAMES), ViTImageProcessorPil(size={"height": 10, "width": 24}, resample=1))
