"""The learner's loop: lease a batch, take one optimizer step, commit it; then do what is due after the step.

```
  refresh_due(step)  lease_batch(step)            commit_step(step)
 EXCHANGE ──────> ───────────────────> take() ───────────────────> reference_update(step): reference <- policy
             refresh                                               every P: publish a version, announce it
                                                                   every checkpoint_every: save, mark(step)
```

`refresh_due` is asked only where the guardrails may ask for a refresh (``guard.action = "refresh"``).

The learner waits for batches only. Rank 0 alone talks to the exchange; the other ranks pass None.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.config.algorithm import open_algorithm
from common.exchange.api import RunExchange
from common.messages import SerializedTensor, StepStats, TrainingFinished, WeightVersion
from common.meters import NULL_METERS, Meters, TimedIterator
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream
from learner import checkpoint
from learner.algorithms.base import Algorithm

log = logging.getLogger(__name__)

# Settings that may change between two starts of a run without changing what it computes, but for the rounding of sums.
FREE_SETTINGS = {"checkpoint_every", "keep_checkpoints", "gradient_checkpointing", "micro_batch", "reference"}


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step in numbers, as in `StepStats`, and the groups it used."""

    ordinals: Sequence[int]
    loss: float
    grad_norm: float
    lag: float
    lag_max: int
    reward: float
    metrics: Mapping[str, float]


class LearningLoop(ABC):
    """`step` optimizer steps are taken; `version` is the newest published one, -1 before the first.

    Its files lie under `folder`: weights/, checkpoints/.
    """

    def __init__(self, config: RunConfig, folder: Path, worker: str, model: Mapping[str, str] | None = None) -> None:
        """`model` are the fingerprints of the base model's parts; none when there is no model."""
        self.config, self.worker = config, worker
        self._model = dict(model or {})
        self.step, self.version = 0, -1
        self._refreshed_at = -1  # the step after which the last refresh that the guardrails asked for was done
        self.empty_embeds: SerializedTensor | None = (
            None  # of the empty caption, [L, D]; needed when learner.caption_drop > 0
        )
        self.meters: Meters = NULL_METERS
        self.store = WeightStore(folder / "weights")
        self._checkpoints = folder / "checkpoints"
        self._rules = config.learner
        self.algorithm: Algorithm = open_algorithm(config.algorithm)

    @abstractmethod
    def take(self, exchange: RunExchange | None) -> StepResult | None:
        """Lease the next step's batch and update the weights; None when there is no full batch. Collective."""

    @abstractmethod
    def refresh(self, share: float = 1.0) -> None:
        """Move the reference towards the policy: reference <- (1 - share) reference + share policy. Collective."""

    @abstractmethod
    def publish(self, exchange: RunExchange | None) -> WeightVersion | None:
        """Write the policy as a new version and announce it (rank 0). Collective."""

    @abstractmethod
    def save(self, exchange: RunExchange | None) -> None:
        """Write a checkpoint of this step, delete the oldest, and make its uses final. Collective."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`. `ConfigError` when it is of other settings or broken. Collective."""

    @abstractmethod
    def any(self, mine: bool) -> bool:
        """Whether `mine` is true on at least one rank. Collective."""

    @abstractmethod
    def policy_digest(self) -> str:
        """Digest of the policy's weights, hex. Collective."""

    @abstractmethod
    def close(self) -> None:
        """Release what the learner holds."""

    def resume(self, exchange: RunExchange | None) -> bool:
        """Start: from the newest checkpoint if there is one, else from the base model; publish what it starts from.

        Uses committed after the checkpoint are taken back. A new run's first version is 0, the base model. False when
        there was no checkpoint. `ConfigError` as from `load`. Collective.
        """
        saved = checkpoint.steps(self._checkpoints)
        if saved:
            self.load(checkpoint.place(self._checkpoints, saved[-1]))
            log.info("resumed from the checkpoint of step %d; later uses of pairs are rolled back", self.step)
        if exchange is not None:
            exchange.rollback(self.step)
        self.publish(exchange)
        return bool(saved)

    def work(self, exchange: RunExchange | None) -> StepStats | None:
        """One optimizer step and what is due after it; None when the exchange has no full batch now. Collective."""
        started = time.perf_counter()
        self._apply_requested_refresh(exchange)
        taken = self.take(exchange)
        if taken is None:
            return None
        self.step += 1
        log.debug(
            "step %d: loss %.4g, %d groups, lag up to %d", self.step, taken.loss, len(taken.ordinals), taken.lag_max
        )
        if exchange is not None:
            exchange.commit_step(self.step, taken.ordinals)
        share = self.algorithm.reference_update(self.step)
        if share:
            self._refresh("algorithm", share)
        requested = self._refreshed_at == self.step - 1  # or earlier, while it waited for a batch
        pushed = due(self.step, self._rules.steps_per_push)
        if pushed:
            self.publish(exchange)
        if due(self.step, self._rules.checkpoint_every):
            self._save(exchange)
        return StepStats(
            step=self.step,
            loss=taken.loss,
            grad_norm=taken.grad_norm,
            lag=taken.lag,
            lag_max=taken.lag_max,
            reward=taken.reward,
            seconds=time.perf_counter() - started,
            refreshed=requested or share > 0,
            pushed=pushed,
            metrics=dict(taken.metrics),
        )

    def _apply_requested_refresh(self, exchange: RunExchange | None) -> None:
        """Refresh the reference where the guardrails asked for it, once between two steps. Collective."""
        if self.config.guard.action != "refresh" or self._refreshed_at == self.step:
            return
        if self.any(exchange is not None and exchange.refresh_due(self.step)):
            self._refresh("guardrails")
            self._refreshed_at = self.step

    def _refresh(self, reason: str, share: float = 1.0) -> None:
        self.refresh(share)
        log.info("step %d: reference refreshed with share %g of the policy (%s)", self.step, share, reason)

    def _save(self, exchange: RunExchange | None) -> None:
        began = time.perf_counter()
        self.save(exchange)
        log.info("step %d: checkpoint saved in %.1f s", self.step, time.perf_counter() - began)

    def finish(self, exchange: RunExchange | None) -> TrainingFinished:
        """The end: the last weights become a version even if no push is due, and a checkpoint. Collective."""
        if not due(self.step, self._rules.steps_per_push):
            self.publish(exchange)
        if not due(self.step, self._rules.checkpoint_every):
            self._save(exchange)
        return TrainingFinished(self.step, self.version, self.policy_digest())

    def pause(self, exchange: RunExchange | None) -> None:
        """Save where that can be resumed: between two pushes the samplers hold older weights. Collective."""
        if self.step and due(self.step, self._rules.steps_per_push):
            self._save(exchange)

    def publish_and_announce(self, exchange: RunExchange, stream: TensorStream, kind: str) -> WeightVersion:
        """Write the policy's tensors as a new version and announce it. Older ones are deleted, except version 0.

        An adapter stands on version 0's weights, the base model; which one that is, every version says.
        """
        number, began = exchange.next_version(), time.perf_counter()
        tensors = TimedIterator(stream.tensors)
        version = self.store.publish(
            TensorStream(stream.layout, tensors),
            version=number,
            step=self.step,
            pushes=self.step // self._rules.steps_per_push,
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
        """What a checkpoint of this step says besides tensors."""
        return checkpoint.Progress(
            step=self.step,
            version=self.version,
            pushes=self.step // self._rules.steps_per_push,
            seed=self.config.seed,
            world=world,
            architecture=architecture,
            settings=self._settings(),
            model=self._model,
        )

    def _settings(self) -> dict[str, Any]:
        """What a resumed run must share with the one that was killed, by configuration key."""
        sections = {
            "learner": self._rules.model_dump(mode="json", exclude=FREE_SETTINGS),
            "algorithm": self.config.algorithm.model_dump(mode="json"),
        }
        return {f"{section}.{name}": value for section, keys in sections.items() for name, value in keys.items()}


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after `step`."""
    return every > 0 and step % every == 0
