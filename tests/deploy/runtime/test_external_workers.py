"""External workers: which are accepted, how they are counted, and real ones that join and leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig, parse_config
from common.errors import ConfigError
from common.exchange.api import State
from common.models.fingerprint import fingerprint
from deploy.cli.main import main
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime.external_workers import GONE_SECONDS, ExternalWorkers, MembershipState, Registration, fingerprint_of
from deploy.runtime.hub import Hub
from deploy.runtime.messages import Addresses, HubReady, Outcome
from deploy.runtime.workers.base import Worker
from deploy.runtime.workers.learner import LearnerWorker
from tests.runs.test_simulate import config, ledger, uses_in_ledger, uses_in_weights
from tests.support.tiny import tiny_pipeline
from tests.support.toy import wait_until

ADDRESSES = Addresses("tcp://10.0.0.5:1", "tcp://10.0.0.5:2", "tcp://10.0.0.5:3", Path("/run"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def external_workers(root: Path, released: list[str], clock: Clock) -> ExternalWorkers:
    return ExternalWorkers(config(root, **{"cluster.sampler.count": 3}), ADDRESSES, released.append, clock)


def test_registration_has_the_next_free_name_and_the_ports_of_the_hub(tmp_path: Path) -> None:
    registry = external_workers(tmp_path, [], Clock())
    assert registry.join("sampler", "simulated") == Registration("sampler-3", 1, 2, 3)
    assert registry.join("sampler", "simulated").name == "sampler-4"
    registration = registry.join("rewarder", "simulated")
    assert registration.name == "rewarder-1"
    tunnel = registration.addresses("tcp://localhost:7000", None)  # the services are on the host of the tunnel
    assert (tunnel.exchange, tunnel.weights) == ("tcp://localhost:1", "tcp://localhost:3")
    with pytest.raises(ConfigError, match="an external worker can be a sampler or a rewarder, not a 'learner'"):
        registry.join("learner", "simulated")


def test_a_worker_without_a_recent_heartbeat_counts_as_gone(tmp_path: Path) -> None:
    released: list[str] = []
    clock = Clock()
    registry = external_workers(tmp_path, released, clock)
    one, two = (registry.join("sampler", "simulated").name for _ in range(2))
    clock.now = GONE_SECONDS
    assert registry.heartbeat(one) is MembershipState.ACTIVE
    clock.now += 1
    assert (registry.count("sampler"), registry.count("rewarder")) == (1, 0)
    assert registry.heartbeat(two) is MembershipState.ACTIVE  # it was only late
    assert registry.count("sampler") == 2
    registry.leave(one)
    assert (registry.count("sampler"), released) == (1, [one])
    assert registry.heartbeat("sampler-99") is MembershipState.UNKNOWN


def test_an_external_worker_with_another_model_is_refused(tmp_path: Path) -> None:
    model, other = tiny_pipeline(tmp_path / "model"), tiny_pipeline(tmp_path / "other", num_layers=1)
    made = config(tmp_path, simulate=False, **{"model.path": model})
    registry = ExternalWorkers(made, ADDRESSES, lambda _: None)
    assert registry.join("sampler", fingerprint(model)).name == "sampler-2"
    with pytest.raises(ConfigError, match=r"model.path: not the same files as the run's"):
        registry.join("sampler", fingerprint(other))
    assert parse_config(registry.configuration(), "the run", {"model.path": str(other)}).model.path == str(other)


def test_an_external_worker_with_another_judge_is_refused(tmp_path: Path) -> None:
    for name, data in (("judge", b"a"), ("same", b"a"), ("other", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
    judge = {"reward.path": "", "reward.judges.vs.kind": "videoscore", "reward.judges.vs.path": tmp_path / "judge"}
    registry = ExternalWorkers(config(tmp_path, simulate=False, **judge), ADDRESSES, lambda _: None)

    def come(folder: str) -> str:
        own = {"reward.judges.vs.path": str(tmp_path / folder)}
        theirs = parse_config(registry.configuration(), "the run", own)
        return registry.join("rewarder", fingerprint_of(theirs, "rewarder")).name

    assert come("same") == "rewarder-1"
    with pytest.raises(ConfigError, match=r"^reward\.path or reward\.judges\.vs\.path: not the same files as"):
        come("other")


def test_a_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(5 << 20))
    before = fingerprint(tmp_path)
    (tmp_path / "notes.md").write_text("not a part of the model")
    assert fingerprint(tmp_path) == before
    for change in (lambda data: data[:-1] + b"x", lambda data: b"x" + data[1:], lambda data: data + b"\0"):
        file.write_bytes(change(bytes(5 << 20)))
        assert fingerprint(tmp_path) != before
    with pytest.raises(ConfigError, match="no model files in it"):
        fingerprint(tmp_path / "nowhere")


@pytest.mark.parametrize("patience", ["0", "0.5"])
def test_patience_is_how_long_a_worker_waits(patience: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        began = time.monotonic()
        assert main(["worker", "sampler", "--connect", address, "--patience", patience]) == 3
    assert float(patience) <= time.monotonic() - began < 20  # most of it are imports
    assert capsys.readouterr().err == f"douga: no run answers at {address}; gave up after {patience} s (--patience)\n"


@pytest.mark.parametrize("patience", ["nan", "-1", "soon"])
def test_a_patience_that_is_no_time_is_refused(patience: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "sampler", "--connect", "tcp://127.0.0.1:1", f"--patience={patience}"]) == 2
    assert "argument --patience: " in capsys.readouterr().err


# Real external workers at a real hub. The learner is a thread of this process; samplers and rewarders are processes.


class Served:
    """A hub that serves a run, as the driver would start it."""

    def __init__(self, made: RunConfig) -> None:
        self.hub = Hub(made)
        opened = self.hub.open()
        assert isinstance(opened, HubReady)
        self.opened = opened
        self.outcome: list[Outcome] = []
        self.invitation = self.hub.status().lines[0].partition("douga ")[2].split()
        self.learner = LearnerWorker(made, "learner-0", 0, ".rendezvous")
        self.threads = [threading.Thread(target=self._run), threading.Thread(target=self._learn)]

    def _run(self) -> None:
        self.outcome.append(self.hub.run())

    def _learn(self) -> None:
        self.learner.run(self.opened.addresses)


@contextmanager
def served(made: RunConfig) -> Iterator[Served]:
    """Runs the hub and the learner on threads; afterwards both are joined and the hub is closed."""
    run = Served(made)
    for thread in run.threads:
        thread.start()
    try:
        yield run
    finally:
        run.learner.stop()
        run.hub.stop()
        run.hub.close()
        for thread in run.threads:
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def external_worker(invitation: list[str], role: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """``douga worker`` as a user starts it."""
    words = [invitation[0], role, *invitation[2:], *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *words], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def works(made: RunConfig, worker: str) -> Callable[[], bool]:
    """Whether the timeline has work of a worker."""
    return lambda: any(span["worker"] == worker for span in read_json_lines(made.folder / "timeline.jsonl"))


@pytest.mark.parametrize("keys", ["auto", "always"])
def test_external_workers_join_a_live_run_work_and_leave(tmp_path: Path, keys: str) -> None:
    made = config(tmp_path, steps=4000, **{"cluster.keys": keys, "simulation.sample_seconds": 0.02})
    with (
        served(made) as run,
        external_worker(run.invitation, "sampler") as first,
        external_worker(run.invitation, "rewarder") as rewarder,
    ):
        assert ("--key" in run.invitation) == (keys == "always")
        wait_until(works(made, "sampler-2"))
        wait_until(works(made, "rewarder-1"))
        assert run.hub.status().samplers == 1
        first.send_signal(signal.SIGINT)
        assert "sampler-2: left" in first.communicate(timeout=60)[1]
        assert first.returncode == 0
        assert run.hub.status().samplers == 0
        with external_worker(run.invitation, "sampler") as second:
            wait_until(works(made, "sampler-3"))
            second.kill()  # without `leave`: its lease expires
            with external_worker(run.invitation, "sampler") as third:
                wait_until(works(made, "sampler-4"))
                run.learner.stop()
                run.threads[1].join(60)
                run.hub.stop()
                run.hub.close()
                assert "sampler-4: the run is over" in third.communicate(timeout=60)[1]
                assert third.returncode == 0
        assert "rewarder-1: the run is over" in rewarder.communicate(timeout=60)[1]
    logged = {path.name: path.read_text() for path in (made.folder / "logs").iterdir()}
    assert logged.keys() >= {"hub.log", "sampler-2.log", "sampler-4.log", "rewarder-1.log"}
    assert "sampler-2 joined from outside the cluster" in logged["hub.log"]
    assert "sampler-2 left" in logged["hub.log"]
    assert "sampler-2 ended" in logged["sampler-2.log"]
    assert "started: sampler-4, host " in logged["sampler-4.log"]
    assert "secret" not in "".join(logged.values())
    exchange = ledger(made)
    exchange.check()
    assert exchange.counts()[State.FAILED] == 0
    learned = max(int(folder.name[1:]) for folder in (made.folder / "weights").iterdir())
    assert uses_in_weights(made, learned) == uses_in_ledger(exchange)
    exchange.close()


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    for _ in range(100):
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with suppress(OSError, OverflowError):
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                return first
    raise OSError(f"no {count} free ports in a row")


def test_warnings_and_errors_of_an_external_worker_are_in_the_runs_logs(tmp_path: Path) -> None:
    made = config(tmp_path, steps=400, **{"simulation.sample_seconds": 0.02, "simulation.failure_rate": 0.3})
    with served(made) as run, external_worker(run.invitation, "sampler"):
        file = made.folder / "logs" / "sampler-2.log"
        wait_until(lambda: file.exists() and "WARNING sampler-2 actors.loop: group " in file.read_text())
        assert " failed: " in file.read_text()
        with pytest.raises(ZeroDivisionError):
            Broken(made, "rewarder-7").run(run.opened.addresses)
        broken = (made.folder / "logs" / "rewarder-7.log").read_text()
        assert "ERROR rewarder-7 deploy.logs.process: rewarder-7 ended with an error\n    Traceback" in broken
        assert "    ZeroDivisionError: division by zero\n" in broken


class Broken(Worker):
    """Fails at once."""

    def work(self, addresses: Addresses, exchange: Any, journal: Any, stack: ExitStack) -> None:
        1 / 0  # noqa: B018


@pytest.mark.slow  # a request without an answer is repeated after 30 s
def test_an_external_worker_joins_again_after_the_hub_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExternalWorkers, "announce_end", lambda self: None)  # as if the hub was killed
    made = config(tmp_path, steps=400, **{"cluster.port": free_ports(5), "simulation.sample_seconds": 0.02})
    with ExitStack() as stack:
        with served(made) as run:
            sampler = stack.enter_context(external_worker(run.invitation, "sampler"))
            stack.enter_context(external_worker(run.invitation, "rewarder"))
            wait_until(works(made, "sampler-2"))
            wait_until(works(made, "rewarder-1"))
        before, log = len(read_json_lines(made.folder / "metrics.jsonl")), made.folder / "logs" / "sampler-2.log"
        with served(made):
            wait_until(lambda: len(read_json_lines(made.folder / "metrics.jsonl")) > before + 5, 200)
            assert sampler.poll() is None
            wait_until(lambda: log.read_text().count("started: sampler-2") == 2)


def test_an_external_worker_off_loopback_needs_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "sampler", "--connect", "tcp://10.9.9.9:7000"]) == 2
    assert "off loopback a key is needed" in capsys.readouterr().err
    assert main(["worker", "sampler", "--connect", "10.9.9.9"]) == 2
    assert "tcp://HOST:PORT is needed" in capsys.readouterr().err
    assert main(["worker", "sampler", "--connect", "tcp://127.0.0.1:7000", "--steps", "3"]) == 2
    assert "--steps: an external worker uses the run's configuration" in capsys.readouterr().err
    assert main(["worker", "rewarder", "--connect", "tcp://127.0.0.1:7000", "--reward.judges.vs.weight", "3"]) == 2
    said = capsys.readouterr().err
    assert "--reward.judges.vs.weight: an external worker uses the run's configuration; it can only set model." in said
    assert "reward.judges.NAME.token_file" in said
