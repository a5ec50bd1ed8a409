"""Sends everything that one process logs to one handler: a `LogFile` where the run folder is, else to the hub."""

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
from deploy.run_dir.layout import CONFIG

log = logging.getLogger(__name__)

OWN = ("actors", "benchmarks", "common", "deploy", "learner", "rewarders")  # packages whose level `logs.level` sets
SHOWN = ("torch", "ray", "deepspeed", "diffusers")  # packages whose versions are logged where they are imported


@contextmanager
def logging_to(handler: logging.Handler, config: RunConfig, process: str) -> Iterator[None]:
    """``with logging_to(...)``: records, warnings, and errors that end a thread or the block go to `handler`.

    Of other libraries only warnings and errors do. A terminal shows warnings as it did without a handler; an error that
    leaves the block is left to whoever catches it.
    """
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
    """Log an error that leaves the block, with its traceback, and let it pass."""
    try:
        yield
    except Exception:
        log.exception("%s ended with an error", process)
        raise


def facts(config: RunConfig, process: str) -> str:
    """Who logs, where, and with which versions. Imports nothing for it."""
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
    """All but what this module logs: there the errors show anyway, in one line or with a traceback of Python's."""
    return record.name != __name__


def _thread_ended(hook: Callable[[Any], object], ended: Any) -> None:
    """As `threading.excepthook`; `hook` is the one before."""
    if not issubclass(ended.exc_type, SystemExit):
        name = ended.thread.name if ended.thread else "unknown"
        log.error(
            "thread %s ended with an error", name, exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback)
        )
    hook(ended)
