"""The first frame that a clip is compared with, for the rewards that need it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from common.messages import Prompt


def reference_frame(clip: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Returns the prompt's first frame, uint8 ``[H, W, 3]``, resized to the clip; the clip's frame 0 if it has none.

    Raises `ValueError` if the image cannot be decoded.
    """
    if prompt.image is None:
        return clip[0]
    try:
        image = Image.open(io.BytesIO(prompt.image)).convert("RGB")
    except OSError as error:
        raise ValueError(f"prompt {prompt.id}: cannot decode its first frame: {error}") from None
    height, width = clip.shape[1:3]
    return np.asarray(image if image.size == (width, height) else image.resize((width, height)))
