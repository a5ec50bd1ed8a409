"""Records are sent in batches over the real service, and survive a restart of the hub."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from common.config import load_config
from common.messages import LogEntry
from common.rpc.server import LOOPBACK, serving
from deploy.logs.files import LogFiles
from deploy.logs.forward import BATCH, ForwardingHandler, Send
from deploy.logs.redaction import Redactor
from deploy.run_dir.journal import RunJournal
from deploy.runtime.workers.remote_journal import RemoteJournal, journal_service
from tests.support.toy import wait_until


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("actors.loop", logging.WARNING, __file__, 1, message, (), None)


def text(folder: Path, name: str = "sampler-3") -> str:
    path = folder / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


@contextmanager
def hub(folder: Path, address: str = LOOPBACK) -> Iterator[str]:
    """A journal with log files, served; its address."""
    files = LogFiles(folder, load_config())
    with RunJournal(folder, dict, logs=files.write) as journal, serving(journal_service(journal, address)) as service:
        yield service.address


def to(address: str, name: str = "sampler-3") -> Callable[[], AbstractContextManager[Send]]:
    @contextmanager
    def connect() -> Iterator[Send]:
        with RemoteJournal.at(address, name, timeout=0.1) as journal:
            yield partial(journal.log, name)

    return connect


def kept(batches: list[Sequence[LogEntry]]) -> list[str]:
    return [entry.message for batch in batches for entry in batch]


def test_records_of_a_remote_worker_are_in_its_file(tmp_path: Path) -> None:
    handler = ForwardingHandler(Redactor(["0123456789"]))
    handler.handle(record("before there was a hub"))
    with hub(tmp_path) as address:
        handler.start(to(address))
        wait_until(lambda: "before there was a hub" in text(tmp_path))
        handler.handle(record("the key is 0123456789"))
        handler.stop()
    assert [line.partition(": ")[2] for line in text(tmp_path).splitlines()] == [
        "before there was a hub", "the key is ***",
    ]  # fmt: skip


def test_a_restarted_hub_gets_the_records_logged_while_it_was_down(tmp_path: Path) -> None:
    handler = ForwardingHandler()
    with hub(tmp_path) as address:
        handler.start(to(address))
        handler.handle(record("first"))
        wait_until(lambda: "first" in text(tmp_path))
    handler.handle(record("while it was gone"))
    with hub(tmp_path, address):
        wait_until(lambda: "while it was gone" in text(tmp_path))
        handler.stop()
    assert text(tmp_path).count("while it was gone") == 1


def test_the_next_hub_gets_the_unsent_records(tmp_path: Path) -> None:
    handler = ForwardingHandler()
    with hub(tmp_path) as address:
        pass
    handler.start(to(address))
    handler.handle(record("unsent"))
    handler.stop()  # within its timeout, although nobody answers
    with hub(tmp_path) as other:
        handler.start(to(other, "sampler-7"))
        wait_until(lambda: "unsent" in text(tmp_path, "sampler-7"))
        handler.stop()
    assert handler.take() == []


def test_a_full_queue_drops_and_counts_records_without_blocking() -> None:
    handler, batches = ForwardingHandler(capacity=5), []
    for number in range(12):
        handler.handle(record(f"{number}"))
    handler.start(lambda: nullcontext(batches.append))
    handler.stop()
    assert kept(batches) == ["0", "1", "2", "3", "4", "7 log records were dropped: the queue was full"]


def test_batches_are_small() -> None:
    handler, batches = ForwardingHandler(), []
    for number in range(3 * BATCH + 1):
        handler.handle(record(f"{number}"))
    handler.start(lambda: nullcontext(batches.append))
    handler.stop()
    assert [len(batch) for batch in batches] == [BATCH, BATCH, BATCH, 1]
    assert kept(batches) == [f"{number}" for number in range(3 * BATCH + 1)]


def test_a_hanging_hub_does_not_block_the_worker() -> None:
    handler, hanging, entered = ForwardingHandler(capacity=3), threading.Event(), threading.Event()

    def hang(entries: Sequence[LogEntry]) -> None:
        entered.set()
        hanging.wait(60)

    handler.start(lambda: nullcontext(hang))
    handler.handle(record("one"))
    assert entered.wait(60)
    for number in range(10):
        handler.handle(record(f"{number}"))  # returns at once
    assert handler._dropped == 8
    hanging.set()
    handler.stop()


@pytest.mark.parametrize("error", [ValueError("no call 'log'"), OSError("the hub is gone")])
def test_refused_records_are_not_sent_again_and_no_error_escapes(error: Exception) -> None:
    handler, tried = ForwardingHandler(), []

    def refuse(entries: Sequence[LogEntry]) -> None:
        tried.append(len(entries))
        raise error

    handler.handle(record("one"))
    handler.start(lambda: nullcontext(refuse))
    handler.stop()
    assert tried == [1]
    assert len(handler.take()) == (0 if isinstance(error, ValueError) else 1)


def test_a_record_that_cannot_be_formatted_is_counted() -> None:
    handler = ForwardingHandler()
    handler.handle(logging.LogRecord("x", logging.INFO, __file__, 1, "%d", ("no number",), None))
    assert handler._dropped == 1


def test_only_workers_write_over_the_network(tmp_path: Path) -> None:
    with hub(tmp_path) as address, RemoteJournal.at(address, "stranger") as journal:
        for name in ("hub", "driver", "../hub", "stranger-1"):
            with pytest.raises(ValueError, match="not the name of a worker"):
                journal.log(name, [LogEntry(1e9, 20, "x", "y")])
    assert not (tmp_path / "logs").exists()
