"""Metrics of consecutive frames over optical flow (`rewarders/optical_flow/dis.py`), without a model.

f is the flow from v_t to v_t+1, b the flow back, p a pixel, and ~ marks what is looked up at p + f(p), bilinearly:

```
b~(p) = b(p + f(p))                      v~(p) = v_t+1(p + f(p))
visible(p) = |f + b~|^2 <= 0.01 (|f|^2 + |b~|^2) + 0.5     and p + f(p) is inside of the frame
warp_error:      E_t = mean over visible p and channels of (v_t(p) - v~(p))^2      raw value: - 1/(F-1) sum_t E_t
flow_magnitude:  L_t = mean of |f(p)| over the 5 % of pixels with the largest      raw value: 100 fps L / min(H, W)
```

| kind | raw value | range mapped to 0..100 |
|---|---|---|
| `warp_error` | minus the squared error of pixels 0..255, so it compares with `frame_mse` | -100..0: 100 - E |
| `flow_magnitude` | speed in % of the frame's shorter side per second | 0..100 |

`warp_error` is the warping error of Lai et al. 2018, "Learning Blind Video Temporal Consistency", with the occlusion
mask of Ruder et al. 2016, "Artistic Style Transfer for Videos" (equation numbers not verified). Deviations: DIS instead
of FlowNet 2, no mask of motion boundaries, the mean over channels of 0..255 instead of the sum over channels of 0..1,
and a pair without any visible pixel (a cut) counts with all of its pixels, unwarped. A frozen clip has no error.

`flow_magnitude` is the speed that VBench's dynamic degree (`dynamic_degree.py`) compares with a threshold, which is
18.75 here, but by another flow. More motion is not better by itself: noise has most.
"""

from __future__ import annotations

import cv2
import numpy as np

from rewarders.interface import Clip
from rewarders.judges.adapter import InputSpec
from rewarders.judges.frame_pairs import FramePairMetric
from rewarders.optical_flow.dis import SMALLEST, grey, optical_flow

RELATIVE, ABSOLUTE = 0.01, 0.5  # Ruder et al.; the second in pixels squared
FASTEST = 0.05  # share of pixels, as in VBench's dynamic degree


class WarpError(FramePairMetric):
    """What motion does not explain of the difference of consecutive frames, with a minus: higher is better."""

    name = "warp_error"
    needs = InputSpec(low=-100.0, high=0.0)
    smallest = SMALLEST

    def pair(self, before: np.ndarray, after: np.ndarray) -> float:
        """See `FramePairMetric.pair`."""
        one, other = grey(before), grey(after)
        return -warped_error(before, after, optical_flow(one, other), optical_flow(other, one))


class FlowMagnitude(FramePairMetric):
    """How fast the fastest parts of the frame move."""

    name = "flow_magnitude"
    needs = InputSpec(low=0.0, high=100.0)
    smallest = SMALLEST

    def value(self, clip: Clip) -> float:
        """See `FramePairMetric.value`."""
        return 100.0 * clip.fps * super().value(clip) / min(clip.frames.shape[1:3])

    def pair(self, before: np.ndarray, after: np.ndarray) -> float:
        """Mean flow of the fastest pixels in pixels per frame."""
        return fastest_mean(optical_flow(grey(before), grey(after)))


def warped_error(before: np.ndarray, after: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> float:
    """E_t of two frames ``[H, W, 3]`` and the flows ``[H, W, 2]`` between them."""
    visible = visible_pixels(forward, backward)
    if not visible.any():
        return float(np.square(before.astype(np.float64) - after).mean())
    error = np.square(before.astype(np.float64) - look_up(after.astype(np.float32), forward))
    return float(error[visible].mean())


def visible_pixels(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Which pixels of the first frame the second one shows too, bool ``[H, W]``, from the flows ``[H, W, 2]``."""
    back = look_up(backward, forward)
    apart = np.square(forward + back).sum(-1)
    lengths = np.square(forward).sum(-1) + np.square(back).sum(-1)
    x, y = _targets(forward)
    height, width = forward.shape[:2]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside & (apart <= RELATIVE * lengths + ABSOLUTE)


def look_up(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """``image[p + flow[p]]`` for every pixel p, bilinear; float32 ``[H, W, C]``. Outside, the nearest edge pixel."""
    x, y = _targets(flow)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def fastest_mean(flow: np.ndarray) -> float:
    """Mean length of the longest `FASTEST` of the vectors ``[H, W, 2]``, at least one."""
    lengths = np.sort(np.linalg.norm(flow, axis=-1).ravel())
    return float(lengths[-max(1, int(FASTEST * lengths.size)) :].mean())


def _targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates p + flow[p], float32 ``[H, W]`` each: x, y."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return x + flow[..., 0], y + flow[..., 1]
