"""VBench's aggregate scores of a clip, from its dimensions. All values here are 0..100, as in the papers' tables.

x_d is the value of dimension d, 0..1, [lo_d, hi_d] its published range, and w_d its weight:

```
n_d     = (x_d - lo_d) / (hi_d - lo_d)                                      RANGES
score   = sum over d of w_d n_d  /  sum over d of w_d                       WEIGHTS, 1 for all others
quality = score of the dimensions in QUALITY;  for VBench, of temporal flickering too
i2v     = score of i2v_subject, i2v_background and camera_motion
total   = (quality + i2v) / 2
```

Source: scripts/constant.py, scripts/cal_final_score.py and scripts/cal_i2v_final_score.py of the public code of VBench
(Huang et al. 2024) and VBench++ (Huang et al. 2025). n_d is not clamped there either.

Deviations: they compute the scores from the dimensions' means; the scores are linear, so their mean over clips that
have all dimensions is the same. A dimension that was not measured is 0 there; here a clip that lacks one has no score.
Camera motion is the exception: it needs prompts that name a camera motion, so it is left out where it was not measured.
The GAPO paper does that too: all four totals of its tables 1 and 6 follow from their eight dimensions in this way.
VBench's semantic and total score (16 dimensions) are not computed: no clip has them all.
"""

from __future__ import annotations

from collections.abc import Mapping

RANGES: Mapping[str, tuple[float, float]] = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
    "i2v_subject": (0.1462, 1.0),
    "i2v_background": (0.2615, 1.0),
    "camera_motion": (0.0, 1.0),
}
WEIGHTS: Mapping[str, float] = {"dynamic_degree": 0.5, "camera_motion": 0.1}
FLICKERING, CAMERA = "temporal_flickering", "camera_motion"
I2V = ("i2v_subject", "i2v_background")
QUALITY = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip


def aggregate_scores(values: Mapping[str, float]) -> dict[str, float]:
    """``quality``, ``i2v`` and ``total`` of a clip with these dimensions, as far as it has what they need; percent.

    A clip with both I2V dimensions is scored as VBench-I2V does it, any other as VBench does it.
    """
    image = all(name in values for name in I2V)
    quality = QUALITY if image else (*QUALITY, FLICKERING)
    if not all(name in values for name in quality):
        return {}
    found = {"quality": _score(values, quality)}
    if image:
        found["i2v"] = _score(values, (*I2V, CAMERA) if CAMERA in values else I2V)
        found["total"] = (found["quality"] + found["i2v"]) / 2
    return found


def _score(values: Mapping[str, float], names: tuple[str, ...]) -> float:
    weights = {name: WEIGHTS.get(name, 1.0) for name in names}
    return sum(weight * _normalised(name, values[name]) for name, weight in weights.items()) / sum(weights.values())


def _normalised(name: str, value: float) -> float:
    low, high = RANGES[name]
    return 100.0 * (value / 100.0 - low) / (high - low)
