"""``mode = "cluster"``: each worker is a process, placed, started and restarted by Ray. The control plane.

```
   driver (here) ──────> hub ─┐ one node, STRICT_PACK
      │ starts, watches,      ├─ learner rank 0, 1, ...      each its own GPU
      │ restarts (backoff) ───┘
      ├────────────────────────> sampler-0, sampler-1, ...   each its own GPU, spread over nodes
      └────────────────────────> rewarder-0, ...
```

Ray carries commands and short status messages; clips, latents and weights go over ZeroMQ between the processes
(`deploy/runtime/hub.py`, `deploy/runtime/workers/`). A crashed worker is restarted (`deploy/runtime/restart_policy.py`)
and its leases are released at once. If the hub dies, all processes restart from the run folder.
Only this file and `deploy/runtime/ray_backend.py` import Ray.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from common.config import RunConfig
from common.data.ray_jobs import check_sent, in_job
from common.errors import BAD_INPUT, ConfigError, ScratchError, StorageError, UserCodeError
from common.errors.endings import Ending, ending_of
from common.errors.messages import one_line
from common.errors.places import describe_error
from common.messages import LogEntry
from common.roles import LEARNER, REWARDER, SAMPLER, role_of
from deploy.logs.files import DRIVER, LogFiles
from deploy.logs.forward import ForwardingHandler, Send
from deploy.logs.process import logging_to
from deploy.logs.redaction import Redactor, secrets_of
from deploy.observability import targets
from deploy.run_dir.endings import record_ending
from deploy.run_dir.layout import CONFIG
from deploy.run_dir.progress import NullProgress, Progress
from deploy.runtime.factories import check_toon_heads
from deploy.runtime.messages import HubReady, HubStatus, Outcome
from deploy.runtime.oom import OutOfMemory, describe_death, kernel_kills
from deploy.runtime.ray_backend import (
    Reserved,
    RestartUnit,
    connected,
    launch_hub,
    placed,
    ray_exporters,
    restart_units,
)
from deploy.runtime.restart_policy import Quorum, RestartLimitError, Supervisor

if TYPE_CHECKING:  # the driver imports no torch, so it starts fast and stays small
    from rewarders.interface import Reward

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # between two polls of the workers
OPEN_SECONDS = 300.0  # timeout for the hub to open model, prompts and folder
TOGETHER_SECONDS = 2.0  # timeout for the other learner ranks to fail after the first one
STOP_SECONDS, GRACE_SECONDS = 600.0, 10.0  # timeouts: learner to finish its step and save; then the others
LOG_SECONDS = 2.0  # timeout for the hub to accept log records
LOOPBACK = "127.0.0.1"  # where the hub listens when all its workers are on this machine


class HubLostError(RuntimeError):
    """The hub's process died."""


def is_fatal(error: Exception) -> bool:
    """Whether a restart cannot help: bad input, broken code of the user's own, a failing disk, or too little memory for
    the first unit of work.

    A process that the kernel or Ray killed for lack of host memory is restarted: another process may have used it.
    """
    if isinstance(error, OutOfMemory):
        return not error.worked
    return isinstance(error, (*BAD_INPUT, StorageError, UserCodeError))


def run(
    config: RunConfig,
    rewards: Sequence[Reward] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Outcome:
    """Starts or resumes a run on Ray; returns when it has finished or `stop` returns True.

    `rewards` replaces the heads of ``config.reward.path``. The result of a finished run is read from its folder, which
    only the hub needs to access. Raises `ConfigError` for bad input found by any process, and if Ray cannot be reached
    or lacks the resources. Raises `StorageError` if the disk fails in any process.
    """
    _check_job_paths(config)
    if rewards is None:
        check_toon_heads(config)
    progress = progress or NullProgress()
    supervisor = Supervisor(config.cluster.restarts, config.cluster.restart_seconds)
    logs = ForwardingHandler(Redactor(secrets_of(config, os.environ)))
    with connected(config.cluster) as own, targets.swept(config.folder), logging_to(logs, config, DRIVER):
        host = LOOPBACK if own else ""
        while True:
            try:
                with placed(config) as held:
                    return Driver(config, rewards, stop, progress, supervisor, held, logs, host).run()
            except HubLostError as error:
                log.warning("%s; all workers restart from the run folder", error)
                progress.message(f"{error}; all workers restart from the run folder")
                with _keeping_driver_log(logs, config):
                    starts_at = supervisor.died("hub", str(error), time.monotonic())
                time.sleep(max(0.0, starts_at - time.monotonic()))


@contextmanager
def _keeping_driver_log(logs: ForwardingHandler, config: RunConfig) -> Iterator[None]:
    """Writes the driver's log and the end itself when the hub is given up, if the run folder is on this node."""
    try:
        yield
    except RestartLimitError as error:
        log.error("%s", error)
        if (config.folder / CONFIG).is_file():
            LogFiles(config.folder, config).write(DRIVER, logs.take())
            record_ending(config.folder, ending_of(error))
        raise


def _check_job_paths(config: RunConfig) -> None:
    """Rejects relative paths that mean nothing in a Ray job: it runs in a copy of the working directory."""
    if in_job() and not config.root.is_absolute():
        raise ConfigError(
            f"root = '{config.root}': a job's working directory is a copy that Ray deletes; use an absolute path"
        )
    for key, value in (("prompts", config.prompts), ("pairs", config.pairs), ("candidates", config.candidates)):
        if value not in ("", "toon"):
            check_sent(key, value)


@dataclass
class LocationQuery:
    """A process whose node is not known yet."""

    name: str
    since: float  # time of the request; inf once the wait was reported
    unit: RestartUnit | None


class Driver:
    """One attempt: the hub and its workers, from start to end."""

    def __init__(
        self,
        config: RunConfig,
        rewards: Sequence[Reward] | None,
        stop: Callable[[], bool],
        progress: Progress,
        supervisor: Supervisor,
        held: Reserved,
        logs: ForwardingHandler,
        host: str = "",
    ) -> None:
        """`host` is the address that the hub listens on; "" is the address of its node."""
        self.config, self.stop, self.progress = config, stop, progress
        self.supervisor, self.logs, self.host = supervisor, logs, host
        self.hub = launch_hub(config, held)
        self.units = restart_units(config, held, rewards)
        patience = config.cluster.placement_seconds
        self.quorums = {role: Quorum(1, patience, f"{role}s") for role in (LEARNER, REWARDER)}
        self.quorums[SAMPLER] = Quorum(config.cluster.min_samplers, patience, "samplers", "cluster.min_samplers")
        self.external_samplers, self.opened = 0, False
        self.kernel_kills = kernel_kills()  # so far
        self.pending_locations: dict[Any, LocationQuery] = {}  # pending answer -> its process

    def run(self) -> Outcome:
        """Opens the hub, starts the workers, and supervises them until the hub's run loop ends."""
        try:
            for unit in self.units:
                unit.processes = unit.make()  # they import in parallel with the hub
            host = self.host or self._ask(self.hub.host.remote(), OPEN_SECONDS)
            opened = self._ask(self.hub.call.remote("open", host), OPEN_SECONDS)
            self.opened = True
            if isinstance(opened, Outcome):
                return opened
            self.logs.start(self._log_at_hub)
            outcome = self._watch(opened)
            log.info("the run ends after step %d", outcome.step)
            self._close()
            return outcome
        except (HubLostError, KeyboardInterrupt):
            raise  # no graceful stop without a hub, nor after a second interrupt
        except BaseException as error:
            log.error("the run ends: %s: %s", type(error).__name__, error)
            if self.opened:
                self._record(ending_of(error))
            self._close()
            raise
        finally:
            self._kill()

    def _record(self, ending: Ending) -> None:
        """Lets the hub, which has the run folder, record the end."""
        with suppress(RayError):
            ray.get(self.hub.call.remote("ended", ending), timeout=OPEN_SECONDS)

    @contextmanager
    def _log_at_hub(self) -> Iterator[Send]:
        def send(entries: Sequence[LogEntry]) -> None:
            ray.get(self.hub.call.remote("log_driver", entries), timeout=LOG_SECONDS)

        yield send

    # Supervision.

    def _watch(self, opened: HubReady) -> Outcome:
        if not opened.training:
            for unit in [unit for unit in self.units if unit.name == LEARNER]:
                self._end_unit(unit)
                self.units.remove(unit)
        self._ask_location("hub", self.hub)
        finished = self.hub.call.remote("run")
        stopping = False
        while True:
            self._start_due(opened)
            running = [answer for unit in self.units for answer in unit.running]
            ready, _ = ray.wait([finished, *running], num_returns=1, timeout=POLL_SECONDS)
            self._report_locations()
            self._show_hub_status()
            if finished in ready:
                return self._ask(finished, OPEN_SECONDS)
            for unit in self.units:
                self._handle_ended(unit, ready)
            if stopping:
                continue
            self._check_quorums()
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
                    self._ask_location(name, process, unit)

    def _handle_ended(self, unit: RestartUnit, ready: Sequence[Any]) -> None:
        """Handles processes of a unit that have ended. If one failed, the whole unit is restarted later."""
        errors = self._errors(unit, [answer for answer in unit.running if answer in ready])
        if errors and unit.running:  # ranks fail together, and only one of them has the cause
            also, _ = ray.wait(unit.running, num_returns=len(unit.running), timeout=TOGETHER_SECONDS)
            errors += self._errors(unit, also)
        if errors:
            self._died(unit, errors)

    def _errors(self, unit: RestartUnit, ended: Sequence[Any]) -> list[Exception]:
        """Returns the errors that processes of a unit ended with."""
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

    def _died(self, unit: RestartUnit, errors: Sequence[Exception]) -> None:
        self._end_unit(unit)
        for error in errors:
            if is_fatal(error):
                raise error
        reason = self._reason(unit, errors[0])
        for name in unit.members:
            self._ask(self.hub.call.remote("release", name), OPEN_SECONDS)
        now = time.monotonic()
        try:
            unit.starts_at = self.supervisor.died(unit.name, reason, now)
        except RestartLimitError as given_up:
            log.error("%s", given_up)
            if not unit.is_sampler:
                raise
            self.progress.message(f"{given_up}; the run continues without it")
            return
        line = f"{unit.name} died ({reason}); restarting in {unit.starts_at - now:.1f} s"
        log.warning("%s", line)
        self.progress.message(line)

    def _reason(self, unit: RestartUnit, error: Exception) -> str:
        if isinstance(error, RayError):
            now = kernel_kills()
            kills, self.kernel_kills = now - self.kernel_kills, now
            return describe_death(unit.members[0], one_line(error), self.config, kills)
        return one_line(error) if isinstance(error, OutOfMemory | ScratchError) else describe_error(error)

    def _check_quorums(self) -> None:
        for role, quorum in self.quorums.items():
            units = [unit for unit in self.units if role_of(unit.members[0]) == role]
            up = sum(unit.up for unit in units) + (self.external_samplers if role == SAMPLER else 0)
            coming = sum(not unit.up and bool(unit.running or unit.starts_at is not None) for unit in units)
            if units:
                quorum.check(up, coming, time.monotonic())

    def _end_unit(self, unit: RestartUnit) -> None:
        for process in unit.processes:
            ray.kill(process)
        unit.running, unit.processes, unit.up = [], [], False

    def _ask_location(self, name: str, process: Any, unit: RestartUnit | None = None) -> None:
        self.pending_locations[process.node.remote()] = LocationQuery(name, time.monotonic(), unit)

    def _report_locations(self) -> None:
        """Reports the node of every process that came up, and once every process that waits for resources."""
        if not self.pending_locations:
            return
        known, waiting = ray.wait(list(self.pending_locations), num_returns=len(self.pending_locations), timeout=0)
        for answer in known:
            query = self.pending_locations.pop(answer)
            with suppress(RayError):  # it died before answering: `_handle_ended` handles that
                line = f"{query.name}: {ray.get(answer)}"
                log.info("%s", line)
                self.progress.message(line)
                self.hub.call.remote("found_ray", ray_exporters())
                if query.unit is not None and query.unit.running:
                    query.unit.up = True
        for answer in waiting:
            query = self.pending_locations[answer]
            if time.monotonic() - query.since > self.config.cluster.placement_seconds:
                query.since = float("inf")
                free = {
                    kind: count for kind, count in ray.available_resources().items() if not kind.startswith("node:")
                }
                line = f"{query.name} is waiting for resources; the run continues without it. Free in Ray: {free}"
                log.warning("%s", line)
                self.progress.message(line)

    def _show_hub_status(self) -> None:
        found: HubStatus = self._ask(self.hub.call.remote("status"), OPEN_SECONDS)
        self.external_samplers = found.samplers
        for line in found.lines:
            self.progress.message(line)
        if found.status is not None:
            self.progress.update(found.status)

    def _ask(self, answer: Any, seconds: float) -> Any:
        """Waits for an answer of the hub. Raises `HubLostError` if it died or timed out, else the hub's own error."""
        try:
            return ray.get(answer, timeout=seconds)
        except RayActorError as error:
            raise HubLostError(f"the hub died: {' '.join(str(error).split())[:200]}") from None
        except GetTimeoutError:
            raise HubLostError(f"the hub did not answer within {seconds:g} s") from None
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None

    # Shutdown.

    def _stop_workers(self) -> None:
        """Asks all workers to stop. Waits for the learner to save, then only briefly for the others.

        Candidates that a sampler has submitted are kept, so little work is lost.
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
        """Stops the workers, then lets the hub close the run folder."""
        with suppress(RayError):
            self._stop_workers()
            self.logs.stop()
            ray.get(self.hub.call.remote("close"), timeout=STOP_SECONDS)

    def _kill(self) -> None:
        """Kills all remaining processes of this attempt."""
        self.logs.stop()
        for unit in self.units:
            self._end_unit(unit)
        ray.kill(self.hub)
