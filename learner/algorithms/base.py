"""The interface of an algorithm: candidate selection, weights, loss, and updates of the reference.

```
 N candidates, scored ── select() ──> kept candidates, a weight each ──> replay ──> weights(), loss() ──> optimizer step
      (exchange)                                                        (learner)   reference_update() ──> reference
```

Each algorithm is one self-contained module of this folder. To add your own, write a subclass of `Algorithm` in any
module and set ``[algorithm] name = "package.module:Class"`` (docs/extending.md). `select` runs in the exchange and must
not use torch; all other methods run in the learner.

| symbol | here | meaning |
|---|---|---|
| N | `sampler.candidates` | candidates of a group |
| k | `Algorithm.kept(N)` | selected candidates of a group, the same for every group |
| n | | groups in a micro-batch or in the global batch |
| R~ | `rewards` | reward of a candidate in [0, 1] |
| e_theta, e_ref | `LossInputs.policy`, `.reference` | mean squared v error of policy and reference |

Algorithm modules import torch inside functions, so that ``douga --help`` can list their config keys without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from common.config.algorithm import AlgorithmConfig
from common.messages import Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """Declares a metric of an algorithm. It is averaged over the global batch of a step.

    It appears as ``metrics.NAME`` in metrics.jsonl, as ``douga_algorithm_NAME`` in Prometheus, and as a curve in the
    report, on the live page and in the dashboards.
    """

    name: str  # letters, digits and _ only
    help: str  # one sentence that says what it measures
    unit: str = ""  # empty: dimensionless


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss for n groups of k selected candidates each, in the order that `select` returned."""

    policy: Tensor  # float32 [n, k], e_theta, requires grad
    reference: Tensor | None  # float32 [n, k], e_ref; None where `Algorithm.needs_reference` is False
    weights: Tensor  # float32 [n, ...], the rows of `Algorithm.weights` for these groups
    rewards: Tensor  # float32 [n, k], R~


@dataclass(frozen=True)
class LossOutput:
    """The loss and all declared metrics, one value per group."""

    loss: Tensor  # float32 [n]; the step's loss is the mean over the global batch
    metrics: Mapping[str, Tensor]  # float32 [n] for each name in `Algorithm.metrics`


class Algorithm(ABC):
    """Built from the `[algorithm]` section of the configuration. Must be stateless, so that a run can be resumed."""

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig
    metrics: ClassVar[tuple[MetricSpec, ...]] = ()
    needs_reference: ClassVar[bool] = True  # whether the loss needs a reference and its forward pass
    needs_rollouts: ClassVar[bool] = False  # whether `loss` gets a `Rollout`, to denoise clips and score them itself
    candidate_names: ClassVar[tuple[str, ...]] = ()  # display names of the selected candidates, e.g. chosen, rejected
    min_candidates: ClassVar[int] = 1  # minimum value of `sampler.candidates`

    def __init__(self, config: Any) -> None:
        self.config = config

    def kept(self, candidates: int) -> int:
        """k, the number of candidates that `select` keeps of N = `candidates`. By default all of them."""
        return candidates

    @property
    def gradient_passes(self) -> int:
        """Forward passes of the policy per micro-batch with a gradient. `douga plan` needs it."""
        return 1

    @property
    def rollout_share(self) -> float:
        """The fraction of the denoising steps that a rollout takes, with or without a gradient. For `douga plan`."""
        return 0.0

    @abstractmethod
    def select(self, rewards: Sequence[float]) -> Selection | None:
        """Select the candidates of a group to train on.

        `rewards` are the N values R~ in [0, 1], by candidate index. None marks a tie: the group is not trained on.
        """

    def weights(self, selected: Tensor) -> Tensor:
        """Loss weights [n, ...] of the global batch, from the weights [n, k] of `select`. By default unchanged."""
        return selected

    @abstractmethod
    def loss(self, inputs: Any) -> LossOutput:
        """Loss and metrics of each group of a micro-batch.

        `inputs` is a `LossInputs`, or with `needs_rollouts` a `learner.rollout.Rollout`.
        """

    def reference_update(self, step: int) -> float:
        """The fraction r in [0, 1] for updating the reference after optimizer step `step` (1, 2, ...).

        The update is reference <- (1 - r) reference + r policy: 0 keeps the reference, 1 copies the policy, and values
        between make it an exponential moving average of the policy.
        """
        del step
        return 0.0


def best_and_worst(rewards: Sequence[float]) -> tuple[int, int] | None:
    """Indices of the highest and the lowest reward; ties go to the lowest index. None if all rewards are equal."""
    if max(rewards) == min(rewards):
        return None
    return rewards.index(max(rewards)), rewards.index(min(rewards))


def due(step: int, period: int) -> bool:
    """Whether an action with period `period` (0: never) is due after optimizer step `step`."""
    return period > 0 and step % period == 0


def over_mean(weights: Tensor) -> Tensor:
    """Divide the weights [n] of the global batch by their mean. Returns them unchanged if the mean is 0."""
    weights = weights.contiguous()  # the summation order must not depend on strides
    mean = weights.mean()
    return weights / mean if mean > 0 else weights
