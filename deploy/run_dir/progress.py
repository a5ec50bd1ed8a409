"""Progress display of a run: a live panel in a terminal, else one plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any, Protocol, TypeVar

from common.config import RunConfig
from common.messages import StepStats
from common.roles import TRAINING

INTERVAL = 10.0  # seconds between plain lines
Item = TypeVar("Item")
RECENT = 10  # steps over which reward, loss and pace are averaged


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of a run."""

    phase: str
    done: int  # optimizer steps, or clips evaluated
    total: int
    version: int = 0
    pairs: int = 0  # trained on so far
    lag: float = 0.0  # pushes, mean of the last batch
    reward: float | None = None  # 0 to 100, mean of the last batches
    loss: float | None = None
    groups_per_second: float = 0.0
    eta: float | None = None  # seconds to the end of the phase
    tied: int = 0  # groups without a pair, because their rewards are equal
    unit: str = "groups"  # of the rate

    def line(self) -> str:
        """Returns the status as one line."""
        parts = [f"{self.phase} {self.done}/{self.total}"]
        if self.phase == TRAINING:
            parts += [f"pairs {self.pairs}", *([f"tied {self.tied}"] if self.tied else [])]
            parts += [f"version {self.version}", f"lag {self.lag:.1f}"]
            parts += [
                f"{name} {value:{form}}"
                for name, value, form in (
                    ("reward", self.reward, ".2f"),
                    ("loss", self.loss, ".4f"),
                )
                if value is not None
            ]
        parts.append(f"{self.groups_per_second:.2f} {self.unit}/s")
        return "  ".join(parts if self.eta is None else [*parts, f"{minutes(self.eta)} left"])


class ThroughputTracker:
    """Turns steps and groups into a `Status`: means over the last `RECENT` steps, rates, time left."""

    def __init__(self, config: RunConfig, clock: Callable[[], float] = time.perf_counter) -> None:
        self.groups = 0  # sampled since `start`
        self._config, self._clock = config, clock
        self._steps: deque[StepStats] = deque(maxlen=RECENT)
        self._ends: deque[float] = deque(maxlen=RECENT + 1)
        self.start()

    def start(self) -> None:
        """Marks the start of training."""
        self._began = self._clock()
        self._ends.append(self._began)

    def add(self, stats: StepStats) -> None:
        """Adds a completed step."""
        self._steps.append(stats)
        self._ends.append(self._clock())

    def status(self, step: int, version: int, tied: int = 0) -> Status:
        """Returns the status of training after `step`; the samplers hold `version`, and `tied` groups made no pair."""
        rate = self.groups / max(self._clock() - self._began, 1e-6)
        pairs = step * self._config.learner.batch_size
        status = Status(TRAINING, step, self._config.steps, version, pairs, groups_per_second=rate, tied=tied)
        if not self._steps:
            return status
        last = self._steps[-1]
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        reward = 100 * sum(one.reward for one in self._steps) / len(self._steps)
        left = (self._config.steps - step) * pace
        return replace(status, lag=last.lag, reward=reward, loss=last.loss, eta=left)

    def of_evaluation(self, phase: str, done: int, total: int) -> Status:
        """Returns the status of an evaluation with `done` of `total` clips; the rate is that of `groups`."""
        rate = self.groups / max(self._clock() - self._began, 1e-6)
        return Status(phase, done, total, groups_per_second=rate, eta=(total - done) / rate if rate else None)


class Progress(Protocol):
    """Displays the progress of a run."""

    def update(self, status: Status) -> None:
        """Shows a new status."""
        ...

    def message(self, line: str) -> None:
        """Prints a line."""
        ...


class NullProgress:
    """Shows nothing."""

    def update(self, status: Status) -> None:
        """See `Progress`."""

    def message(self, line: str) -> None:
        """See `Progress`."""


class Plain:
    """One line at every change of phase, at its end, and every `INTERVAL` seconds."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._phase, self._last = "", float("-inf")

    def update(self, status: Status) -> None:
        """See `Progress`."""
        now = self._clock()
        if status.phase == self._phase and status.done < status.total and now - self._last < INTERVAL:
            return
        self._phase, self._last = status.phase, now
        self.message(status.line())

    def message(self, line: str) -> None:
        """See `Progress`."""
        print(line, file=self._stream, flush=True)


class Panel:
    """A progress bar and a line of figures, updated in place."""

    def __init__(self, live: Any, bar: Any) -> None:
        self._live, self._bar, self._tasks = live, bar, {}

    def update(self, status: Status) -> None:
        """See `Progress`."""
        if status.phase not in self._tasks:
            self._tasks[status.phase] = self._bar.add_task(status.phase, total=status.total, figures="")
        figures = status.line().removeprefix(f"{status.phase} {status.done}/{status.total}").strip()
        self._bar.update(self._tasks[status.phase], completed=status.done, total=status.total, figures=figures)

    def message(self, line: str) -> None:
        """See `Progress`."""
        self._live.console.print(line, highlight=False, markup=False)


def tracked(
    progress: Progress,
    phase: str,
    items: Iterable[Item],
    total: int,
    unit: str = "clips",
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """Passes `total` items on, and shows how many of them the caller is done with."""
    began = clock()
    progress.update(Status(phase, 0, total, unit=unit))
    for done, item in enumerate(items, start=1):
        yield item
        rate = done / max(clock() - began, 1e-6)
        progress.update(Status(phase, done, total, groups_per_second=rate, unit=unit, eta=(total - done) / rate))


@contextmanager
def showing(stream: IO[str] | None = None) -> Iterator[Progress]:
    """Yields a `Progress`: a panel if `stream` (default: stderr) is a terminal, else plain lines."""
    shown: IO[str] = sys.stderr if stream is None else stream
    if not shown.isatty():
        yield Plain(shown)
        return
    from rich.console import Console  # noqa: PLC0415 - keeps `--help` fast
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    bars = Bars(*columns, console=Console(file=shown), refresh_per_second=4)
    with bars:
        yield Panel(bars, bars)


def minutes(seconds: float) -> str:
    """Formats seconds as M:SS or H:MM:SS: ``75`` -> ``1:15``."""
    whole = round(seconds)
    return (
        f"{whole // 60}:{whole % 60:02d}"
        if whole < 3600
        else f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    )
