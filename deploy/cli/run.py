"""``douga run``: start or resume a run, in the mode that its configuration names. Imports no torch by itself."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from rich.console import Console

from common.config import RunConfig
from common.errors import ConfigError, RunFailed, StorageError
from deploy.results import comparison
from deploy.run_dir import layout, throughput
from deploy.run_dir.progress import showing
from deploy.runtime.oom import needed_by


def run(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    """0, 1 (`verify` failed), 3 (the run cannot go on), 130 (interrupted)."""
    config: RunConfig = options.resolved
    before = layout.finished_result(config)
    if before is not None:
        print(f"{config.folder}: already finished; --steps N goes on, --name starts another")
        return _conclude(config, before)
    return or_failed(partial(_run, config))


def or_failed(act: Callable[[], int]) -> int:
    """What `act` returns; 3, and one line on stderr, when it cannot be done."""
    try:
        with needed_by("this process"):
            return act()
    except (RunFailed, StorageError) as error:
        print(f"douga: {error}", file=sys.stderr)
        return 3


def _run(config: RunConfig) -> int:
    with stop_on_signals() as stop, showing() as progress:
        outcome = _mode(config).run(config, stop=stop, progress=progress)
    if outcome.result is None:
        print(f"stopped after step {outcome.step} of {config.steps}; nothing is lost. Go on with:", file=sys.stderr)
        print(f"  {layout.resume_command(config.folder)}", file=sys.stderr)
        return 130
    return _conclude(config, outcome.result)


def _mode(config: RunConfig) -> Any:
    """The module that runs it."""
    if config.mode == "serial":
        from deploy.runtime import serial  # noqa: PLC0415 - torch, in this process

        return serial
    try:
        from deploy.runtime import driver  # noqa: PLC0415 - Ray, and torch elsewhere
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mode = 'cluster': needs the package {error.name}, which is not installed; mode = 'serial' does without"
        ) from None
    return driver


def _conclude(config: RunConfig, result: Mapping[str, Any]) -> int:
    console = Console()
    if config.simulate:
        for line in throughput.words(result["pace"]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0
    console.print(comparison.table(result, result["prompts"]))
    console.print(result["verdict"]["words"], markup=False, highlight=False)
    console.print(f"report: {config.folder / layout.REPORT}", markup=False, highlight=False, soft_wrap=True)
    return 1 if config.verify and not result["verdict"]["passed"] else 0


@contextmanager
def stop_on_signals(
    words: str = "stopping after the present unit of work; once more stops at once",
) -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM makes the yielded function say yes; a second one ends the process at once."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)
        print(words, file=sys.stderr)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        restore()
