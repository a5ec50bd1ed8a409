"""Routes everything that a process logs to one handler: a `LogFile` if it holds the run folder, else to the hub."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import Any

from common.config import RunConfig
from deploy.logs.library_messages import drop_meaningless
from deploy.run_dir.layout import CONFIG

log = logging.getLogger(__name__)

OWN = ("actors", "benchmarks", "common", "deploy", "learner", "rewarders")  # packages that `logs.level` applies to
SHOWN = ("torch", "ray", "deepspeed", "diffusers")  # packages whose versions are logged if they are imported


@contextmanager
def logging_to(handler: logging.Handler, config: RunConfig, process: str) -> Iterator[None]:
    """Routes log records, Python warnings, and errors that end a thread or the block to `handler`.

    Other libraries are logged from level WARNING on. The terminal shows warnings as it would without the handler.
    An error that leaves the block is logged and raised again.
    """
    drop_meaningless()
    root = logging.getLogger()
    level = config.logs.level.upper()
    own = {name: logging.getLogger(name) for name in OWN}
    before = {name: one.level for name, one in own.items()}
    terminal = logging.lastResort if not root.handlers else None
    filters = {handler: _is_wanted} | ({terminal: _is_for_terminals} if terminal else {})
    for one, which in filters.items():
        one.addFilter(which)
        root.addHandler(one)
    for one in own.values():
        one.setLevel(level)
    logging.captureWarnings(True)
    hook = threading.excepthook
    threading.excepthook = partial(_thread_ended, hook)
    try:
        log.info("started: %s", facts(config, process))
        with errors_logged(process):
            yield
        log.info("%s ended", process)
    finally:
        threading.excepthook = hook
        logging.captureWarnings(False)
        for name, one in own.items():
            one.setLevel(before[name])
        for one, which in filters.items():
            root.removeHandler(one)
            one.removeFilter(which)


@contextmanager
def errors_logged(process: str) -> Iterator[None]:
    """Logs an error that leaves the block, with its traceback, and raises it again."""
    try:
        yield
    except Exception:
        log.exception("%s ended with an error", process)
        raise


def facts(config: RunConfig, process: str) -> str:
    """Describes the process: host, pid, versions, model, configuration. Imports no package to find its version."""
    versions = [f"{name} {_version(name)}" for name in ("douga", *SHOWN) if name == "douga" or name in sys.modules]
    return (
        f"{process}, host {socket.gethostname()}, pid {os.getpid()}, python {platform.python_version()}, "
        f"{', '.join(versions)}, model {config.model.path}, configuration {config.folder / CONFIG}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OWN


def _is_for_terminals(record: logging.LogRecord) -> bool:
    """Excludes the records of this module and the driver: the terminal shows their lines anyway, as the progress or as
    the error that ends the run."""
    return record.name not in (__name__, "deploy.runtime.driver")


def _thread_ended(hook: Callable[[Any], object], ended: Any) -> None:
    """Replaces `threading.excepthook`; `hook` is the previous one and is called afterwards."""
    if not issubclass(ended.exc_type, SystemExit):
        name = ended.thread.name if ended.thread else "unknown"
        log.error(
            "thread %s ended with an error", name, exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback)
        )
    hook(ended)
