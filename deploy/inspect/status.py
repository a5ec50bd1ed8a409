"""Computes a run's progress, its rates, and which worker waits for which, from a `RunSnapshot`.

| worker | works while it | otherwise it waits for | which comes from |
|---|---|---|---|
| sampler | holds a group | admission (the exchange gives the reason), or the weights of a new version | learner |
| rewarder | holds clips | clips | sampler |
| learner | holds pairs, or publishes and saves | pairs | rewarder if enough clips are sampled, else sampler |

A worker's waiting time counts from the end of its last unit of work in timeline.jsonl. Rates and busy shares cover the
last `WINDOW` seconds, or `LONGEST_UNITS` times the longest recent unit of work if that is longer. The role with the
highest busy share is the bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from common.exchange.api import OVER, State
from common.exchange.queries import Work
from common.messages import StepStats
from common.roles import COLLECTING, EVALUATING_ALIGNED, EVALUATING_BASE, LEARNER, ROLES, TRAINING, role_of
from deploy.inspect.snapshot import LedgerSummary, Record, RunSnapshot
from deploy.run_dir import layout, throughput, timeline
from deploy.run_dir.endings import ENDS, KILLED
from deploy.run_dir.progress import Status, ThroughputTracker, minutes
from deploy.run_dir.timeline import STARTS, Bar

WINDOW = 120.0  # seconds
LONGEST_UNITS = 3  # the window is at least this many times the longest unit of work
UNITS = 5  # number of a worker's last units of work that tell how long one usually takes
STARTING, FINISHED, STOPPED = "starting", "finished", "not running"


@dataclass(frozen=True)
class WorkerStatus:
    """One process, or one role of a serial run."""

    name: str
    state: str  # "works", "waits", "has not begun", "is lost"
    words: str  # what it does or waits for
    on: str = ""  # the role that it waits for; empty if it does not wait
    seconds: float | None = None  # since the end of its last unit of work

    @property
    def line(self) -> str:
        """The status as one line of text."""
        since = "" if self.seconds is None or self.state != "waits" else f" since {self.seconds:.0f} s"
        return f"{self.name} {self.state}{self.words and ' ' + self.words}{since}"


@dataclass(frozen=True)
class RunStatus:
    """A run's progress. Each rate's unit is in its name; shares are 0..1."""

    run: str
    folder: str
    phase: str
    words: str  # the progress in one line
    step: int
    steps: int  # 0: the run collects candidates
    eta: float | None  # seconds to the end of the phase; None if unknown
    version: int
    lag: Mapping[str, float]  # mean and max of the last batch, and the bound (exchange.max_lag), in pushes
    queue: Mapping[str, int]  # training groups, or those of a collection, by state, including final states
    rates: Mapping[str, float]
    window: float  # seconds over which the rates are measured
    last: Mapping[str, Mapping[str, Any]]  # push, refresh, alarm, full, start -> seconds ago, step, details
    roles: Mapping[str, Mapping[str, float]]  # role -> number of workers, busy share, number of waiting workers
    bottleneck: str | None  # the role with the highest busy share; None if the run is stopped
    workers: Sequence[WorkerStatus] = field(default_factory=list)
    process: int | None = None  # pid of the process that holds the ledger
    since: float | None = None  # for a run that is not running: time of its last record, seconds since 1970
    resume_command: str | None = None  # for a stopped run: the command that resumes it
    wasted: Mapping[str, int] = field(default_factory=dict)  # wasted clips, by reason


def run_status(snapshot: RunSnapshot) -> RunStatus:
    """Returns the status of the run in the snapshot."""
    ledger, phase = snapshot.ledger or LedgerSummary(), _phase(snapshot)
    live = phase not in (FINISHED, STOPPED)
    workers = _workers(snapshot) if live and phase != STARTING else []
    window, rates, roles = _flow(snapshot, workers, phase in (EVALUATING_BASE, EVALUATING_ALIGNED))
    status = _status(snapshot, phase, rates)
    return RunStatus(
        run=snapshot.config.name,
        folder=str(snapshot.folder),
        phase=phase,
        words=_progress_text(snapshot, phase, status, rates),
        step=ledger.step,
        steps=0 if snapshot.config.collect.prompts else snapshot.config.steps,
        eta=status.eta,
        version=ledger.version,
        lag=_lag(snapshot),
        queue={state.value: count for state, count in ledger.groups.items() if count},
        rates=rates,
        window=window,
        last=_last(snapshot),
        roles={role: {**how, "waiting": _waiting(workers, role)} for role, how in roles.items()},
        bottleneck=throughput.busiest(roles) if live and any(how["busy"] for how in roles.values()) else None,
        workers=workers,
        process=snapshot.lock_owner,
        since=None if live else snapshot.last_record,
        resume_command=layout.resume_command(snapshot.folder) if phase == STOPPED else None,
        wasted=ledger.wasted,
    )


def _lag(snapshot: RunSnapshot) -> dict[str, float]:
    last = snapshot.steps[-1] if snapshot.steps else {}
    bound = snapshot.config.exchange.max_lag
    return {"mean": last.get("lag", 0.0), "max": last.get("lag_max", 0), "bound": bound}


def _waiting(workers: Sequence[WorkerStatus], role: str) -> int:
    return sum(one.state == "waits" and role_of(one.name) == role for one in workers)


def _phase(snapshot: RunSnapshot) -> str:
    if snapshot.finished:
        return FINISHED
    if snapshot.lock_owner is None:
        return STOPPED
    if snapshot.started is None or snapshot.ledger is None:
        return STARTING
    if snapshot.config.collect.prompts:
        return COLLECTING
    waiting = any(count for state, count in snapshot.ledger.held_out.items() if state not in OVER)
    if snapshot.ledger.step >= snapshot.config.steps:
        return EVALUATING_ALIGNED
    return (
        EVALUATING_BASE if waiting and snapshot.ledger.held_out_version == 0 and not snapshot.ledger.step else TRAINING
    )


def _status(snapshot: RunSnapshot, phase: str, rates: Mapping[str, float]) -> Status:
    """Returns the status that the run's own progress line shows (`deploy/run_dir/progress.py`)."""
    if phase in (EVALUATING_BASE, EVALUATING_ALIGNED, COLLECTING) and snapshot.ledger:
        groups = snapshot.ledger.groups if phase == COLLECTING else snapshot.ledger.held_out
        done, total = sum(groups.get(state, 0) for state in OVER), sum(groups.values())
        total = snapshot.config.collect.prompts or total
        rate = rates["groups_per_second"]
        eta = (total - done) / rate if rate and done < total else None
        return Status(phase, done, total, groups_per_second=rate, eta=eta)
    moment = [_training_since(snapshot)]
    pace = ThroughputTracker(snapshot.config, clock=lambda: moment[0])
    names = [one.name for one in fields(StepStats)]
    for record in snapshot.steps:
        if record["time"] >= moment[0]:
            moment[0] = record["time"]
            pace.add(StepStats(**{name: record.get(name, 0.0) for name in names}))  # older records lack some
    ledger = snapshot.ledger
    if ledger is None:
        return pace.status(0, 0)
    return pace.status(ledger.step, ledger.version, ledger.groups[State.TIED])


def _training_since(snapshot: RunSnapshot) -> float:
    """Returns when training began: at the last start, or after the base model's evaluation if that was later."""
    started = snapshot.started or 0.0
    evaluated = [one["time"] for one in snapshot.events if one["event"] == "evaluated" and one["version"] == 0]
    return max([started, *evaluated])


def _progress_text(snapshot: RunSnapshot, phase: str, status: Status, rates: Mapping[str, float]) -> str:
    if phase == FINISHED:
        return _conclusion(snapshot)
    if phase == STARTING:
        return "starting: no records yet"
    if phase != STOPPED:
        return replace(status, groups_per_second=rates["groups_per_second"]).line()
    return _why_stopped(snapshot)


def _why_stopped(snapshot: RunSnapshot) -> str:
    last = _last_end(snapshot.events)
    if last.get("event") == "interrupted":
        return "interrupted" if snapshot.config.collect.prompts else f"interrupted after step {last['step']}"
    if last.get("event") == "failed":
        return f"failed after step {last['step']} with exit code {last['exit_code']}: {last['words']}"
    if last.get("event") == "killed":
        return last["words"]
    if last.get("event") == "alarm" and last.get("action") == "pause":
        return f"paused by the guardrails after step {last['step']}: {last['words']}"
    return KILLED if snapshot.events else "not started yet"


def _last_end(events: Sequence[Record]) -> Record:
    """Returns the event that says best why the run ended: a pause by the guardrails rather than the exit after it."""
    last = events[-2:]
    if len(last) == 2 and last[1]["event"] == "failed" and last[0].get("action") == "pause":
        return last[0]
    return last[-1] if last else {}


def _conclusion(snapshot: RunSnapshot) -> str:
    result = snapshot.result or {}
    if snapshot.config.collect.prompts:
        return f"{result['candidates']} candidates of {result['collected']} prompts"
    return result.get("verdict", {}).get("message", "finished")


# Rates and shares of the last minutes.


def _flow(
    snapshot: RunSnapshot, workers: Sequence[WorkerStatus], evaluating: bool
) -> tuple[float, dict[str, float], dict[str, dict[str, float]]]:
    """Returns (length of the window in seconds, rates, role -> number of workers and busy share)."""
    end = snapshot.now if workers else snapshot.last_record or snapshot.now
    units = [span["seconds"] for span in snapshot.spans[-100:]]
    begin = max(end - max([WINDOW, *(LONGEST_UNITS * one for one in units)]), snapshot.started or 0.0)
    seconds = max(end - begin, 1e-3)
    ended = snapshot.ended_since(begin)
    work = timeline.read(ended, [])
    names = [one.name for one in workers] or [one for one in work.workers if role_of(one) in ROLES]
    now = work.at(end)
    recent = work.between(now - seconds, now, *(bar for one in workers if (bar := _open_bar(snapshot, one, now))))

    def count(kind: str) -> int:
        return sum(span.get("units", 1) for span in ended if span["kind"] == kind)

    steps = [one for one in snapshot.steps if one["time"] >= begin]
    rates = {
        "groups_per_second": count("sampling") / seconds / (1 if evaluating else snapshot.config.sampler.candidates),
        "clips_per_second": count("scoring") / seconds,
        "steps_per_minute": 60 * len(steps) / seconds,
        "pushes_per_minute": 60 * sum(one["pushed"] for one in steps) / seconds,
    }
    return seconds, rates, throughput.shares(recent, names, seconds)


def _open_bar(snapshot: RunSnapshot, worker: WorkerStatus, now: float) -> Bar | None:
    """Returns the worker's current unit of work, which has no span yet.

    Its start is unknown: it is at most as long as the worker's longest recent unit.
    """
    if worker.state != "works":
        return None
    usual = max((span["seconds"] for span in snapshot.units.get(worker.name, [])[-UNITS:]), default=float("inf"))
    return Bar(worker.name, "now", now - min(worker.seconds or 0.0, usual), now)


def _last(snapshot: RunSnapshot) -> dict[str, dict[str, Any]]:
    """Returns the last push, refresh, alarm, end, start, and when no more candidates could be kept, if it happened."""
    pushed = [one for one in snapshot.steps if one["pushed"]]
    refreshed = [one for one in snapshot.steps if one["refreshed"]]
    alarms = [one for one in snapshot.events if one["event"] == "alarm"]
    starts = [one for one in snapshot.events if one["event"] in STARTS]
    ends = [one for one in snapshot.events if one["event"] in ENDS]
    full = [one for one in snapshot.events if one["event"] == "candidates full"]
    found = {
        "push": pushed, "refresh": refreshed, "alarm": alarms, "full": full, "end": ends, "start": starts,
    }  # fmt: skip
    return {name: _ago(snapshot, records[-1]) for name, records in found.items() if records}


def _ago(snapshot: RunSnapshot, record: Record) -> dict[str, Any]:
    details = {key: record[key] for key in ("step", "event", "rule", "words", "action") if key in record}
    return {"seconds": round(snapshot.now - record["time"], 1)} | details


# Workers.


def _workers(snapshot: RunSnapshot) -> list[WorkerStatus]:
    """Returns the configured workers and those that joined with `douga worker`."""
    config, ledger = snapshot.config, snapshot.ledger
    counts = {role: 1 for role in ROLES}
    if config.mode == "cluster":
        counts = {role: config.workers_of(role) for role in ROLES}
    if config.collect.prompts:
        counts[LEARNER] = 0
    configured = [f"{role}-{number}" for role, count in counts.items() for number in range(count)]
    recent = {
        span["worker"] for span in snapshot.spans if span["began"] > max(snapshot.now - WINDOW, snapshot.started or 0.0)
    }
    joined = (recent | set(ledger.work if ledger else ())) - set(configured)
    names = sorted([*configured, *joined], key=lambda name: (ROLES.index(role_of(name)), int(name.rpartition("-")[2])))
    return [_worker(snapshot, name) for name in names]


def _worker(snapshot: RunSnapshot, name: str) -> WorkerStatus:
    ledger, units = snapshot.ledger, snapshot.units.get(name, [])
    assert ledger is not None
    ended = units[-1]["began"] + units[-1]["seconds"] if units else snapshot.started
    seconds = None if ended is None else max(0.0, snapshot.now - ended)
    role = role_of(name)
    work = ledger.work.get("learner-0" if role == "learner" else name)
    if work is not None and work.lost:
        return WorkerStatus(name, "is lost", "(other workers redo its work)", seconds=seconds)
    if work is not None:
        return WorkerStatus(name, "works", _doing(work), seconds=seconds)
    words, on = {"sampler": _sampler_waits, "rewarder": _rewarder_waits, "learner": _learner_waits}[role](
        snapshot, units
    )
    if not on and snapshot.config.mode == "serial" and ledger.work:
        words, on = "for its turn", role_of(next(iter(ledger.work)))  # the roles share one process
    return WorkerStatus(name, "waits" if on else "works" if words else "has not begun", words, on, seconds)


def _doing(work: Work) -> str:
    if work.kind == "sampling":
        kind = {"train": "training", "eval": "held-out", "collect": "collected"}.get(work.purpose, "probe")
        return f"on a {kind} group, {work.done} of {work.of} clips"
    return f"on {work.of} clips" if work.kind == "scoring" else f"on step {work.what}"


def _sampler_waits(snapshot: RunSnapshot, units: Sequence[Record]) -> tuple[str, str]:
    ledger = snapshot.ledger
    assert ledger is not None
    if snapshot.config.collect.prompts:
        return ("for prompts", "rewarder") if units else ("", "")
    if ledger.refusal:
        return f"for admission ({ledger.refusal})", "learner"
    if not units:
        return "", ""
    pushed = [one["time"] for one in snapshot.steps if one["pushed"]]
    loaded = [one["began"] for one in units if one["kind"] == "loading"]
    if pushed and pushed[-1] > max(loaded, default=0.0) and snapshot.config.mode == "cluster":
        return f"for the weights of version {ledger.version}", "learner"
    return "between two groups", ""


def _rewarder_waits(snapshot: RunSnapshot, units: Sequence[Record]) -> tuple[str, str]:
    ledger = snapshot.ledger
    assert ledger is not None
    if ledger.groups[State.SAMPLED] or ledger.held_out.get(State.SAMPLED):
        return ("between two batches" if units else ""), ""
    return "for clips", "sampler"


def _learner_waits(snapshot: RunSnapshot, units: Sequence[Record]) -> tuple[str, str]:
    ledger, need = snapshot.ledger, snapshot.config.learner.batch_size
    assert ledger is not None
    if ledger.step > (snapshot.steps[-1]["step"] if snapshot.steps else 0):
        return f"on step {ledger.step}: publishing or saving", ""
    if ledger.step >= snapshot.config.steps:
        return "no more: all steps are done", ""
    have = ledger.groups[State.READY]
    if have >= need and ledger.straggler is not None:
        holder = next((name for name, work in ledger.work.items() if work.what == ledger.straggler), None)
        words = f"for group {ledger.straggler}, which would be too old after the next push (exchange.max_lag)"
        return words, role_of(holder) if holder else "rewarder"
    if have >= need:
        return ("between two steps" if units else ""), ""
    coming = have + ledger.groups[State.SAMPLED] + ledger.groups[State.SCORING]
    return f"for pairs ({have} of {need})", "rewarder" if coming >= need else "sampler"


def lines(found: RunStatus) -> list[str]:
    """Returns the status as lines of text for a terminal."""
    text = [f"{found.run}: {found.phase}" + (f", process {found.process}" if found.process else ""), found.words]
    if found.resume_command is not None:
        when = "" if found.since is None else f" since {datetime.fromtimestamp(found.since):%Y-%m-%d %H:%M:%S}"
        text.append(f"not running{when}; resume with: {found.resume_command}")
    text.append("")
    lag = f"lag {found.lag['mean']:.1f} pushes (max {found.lag['max']:g}, bound {found.lag['bound']:g})"
    if found.steps:
        text.append(f"step {found.step} of {found.steps}   version {found.version}   {lag}")
    text.append("groups   " + (", ".join(f"{count} {state}" for state, count in found.queue.items()) or "none yet"))
    if found.wasted:
        text.append("wasted   " + ", ".join(f"{count} clips by {reason}" for reason, count in found.wasted.items()))
    rates = found.rates
    text.append(
        f"rates    {rates['groups_per_second']:.2f} groups/s, {rates['clips_per_second']:.2f} clips/s, "
        f"{rates['steps_per_minute']:.1f} steps/min, {rates['pushes_per_minute']:.1f} pushes/min "
        f"(last {minutes(found.window)})"
    )
    text += [f"last     {_happened(name, record)}" for name, record in found.last.items()]
    busy = ", ".join(f"{role} {how['busy']:.0%} of {how['workers']}" for role, how in found.roles.items())
    text.append(f"busy     {busy}" + (f"; the {found.bottleneck} is the bottleneck" if found.bottleneck else ""))
    return [*text, *(["", *(f"  {one.line}" for one in found.workers)] if found.workers else [])]


def _happened(name: str, record: Mapping[str, Any]) -> str:
    name = record.get("event", name)
    what = f": {record['words']}" if "words" in record else ""
    return f"{name} after step {record['step']}, {minutes(record['seconds'])} ago{what}"
