"""Dense optical flow between two frames: Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search" (DIS)."""

from __future__ import annotations

import cv2
import numpy as np

SMALLEST = 12  # pixels: DIS refuses frames whose sides are both shorter


def grey(frame: np.ndarray) -> np.ndarray:
    """Luminance uint8 ``[H, W]`` of a uint8 RGB frame ``[H, W, 3]`` (ITU-R BT.601)."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Displacements float32 ``[H, W, 2]`` (x, y) in pixels: ``before[p]`` is seen at ``after[p + flow[p]]``.

    The frames are `grey`. At least one side must have `SMALLEST` pixels.
    """
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    return dis.calc(before, after, None)
