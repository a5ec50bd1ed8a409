"""Supervised fine-tuning on the winners: the diffusion loss of the clips that the rewards prefer.

A control for the preference losses, and what reward-weighted regression (Peters & Schaal 2007) comes to with the gap as
its weight: L_SFT = sum of gap e_theta(w) / sum of gap. The reference and the loser do not enter.

`douga finetune` is this on real clips with equal weights, HuViDPO's first stage: eps is drawn, as in its public code,
and not inverted (`actors/ddim_inversion.py`). Equation number in the paper (arXiv 2502.01690): not sourced. There the
first frame stands clean in x_t and is left out of the error (`common/data/offline_pairs.py`, deviations).
"""

from __future__ import annotations

import torch

from learner.algorithms.gapo import normalised_gaps
from learner.algorithms.v_prediction import PairErrors


def sft_loss(errors: PairErrors, weight: torch.Tensor) -> torch.Tensor:
    """weight [n] times e_theta(w), [n]."""
    return weight * errors.policy_winner


def sft_weights(gap: torch.Tensor) -> torch.Tensor:
    """Weights of mean 1 from the gaps [n] of the whole global batch; equal weights where every gap is 0."""
    return normalised_gaps(gap) if gap.sum() > 0 else torch.ones_like(gap)
