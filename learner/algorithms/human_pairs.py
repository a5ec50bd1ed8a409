"""DPO on human preference pairs collected before the run: the second stage of HuViDPO ("HuViDPO: Enhancing Video
Generation through Direct Preference Optimization for Human-Centric Alignment", arXiv:2502.01690).

People rate 8 to 16 clips of one kind of motion. LoRA adapters are trained on random pairs of them against a frozen
reference. The chosen and the rejected clip have different first frames and captions, so the errors of each use its own
condition:

    logit = -beta/2 [ (e_theta(w | c_w) - e_ref(w | c_w)) - (e_theta(l | c_l) - e_ref(l | c_l)) ]

This is the loss of the paper's public code (`new_trian.py` in the repository Tankowa/HuViDPO), with the v error instead
of the eps error. It stands for the paper's equation 9.

Deviations from the public code:
1. It inserts the clean first frame into x_t and excludes it from the error, because its model has no other image input.
   CogVideoX gets the frame in separate channels, and the error covers all frames, as in its pretraining.
2. Its U-Net has sparse-causal attention. Here that is an option, `model.attention` (`common/models/attention.py`).
3. It uses one caption for all clips of a category, and dropout in the adapter. This module uses neither.
4. It picks either clip as chosen if the mean opinions are equal. Here such pairs are dropped.

| symbol | here | meaning |
|---|---|---|
| w, l | kept candidates 0 (chosen) and 1 (rejected) | the clip with the higher mean opinion is w |
| c_w, c_l | the batch's conditions, one per candidate | caption and clean first frame of w and of l |
| beta | `algorithm.beta` | DPO temperature |

The pairs are read from ``pairs = "FILE"`` (`common/data/offline_pairs.py`).
"""

from __future__ import annotations

from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from learner.algorithms.dpo import Dpo


class HumanPairs(Dpo):
    """DPO with a reference that is never refreshed, and with separate conditions for the two clips of a pair."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "human_pairs"``."""

        beta: float = Field(default=5000.0, gt=0, description="DPO temperature (half-beta convention, mean v error)")

    def reference_update(self, step: int) -> float:
        """0: the reference stays the initial policy."""
        return 0.0
