"""The phases of a run, common to all modes: train, unless that is done, then compare the aligned with the base model.

```
train      in one process in a fixed order (serial.py), or by distributed workers (driver.py, hub.py)
compare    held-out prompts with version 0 and the last version, same seeds: result.json, clips/, report.html
collect    instead of both: candidates of every training prompt with one version: result.json, candidates/
```

Every result is stored as soon as it exists: after an interruption the same command resumes the run.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.candidate_set.rows import KEPT, POLICY, SetSettings
from common.config import RunConfig, to_toml
from common.errors.disk import writing
from common.exchange.api import QUEUE, HubExchange, RunExchange, ScoredCandidate
from common.messages import TrainingFinished
from common.models.fingerprint import model_parts
from common.reward_composition import mean_score
from common.roles import COLLECTING, EVALUATING_ALIGNED, EVALUATING_BASE, TRAINING
from common.weights.store import WeightStore
from deploy.guardrails.monitor import GuardrailMonitor
from deploy.guardrails.pair_watch import PairWatch
from deploy.results import comparison, report
from deploy.run_dir import layout, throughput
from deploy.run_dir.jsonl import JsonLines
from deploy.runtime.evaluation import BASE, HeldOutEvaluation
from deploy.runtime.messages import Outcome

if TYPE_CHECKING:
    from common.candidate_set.keeping import CandidateKeeper

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised between two units of work to end a run that was asked to stop. Not an error."""


def queue(exchange: HubExchange) -> dict[str, int]:
    """Returns state -> number of training groups, for the non-final states that have any."""
    counts = exchange.counts()
    return {state.value: counts[state] for state in QUEUE if counts[state]}


class RunLoop(ABC):
    """One start of a run: from the state of its folder to the end, or to a stop. Subclasses do the training."""

    def __init__(
        self,
        *,
        config: RunConfig,
        folder: Path,
        exchange: RunExchange,
        events: JsonLines,
        guardrails: GuardrailMonitor,
        evaluation: HeldOutEvaluation,
    ) -> None:
        self.config, self.folder, self.exchange, self.events = config, folder, exchange, events
        self.guardrails, self.evaluation = guardrails, evaluation
        self.store = WeightStore(folder / "weights")
        self.phase = TRAINING  # current phase
        self.pair_watch = PairWatch(config, evaluation.progress.message)
        self._keeper: CandidateKeeper | None = None

    @abstractmethod
    def train(self) -> TrainingFinished:
        """Evaluates the base model, then takes the remaining optimizer steps. Raises `Stopped`."""

    @abstractmethod
    def keep_empty_prompt(self) -> None:
        """Stores the embedding of the empty caption in the exchange, unless a worker does."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Optimizer steps taken, as far as this process knows."""

    def run(self) -> Outcome:
        """Trains, unless that is done, then compares; or collects. Raises `StorageError` if the disk fails."""
        try:
            if self.config.collect.prompts:
                return Outcome(0, self._collect())
            with self._keeping():
                trained = self.trained() or self._train()
                self.keep_candidates()
                with writing(self.folder):
                    result = self._conclude(trained)
            return Outcome(trained["step"], result)
        except Stopped:
            self.events.write(event="interrupted", step=self.step)
            log.info("interrupted after step %d of %d", self.step, self.config.steps)
            return Outcome(self.step, None)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Keeps the candidates of training groups meanwhile, if the configuration says so."""
        limit = self.config.keep_candidates_bytes
        if not limit:
            yield
            return
        from common.candidate_set.folder import writing_to  # noqa: PLC0415 - imports torch
        from common.candidate_set.keeping import CandidateKeeper  # noqa: PLC0415

        self.keep_empty_prompt()
        parts = model_parts(self.config.model.path)
        with writing_to(self.folder / KEPT, SetSettings.of(self.config, parts)) as writer:
            name = partial(self.store.name_in_sets, base=parts[POLICY])
            self._keeper = CandidateKeeper(self.exchange, writer, name, limit, self._say_full)
            self.keep_candidates()
            yield

    def keep_candidates(self) -> None:
        """Stores the candidates of the groups that were scored since the last call, if the run keeps them."""
        if self._keeper is not None:
            self._keeper.advance()

    def _say_full(self, line: str) -> None:
        self.events.write(event="candidates full", step=self.step, words=line)
        self.evaluation.progress.message(line)

    def trained(self) -> dict[str, Any] | None:
        """Returns result.json if training has reached `config.steps`, else None."""
        result = layout.read_result(self.folder)
        if result is None or result["step"] != self.config.steps:
            return None
        return result if result["version"] in self.store.versions() else None

    def _train(self) -> dict[str, Any]:
        trained = asdict(self.train())
        self.events.write(event="trained", step=trained["step"], version=trained["version"])
        log.info("trained: step %d, version %d", trained["step"], trained["version"])
        layout.write_result(self.folder, trained)
        return trained

    def _conclude(self, trained: dict[str, Any]) -> dict[str, Any]:
        if self.config.simulate:
            return self._finish_simulated(trained)
        return self._compare(trained) if self.config.evaluation.prompts else self._finish_unevaluated(trained)

    def _finish_unevaluated(self, trained: dict[str, Any]) -> dict[str, Any]:
        """Finishes a run without a comparison."""
        result = trained | {"asked": 0}
        self.events.write(event="finished", step=trained["step"])
        layout.write_result(self.folder, result)
        return result

    def _finish_simulated(self, trained: dict[str, Any]) -> dict[str, Any]:
        """Finishes a simulated run: stores its throughput, as there are no clips to compare."""
        result = trained | {"throughput": throughput.figures(self.folder, self.exchange)}
        self.events.write(event="finished", step=trained["step"])
        layout.write_result(self.folder, result)
        return result

    def _collect(self) -> dict[str, Any]:
        from deploy.runtime.collection import (  # noqa: PLC0415 - imports torch, which a simulated run does without
            Collection,
            collected_prompts,
            install_weights,
            open_set,
        )

        self.phase = COLLECTING
        self.events.write(event="started", step=0, config=to_toml(self.config))
        self.keep_empty_prompt()
        weights = install_weights(self.config, self.store, self.exchange)
        with open_set(self.config, self.folder) as writer:
            part = self.evaluation
            result = Collection(
                config=self.config,
                prompts=collected_prompts(self.config, part.source),
                exchange=self.exchange,
                writer=writer,
                weights=weights,
                progress=part.progress,
                work=part.work,
            ).collect()
        self.events.write(event="finished", step=0, collected=result["collected"])
        layout.write_result(self.folder, result)
        return result

    def _compare(self, trained: dict[str, Any]) -> dict[str, Any]:
        self.phase = EVALUATING_ALIGNED
        base = self.evaluate(BASE, EVALUATING_BASE)
        aligned = self.evaluate(trained["version"], EVALUATING_ALIGNED)
        left_out = self.evaluation.left_out(dict(zip(comparison.SIDES, (BASE, trained["version"]), strict=True)))
        pairs = comparison.pairs_of(base, aligned)
        records = comparison.by_prompt(pairs, self.config)
        self._keep_clips(records, pairs)
        asked = self.config.evaluation.prompts
        if self.config.reward.empty:
            result = trained | comparison.leave_to_people(records, asked, left_out, self.folder)
        else:
            result = trained | comparison.conclude(records, asked, left_out)
        self.events.write(event="finished", step=trained["step"], verdict=result["verdict"]["message"])
        layout.write_result(self.folder, result)
        report.write(self.folder)
        return result

    def evaluate_base(self) -> None:
        """Evaluates the base model before training, unless the run has no comparison."""
        if self.config.simulate or not self.config.evaluation.prompts:
            return
        self.phase = EVALUATING_BASE
        self.evaluate(BASE, EVALUATING_BASE)
        self.phase = TRAINING

    def evaluate(self, version: int, phase: str) -> list[ScoredCandidate]:
        """Returns the held-out clips of `version` that have scores, sorted by prompt. Raises `Stopped`."""
        found, made = self.evaluation.evaluate(version, phase)
        if made:
            self._record_evaluation(version, found)
        return found

    def _record_evaluation(self, version: int, found: Sequence[ScoredCandidate]) -> None:
        if self.config.reward.empty:
            self.events.write(event="evaluated", version=version)
            log.info("version %d: %d held-out clips", version, len(found))
            return
        rewards = [mean_score(self.config.reward, one.values) for one in found]
        reward = sum(rewards) / len(rewards)
        self.events.write(event="evaluated", version=version, reward=reward)
        log.info("version %d evaluated on %d held-out prompts: mean reward %.2f", version, len(found), reward)

    def _keep_clips(self, records: list[dict[str, Any]], pairs: Sequence[comparison.Pair]) -> None:
        """Writes the clips to files, and their names into the records."""
        folder = self.folder / "clips"
        folder.mkdir(exist_ok=True)
        for record, pair in zip(records, pairs, strict=True):
            for side, one in zip(comparison.SIDES, pair, strict=True):
                name = f"heldout-{one.prompt.ordinal:04d}-{side}.mp4"
                (folder / name).write_bytes(one.candidate.clip)
                record[side]["clip"] = name
