"""What an algorithm is: which candidates it keeps, how it weighs them, its loss, and when the reference follows.

```
 N candidates, scored ── select() ──> kept candidates, a weight each ──> replay ──> weights(), loss() ──> optimizer step
      (exchange)                                                        (learner)   reference_update() ──> reference
```

One module of this folder is one algorithm: read it top to bottom and you have read the algorithm. To add one, write a
subclass of `Algorithm` in a file of your own and name it ``[algorithm] name = "package.module:Class"``
(docs/extending.md). `select` runs in the exchange and uses no torch; the rest runs in the learner.

| symbol | here | meaning |
|---|---|---|
| N | `sampler.candidates` | candidates of a group |
| k | `Algorithm.kept(N)` | candidates that a selection keeps, the same for every group |
| n | | groups in a micro-batch or in the global batch |
| R~ | `rewards` | reward of a candidate in [0, 1] |
| e_theta, e_ref | `LossInputs.policy`, `.reference` | mean squared v error of policy and reference |

Modules of algorithms import torch only where they compute, so that ``douga --help`` can list their keys without it.
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
    """A figure of an algorithm, averaged over the global batch of a step.

    It appears under ``metrics.NAME`` in metrics.jsonl, as ``douga_algorithm_NAME`` for Prometheus, and as a curve in
    the report, on the live page and on the dashboards.
    """

    name: str  # letters, digits and _
    help: str  # one sentence: what it tells
    unit: str = ""  # empty: a plain number


@dataclass(frozen=True)
class LossInputs:
    """What a loss is computed from, for n groups of k kept candidates. Candidates are in the order of `select`."""

    policy: Tensor  # float32 [n, k], e_theta, with gradient
    reference: Tensor | None  # float32 [n, k], e_ref; None where `Algorithm.needs_reference` is False
    weights: Tensor  # float32 [n, ...], this part of what `Algorithm.weights` returned
    rewards: Tensor  # float32 [n, k], R~


@dataclass(frozen=True)
class LossOutput:
    """A loss and the figures that were declared, one value per group."""

    loss: Tensor  # float32 [n]; the step's loss is the mean over the global batch
    metrics: Mapping[str, Tensor]  # name of each of `Algorithm.metrics` -> float32 [n]


class Algorithm(ABC):
    """Made from its section of the configuration. Holds no state: a resumed run decides what the killed one did."""

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig
    metrics: ClassVar[tuple[MetricSpec, ...]] = ()
    needs_reference: ClassVar[bool] = True  # whether the learner keeps a reference and runs its forward pass
    candidate_names: ClassVar[tuple[str, ...]] = ()  # what people call the kept candidates, e.g. chosen, rejected
    min_candidates: ClassVar[int] = 1  # smallest `sampler.candidates`

    def __init__(self, config: Any) -> None:
        self.config = config

    def kept(self, candidates: int) -> int:
        """k of a group of `candidates`: every selection has this many. All of them, unless a subclass says less."""
        return candidates

    @abstractmethod
    def select(self, rewards: Sequence[float]) -> Selection | None:
        """Which candidates of a group are trained on, from their R~ in index order. None: a tie, nothing to learn."""

    def weights(self, selected: Tensor) -> Tensor:
        """Weights [n, ...] of the global batch, from the weights [n, k] that `select` gave. By default these."""
        return selected

    @abstractmethod
    def loss(self, inputs: LossInputs) -> LossOutput:
        """The loss of each group of a micro-batch."""

    def reference_update(self, step: int) -> float:
        """Share of the policy that enters the reference after optimizer step `step` (1, 2, ...).

        0 keeps the reference, 1 copies the policy, a share r between them is an exponential moving average:
        reference <- (1 - r) reference + r policy.
        """
        del step
        return 0.0


def best_and_worst(rewards: Sequence[float]) -> tuple[int, int] | None:
    """Indices of the highest and the lowest reward, the lowest index first among equals; None when all are equal."""
    if max(rewards) == min(rewards):
        return None
    return rewards.index(max(rewards)), rewards.index(min(rewards))


def every(step: int, period: int) -> float:
    """`reference_update` of a reference that is copied every `period` steps; 0: never."""
    return float(period > 0 and step % period == 0)


def over_mean(weights: Tensor) -> Tensor:
    """Weights [n] of the global batch divided by their mean; weights that are all 0 stay 0."""
    weights = weights.contiguous()  # the order of a sum must not depend on strides
    mean = weights.mean()
    return weights / mean if mean > 0 else weights
