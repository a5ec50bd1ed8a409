"""The guardrails of a run: probe prompts sampled now and then, read, kept, and acted upon.

```
               retire, enqueue (base once, policy), rescore (base)
   due? ──────────────────────────────────────────────────────────> EXCHANGE ──> samplers, rewarders
    ▲                                                                   │ results
    └── act: warn | refresh | pause <── rules (`deploy/guardrails/rules.py`) <── judge, motion
```

A reading is due every `guard.every` pushes. Its clips are sampled and scored by the run's own workers, under the
purpose "probe": they are never paired, do not count in admission, and one clip a prompt is all that they cost. Who
composes the run calls `look` between two units of its own work; it never waits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.data.video import decode_clip
from common.errors import RunFailed
from common.exchange.api import OVER, RunExchange, ScoredCandidate
from common.exchange.rewards import mean_score
from common.messages import Prompt, Purpose, ScoreTask
from common.weights.store import WeightStore
from deploy.guardrails.judge import held_out_judge
from deploy.guardrails.rules import (
    REWARD,
    SCORER,
    Measured,
    Reading,
    concluded,
    in_order,
    read_readings,
    to_record,
)
from deploy.run_dir import layout
from deploy.run_dir.jsonl import GUARD, JsonLines
from rewarders.interface import JudgeFailed
from rewarders.rewarder import Rewarder

log = logging.getLogger(__name__)

BASE = 0  # the version of the base model
Look = tuple[dict[str, float], float]  # what the held-out judge answers about a clip, and its motion
OTHER_SEED = 1  # added to the run's: other held-out prompts than those of the comparison


class Paused(RunFailed):
    """The guardrails stopped the run."""


@dataclass(frozen=True)
class Probes:
    """What is sampled, and who judges it. Made before a run folder is, so that bad input is found first."""

    prompts: list[Prompt]
    judge: Rewarder | None


def open_probes(config: RunConfig, source: PromptSource) -> Probes | None:
    """None where there are no guardrails: switched off, or simulated work. `ConfigError` for a judge that is none."""
    if config.simulate or not config.guard.prompts:
        return None
    prompts = source.heldout(config.guard.prompts, config.seed + OTHER_SEED)
    return Probes([replace(prompt, purpose=Purpose.PROBE) for prompt in prompts], held_out_judge(config))


@dataclass(frozen=True, slots=True)
class Under:
    """The reading that is under way."""

    version: int
    step: int
    pushes: int


class GuardrailMonitor:
    """Watches one start of a run. Without `probes` there is nothing to do."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        exchange: RunExchange,
        probes: Probes | None,
        events: JsonLines,
        say: Callable[[str], None],
        told: Callable[[Sequence[Reading]], None] = lambda readings: None,
    ) -> None:
        """`told` is called with the readings that count after each that is taken."""
        self.config, self.folder, self.exchange, self.events, self.say = config, folder, exchange, events, say
        self._told = told
        self.probes = probes or Probes([], None)
        self.readings = [one for one in read_readings(folder) if not exchange.rolled_back(one.version)]
        self._store = WeightStore(folder / "weights")
        self._unjudged = ""  # why a clip was left out of a reading, the last time
        self._under: Under | None = None
        self._tried = -1  # the version last read, or tried to be
        self._looks: dict[str, Look | str] = {}  # of base clips, by candidate

    @property
    def busy(self) -> bool:
        """Whether a reading is under way."""
        return self._under is not None

    def look(self) -> None:
        """Begin the reading that is due, or conclude the one whose clips are there. `Paused` where an alarm says so."""
        if not self.probes.prompts:
            return
        if self._under is None:
            self._under = self._due()
            if self._under is not None:
                self._begin(self._under)
        elif self._outrun(self._under):
            self.events.write(event="probing given up", step=self._under.step, version=self._under.version)
            self._end()
        elif not self.waiting():
            self._conclude(self._under)

    def waiting(self) -> int:
        """Probe groups that are not at their end."""
        return sum(count for state, count in self.exchange.counts(Purpose.PROBE).items() if state not in OVER)

    # When.

    def _due(self) -> Under | None:
        if not self.readings or self.readings[0].step:
            return Under(BASE, 0, 0) if self._tried != BASE else None
        newest = self.exchange.current_version()
        if newest in (BASE, self._tried) or newest not in self._store.versions():
            return None  # a version that was rolled back to may be gone: the learner is about to publish it anew
        manifest, every = self._store.manifest(newest), self.config.guard.every
        while self.exchange.rolled_back(self.readings[-1].version):  # it takes the last ones; the base is never lost
            self.readings.pop()
        last = [one for one in self.readings if one.step <= manifest.step][-1]
        if manifest.step == last.step or manifest.pushes // every == last.pushes // every:
            return None
        return Under(newest, manifest.step, manifest.pushes)

    def _outrun(self, under: Under) -> bool:
        """Whether no sampler can have the version any more: it was rolled back, or so many came after it."""
        newest = self.exchange.current_version()
        if BASE in (under.version, newest) or newest not in self._store.versions():
            return False
        lag = self._store.manifest(newest).pushes - under.pushes
        return not 0 <= lag <= self.config.exchange.max_lag + 1

    def _begin(self, under: Under) -> None:
        self._tried = under.version
        self.exchange.retire_probes()  # of a start that was cut, or of a reading that was given up
        if under.version != BASE:
            self.exchange.rescore_probes(BASE)
            self.exchange.enqueue(self.probes.prompts, under.version)
        self.exchange.enqueue(self.probes.prompts, BASE)  # those that are missing

    # What.

    def _conclude(self, under: Under) -> None:
        base, policy = self._measured(BASE), self._measured(under.version)
        places = sorted(base.keys() & policy.keys())
        if len(places) < 2:
            why = self._unjudged or next(iter(self.exchange.failures().values()), "no reason was given")
            self.events.write(event="not probed", step=under.step, version=under.version, reason=why)
            self._warn(f"guard, step {under.step}: no reading, fewer than 2 probes were left; one because of: {why}")
            self._end()
            return
        policy, base = ({place: side[place] for place in places} for side in (policy, base))
        reading = Reading(under.step, under.pushes, under.version, policy, base)
        earlier = [one for one in self.readings if one.step < under.step]
        self._act(concluded(earlier, reading, self.config.guard))

    def _measured(self, version: int) -> dict[int, Measured]:
        """Place of the prompt -> its clip in numbers. Clips that the judge cannot take are left out."""
        measured: dict[int, Measured] = {}
        for one in self.exchange.results(Purpose.PROBE, version):
            look = self._look_of(one, keep=version == BASE)
            if isinstance(look, str):
                self._unjudged = look
                self.events.write(event="not judged", prompt=one.prompt.id, version=version, reason=look)
            elif one.prompt.ordinal < len(self.probes.prompts):
                measured[one.prompt.ordinal] = Measured(self._trained(one.values), *look)
        return measured

    def _trained(self, values: Mapping[str, float]) -> dict[str, float]:
        reward = mean_score(self.config.reward, values)
        return {name: round(value, 4) for name, value in ({REWARD: reward} | dict(values)).items()}

    def _look_of(self, one: ScoredCandidate, keep: bool) -> Look | str:
        """Base clips stay the same, and so does what they look like: these are kept once they are judged."""
        name = one.candidate.id
        look = self._looks.get(name) or self._judge(one)
        if keep and not isinstance(look, str):
            self._looks[name] = look
        return look

    def _judge(self, one: ScoredCandidate) -> Look | str:
        """What the judge answers and how much moves, or why there is no answer."""
        answers: dict[str, float] = {}
        if self.probes.judge is not None:
            try:
                score = self.probes.judge.score([ScoreTask(one.candidate.id, one.prompt, one.candidate.clip)])[0]
            except JudgeFailed as lost:
                return str(lost)  # it may come back, and the run does not hang on it
            answers = score.values
            if broken := [name for name, value in answers.items() if not math.isfinite(value)]:
                return f"{broken[0]}: {score.problems.get(broken[0]) or 'no finite score'}"
        return {name: round(value, 4) for name, value in answers.items()}, round(motion_of(one.candidate.clip), 4)

    # And then.

    def _act(self, reading: Reading) -> None:
        """Ask before keeping: a run that is killed between the two takes the reading again, and asks again."""
        acts = [rule for rule in reading.alarms if rule != SCORER or self.config.guard.action == "pause"]
        action = self.config.guard.action if acts and reading.step < self.config.steps else "warn"
        if action == "refresh":
            self.exchange.ask_refresh(reading.version)
        with JsonLines(self.folder / GUARD) as file:
            file.write(**to_record(reading))
        self.readings = in_order([*self.readings, reading])
        self._told(self.readings)
        log.info("guard, step %d: version %d read, %d alarms", reading.step, reading.version, len(reading.alarms))
        for rule in reading.alarms:
            words = f"{rule}: {reading.shown[rule]} ({self._row()})"
            self.events.write(event="alarm", step=reading.step, version=reading.version, rule=rule, action=action,
                              words=words)  # fmt: skip
            self._warn(f"guard, step {reading.step}: {words}{SAID[action]}")
        self._end()
        if action == "pause":
            raise Paused(self._farewell(reading))

    def _warn(self, line: str) -> None:
        log.warning("%s", line)
        self.say(line)

    def _row(self) -> str:
        patience = self.config.guard.patience
        return f"{patience} readings in a row" if patience > 1 else "in one reading"

    def _farewell(self, reading: Reading) -> str:
        seen = "; ".join(f"{rule}: {reading.shown[rule]}" for rule in reading.alarms)
        go_on = layout.resume_command(self.folder)
        return (
            f"paused by guard.action after step {reading.step}: {seen}; saved; go on with: {go_on} "
            "(--guard.action warn: without a pause), or change reward.weights or learner.lr under another --name"
        )

    def _end(self) -> None:
        self._under = None
        self.exchange.retire_probes()


SAID = {"warn": "", "refresh": "; the reference becomes the policy", "pause": "; the run pauses"}


def motion_of(clip: bytes) -> float:
    """Mean absolute difference of neighbouring frames, 0..255. Flicker counts too: the judge is there to tell."""
    frames = decode_clip(clip).astype(np.int16)
    return float(np.abs(np.diff(frames, axis=0)).mean()) if len(frames) > 1 else 0.0
