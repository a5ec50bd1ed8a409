"""A learner without a model (`common/simulation.py`), whose weights record the groups it trained on.

The weights are one counter per prompt group, and a step adds 1 to the counters of its groups. Published versions and
checkpoints thus show how often each group was used, which tests compare with the ledger. A second tensor pads the
weights to a realistic size.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch

from common.config import RunConfig
from common.exchange.api import LearnerExchange
from common.files import new_folder
from common.messages import WeightVersion
from common.simulation import Simulation
from common.weights.tensor_file import TensorStream
from common.weights.tensors import tensor_entry, whole_digest
from learner import checkpoint
from learner.loop import LearningLoop, StepResult

USES, BALLAST, POLICY = "uses", "ballast", "policy"


class SimulatedLearner(LearningLoop):
    """A simulated learner with one rank. It writes the same kinds of files under `folder` as a real one."""

    def __init__(self, config: RunConfig, folder: Path, worker: str = "learner-0") -> None:
        super().__init__(config, folder, worker)
        self._simulation = Simulation(config)
        self._uses = torch.zeros(0, dtype=torch.int32)

    def train_step(self, exchange: LearnerExchange | None) -> StepResult | None:
        """See `LearningLoop.train_step`."""
        if exchange is None:
            raise ValueError("the simulated learner needs the exchange")
        groups = exchange.lease_batch(self.worker, self.step + 1, self._learner_config.batch_size)
        if not groups:
            return None
        self._simulation.work(self.config.simulation.step_seconds, "step", self.step + 1)
        self._apply([one.ordinal for one in groups])
        return StepResult(
            ordinals=[one.ordinal for one in groups],
            loss=0.0,
            grad_norm=0.0,
            lr=0.0,
            lag=fmean(one.lag for one in groups),
            lag_max=max(one.lag for one in groups),
            reward=fmean(reward for one in groups for reward in one.rewards),
            metrics={metric.name: 0.0 for metric in self.algorithm.metrics},
        )

    def _apply(self, ordinals: list[int]) -> None:
        missing = max(ordinals) + 1 - len(self._uses)
        if missing > 0:
            self._uses = torch.cat([self._uses, torch.zeros(missing, dtype=torch.int32)])
        for ordinal in ordinals:
            self._uses[ordinal] += 1

    def refresh(self, policy_fraction: float = 1.0) -> None:
        """See `LearningLoop.refresh`. There is no reference."""

    def publish(self, exchange: LearnerExchange | None) -> WeightVersion | None:
        """See `LearningLoop.publish`."""
        if exchange is None:
            return None
        version = self.publish_and_announce(exchange, TensorStream.of(self._state()), "full")
        self.version = version.version
        return version

    def _state(self) -> dict[str, torch.Tensor]:
        rest = max(1, self.config.simulation.weights_bytes - self._uses.nbytes)
        ballast = torch.full((rest,), self.step % 256, dtype=torch.uint8)
        return {USES: self._uses, BALLAST: ballast}

    def save(self, exchange: LearnerExchange | None) -> None:
        """See `LearningLoop.save`."""
        with new_folder(checkpoint.place(self._checkpoints, self.step)) as folder:
            checkpoint.write_tensors(folder, POLICY, TensorStream.of({USES: self._uses}))
            checkpoint.write_progress(folder, self.progress(world=1, architecture="simulated"))
        checkpoint.prune(self._checkpoints, self._learner_config.keep_checkpoints)
        if exchange is not None:
            exchange.record_checkpoint(self.step)

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
