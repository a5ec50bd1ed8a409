"""Random calls, clock jumps, crashes and rollbacks: the ledger must always equal its reference model.

Every call is made twice: on the exchange, and on `model.Model`, which returns the expected result. A crash can be
scheduled for one of the next writes: the test then copies the folder at that moment and continues on the copy, which
must equal the model either before the call or after it.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from common.config import RunConfig
from common.exchange.api import Submitted
from common.exchange.local import LocalExchange
from common.messages import Purpose, SamplingLease, Score, ScoreTask, TrainingGroup
from tests.support.exchange.fakes import (
    Clock,
    candidate,
    conditioning,
    heldout,
    open_exchange,
    score,
    small,
    values,
    weight_version,
)
from tests.support.exchange.model import OPEN, Model

TIGHT = small(exchange__lease_seconds=60, exchange__max_lag=4)
CONFIGS: list[RunConfig] = [
    small(exchange__lease_seconds=60),
    small(exchange__lease_seconds=60, exchange__order="priority", exchange__max_lag=0, exchange__max_attempts=1),
    small(exchange__lease_seconds=60, exchange__max_times_trained=2, learner__steps_per_push=2),
    small(exchange__lease_seconds=60, algorithm__min_gap=0.3, learner__keep_checkpoints=2),
    small(
        exchange__max_times_trained=3,
        exchange__max_lag=2,
        exchange__order="priority",
        steps=4,
    ),
    small(exchange__lease_seconds=60, exchange__pipeline_depth=2, sampler__candidates=3, exchange__max_lag=3),
    small(exchange__lease_seconds=60, sampler__candidates=3, sampler__micro_batch=2, exchange__max_attempts=2),
    small(exchange__keep_groups=1, exchange__lease_seconds=60, exchange__max_lag=0, learner__keep_checkpoints=2),
    small(keep_candidates_bytes=1, exchange__keep_groups=1, exchange__lease_seconds=60, sampler__candidates=3),
    small(exchange__keep_groups=2, exchange__lease_seconds=60, exchange__max_times_trained=2, algorithm__min_gap=0.3),
    # max_bytes that four of these small groups reach. The configuration would reject such a small value.
    TIGHT.model_copy(update={"exchange": TIGHT.exchange.model_copy(update={"max_bytes": 1100})}),
]
SOME = st.integers(0, 999)
WORKERS = st.sampled_from(["a", "b"])
FOLDERS = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # fsync costs nothing there


class Crash(BaseException):
    """The process is killed here."""


class CrashTimer:
    """Counts down at every write. At zero it copies the folder and raises `Crash`. 0: no crash is scheduled."""

    def __init__(self) -> None:
        self.left = 0
        self.copied: Path | None = None

    def tick(self, folder: Path) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                self.copied = Path(tempfile.mkdtemp(prefix="ledger-", dir=FOLDERS))
                shutil.copytree(folder, self.copied, dirs_exist_ok=True)
                (self.copied / "blobs" / "0123.tmp").write_bytes(b"half a blob")
                raise Crash

    def around(self, folder: Path, act: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns `act` with a possible crash before and after it."""

        def acting(what: Any) -> Any:
            self.tick(folder)
            done = act(what)
            self.tick(folder)
            return done

        return acting


class CrashingConnection:
    """A database connection that may crash before every write statement, and before every commit with changes."""

    def __init__(self, database: Any, crash_timer: CrashTimer, folder: Path) -> None:
        self._database, self._crash_timer, self._folder = database, crash_timer, folder
        self._committed = database.total_changes  # opening the ledger committed these

    def execute(self, sql: str, *values: Any) -> Any:
        changes = self._database.total_changes
        if not sql.startswith(("SELECT", "PRAGMA", "ROLLBACK", "BEGIN", "SAVEPOINT", "RELEASE", "COMMIT")):
            self._crash_timer.tick(self._folder)
        if sql == "COMMIT" and changes != self._committed:
            self._crash_timer.tick(self._folder)
            self._committed = changes
        return self._database.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def view(exchange: LocalExchange) -> dict[str, Any]:
    """The same as `Model.view`, read from the tables."""
    ledger = exchange._ledger
    names: dict[int, list[str]] = {}
    for row in ledger.all("SELECT ordinal, name FROM group_blobs ORDER BY ordinal, name"):
        names.setdefault(row["ordinal"], []).append(row["name"])
    columns = [
        *("state", "version", "pushes", "leased_by", "attempt", "reason", "times_trained", "step"),
        "ended_at_step",
    ]
    batches: dict[int, tuple[list[int], bool]] = {}
    for row in ledger.all("SELECT * FROM batch_entries ORDER BY step, slot"):
        batches.setdefault(row["step"], ([], bool(row["committed"])))[0].append(row["ordinal"])
    return {
        "groups": {
            row["ordinal"]: (
                *(row[name] for name in columns),
                None if row["selection"] is None else tuple(json.loads(row["selection"])["candidates"]),
                names.get(row["ordinal"], []),
            )
            for row in ledger.all("SELECT * FROM groups ORDER BY ordinal")
        },
        "missing": {
            (row["ordinal"], row["candidate_index"]): (row["leased_by"], row["failures"])
            for row in ledger.all("SELECT * FROM unsampled")
        },
        "clips": {
            row["id"]: (row["ordinal"], row["candidate_index"], row["leased_by"], row["failures"], row["raw"])
            for row in ledger.all(
                "SELECT c.*, json_extract(scores, '$.motion') AS raw FROM candidates c JOIN groups g USING (ordinal) "
                "WHERE g.state IN (?, ?)",
                *OPEN,
            )
        },
        "wasted": {tuple(row) for row in ledger.all("SELECT id, reason FROM wasted_candidates")},
        "archived": {(row["kind"], row["name"]): row["count"] for row in ledger.all("SELECT * FROM archive")},
        "refreshes": {int(at): taken for at, taken in json.loads(ledger.meta("refreshes", "{}")).items()},
        "batches": batches,
        "versions": {row[0]: (row[1], row[2], bool(row[3])) for row in ledger.all("SELECT * FROM versions")},
        "checkpoints": set(ledger.checkpoints()),
        "current": (
            *(exchange.next_version(), exchange.current_version()),
            *(exchange.wanted_version(), exchange.wanted_version(0)),
            *(ledger.meta("pushes", 0), ledger.meta("oldest_resumable_step", 0)),
        ),
        "bytes": exchange.bytes_on_disk(),
    }


def plain(answer: Any) -> Any:
    """Convert a result of the exchange to the form that the model returns."""
    if isinstance(answer, Submitted):
        return answer.accepted, answer.reason
    if isinstance(answer, SamplingLease):
        return answer.prompt.ordinal, answer.attempt, answer.version, answer.indices, answer.encoded
    if isinstance(answer, ScoreTask):
        return answer.candidate_id
    if isinstance(answer, TrainingGroup):
        return answer.ordinal
    return [plain(one) for one in answer] if isinstance(answer, list) else answer


class LedgerMachine(RuleBasedStateMachine):
    """Workers that keep old leases, lose them, submit twice and crash."""

    @initialize(config=st.sampled_from(CONFIGS))
    def start(self, config: RunConfig) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=FOLDERS))
        self.config, self.clock, self.crash_timer = config, Clock(), CrashTimer()
        self.model = Model(config, self.clock)
        self.leases: list[SamplingLease] = []
        self.tasks: list[ScoreTask] = []
        self.batches: list[tuple[int, list[int]]] = []
        self.open()

    def open(self) -> None:
        self.exchange = open_exchange(self.folder, self.config, self.clock)
        ledger = self.exchange._ledger
        ledger.run("PRAGMA synchronous = OFF")
        blobs: Any = ledger.blobs
        for name in ("write", "sync", "delete"):
            setattr(blobs, name, self.crash_timer.around(self.folder, getattr(blobs, name)))
        ledger._db = CrashingConnection(ledger._db, self.crash_timer, self.folder)  # type: ignore[assignment]

    def teardown(self) -> None:
        if hasattr(self, "exchange"):
            self.exchange.close()
            shutil.rmtree(self.folder)

    def call(self, name: str, *arguments: Any, to_model: tuple[Any, ...] | None = None) -> Any:
        """Make a call on both. Returns the exchange's result; None if it raised or the process crashed."""
        shared = {id(one): one for one in (self.clock, self.config, self.config.exchange)}
        before = copy.deepcopy(self.model, shared)
        try:
            expected = getattr(self.model, name)(*(arguments if to_model is None else to_model))
        except ValueError as error:
            self.model, expected = before, type(error)
        try:
            answer = getattr(self.exchange, name)(*arguments)
        except ValueError as error:
            answer, found = None, type(error)
        except Crash:
            self.resume_from_copy(before)
            return None
        else:
            found = plain(answer)
        assert found == expected
        return answer

    def resume_from_copy(self, before: Model) -> None:
        """Continue with the copy and with the model that it equals: before or after the call."""
        assert self.crash_timer.copied is not None
        self.exchange.close()
        shutil.rmtree(self.folder)
        self.folder, self.crash_timer.copied = self.crash_timer.copied, None
        self.open()
        for model in (before, self.model):
            model.reopen()
        found = view(self.exchange)
        self.model = next((model for model in (before, self.model) if model.view() == found), before)

    # The process.

    @rule(writes=st.integers(1, 12))
    def schedule_crash(self, writes: int) -> None:
        """Schedule a crash for one of the next writes."""
        self.crash_timer.left = writes

    @rule()
    def reopen(self) -> None:
        self.exchange.close()
        self.open()
        self.model.reopen()

    @rule(seconds=st.sampled_from([-500.0, -1.0, 30.0, 61.0, 61.0, 1e6]))
    def jump(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(worker=WORKERS)
    def renew(self, worker: str) -> None:
        self.call("renew", worker)

    @rule(worker=WORKERS)
    def release(self, worker: str) -> None:
        self.call("release", worker)

    # Sampling.

    @rule(worker=WORKERS, version=st.sampled_from(["current", "wanted", "base", "any", "unknown"]), which=SOME)
    def lease_sampling(self, worker: str, version: str, which: int) -> None:
        known = sorted({0, *self.model.versions})
        number = {"current": self.exchange.current_version(), "wanted": self.exchange.wanted_version(), "base": 0,
                  "any": known[which % len(known)], "unknown": 1000}[version]  # fmt: skip
        self.lease(worker, number)

    def lease(self, worker: str, number: int) -> SamplingLease | None:
        lease = self.call("lease_sampling", worker, number)
        assert lease is None or not self.exchange.refusal
        if lease is not None:
            self.leases.append(lease)
        return lease

    @rule(leases=st.integers(1, 6))
    def sample_candidates(self, leases: int) -> None:
        """A well-behaved sampler."""
        held = self.exchange.current_version()
        for _ in range(leases):
            lease = self.lease("a", held)
            if lease is not None:
                self.sample(lease, True, len(lease.indices))

    @precondition(lambda self: self.leases)
    @rule(which=SOME, with_conditioning=st.booleans(), upto=st.integers(0, 3))
    def submit(self, which: int, with_conditioning: bool, upto: int) -> None:
        self.sample(self.leases[which % len(self.leases)], with_conditioning, upto)

    def sample(self, lease: SamplingLease, with_conditioning: bool, upto: int) -> None:
        if with_conditioning:
            self.call("submit_conditioning", lease, conditioning(lease.prompt))
        for index in lease.indices[:upto]:
            self.call("submit_candidate", lease, candidate(lease, index))

    @precondition(lambda self: self.leases)
    @rule(which=SOME)
    def fail(self, which: int) -> None:
        self.call("fail_sampling", self.leases[which % len(self.leases)], "broken image")

    @rule(
        count=st.integers(1, 2),
        versioned=st.booleans(),
        purpose=st.sampled_from([Purpose.EVAL, Purpose.PROBE, Purpose.COLLECT]),
    )
    def enqueue(self, count: int, versioned: bool, purpose: Purpose) -> None:
        version = self.exchange.current_version() if versioned else None
        self.call("enqueue", heldout(count, purpose), version)

    @rule()
    def store_the_collected(self) -> None:
        """What a collection does, and a run that keeps its candidates: read what is done, then drop it."""
        for one in list(self.exchange.collected()):
            self.call("drop_collected", one.ordinal)

    @precondition(lambda self: self.model.keeping)
    @rule()
    def stop_keeping(self) -> None:
        self.call("stop_keeping")

    # Probes.

    @rule()
    def probe_the_base(self) -> None:
        """What the guardrails do: sample and score probes of version 0, then score them again."""
        self.call("enqueue", heldout(2, Purpose.PROBE), 0)
        for _ in range(2):
            lease = self.lease("a", 0)
            if lease is not None:
                self.sample(lease, True, len(lease.indices))
        self.score("b", 16, 16)
        self.call("rescore_probes", 0)

    @rule()
    def retire_probes(self) -> None:
        self.call("retire_probes")

    @rule(which=SOME, ahead=st.sampled_from([0, 0, 0, 1, -1]))
    def refresh(self, which: int, ahead: int) -> None:
        """The guardrails request a refresh, and the learner asks for it between two steps."""
        known = sorted({0, *self.model.versions})
        self.call("ask_refresh", known[which % len(known)])
        self.call("refresh_due", self.model.last_step() + ahead)

    # Scoring.

    @rule(worker=WORKERS, limit=st.integers(1, 8), answered=st.integers(0, 8))
    def score(self, worker: str, limit: int, answered: int) -> None:
        tasks = self.call("lease_candidates", worker, limit) or []
        self.call("submit_scores", worker, [score(task) for task in tasks[:answered]])
        self.tasks += tasks[answered:]

    @precondition(lambda self: self.tasks)
    @rule(which=SOME, raw=st.sampled_from([None, 50.0, nan, inf]), judge=st.sampled_from(["heads-1", "heads-2"]))
    def score_late(self, which: int, raw: float | None, judge: str) -> None:
        task = self.tasks[which % len(self.tasks)]
        number = score(task).values["motion"] if raw is None else raw
        self.call("submit_scores", "a", [Score(task.candidate_id, judge, values(number))])

    # Training.

    @rule(worker=WORKERS, ahead=st.sampled_from([1, 1, 1, 1, 0, 2]), count=st.sampled_from([2, 2, 2, 1, 3]))
    def lease_batch(self, worker: str, ahead: int, count: int) -> None:
        self.take_batch(worker, ahead, count)

    def take_batch(self, worker: str, ahead: int, count: int) -> bool:
        step = self.model.last_step() + ahead
        pairs = self.call("lease_batch", worker, step, count)
        if pairs:
            self.batches.append((step, [one.ordinal for one in pairs]))
            assert all(one.lag <= self.config.exchange.max_lag for one in pairs)
        return bool(pairs)

    @precondition(lambda self: self.batches)
    @rule(back=st.sampled_from([1, 1, 1, 2, 3]), other=st.booleans())
    def commit(self, back: int, other: bool) -> None:
        step, ordinals = self.batches[-min(back, len(self.batches))]
        self.call("commit_step", step, ordinals if not other else ordinals[:1])

    @rule()
    def step(self) -> None:
        """A well-behaved learner."""
        if self.take_batch("b", 1, 2):
            self.commit(1, False)
            self.announce(False)

    @rule(rounds=st.integers(1, 3))
    def work(self, rounds: int) -> None:
        """Some rounds of well-behaved workers."""
        for _ in range(rounds):
            self.sample_candidates(3 * self.config.sampler.candidates)
            self.score("b", 16, 16)
            self.step()

    @rule(used=st.booleans())
    def announce(self, used: bool) -> None:
        step, version = self.model.last_step(), self.exchange.next_version() - used
        pushes = step // self.config.learner.steps_per_push
        self.call("announce", weight_version(max(0, version), step, pushes), to_model=(max(0, version), step, pushes))

    @rule(back=st.sampled_from([0, 0, 0, 1, -1]))
    def record_checkpoint(self, back: int) -> None:
        self.call("record_checkpoint", self.model.last_step() - back)

    @rule(step=st.sampled_from(["oldest", "last", "between", "before"]), crashes=st.booleans())
    def rollback(self, step: str, crashes: bool) -> None:
        """The learner resumes from a checkpoint, after a crash of its own process or of the hub too."""
        if crashes:
            self.reopen()
        oldest, last = self.model.oldest_resumable_step, self.model.last_step()
        to = {"oldest": oldest, "last": last, "between": (oldest + last) // 2, "before": oldest - 1}[step]
        self.call("rollback", to)

    # What must hold.

    @invariant()
    def equals_the_model(self) -> None:
        if not hasattr(self, "exchange"):
            return
        found, expected = view(self.exchange), self.model.view()
        for part, value in expected.items():
            assert found[part] == value, part
        self.exchange.check()
        files = {path.name for path in (self.folder / "blobs").iterdir()}
        assert len(files) == len(self.model.contents())
        m = self.config.exchange.max_times_trained
        assert all(one.times_trained <= m for one in self.model.groups.values())

    @rule(which=SOME)
    def results(self, which: int) -> None:
        known = sorted({0, *self.model.versions})
        version = known[which % len(known)]
        done = {
            (one.prompt.id, clip.raw)
            for one in self.model.groups.values()
            for clip in one.clips.values()
            if one.state == "done" and one.prompt.purpose is Purpose.EVAL and one.version == version
        }
        found = {(one.prompt.id, one.values["motion"]) for one in self.exchange.results(Purpose.EVAL, version)}
        assert found == done


def profile(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def test_the_ledger_equals_its_model() -> None:
    run_state_machine_as_test(LedgerMachine, settings=profile(60, 40))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_ledger_equals_its_model_for_long() -> None:
    run_state_machine_as_test(LedgerMachine, settings=profile(600, 60))
