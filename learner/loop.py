"""The training loop: lease a batch, take one optimizer step, commit it, then refresh, publish or save if due.

```
  refresh_due(step)  lease_batch(step)              commit_step(step)
 EXCHANGE ──────> ──────────────────> train_step() ─────────────────> reference_update(step): reference <- policy
             refresh                                                  every P: publish a version, announce it
                                                                      every checkpoint_every: save the checkpoint
```

P is `learner.steps_per_push`. The loop calls `refresh_due` only with ``guardrails.action = "refresh"``, where the
guardrails may request a refresh of the reference.

The learner blocks only on batches. Only rank 0 talks to the exchange; the other ranks pass None as `exchange`.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import RunConfig, leaves, may_change, open_algorithm
from common.exchange.api import LearnerExchange
from common.messages import SerializedTensor, StepStats, TrainingFinished, WeightVersion
from common.meters import NULL_METERS, Meters, TimedIterator
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream
from learner import checkpoint
from learner.algorithms.base import Algorithm, due

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of one optimizer step: the ordinals of its groups, and the values of `StepStats`."""

    ordinals: Sequence[int]
    loss: float
    grad_norm: float
    lr: float
    lag: float
    lag_max: int
    reward: float
    metrics: Mapping[str, float]

    def stats(self, step: int, seconds: float, refreshed: bool, pushed: bool) -> StepStats:
        """The record of `step` for the journal."""
        return StepStats(
            step=step,
            loss=self.loss,
            grad_norm=self.grad_norm,
            lr=self.lr,
            lag=self.lag,
            lag_max=self.lag_max,
            reward=self.reward,
            seconds=seconds,
            refreshed=refreshed,
            pushed=pushed,
            metrics=dict(self.metrics),
        )


class LearningLoop(ABC):
    """Base class of the learners. It writes weights/ and checkpoints/ under `folder`.

    `step` is the number of optimizer steps taken, `version` the newest published version (-1 before the first).
    """

    def __init__(self, config: RunConfig, folder: Path, worker: str, model: Mapping[str, str] | None = None) -> None:
        """`model` maps the parts of the base model to their fingerprints; None for a simulated learner."""
        self.config, self.worker = config, worker
        self._model = dict(model or {})
        self.step, self.version = 0, -1
        self._refreshed_at = -1  # step after which the guardrails' last request was applied
        # Embedding [L, D] of the empty caption; required if learner.caption_drop > 0.
        self.empty_embeds: SerializedTensor | None = None
        self.meters: Meters = NULL_METERS
        self.store = WeightStore(folder / "weights")
        self._checkpoints = folder / "checkpoints"
        self._learner_config = config.learner
        self.algorithm: Algorithm = open_algorithm(config.algorithm)

    @abstractmethod
    def train_step(self, exchange: LearnerExchange | None) -> StepResult | None:
        """Lease the next step's batch and update the weights. None if there is no full batch. Collective."""

    @abstractmethod
    def refresh(self, policy_fraction: float = 1.0) -> None:
        """Update the reference: reference <- (1 - f) reference + f policy, f = `policy_fraction`. Collective."""

    @abstractmethod
    def publish(self, exchange: LearnerExchange | None) -> WeightVersion | None:
        """Write the policy as a new version and announce it on rank 0; other ranks return None. Collective."""

    @abstractmethod
    def save(self, exchange: LearnerExchange | None) -> None:
        """Write a checkpoint of this step, delete the oldest ones, and record it in the exchange. Collective."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load the checkpoint in `folder`. Collective.

        Raises `ConfigError` if its settings or model differ from this run, and `CorruptDataError` if it is damaged.
        """

    @abstractmethod
    def any(self, mine: bool) -> bool:
        """Whether `mine` is true on at least one rank. Collective."""

    @abstractmethod
    def policy_digest(self) -> str:
        """Digest (hex) of the policy's weights. Collective."""

    @abstractmethod
    def close(self) -> None:
        """Release the learner's resources."""

    def resume(self, exchange: LearnerExchange | None) -> bool:
        """Load the newest checkpoint, if there is one, and publish the initial weights. Collective.

        Rolls the exchange back to the checkpoint, which undoes the uses of later steps. Without a checkpoint it starts
        from the base model, published as version 0. Returns whether there was a checkpoint. Raises like `load`.
        """
        saved = checkpoint.steps(self._checkpoints)
        if saved:
            self.load(checkpoint.place(self._checkpoints, saved[-1]))
            log.info("resumed from the checkpoint of step %d; later uses of pairs are rolled back", self.step)
        if exchange is not None:
            exchange.rollback(self.step)
        self.publish(exchange)
        return bool(saved)

    def work(self, exchange: LearnerExchange | None) -> StepStats | None:
        """Take one optimizer step, then publish and save if due. None if the exchange has no full batch. Collective."""
        started = time.perf_counter()
        self._apply_requested_refresh(exchange)
        result = self.train_step(exchange)
        if result is None:
            return None
        self.step += 1
        log.debug(
            "step %d: loss %.4g, %d groups, lag up to %d", self.step, result.loss, len(result.ordinals), result.lag_max
        )
        if exchange is not None:
            exchange.commit_step(self.step, result.ordinals)
        refreshed = self._refresh_after_step()
        pushed = due(self.step, self._learner_config.steps_per_push)
        if pushed:
            self.publish(exchange)
        if due(self.step, self._learner_config.checkpoint_every):
            self._save(exchange)
        return result.stats(self.step, time.perf_counter() - started, refreshed, pushed)

    def _refresh_after_step(self) -> bool:
        """Refresh the reference if the algorithm asks for it. Collective.

        Returns whether it was refreshed since the last step, also if the guardrails requested it before this step.
        """
        policy_fraction = self.algorithm.reference_update(self.step)
        if policy_fraction:
            self._refresh("algorithm", policy_fraction)
        requested = self._refreshed_at == self.step - 1  # possibly in an earlier call that got no batch
        return requested or policy_fraction > 0

    def _apply_requested_refresh(self, exchange: LearnerExchange | None) -> None:
        """Refresh the reference if the guardrails requested it, at most once between two steps. Collective."""
        if self.config.guardrails.action != "refresh" or self._refreshed_at == self.step:
            return
        if self.any(exchange is not None and exchange.refresh_due(self.step)):
            self._refresh("guardrails")
            self._refreshed_at = self.step

    def _refresh(self, reason: str, policy_fraction: float = 1.0) -> None:
        self.refresh(policy_fraction)
        log.info("step %d: reference refreshed with share %g of the policy (%s)", self.step, policy_fraction, reason)

    def _save(self, exchange: LearnerExchange | None) -> None:
        began = time.perf_counter()
        self.save(exchange)
        log.info("step %d: checkpoint saved in %.1f s", self.step, time.perf_counter() - began)

    def finish(self, exchange: LearnerExchange | None) -> TrainingFinished:
        """End training: publish and save the final weights, unless the last step did. Collective."""
        if not due(self.step, self._learner_config.steps_per_push):
            self.publish(exchange)
        if not due(self.step, self._learner_config.checkpoint_every):
            self._save(exchange)
        return TrainingFinished(self.step, self.version, self.policy_digest())

    def pause(self, exchange: LearnerExchange | None) -> None:
        """Save a checkpoint if the last step pushed weights. Collective.

        Between two pushes the samplers use older weights than the policy, so that state is not resumed from.
        """
        if self.step and due(self.step, self._learner_config.steps_per_push):
            self._save(exchange)

    def publish_and_announce(self, exchange: LearnerExchange, stream: TensorStream, kind: str) -> WeightVersion:
        """Write the policy's tensors as a new version, announce it, and delete old versions except 0.

        `kind` is "adapter" or "full". An adapter applies to the weights of version 0, the base model, whose fingerprint
        is stored with every version.
        """
        number, began = exchange.next_version(), time.perf_counter()
        tensors = TimedIterator(stream.tensors)
        version = self.store.publish(
            TensorStream(stream.layout, tensors),
            version=number,
            step=self.step,
            pushes=self.step // self._learner_config.steps_per_push,
            kind=kind,
            base=0 if kind == "adapter" else number,
            model=self._model,
        )
        self._count_push(version, tensors.seconds, time.perf_counter() - began)
        exchange.announce(version)
        log.info("step %d: version %d published", self.step, version.version)
        self.store.prune(keep=self.config.exchange.max_lag + 2)
        return version

    def _count_push(self, version: WeightVersion, gathering: float, seconds: float) -> None:
        self.meters.observe("douga_weight_push_seconds", gathering, phase="gather")
        self.meters.observe("douga_weight_push_seconds", seconds - gathering, phase="write")
        self.meters.add("douga_weight_push_bytes_total", sum(one.bytes for one in version.tensors), phase="write")

    def progress(self, world: int, architecture: str) -> checkpoint.Progress:
        """The content of state.json for a checkpoint of this step."""
        return checkpoint.Progress(
            step=self.step,
            version=self.version,
            pushes=self.step // self._learner_config.steps_per_push,
            seed=self.config.seed,
            world=world,
            architecture=architecture,
            settings=self._settings(),
            model=self._model,
        )

    def _settings(self) -> dict[str, Any]:
        """The settings that must not change when the run is resumed, by config key."""
        sections = {"learner": self._learner_config, "algorithm": self.config.algorithm}
        found = leaves({name: section.model_dump(mode="json") for name, section in sections.items()})
        return {key: value for key, value in found.items() if not may_change(key, self.config)}
