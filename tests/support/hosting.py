"""A run's services in another process, so that a test can attack them and observe the process.

``with hosted(folder) as run:`` serves a real exchange, journal and weight store in `folder`.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from common.exchange.remote import exchange_service
from common.rpc.curve import ServerKeys
from common.rpc.server import serving
from common.weights.source import weight_service
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream
from deploy.run_dir.journal import RunJournal
from deploy.runtime.workers.remote_journal import journal_service
from tests.support.exchange import fakes

START_SECONDS, ANSWER_SECONDS = 60.0, 30.0
MIB = 1 << 20


class Hosted:
    """Addresses and process of the services. `counts` and `check` use a pipe, not the sockets."""

    def __init__(self, pipe: Connection, pid: int, folder: Path) -> None:
        self.folder = folder
        self._pipe, self.process = pipe, psutil.Process(pid)
        self.addresses: dict[str, str] = self._answer(START_SECONDS)

    def counts(self) -> Counter[str]:
        """Requests that reached a service, by call."""
        return self._ask("counts")

    def check(self) -> None:
        """Raise `AssertionError` unless every group and blob is accounted for."""
        assert self._ask("check") == ""

    @property
    def memory(self) -> float:
        """Resident memory of the process in MiB."""
        return self.process.memory_info().rss / MIB

    @property
    def peak(self) -> float:
        """Peak resident memory in MiB (Linux only)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._answer(ANSWER_SECONDS)

    def _answer(self, seconds: float) -> Any:
        assert self._pipe.poll(seconds), "the process of the services does not answer"
        return self._pipe.recv()

    def stop(self) -> None:
        """Stop the services and let the process exit."""
        self._pipe.send(("stop",))


@contextmanager
def hosted(folder: Path, keys: ServerKeys | None = None, host: str = "127.0.0.1") -> Iterator[Hosted]:
    """Serve a new run in `folder` at `host`. On exit the process is stopped, and killed if that fails."""
    context = multiprocessing.get_context("spawn")
    own_end, child_end = context.Pipe()
    process = context.Process(target=_host, args=(child_end, folder, keys, f"tcp://{host}:*"), daemon=True)
    process.start()
    child_end.close()
    try:
        assert process.pid is not None
        run = Hosted(own_end, process.pid, folder)
        yield run
        run.stop()
        process.join(ANSWER_SECONDS)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        own_end.close()


def _host(pipe: Connection, folder: Path, keys: ServerKeys | None, address: str) -> None:
    with ExitStack() as stack:
        exchange = fakes.open_exchange(folder, fakes.small())
        stack.callback(exchange.close)
        journal = stack.enter_context(RunJournal(folder, dict))
        store = WeightStore(folder / "weights")
        store.publish(TensorStream.of({"w": torch.arange(5000.0)}), version=0, step=0, pushes=0, kind="full", base=0)
        services = {
            "exchange": exchange_service(exchange, address, keys=keys),
            "journal": journal_service(journal, address, keys),
            "weights": weight_service(store, address, keys),
        }
        for service in services.values():
            stack.enter_context(serving(service))
        pipe.send({name: service.address for name, service in services.items()})
        while (question := pipe.recv())[0] != "stop":
            match question:
                case ("counts",):
                    pipe.send(sum((service.counts for service in services.values()), Counter()))
                case ("check",):
                    pipe.send(_check_error(exchange))


def _check_error(exchange: Any) -> str:
    try:
        exchange.check()
    except Exception as error:
        return repr(error)
    return ""
