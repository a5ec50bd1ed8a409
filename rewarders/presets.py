"""Named weightings of the six dimensions, and which feedback a run learns from. Imports no torch.

The paper ("Aligning Anime Video Generation with Human Feedback") aligns with the plain mean of the six, and compares
four weightings in its Tab. 5. The numbers of that table are not here: no copy of it could be read when this was
written, and none are made up. `single:DIMENSION` and `equal` are the two kinds of feedback of OnlineVPO (its Tab. 4b):
of one dimension, and "global".
"""

from __future__ import annotations

from common.config import DIMENSIONS

PRESETS: dict[str, dict[str, float]] = {
    "equal": dict.fromkeys(DIMENSIONS, 1.0),
    **{f"single:{one}": {name: float(name == one) for name in DIMENSIONS} for one in DIMENSIONS},
}
