"""What ReFL, InstructVideo and VADER share: the loss is minus the reward of a clip that the learner denoises itself.

    L = -w R(decode(x0)),    x0 denoised by the policy, with a gradient through its last steps

| algorithm | module | starts from | gradient through | frames that count |
|---|---|---|---|---|
| ReFL | `refl.py` | noise | one prediction of x0, at a random late step | all |
| InstructVideo | `instruct_video.py` | the sampled clip, partly noisy | the last steps | one of each segment |
| VADER | `vader.py` | noise | the last steps | some at random |

All rewards of the run must have a gradient (`rewarders/gradient/reward.py`). There is no reference and no comparison of
candidates: the first candidate of each group is kept, so ``sampler.candidates = 1`` suffices. Its sampled clip is the
start of InstructVideo; for the others it only shows the policy's reward in the journal.

| symbol | here | meaning |
|---|---|---|
| R | `Rollout.reward` [n, frames] | reward of a frame; its mean over the frames is the clip's |
| w | `Rollout.weights` | 1 |

Zhang et al. 2024 ("OnlineVPO", section 1) argue against such methods: they need the gradient of VAE and rewards, with
the memory for it (``python -m benchmarks.learning``), and they exploit weaknesses of the reward.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.config.algorithm import AlgorithmConfig
from common.messages import Selection
from learner.algorithms.base import Algorithm, LossOutput, MetricSpec

if TYPE_CHECKING:
    from torch import Tensor

    from learner.rollout import Rollout


class RewardGradient(Algorithm):
    """Base class; a subclass denoises clips and weighs their frames."""

    Config: type[AlgorithmConfig]
    needs_reference = False
    needs_rollouts = True
    candidate_names = ("sampled",)
    metrics = (MetricSpec("rollout_reward", "Mean reward R of the clips that the learner denoised, 0 .. 1."),)

    def kept(self, candidates: int) -> int:
        """1: the first candidate."""
        return 1

    def select(self, rewards: Sequence[float]) -> Selection | None:
        """The first candidate, whatever the rewards are: no group is a tie."""
        return Selection((0,), (1.0,))

    def loss(self, inputs: Rollout) -> LossOutput:
        """-w R of each group, [n]."""
        reward = self.reward(inputs)
        return LossOutput(-inputs.weights[:, 0] * reward, {"rollout_reward": reward})

    @abstractmethod
    def reward(self, rollout: Rollout) -> Tensor:
        """Denoise a clip of each group and return its reward, [n], with a gradient."""
