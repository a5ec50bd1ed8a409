"""The toy run with a memory limit, as a program: ``python -m tests.support.tight ROOT ROOM [KEY=VALUE ...]``

After the base model's evaluation the process may allocate at most ROOM MiB more (RLIMIT_AS). The exit code is that of
``douga run``.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from common.config import RunConfig
from deploy.cli import run as command
from deploy.cli.main import exit_code
from deploy.run_dir.jsonl import EVENTS, read_json_lines
from deploy.runtime import serial
from tests.support import toy


def narrowing(config: RunConfig, room: int) -> Callable[[], bool]:
    """A stop predicate that never stops the run, but sets the memory limit after the evaluation."""
    bounded: list[int] = []

    def look() -> bool:
        if not bounded and any(record["event"] == "evaluated" for record in read_json_lines(config.folder / EVENTS)):
            bounded.append(psutil.Process().memory_info().vms + (room << 20))
            resource.setrlimit(resource.RLIMIT_AS, (bounded[0], bounded[0]))
        return False

    return look


def main(root: Path, room: int, flags: dict[str, str]) -> int:
    """``douga run`` with the toy rewards."""
    torch.set_num_threads(1)
    config = toy.config(root, **flags)

    class Mode:
        @staticmethod
        def run(config: RunConfig, stop: Callable[[], bool], progress: Any) -> Any:
            del stop
            return serial.run(config, toy.rewards(), stop=narrowing(config, room), progress=progress)

    command._mode = lambda _: Mode  # type: ignore[assignment]
    return exit_code(partial(command.start, config))


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[3:])
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), given))
