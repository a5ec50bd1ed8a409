"""The limit of open files is raised where that is allowed, and a limit that is too low is one line."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from deploy.machine.limits import ENOUGH, LEAST

SCRIPT = """
import resource, sys
from common.errors import ConfigError
from deploy.machine.limits import raise_open_files

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
try:
    raise_open_files()
except ConfigError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limited(soft: int, hard: int) -> list[str]:
    """What the process says whose limits are `soft` and `hard`, and its soft limit afterwards."""
    words = [sys.executable, "-c", SCRIPT, str(soft), str(hard)]
    return subprocess.run(words, capture_output=True, check=True, text=True, timeout=60).stdout.splitlines()


@pytest.mark.parametrize(("soft", "hard", "after"), [(100, LEAST, LEAST), (256, 1024, 1024), (1024, 1024, 1024)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int, after: int) -> None:
    assert limited(soft, hard) == [str(after)]


def test_a_limit_that_is_high_enough_stays() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard <= ENOUGH:
        pytest.skip("the hard limit here is not above what is enough")
    assert limited(ENOUGH + 1, ENOUGH + 1) == [str(ENOUGH + 1)]


@pytest.mark.parametrize("hard", [LEAST - 1, 100])
def test_a_hard_limit_that_is_too_low_is_refused(hard: int) -> None:
    line, soft = limited(64, hard)
    assert line.startswith(f"this machine allows a process {hard} open files, and a cluster run needs {LEAST} or more")
    assert soft == "64"
