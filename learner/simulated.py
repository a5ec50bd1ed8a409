"""A learner without a model (`common/simulation.py`), whose weights tell what was done to them.

The weights are one counter per prompt group: a step adds 1 to the counters of its pairs. So the published versions and
the checkpoints show how often every pair acted on them, which must be what the ledger says. A second tensor brings
them to the size of real weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from common.config import RunConfig
from common.exchange.api import RunExchange
from common.messages import TrainingPair, WeightVersion
from common.simulation import Simulation
from common.weights.store import new_folder
from common.weights.tensor_file import TensorStream
from common.weights.tensors import tensor_entry, whole_digest
from learner import checkpoint
from learner.loop import LearningLoop, StepResult

USES, BALLAST, POLICY = "uses", "ballast", "policy"


class SimulatedLearner(LearningLoop):
    """One rank. Its files under `folder` are those of a real learner, in kind."""

    def __init__(self, config: RunConfig, folder: Path, worker: str = "learner-0") -> None:
        super().__init__(config, folder, worker)
        self._simulation = Simulation(config)
        self._uses = torch.zeros(0, dtype=torch.int32)

    def take(self, exchange: RunExchange | None) -> StepResult | None:
        """See `LearningLoop.take`."""
        if exchange is None:
            raise ValueError("a simulated learner has one rank, which needs the exchange")
        pairs = exchange.lease_pairs(self.worker, self.step + 1, self._rules.pairs_per_step)
        if not pairs:
            return None
        self._simulation.work(self.config.simulation.step_seconds, "step", self.step + 1)
        self._apply([one.pair.ordinal for one in pairs])
        return _taken(pairs)

    def _apply(self, ordinals: list[int]) -> None:
        missing = max(ordinals) + 1 - len(self._uses)
        if missing > 0:
            self._uses = torch.cat([self._uses, torch.zeros(missing, dtype=torch.int32)])
        for ordinal in ordinals:
            self._uses[ordinal] += 1

    def refresh(self) -> None:
        """See `LearningLoop.refresh`. There is no reference."""

    def publish(self, exchange: RunExchange | None) -> WeightVersion | None:
        """See `LearningLoop.publish`."""
        if exchange is None:
            return None
        version = self.put_out(exchange, TensorStream.of(self._state()), "full")
        self.version = version.version
        return version

    def _state(self) -> dict[str, torch.Tensor]:
        rest = max(1, self.config.simulation.weights_bytes - self._uses.nbytes)
        ballast = torch.full((rest,), self.step % 256, dtype=torch.uint8)
        return {USES: self._uses, BALLAST: ballast}

    def save(self, exchange: RunExchange | None) -> None:
        """See `LearningLoop.save`."""
        with new_folder(checkpoint.place(self._checkpoints, self.step)) as folder:
            checkpoint.write_tensors(folder, POLICY, TensorStream.of({USES: self._uses}))
            checkpoint.write_progress(folder, self.progress(world=1, architecture="simulated"))
        checkpoint.prune(self._checkpoints, self._rules.keep_checkpoints)
        if exchange is not None:
            exchange.mark(self.step)

    def load(self, folder: Path) -> None:
        """See `LearningLoop.load`."""
        progress = checkpoint.read_progress(folder)
        checkpoint.check_agrees(folder, progress, self.progress(world=1, architecture="simulated"), "")
        self._uses = checkpoint.read_tensors(folder, POLICY)[USES]
        self.step, self.version = progress.step, progress.version

    def any(self, mine: bool) -> bool:
        """See `LearningLoop.any`."""
        return mine

    def policy_digest(self) -> str:
        """See `LearningLoop.policy_digest`."""
        return whole_digest(tensor_entry(name, tensor) for name, tensor in self._state().items())

    def close(self) -> None:
        """See `LearningLoop.close`."""


def _taken(pairs: Sequence[TrainingPair]) -> StepResult:
    """The figures that pairs alone give; those of a loss are 0."""
    count = len(pairs)
    return StepResult(
        ordinals=[one.pair.ordinal for one in pairs],
        loss=0.0,
        inside=0.0,
        margin=sum(one.pair.winner_reward - one.pair.loser_reward for one in pairs) / count,
        gap=sum(one.pair.gap for one in pairs) / count,
        winner_error=0.0,
        loser_error=0.0,
        grad_norm=0.0,
        lag=sum(one.lag for one in pairs) / count,
        lag_max=max(one.lag for one in pairs),
        reward=sum(one.pair.winner_reward + one.pair.loser_reward for one in pairs) / (2 * count),
    )
