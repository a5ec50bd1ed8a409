"""The first frame that a clip is compared with, for the rewards that need it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from common.images import first_frame, first_frame_png
from common.messages import Prompt


def reference_frame(clip: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Returns the prompt's first frame at the clip's size, uint8 ``[H, W, 3]``; the clip's frame 0 if it has none.

    It is the frame that the model was conditioned on: cropped, never squeezed. Raises `ValueError` if the image cannot
    be decoded.
    """
    if prompt.image is None:
        return clip[0]
    try:
        return first_frame(prompt.image, *clip.shape[1:3])
    except ValueError as error:
        raise ValueError(f"prompt {prompt.id}: {error}") from None


def with_first_frame(prompt: Prompt, clip: np.ndarray) -> Prompt:
    """Returns the prompt with its image as `reference_frame`, PNG. Raises `ValueError` if it cannot be decoded."""
    if prompt.image is None:
        return prompt
    try:
        return replace(prompt, image=first_frame_png(prompt.image, *clip.shape[1:3]))
    except ValueError as error:
        raise ValueError(f"prompt {prompt.id}: {error}") from None
