"""Run for a long time and look for leaks: ``python -m benchmarks.stress.soak --minutes 30 [--real] [--json OUT]``.

```
   this program ── starts ──> driver (`douga run`) ── Ray ──> hub, learner, samplers, rewarder
        └── samples, every few seconds ──> their memory, open files and threads; disk usage of the run folder, by kind
```

Work is simulated with short pauses, so minutes here are days elsewhere: a run of CogVideoX-5B samples a group every
three seconds (`douga plan`), this one about fifteen per second.

The first half is warm-up: allocators, caches and bounded buffers fill up. Through each series of the second half a
Theil-Sen line is fitted (the median of the slopes between all pairs of samples). It is robust against single peaks and
sawtooth patterns, but shows any steady leak. Growth is the lower end of the slope's 95 % interval times the length of
the half, so it is certain. It must stay below these limits:

| of        | limit              | because                                                                            |
|-----------|--------------------|------------------------------------------------------------------------------------|
| memory    | 4 MB               | allocator fragmentation varies by that much; 30 minutes show a leak of 300 bytes   |
|           |                    | per group, which would be 60 MB in a week of CogVideoX-5B                          |
| files     | 1                  | they are few, and opened and closed at fixed places                                |
| threads   | 1                  | the same                                                                           |
| disk      | 5 %, or 100 kB     | files are deleted in batches. Plus 40 bytes per step: simulated checkpoints count  |
|           |                    | the uses of each group in four bytes                                               |

`metrics.jsonl` and `events.jsonl` grow by design; their growth is reported. At the end the run is stopped like by a
user, and its ledger is checked (`LocalExchange.check`). The exit code is 1 if any limit or check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import psutil
from scipy.stats import theilslopes

from actors.prompts.source import open_prompts
from benchmarks import harness
from benchmarks.stress.chaos import InvariantViolatedError, Run, tail, wait_for
from common.config import RunConfig, load_config
from common.exchange.local import LocalExchange
from deploy.run_dir import layout
from deploy.run_dir.jsonl import EVENTS, METRICS

SAMPLES = 200  # of each series, over the whole run
WARM_UP = 0.5  # fraction of the time that does not count
START_SECONDS, PROGRESS_SECONDS = 180.0, 30.0  # timeout for the first step; interval of progress lines
MEGABYTE = 1e6
LIMITS = {"memory": 4 * MEGABYTE, "files": 1.0, "threads": 1.0, "disk": 0.1 * MEGABYTE}
DISK_SHARE, STEP_BYTES = 0.05, 40
BY_DESIGN = (METRICS, EVENTS)  # one record per step, and per start
RAY = ("raylet", "gcs_server")
SESSION = re.compile(r"--session[-_]dir=(\S+)")

SMALL = {
    "mode": "cluster",
    "steps": 100_000_000,
    "sampler.candidates": 2,
    "exchange.max_lag": 2,
    "exchange.keep_groups": 200,
    "timeline_bytes": 100_000,
    "logs.max_bytes": 10_000,
    "logs.backups": 1,
    "learner.batch_size": 2,
    "learner.checkpoint_every": 5,
}
SIMULATED = {
    "simulate": True,
    "simulation.sample_seconds": 0.01,
    "simulation.score_seconds": 0.001,
    "simulation.step_seconds": 0.01,
    "simulation.load_seconds": 0.001,
    "simulation.latents_bytes": 4000,
    "simulation.clip_bytes": 2000,
    "simulation.embeds_bytes": 1000,
    "simulation.weights_bytes": 1_000_000,
    "simulation.failure_rate": 0.02,
}
REAL = {"sampler.steps": 2, "evaluation.prompts": 2, "guardrails.prompts": 2, "guardrails.every_pushes": 5}


@dataclass
class Series:
    """Samples of one quantity: times in seconds, and values."""

    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Growth:
    """Growth of one series after the warm-up."""

    level: float  # median
    slope: float  # per second
    grown: float  # lower bound of the growth; 0 if it is not certain
    limit: float
    counts: bool = True  # False: it grows by design

    @property
    def is_leak(self) -> bool:
        """Whether it grew by more than the limit."""
        return self.counts and self.grown > self.limit


def growth(what: str, series: Series, steps: float = 0) -> Growth:
    """Fit a series. `what` is its name, such as ``"memory hub"``; `steps` is the number of steps after the warm-up.

    The warm-up of a series that starts late starts late too.
    """
    first, last = series.seconds[0], series.seconds[-1]
    begin = next(i for i, second in enumerate(series.seconds) if second >= first + WARM_UP * (last - first))
    seconds, values = series.seconds[begin:], series.values[begin:]
    kind, name = what.split(maxsplit=1)
    level = sorted(values)[len(values) // 2]
    limit = LIMITS[kind]
    if kind == "disk":
        limit = max(limit, DISK_SHARE * level) + STEP_BYTES * steps
    if len(values) < 3:
        raise InvariantViolatedError(f"{what}: {len(series.values)} samples are too few")
    slope, _, low, _ = map(float, theilslopes(values, seconds))
    return Growth(level, slope, max(0.0, low) * (last - seconds[0]), limit, name not in BY_DESIGN)


# Sampling.


def sample(run: Run, scratch: Path) -> dict[str, float]:
    """The present value of every series. Raises `InvariantViolatedError` if a process of the run has died."""
    found: dict[str, float] = {}
    try:
        for name, process in processes(run).items():
            found |= {f"{kind} {name}": value for kind, value in state(process).items()}
    except psutil.NoSuchProcess as error:
        raise InvariantViolatedError(f"process {error.pid} died; the run's last output: {tail(run.log)}") from None
    folder = run.config.folder
    disk = {kind_of(place): 0.0 for place in folder.iterdir()}
    for place in folder.iterdir():
        disk[kind_of(place)] += size(place)
    disk |= {"scratch": sum(map(size, scratch.glob("douga-*"))), "ray-logs": size(ray_session(run) / "logs")}
    return found | {f"disk {kind}": bytes_ for kind, bytes_ in disk.items()}


def state(process: psutil.Process) -> dict[str, float]:
    """Memory (private bytes, without mapped files), open files and threads of a process."""
    memory = process.memory_info()
    return {"memory": memory.rss - memory.shared, "files": process.num_fds(), "threads": process.num_threads()}


def processes(run: Run) -> dict[str, psutil.Process]:
    """The driver, the workers in its output, and Ray's own processes."""
    assert run.driver is not None
    driver = psutil.Process(run.driver.pid)
    found = {"driver": driver} | {name: psutil.Process(number) for name, number in run.places().items()}
    return found | {one.name(): one for one in driver.children() if one.name() in RAY}


def ray_session(run: Run) -> Path:
    """The session folder of the driver's Ray cluster."""
    command = " ".join(processes(run)["raylet"].cmdline())
    found = SESSION.search(command)
    if found is None:
        raise InvariantViolatedError(f"the raylet's command line has no session folder: {command}")
    return Path(found[1])


def kind_of(place: Path) -> str:
    """The kind of a file: `ledger.sqlite-wal` belongs to the ledger, a rotated timeline to the timeline."""
    return re.sub(r"^(ledger|timeline).*", r"\1", place.name)


def size(place: Path) -> float:
    """Bytes of a file, or of all files under a folder. Files that vanish meanwhile do not count."""
    found = 0.0
    within = [Path(folder, name) for folder, _, names in os.walk(place) for name in names]  # skips vanished folders
    for file in within if place.is_dir() else [place]:
        with suppress(FileNotFoundError):
            found += file.lstat().st_size
    return found


def last_step(run: Run) -> int:
    """The last recorded optimizer step; 0 before the first."""
    path = run.config.folder / METRICS
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        whole = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    return json.loads(whole)["step"] if whole else 0


# The run.


@dataclass
class SoakResult:
    """All samples of a run."""

    config: RunConfig
    seconds: float
    steps: int
    series: dict[str, Series]

    def found(self) -> dict[str, Growth]:
        """Growth by series name, leaks first."""
        steps = (1 - WARM_UP) * self.steps
        found = {what: growth(what, series, steps) for what, series in sorted(self.series.items())}
        return dict(sorted(found.items(), key=lambda one: not one[1].is_leak))


def configuration(root: Path, real: bool, **more: Any) -> RunConfig:
    """Many small groups, and limits that are reached within a minute."""
    flags = {"root": root, "name": "soak"} | SMALL | (REAL if real else SIMULATED) | more
    return load_config(layout.TOON, flags)


def watch(config: RunConfig, seconds: float, say: Callable[[str], None]) -> SoakResult:
    """Start a run, sample it for `seconds` from its first step on, and stop it. Raises `InvariantViolatedError`."""
    root = config.root
    scratch = root / "scratch"
    scratch.mkdir()
    run = Run(config, root / "soak.log", {"TMPDIR": str(scratch), "RAY_ROTATION_MAX_BYTES": "10000"})
    run.start()
    try:
        wait_for("a step", lambda: last_step(run), run, START_SECONDS)
        series, steps = collect_series(run, scratch, seconds, say), last_step(run)
        code = run.interrupt()
        if code != 130:
            raise InvariantViolatedError(f"after an interrupt the run ended with {code}")
    finally:
        run.end()
    check_ledger(config)
    return SoakResult(config, seconds, steps, series)


def collect_series(run: Run, scratch: Path, seconds: float, say: Callable[[str], None]) -> dict[str, Series]:
    """Sample all series for `seconds`."""
    series: dict[str, Series] = {}
    pause, began, next_line = Event(), time.monotonic(), 0.0
    while (now := time.monotonic() - began) < seconds:
        if run.ended() is not None:
            raise InvariantViolatedError(f"the run ended with {run.ended()}")
        for what, value in sample(run, scratch).items():
            one = series.setdefault(what, Series())
            one.seconds.append(now)
            one.values.append(value)
        if now >= next_line:
            next_line = now + PROGRESS_SECONDS
            say(progress_line(now, seconds, last_step(run), series))
        pause.wait(seconds / SAMPLES)
    return series


def progress_line(now: float, seconds: float, steps: int, series: Mapping[str, Series]) -> str:
    """A line of progress."""
    memory = [f"{what.split()[1]} {one.values[-1] / MEGABYTE:.1f}" for what, one in series.items() if "memory" in what]
    disk = sum(one.values[-1] for what, one in series.items() if what.startswith("disk"))
    return f"{now:.0f} of {seconds:.0f} s: step {steps}; memory, MB: {', '.join(memory)}; disk {disk / MEGABYTE:.2f} MB"


def check_ledger(config: RunConfig) -> None:
    """Check that no group or blob was lost."""
    exchange = LocalExchange(config.folder, config, open_prompts(config.prompts, config.seed))
    try:
        exchange.check()
    finally:
        exchange.close()


def as_report(watched: SoakResult) -> harness.Report:
    """A report in the benchmarks' format: `ours` is the growth per hour, `limit` the allowed growth."""
    rows, found = list[harness.Row](), watched.found()
    half = watched.seconds * (1 - WARM_UP)
    for what, one in found.items():
        size, unit = (MEGABYTE, "MB") if what.startswith(("memory", "disk")) else (1.0, what.split()[0])
        hourly, limit = (3600 * value / size for value in (one.slope, one.limit / half))
        rate_unit = f"{unit}/h, at {one.level / size:.3g} {unit}"
        rows.append(harness.Row(what, rate_unit, hourly, limit=limit if one.counts else None))
    leaks = [what for what, one in found.items() if one.is_leak]
    target = f"none of {sum(one.counts for one in found.values())} series in {watched.steps} steps"
    aims = [harness.Aim(f"series that grow: {', '.join(leaks) or 'none'}", len(leaks), target, not leaks)]
    return harness.Report("soak", rows, aims, ("ray", "pyzmq", "torch"), package="benchmarks.stress")


def measure(given: argparse.Namespace) -> harness.Report:
    """Measure one run."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        config = configuration(Path(folder), given.real)
        return as_report(watch(config, 60 * given.minutes, lambda line: print(line, flush=True)))


def main() -> int:
    """The command line."""
    minutes = {"type": float, "default": 30.0, "help": "minutes after the first step (default: 30)"}
    real = {"action": "store_true", "help": "the embedded model instead of simulated work"}
    try:
        done = harness.main(__doc__, measure, ("--minutes", minutes), ("--real", real))
    except InvariantViolatedError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    return 0 if all(aim.met for aim in done.aims) else 1


if __name__ == "__main__":
    sys.exit(main())
