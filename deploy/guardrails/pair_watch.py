"""Says why a run makes no pairs while it happens, and ends a run that cannot make any.

```
scores of training groups ──> seen()      a value outside of the range that is not clamped: one line a score
states of training groups ──> advance()   8, 16 groups in a row tied or failed: one line; 32 of them without a
                                          difference between any two rewards, or all failed: `NoPairsError`
```

Ties with a difference (below `algorithm.min_gap`) are chance and do not end the run here; the run loops bound them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from threading import Lock

from common.config import RunConfig
from common.errors import RunFailed
from common.exchange.api import State
from common.exchange.storage.ledger import FIRST_EVALUATION
from common.messages import Purpose, Score
from common.reward_composition import RANGE, clip_reward

log = logging.getLogger(__name__)

FIRST_SAID = 8  # groups in a row without a pair before the first line; the next one after twice as many
MOST_FUTILE = 32  # groups in a row without a pair, and without a sign that there will be one
PAIRED = (State.READY, State.TRAINING, State.TRAINED, State.EXPIRED)
SLACK = 1e-3  # rounding: a score of 100.0001 is not worth a line


class NoPairsError(RunFailed):
    """The scores make no pairs; the message says what the judges gave."""


@dataclass
class PairWatch:
    """Watches the scores and groups of one run. `say` prints a line. Thread-safe: scores arrive in other threads."""

    config: RunConfig
    say: Callable[[str], None]
    _lock: Lock = field(default_factory=Lock)
    _clamped: set[str] = field(default_factory=set)  # scores for which the range was mentioned
    _raw: dict[str, tuple[float, float]] = field(default_factory=dict)  # score -> least and greatest since a pair
    _rewards: dict[str, float] = field(default_factory=dict)  # group -> R~ of its first clip, since the last pair
    _differ: bool = False  # whether two rewards of a group differ
    _paired: int | None = None  # groups with a pair
    _before: tuple[int, int] = (0, 0)  # tied and failed groups when the last pair was made
    _next: int = FIRST_SAID

    def seen(self, scores: Sequence[Score]) -> None:
        """Takes in accepted scores."""
        for score in scores:
            finite = {name: value for name, value in score.values.items() if isfinite(value)}
            for name, value in finite.items():
                self._check_range(name, value)
            if score.purpose is Purpose.TRAIN and len(finite) == len(score.values):
                self._add(score.candidate_id.partition("-")[0], finite)

    def _check_range(self, name: str, value: float) -> None:
        if -SLACK <= value <= RANGE + SLACK or name in self._clamped:
            return
        self._clamped.add(name)
        self._tell(f"{name} gave {value:.2f}: {self._clamping(name)}")

    def _add(self, group: str, values: Mapping[str, float]) -> None:
        reward = clip_reward(self.config.reward, values)
        with self._lock:
            for name, value in values.items():
                low, high = self._raw.get(name, (value, value))
                self._raw[name] = min(low, value), max(high, value)
            self._differ |= self._rewards.setdefault(group, reward) != reward

    def advance(self, counts: Mapping[State, int], failures: Callable[[], Mapping[int, str]]) -> None:
        """Takes in the number of training groups by state, and `HubExchange.failures`.

        Raises `NoPairsError` if pairs are out of reach.
        """
        paired, lost = sum(counts[state] for state in PAIRED), (counts[State.TIED], counts[State.FAILED])
        if self._paired is None or paired > self._paired:
            self._paired, self._before, self._next = paired, lost, FIRST_SAID
            with self._lock:
                self._raw, self._rewards, self._differ = {}, {}, False
            return
        tied, failed = (now - then for now, then in zip(lost, self._before, strict=True))
        if tied + failed < self._next:
            return
        while self._next <= tied + failed:
            self._next *= 2
        why = f"{tied + failed} groups in a row {self._reason(tied, failed, failures())}"
        if tied + failed >= MOST_FUTILE and (not tied or not self._differ):
            raise NoPairsError(f"no pairs: {why}")
        self._tell(why)

    def _reason(self, tied: int, failed: int, failures: Mapping[int, str]) -> str:
        reasons = [reason for ordinal, reason in sorted(failures.items()) if ordinal < FIRST_EVALUATION]
        last = f": {reasons[-1]}" if reasons else ""
        if not tied:
            return f"failed{last}"
        with self._lock:
            spans = "; ".join(self._span(name, *span) for name, span in self._raw.items())
        what = f"a group's rewards differ too little; {spans}" if self._differ else spans or "all rewards are equal"
        return f"tied: {what}" if not failed else f"tied or failed: {what}; {failed} failed{last}"

    def _span(self, name: str, low: float, high: float) -> str:
        told = f"{name} gave {low:.2f} to every clip" if low == high else f"{name} gave {low:.2f} to {high:.2f}"
        return f"{told}; {self._clamping(name)}" if low < -SLACK or high > RANGE + SLACK else told

    def _clamping(self, name: str) -> str:
        judge = name.partition(".")[0]
        advice = f"; set reward.judges.{judge}.low and high" if judge in self.config.reward.judges else ""
        return f"values outside of 0..100 are clamped{advice}"

    def _tell(self, line: str) -> None:
        log.info("%s", line)
        self.say(line)
