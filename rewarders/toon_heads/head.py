"""A head: a trunk with a dimension, which scores clips."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from common.messages import Prompt
from common.toon.world import FRAMES, HEIGHT, WIDTH
from common.weights.tensors import state_digest
from rewarders.toon_heads.trunk import Trunk, View, bag_of_words

CHUNK = 4  # clips in one forward pass, always: floating-point sums must not depend on who shares the batch
DIGITS = 3  # decimals of a score
SHAPE = (FRAMES, HEIGHT, WIDTH, 3)


class AnimeHead(Trunk):
    """One dimension of AnimeReward on the toon world's clips, as a `rewarders.interface.Reward`.

    Subclasses say what they look at. Scores are 0 (worst) .. 100, rounded to `DIGITS` decimals, and NaN when the
    weights are not finite.
    """

    dimension: str
    VIEWS: ClassVar[tuple[View, ...]]
    CAPTION: ClassVar[bool] = False
    SEARCH: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(self.VIEWS, self.CAPTION, self.SEARCH)

    @property
    def digest(self) -> str:
        """blake2b-128 of the weights, hex."""
        return state_digest(self.state_dict())

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """Raw values of uint8 ``[9, 48, 64, 3]`` clips; the same for a clip in whatever batch.

        The first frame is the prompt's image, or the clip's own frame 0 where the prompt has none. `ValueError` for
        other shapes, or for another number of prompts than clips.
        """
        if len(clips) != len(prompts):
            raise ValueError(f"{self.dimension}: {len(clips)} clips but {len(prompts)} prompts")
        for clip in clips:
            if clip.dtype != np.uint8 or clip.shape != SHAPE:
                raise ValueError(
                    f"{self.dimension}: a clip is {clip.dtype} {list(clip.shape)}, not uint8 {list(SHAPE)}"
                )
        self.eval()
        values: list[float] = []
        for start in range(0, len(clips), CHUNK):
            values += self._chunk(clips[start : start + CHUNK], prompts[start : start + CHUNK])
        return values

    def _chunk(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        missing = CHUNK - len(clips)
        video = np.stack([*clips, *[clips[0]] * missing])
        firsts = [first_frame(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        words = bag_of_words([prompt.text for prompt in prompts] + [""] * missing)
        device = next(self.parameters()).device
        bad = self(
            to_pixels(torch.from_numpy(video).to(device)),
            to_pixels(torch.from_numpy(np.stack([*firsts, *[firsts[0]] * missing])).to(device)),
            words.to(device),
        )
        return [round(100.0 * (1.0 - value), DIGITS) for value in bad.mean(1).tolist()[: len(clips)]]


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """uint8 ``[..., H, W, 3]`` -> float32 ``[..., 3, H, W]`` in [0, 1]."""
    return frames.movedim(-1, -3).float().div(255)


def first_frame(clip: np.ndarray, prompt: Prompt) -> np.ndarray:
    """The clean first frame, uint8 ``[H, W, 3]``, brought to the clip's size."""
    if prompt.image is None:
        return clip[0]
    try:
        image = Image.open(io.BytesIO(prompt.image)).convert("RGB")
    except OSError as error:
        raise ValueError(f"prompt {prompt.id}: its first frame is no readable image: {error}") from None
    height, width = clip.shape[1:3]
    return np.asarray(image if image.size == (width, height) else image.resize((width, height)))
