"""DPO on pairs that people made before the run: HuViDPO's second stage ("HuViDPO: Enhancing Video Generation through
Direct Preference Optimization for Human-Centric Alignment", arXiv:2502.01690).

8 to 16 clips of one kind of motion are rated by people; low-rank adapters are trained on random pairs of them, against
a frozen reference. Chosen and rejected clip have first frames and captions of their own, so each is compared under its
own condition:

    logit = -beta/2 [ (e_theta(w | c_w) - e_ref(w | c_w)) - (e_theta(l | c_l) - e_ref(l | c_l)) ]

That is the loss of the paper's public code (`new_trian.py` of the repository Tankowa/HuViDPO; error in eps there, in v
here). The paper's own formulas carry no number that could be cited here.

Deviations, first:
1. The public code puts the clean first frame into x_t and leaves it out of the error, as its model has no other way to
   see it. CogVideoX takes it on channels of its own, and the error is over all frames, as in its training.
2. It gives all clips of a category one caption, and has dropout in the adapter (none here).
3. Pairs whose mean opinions are equal are left out; the public code takes either for the chosen one.

| symbol | here | meaning |
|---|---|---|
| w, l | kept candidates 0 (chosen) and 1 (rejected) | the clip with the higher mean opinion is w |
| c_w, c_l | the batch's conditions, one per candidate | caption and clean first frame of w, of l |
| beta | `algorithm.beta` | DPO temperature |

Pairs come from ``pairs = "FILE"`` (`common/data/offline_pairs.py`).
"""

from __future__ import annotations

from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from learner.algorithms.dpo import Dpo


class HumanPairs(Dpo):
    """DPO whose reference is never refreshed. The learner keeps the conditions of the two clips apart."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "human_pairs"``."""

        beta: float = Field(default=5000.0, gt=0, description="DPO temperature (half-beta convention, mean v error)")

    def reference_update(self, step: int) -> float:
        """The reference stays what training began with."""
        return 0.0
