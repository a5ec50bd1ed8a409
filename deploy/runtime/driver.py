"""``mode = "cluster"``: every role in processes of its own, placed, started and restarted by Ray. The control plane.

```
   driver (here) ──────> hub ─┐ one node, STRICT_PACK
      │ starts, watches,      ├─ learner rank 0, 1, ...      each its own GPU
      │ restarts with pauses ─┘
      ├────────────────────────> sampler-0, sampler-1, ...   each its own GPU, spread over nodes
      └────────────────────────> rewarder-0, ...
```

Ray carries orders and a few lines of news; clips, latents and weights go over ZeroMQ between the processes
(`deploy/runtime/hub.py`, `deploy/runtime/workers/`). A worker that dies is started again
(`deploy/runtime/restart_policy.py`) and its leases are free at once. If the hub dies, all start again from the folder.
Only this file and `deploy/runtime/ray_backend.py` import Ray.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from common.config import RunConfig
from common.errors import BAD_INPUT, ConfigError, StorageError
from common.messages import LogEntry
from deploy.logs.files import DRIVER, LogFiles
from deploy.logs.forward import ForwardingHandler, Send
from deploy.logs.process import logging_to
from deploy.logs.redaction import Redactor, secrets_of
from deploy.observability import targets
from deploy.run_dir.layout import CONFIG
from deploy.run_dir.progress import NullProgress, Progress
from deploy.runtime.messages import MEETING, HubReady, HubStatus, Outcome
from deploy.runtime.oom import OutOfMemory
from deploy.runtime.ray_backend import connected, launch, pin, placed, ray_exporters
from deploy.runtime.restart_policy import GivenUp, Quorum, Supervisor

if TYPE_CHECKING:  # the driver imports no torch: it starts at once and stays small
    from rewarders.interface import Reward

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # between two looks at the workers
OPEN_SECONDS = 300.0  # for the hub to open model, prompts and folder
TOGETHER_SECONDS = 2.0  # in which the other ranks of a learner end when one does
STOP_SECONDS, GRACE_SECONDS = 600.0, 10.0  # for the learner to end its step and save; for the others after it
LOG_SECONDS = 2.0  # for the hub to take log records
LOOPBACK = "127.0.0.1"  # where the hub listens when all its workers are on this machine


class HubLost(RuntimeError):
    """The hub's process died."""


def is_fatal(error: Exception) -> bool:
    """Whether starting again mends nothing: bad input, a disk that refuses, memory that was too little from the start.

    Whom the kernel or Ray killed for the memory of its node died like others: it may have been a neighbour's need.
    """
    if isinstance(error, OutOfMemory):
        return not error.worked
    return isinstance(error, (*BAD_INPUT, StorageError))


def run(
    config: RunConfig,
    rewards: Sequence[Reward] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Outcome:
    """Start or resume a run on Ray and bring it to its end, or to the point where `stop` says yes.

    `rewards` replaces the heads of ``config.reward.path``. A finished run's result comes from its folder, which only
    the hub need see. `ConfigError` for bad input, also where only a worker can see it, and when Ray cannot be reached
    or has not what is asked for. `StorageError` when a disk refuses, whoever meets it.
    """
    _check_root(config)
    progress = progress or NullProgress()
    supervisor = Supervisor(config.cluster.restarts, config.cluster.restart_seconds)
    logs = ForwardingHandler(Redactor(secrets_of(config, os.environ)))
    with connected(config.cluster) as own, targets.swept(config.folder), logging_to(logs, config, DRIVER):
        host = LOOPBACK if own else ""
        while True:
            try:
                with placed(config) as group:
                    return Driver(config, rewards, stop, progress, supervisor, group, logs, host).run()
            except HubLost as error:
                log.warning("%s; all workers start again from the run folder", error)
                progress.say(f"{error}; all workers start again from the run folder")
                with _written_by_hand(logs, config):
                    starts_at = supervisor.died("hub", str(error), time.monotonic())
                time.sleep(max(0.0, starts_at - time.monotonic()))


@contextmanager
def _written_by_hand(logs: ForwardingHandler, config: RunConfig) -> Iterator[None]:
    """When the hub is given up nobody else writes into the folder: where it is on this node, the driver does."""
    try:
        yield
    except GivenUp as error:
        log.error("%s", error)
        if (config.folder / CONFIG).is_file():
            LogFiles(config.folder, config).write(DRIVER, logs.take())
        raise


def _check_root(config: RunConfig) -> None:
    """A job of Ray runs in a copy of the working directory, which goes when Ray goes: no place for a run."""
    if not config.root.is_absolute() and "runtime_resources" in Path.cwd().parts:
        raise ConfigError(
            f"root = '{config.root}': a job's working directory is a copy that Ray deletes; name a full path"
        )


@dataclass
class Unit:
    """One worker as the supervisor sees it: a process, or all ranks of the learner, which live and die together."""

    name: str
    make: Callable[[], list[Any]]
    members: list[str]  # names under which they lease
    processes: list[Any] = field(default_factory=list)
    running: list[Any] = field(default_factory=list)  # the answers of their `run`, while they are to come
    starts_at: float | None = 0.0  # second at which it is to be started; None: it runs, or is done
    up: bool = False  # it has said where it is

    @property
    def is_sampler(self) -> bool:
        """Whether the run may go on without it."""
        return self.name.startswith("sampler")


@dataclass
class Asked:
    """A process that was asked where it is."""

    name: str
    since: float  # second; inf once it was said that it waits
    unit: Unit | None


class Driver:
    """One attempt: the hub and its workers, from start to end."""

    def __init__(
        self,
        config: RunConfig,
        rewards: Sequence[Reward] | None,
        stop: Callable[[], bool],
        progress: Progress,
        supervisor: Supervisor,
        group: PlacementGroup,
        logs: ForwardingHandler,
        host: str = "",
    ) -> None:
        """The hub listens at `host`; empty: at its node's address."""
        self.config, self.stop, self.progress = config, stop, progress
        self.supervisor, self.group, self.logs, self.host = supervisor, group, logs, host
        self.hub = launch("deploy.runtime.hub:Hub", [config], **self._bundle(0))
        self.units = self._units(rewards)
        self.quorum = Quorum(config.cluster.min_samplers, config.cluster.placement_seconds)
        self.guests = 0  # samplers from outside
        self.places: dict[Any, Asked] = {}  # answers to come -> who was asked where it is

    def run(self) -> Outcome:
        """Open the hub, start the workers, watch them until the hub's course is over."""
        try:
            for unit in self.units:
                unit.processes = unit.make()  # they import while the hub does
            host = self.host or self._ask(self.hub.host.remote(), OPEN_SECONDS)
            opened = self._ask(self.hub.call.remote("open", host), OPEN_SECONDS)
            if isinstance(opened, Outcome):
                return opened
            self.logs.start(self._log_at_hub)
            outcome = self._watch(opened)
            log.info("the run ends after step %d", outcome.step)
            self._close()
            return outcome
        except (HubLost, KeyboardInterrupt):
            raise  # without a hub nobody could end well; and who interrupts twice does not want to wait
        except BaseException as error:
            log.error("the run ends: %s: %s", type(error).__name__, error)
            self._close()
            raise
        finally:
            self._kill()

    @contextmanager
    def _log_at_hub(self) -> Iterator[Send]:
        def send(entries: Sequence[LogEntry]) -> None:
            ray.get(self.hub.call.remote("log_driver", entries), timeout=LOG_SECONDS)

        yield send

    # Who there is.

    def _units(self, rewards: Sequence[Reward] | None) -> list[Unit]:
        cluster = self.config.cluster
        ranks = [f"learner-{rank}" for rank in range(cluster.learner.count)]
        units = [Unit("learner", lambda: self._learners(ranks), ranks)]
        units += [self._unit("sampler", number) for number in range(cluster.sampler.count)]
        units += [self._unit("rewarder", number, rewards) for number in range(cluster.rewarder.count)]
        return units

    def _unit(self, role: str, number: int, *more: Any) -> Unit:
        name, placement = f"{role}-{number}", self.config.cluster.placement_of(role)
        options = {
            "num_gpus": placement.gpus,
            "resources": pin(placement.node),
            "scheduling_strategy": "SPREAD",
        }
        kind = f"deploy.runtime.workers.{role}:{role.title()}Worker"
        return Unit(name, lambda: [launch(kind, [self.config, name, *more], **options)], [name])

    def _learners(self, names: Sequence[str]) -> list[Any]:
        """All ranks; they meet at a file that no earlier group has used."""
        kind, meeting = "deploy.runtime.workers.learner:LearnerWorker", uuid4().hex
        gpus = self.config.cluster.learner.gpus
        return [
            launch(kind, [self.config, name, rank, f"{MEETING}{meeting}"], num_gpus=gpus, **self._bundle(1 + rank))
            for rank, name in enumerate(names)
        ]

    def _bundle(self, index: int) -> dict[str, Any]:
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, index)}

    # Watching.

    def _watch(self, opened: HubReady) -> Outcome:
        if not opened.training:
            self._end_unit(self.units.pop(0))
        self._ask_place("hub", self.hub)
        course = self.hub.call.remote("run")
        stopping = False
        while True:
            self._start_due(opened)
            running = [answer for unit in self.units for answer in unit.running]
            ready, _ = ray.wait([course, *running], num_returns=1, timeout=POLL_SECONDS)
            self._show_places()
            self._show_news()
            if course in ready:
                return self._ask(course, OPEN_SECONDS)
            for unit in self.units:
                self._look_at(unit, ready)
            if stopping:
                continue
            self._check_samplers()
            if self.stop():
                stopping = True
                log.info("asked to stop")
                self._stop_workers()
                self.hub.call.remote("stop")

    def _start_due(self, opened: HubReady) -> None:
        for unit in self.units:
            if unit.starts_at is not None and unit.starts_at <= time.monotonic():
                unit.processes = unit.processes or unit.make()
                unit.running = [process.call.remote("run", opened.addresses) for process in unit.processes]
                unit.starts_at = None
                for name, process in zip(unit.members, unit.processes, strict=True):
                    self._ask_place(name, process, unit)

    def _look_at(self, unit: Unit, ready: Sequence[Any]) -> None:
        """Take note of those of a unit's processes that ended: well, or else the whole unit starts again later."""
        errors = self._errors(unit, [answer for answer in unit.running if answer in ready])
        if errors and unit.running:  # ranks fail together, and only one of them knows why
            also, _ = ray.wait(unit.running, num_returns=len(unit.running), timeout=TOGETHER_SECONDS)
            errors += self._errors(unit, also)
        if errors:
            self._died(unit, errors)

    def _errors(self, unit: Unit, ended: Sequence[Any]) -> list[Exception]:
        """What members of a unit ended with, if not well."""
        found: list[Exception] = []
        for answer in ended:
            unit.running.remove(answer)
            try:
                ray.get(answer)
            except RayTaskError as error:
                found.append(error.cause if isinstance(error.cause, Exception) else error)
            except RayError as error:
                found.append(error)
        return found

    def _died(self, unit: Unit, errors: Sequence[Exception]) -> None:
        self._end_unit(unit)
        for error in errors:
            if is_fatal(error):
                raise error
        reason = " ".join(str(errors[0]).split())[:300]
        for name in unit.members:
            self._ask(self.hub.call.remote("release", name), OPEN_SECONDS)
        now = time.monotonic()
        try:
            unit.starts_at = self.supervisor.died(unit.name, reason, now)
        except GivenUp as given_up:
            log.error("%s", given_up)
            if not unit.is_sampler:
                raise
            self.progress.say(f"{given_up}; the others go on without it")
            return
        words = f"{unit.name} died ({reason}); it starts again in {unit.starts_at - now:.1f} s"
        log.warning("%s", words)
        self.progress.say(words)

    def _check_samplers(self) -> None:
        samplers = [unit for unit in self.units if unit.is_sampler]
        up = self.guests + sum(unit.up for unit in samplers)
        coming = sum(not unit.up and bool(unit.running or unit.starts_at is not None) for unit in samplers)
        self.quorum.check(up, coming, time.monotonic())

    def _end_unit(self, unit: Unit) -> None:
        for process in unit.processes:
            ray.kill(process)
        unit.running, unit.processes, unit.up = [], [], False

    def _ask_place(self, name: str, process: Any, unit: Unit | None = None) -> None:
        self.places[process.place.remote()] = Asked(name, time.monotonic(), unit)

    def _show_places(self) -> None:
        """Say of every process that came up where it is, and once of every one that waits for room."""
        if not self.places:
            return
        known, waiting = ray.wait(list(self.places), num_returns=len(self.places), timeout=0)
        for answer in known:
            asked = self.places.pop(answer)
            with suppress(RayError):  # it died before it could answer: its unit's turn will come
                place = f"{asked.name}: {ray.get(answer)}"
                log.info("%s", place)
                self.progress.say(place)
                self.hub.call.remote("found_ray", ray_exporters())
                if asked.unit is not None and asked.unit.running:
                    asked.unit.up = True
        for answer in waiting:
            asked = self.places[answer]
            if time.monotonic() - asked.since > self.config.cluster.placement_seconds:
                asked.since = float("inf")
                free = {
                    kind: count for kind, count in ray.available_resources().items() if not kind.startswith("node:")
                }
                words = f"{asked.name} waits for room; the others go on. Free in Ray: {free}"
                log.warning("%s", words)
                self.progress.say(words)

    def _show_news(self) -> None:
        news: HubStatus = self._ask(self.hub.call.remote("news"), OPEN_SECONDS)
        self.guests = news.samplers
        for line in news.lines:
            self.progress.say(line)
        if news.status is not None:
            self.progress.update(news.status)

    def _ask(self, answer: Any, seconds: float) -> Any:
        """The hub's answer. `HubLost` when there is no hub any more; the hub's own errors as what they were."""
        try:
            return ray.get(answer, timeout=seconds)
        except RayActorError as error:
            raise HubLost(f"the hub died: {' '.join(str(error).split())[:200]}") from None
        except GetTimeoutError:
            raise HubLost(f"the hub did not answer within {seconds:g} s") from None
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None

    # Ending.

    def _stop_workers(self) -> None:
        """Ask all to leave. The learner saves first; who is amid a long unit of work then is not waited for.

        What a sampler has submitted of its group is kept, so little is lost with it.
        """
        for unit in self.units:
            unit.starts_at = None
            for process in unit.processes:
                process.call.remote("stop")
        for role, seconds in (("learner", STOP_SECONDS), ("", GRACE_SECONDS)):
            leaving = [answer for unit in self.units if unit.name.startswith(role) for answer in unit.running]
            if leaving:
                ray.wait(leaving, num_returns=len(leaving), timeout=seconds)
        for unit in self.units:
            unit.running = []

    def _close(self) -> None:
        """Let all end their unit of work, then let the hub go of the folder."""
        with suppress(RayError):
            self._stop_workers()
            self.logs.stop()
            ray.get(self.hub.call.remote("close"), timeout=STOP_SECONDS)

    def _kill(self) -> None:
        """Nothing of this attempt stays."""
        self.logs.stop()
        for unit in self.units:
            self._end_unit(unit)
        ray.kill(self.hub)
