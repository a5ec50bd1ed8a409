"""The guardrails of a run: samples probe prompts periodically, evaluates the rules on them, stores the readings, acts.

```
               retire, enqueue (base once, policy), rescore (base)
   due? ──────────────────────────────────────────────────────────> EXCHANGE ──> samplers, rewarders
    ▲                                                                   │ results
    └── act: warn | refresh | pause <── rules (`deploy/guardrails/rules.py`) <── judge, motion
```

A reading is due every `guardrails.every_pushes` pushes. The run's own workers sample and score its clips with the
purpose "probe": probes are never trained on, do not count in admission control, and cost one clip per prompt. The run
loop calls `advance` between two units of its own work; `advance` never blocks on workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.prompts.heldout import heldout_prompts
from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.data.video import decode_clip
from common.errors import RunFailed
from common.exchange.api import OVER, HubExchange, ScoredCandidate
from common.messages import Prompt, Purpose, ScoreTask
from common.reward_composition import mean_score
from common.weights.store import WeightStore
from deploy.guardrails.judge import held_out_judge
from deploy.guardrails.rules import (
    REWARD,
    SCORER,
    ClipMeasurement,
    Reading,
    concluded,
    in_order,
    read_readings,
    to_record,
)
from deploy.run_dir import layout
from deploy.run_dir.jsonl import GUARD, JsonLines
from rewarders.interface import JudgeBrokenError, JudgeFailedError
from rewarders.rewarder import Rewarder

log = logging.getLogger(__name__)

BASE = 0  # the version of the base model
Judgement = tuple[dict[str, float], float]  # the held-out judge's scores of a clip, and its motion


class PausedError(RunFailed):
    """The guardrails stopped the run."""


@dataclass(frozen=True)
class Probes:
    """Probe prompts and their judge. Opened before the run folder is created: bad input leaves no folder behind."""

    prompts: list[Prompt]
    judge: Rewarder | None


def open_probes(config: RunConfig, source: PromptSource) -> Probes | None:
    """Returns None without guardrails: they are off, or the run is simulated or only collects.

    Raises `ConfigError` for an invalid judge.
    """
    if config.simulate or config.collect.prompts or not config.guardrails.prompts:
        return None
    prompts = heldout_prompts(source, config).probes
    return Probes([replace(prompt, purpose=Purpose.PROBE) for prompt in prompts], held_out_judge(config))


@dataclass(frozen=True, slots=True)
class Pending:
    """The reading in progress."""

    version: int
    step: int
    pushes: int


class GuardrailMonitor:
    """Takes the readings of one start of a run. Does nothing without `probes`."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        exchange: HubExchange,
        probes: Probes | None,
        events: JsonLines,
        notify: Callable[[str], None],
        on_reading: Callable[[Sequence[Reading]], None] = lambda readings: None,
    ) -> None:
        """`notify` receives lines for the user; `on_reading` receives all valid readings after each new one."""
        self.config, self.folder, self.exchange, self.events, self.notify = config, folder, exchange, events, notify
        self._on_reading = on_reading
        self.probes = probes or Probes([], None)
        self.readings = [one for one in read_readings(folder) if not exchange.rolled_back(one.version)]
        self._store = WeightStore(folder / "weights")
        self._unjudged = ""  # why the last clip was left out of a reading
        self._pending: Pending | None = None
        self._tried = -1  # version of the last reading, completed or not
        self._judgements: dict[str, Judgement | str] = {}  # of base clips, by candidate id

    @property
    def busy(self) -> bool:
        """Whether a reading is in progress."""
        return self._pending is not None

    def advance(self) -> None:
        """Starts a reading if one is due, or concludes the current one once its clips are scored.

        Raises `PausedError` after an alarm if `guardrails.action` is "pause".
        """
        if not self.probes.prompts:
            return
        if self._pending is None:
            self._pending = self._due()
            if self._pending is not None:
                self._begin(self._pending)
        elif self._is_outdated(self._pending):
            self.events.write(event="probing given up", step=self._pending.step, version=self._pending.version)
            self._end()
        elif not self.waiting():
            self._conclude(self._pending)

    def waiting(self) -> int:
        """Number of probe groups that are not in a final state."""
        return sum(count for state, count in self.exchange.counts(Purpose.PROBE).items() if state not in OVER)

    # Scheduling.

    def _due(self) -> Pending | None:
        if not self.readings or self.readings[0].step:
            return Pending(BASE, 0, 0) if self._tried != BASE else None
        newest = self.exchange.current_version()
        if newest in (BASE, self._tried) or newest not in self._store.versions():
            return None  # after a rollback the files may be missing until the learner publishes the version again
        manifest, every = self._store.manifest(newest), self.config.guardrails.every_pushes
        while self.exchange.rolled_back(self.readings[-1].version):  # never true for the base model, the first reading
            self.readings.pop()
        last = [one for one in self.readings if one.step <= manifest.step][-1]
        if manifest.step == last.step or manifest.pushes // every == last.pushes // every:
            return None
        return Pending(newest, manifest.step, manifest.pushes)

    def _is_outdated(self, pending: Pending) -> bool:
        """Whether no sampler can serve the version any more: it was rolled back, or is too many pushes old."""
        newest = self.exchange.current_version()
        if BASE in (pending.version, newest) or newest not in self._store.versions():
            return False
        lag = self._store.manifest(newest).pushes - pending.pushes
        return not 0 <= lag <= self.config.exchange.max_lag + 1

    def _begin(self, pending: Pending) -> None:
        self._tried = pending.version
        self.exchange.retire_probes()  # left by an interrupted start or an abandoned reading
        if pending.version != BASE:
            self.exchange.rescore_probes(BASE)
            self.exchange.enqueue(self.probes.prompts, pending.version)
        self.exchange.enqueue(self.probes.prompts, BASE)  # adds only the missing ones

    # Measuring.

    def _conclude(self, pending: Pending) -> None:
        base, policy = self._measurements(BASE), self._measurements(pending.version)
        ordinals = sorted(base.keys() & policy.keys())
        if len(ordinals) < 2:
            why = self._unjudged or next(iter(self.exchange.failures().values()), "no reason given")
            self.events.write(event="not probed", step=pending.step, version=pending.version, reason=why)
            self._warn(f"guardrails, step {pending.step}: no reading: fewer than 2 usable probes; last reason: {why}")
            self._end()
            return
        policy, base = ({ordinal: side[ordinal] for ordinal in ordinals} for side in (policy, base))
        reading = Reading(pending.step, pending.pushes, pending.version, policy, base)
        earlier = [one for one in self.readings if one.step < pending.step]
        self._act(concluded(earlier, reading, self.config.guardrails))

    def _measurements(self, version: int) -> dict[int, ClipMeasurement]:
        """Returns prompt ordinal -> measurements of its clip. Clips that the judge cannot score are left out."""
        measured: dict[int, ClipMeasurement] = {}
        for one in self.exchange.results(Purpose.PROBE, version):
            judgement = self._judgement_of(one, keep=version == BASE)
            if isinstance(judgement, str):
                self._unjudged = judgement
                self.events.write(event="not judged", prompt=one.prompt.id, version=version, reason=judgement)
            elif one.prompt.ordinal < len(self.probes.prompts):
                measured[one.prompt.ordinal] = ClipMeasurement(self._trained(one.values), *judgement)
        return measured

    def _trained(self, values: Mapping[str, float]) -> dict[str, float]:
        reward = mean_score(self.config.reward, values)
        return {name: round(value, 4) for name, value in ({REWARD: reward} | dict(values)).items()}

    def _judgement_of(self, one: ScoredCandidate, keep: bool) -> Judgement | str:
        """Cached with `keep`: base clips do not change between readings, so they are judged once."""
        name = one.candidate.id
        judgement = self._judgements.get(name) or self._judge(one)
        if keep and not isinstance(judgement, str):
            self._judgements[name] = judgement
        return judgement

    def _judge(self, one: ScoredCandidate) -> Judgement | str:
        """Returns the judge's scores and the motion of a clip, or the reason why it could not be scored."""
        answers: dict[str, float] = {}
        if self.probes.judge is not None:
            try:
                score = self.probes.judge.score([ScoreTask(one.candidate.id, one.prompt, one.candidate.clip)])[0]
            except (JudgeBrokenError, JudgeFailedError) as lost:
                return str(lost)  # the judge may recover, and the run does not depend on it
            answers = score.values
            if broken := [name for name, value in answers.items() if not math.isfinite(value)]:
                return f"{broken[0]}: {score.problems.get(broken[0]) or 'no finite score'}"
        return {name: round(value, 4) for name, value in answers.items()}, round(motion_of(one.candidate.clip), 4)

    # Alarms.

    def _act(self, reading: Reading) -> None:
        """Requests the refresh before the reading is stored: a run killed in between repeats both."""
        acts = [rule for rule in reading.alarms if rule != SCORER or self.config.guardrails.action == "pause"]
        action = self.config.guardrails.action if acts and reading.step < self.config.steps else "warn"
        if action == "refresh":
            self.exchange.ask_refresh(reading.version)
        with JsonLines(self.folder / GUARD) as file:
            file.write(**to_record(reading))
        self.readings = in_order([*self.readings, reading])
        self._on_reading(self.readings)
        alarms = len(reading.alarms)
        log.info("guardrails, step %d: reading of version %d, %d alarms", reading.step, reading.version, alarms)
        for rule in reading.alarms:
            message = f"{rule}: {reading.shown[rule]} ({self._streak_text()})"
            self.events.write(event="alarm", step=reading.step, version=reading.version, rule=rule, action=action,
                              words=message)  # fmt: skip
            self._warn(f"guardrails, step {reading.step}: {message}{CONSEQUENCE[action]}")
        self._end()
        if action == "pause":
            raise PausedError(self._pause_message(reading))

    def _warn(self, line: str) -> None:
        log.warning("%s", line)
        self.notify(line)

    def _streak_text(self) -> str:
        patience = self.config.guardrails.patience
        return f"{patience} readings in a row" if patience > 1 else "1 reading"

    def _pause_message(self, reading: Reading) -> str:
        findings = "; ".join(f"{rule}: {reading.shown[rule]}" for rule in reading.alarms)
        resume = layout.resume_command(self.folder)
        return (
            f"paused by guardrails.action after step {reading.step}: {findings}; checkpoint saved; "
            f"resume with: {resume} (add --guardrails.action warn to run without pauses), or change reward.weights or "
            "learner.lr and start a run with another --name"
        )

    def _end(self) -> None:
        self._pending = None
        self.exchange.retire_probes()


CONSEQUENCE = {"warn": "", "refresh": "; the reference is refreshed from the policy", "pause": "; the run pauses"}


def motion_of(clip: bytes) -> float:
    """Mean absolute difference of consecutive frames, 0 to 255; 0 for a single frame.

    Flicker counts as motion: telling them apart is left to the judge.
    """
    frames = decode_clip(clip).astype(np.int16)
    return float(np.abs(np.diff(frames, axis=0)).mean()) if len(frames) > 1 else 0.0
