"""Growth is detected, steady values are not reported, and a short run does not grow (`benchmarks/stress/soak.py`)."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event

import psutil
import pytest

from benchmarks.stress import soak
from benchmarks.stress.soak import Series, growth

MB = soak.MEGABYTE

# Writes a line when it has taken its first block; then takes one of `argv[1]` bytes every 10 ms.
LEAK = """
import sys, time
kept, size = [], int(sys.argv[1])
print("ready", flush=True)
while True:
    kept.append(b"x" * size) if size else sum(range(1000))
    time.sleep(0.01)
"""


def series(*values: float) -> Series:
    return Series([float(second) for second in range(len(values))], list(values))


def test_what_is_flat_does_not_grow() -> None:
    assert growth("memory hub", series(*[200 * MB] * 100)).grown == 0
    assert growth("files hub", series(*[118, 118, 119, 118] * 25)).grown == 0


def test_a_leak_is_measured() -> None:
    """0.2 MB a second over the 50 seconds that count."""
    found = growth("memory hub", series(*(200 * MB + 0.2 * MB * second for second in range(101))))
    assert found.slope == pytest.approx(0.2 * MB)
    assert found.grown == pytest.approx(10 * MB)
    assert found.is_leak


@pytest.mark.parametrize(("each", "is_leak"), [(0.06, False), (0.1, True)])
def test_a_leak_shows_above_its_limit(each: float, is_leak: bool) -> None:
    """3 MB and 5 MB over 50 seconds; the limit is 4 MB."""
    assert growth("memory hub", series(*(each * MB * second for second in range(101)))).is_leak == is_leak


def test_one_more_file_now_and_then_is_a_leak() -> None:
    assert growth("files hub", series(*(100 + second // 20 for second in range(200)))).is_leak


def test_warm_up_does_not_count() -> None:
    risen = [200 * MB - 100 * MB * math.exp(-second / 10) for second in range(200)]
    assert not growth("memory hub", series(*risen)).is_leak
    assert growth("memory hub", series(*risen)).level == pytest.approx(200 * MB)


def test_a_sawtooth_is_no_leak_but_a_rising_one_is() -> None:
    """Blobs until a checkpoint frees them: 0 to 9 MB, every ten seconds."""
    assert not growth("disk blobs", series(*(MB * (second % 10) for second in range(200)))).is_leak
    assert growth("disk blobs", series(*(MB * (second % 10 + second / 10) for second in range(200)))).is_leak


def test_noise_and_peaks_are_no_leak() -> None:
    draw = random.Random(0)
    noisy = [200 * MB + draw.gauss(0, 3 * MB) + (80 * MB if second % 37 == 0 else 0) for second in range(200)]
    assert not growth("memory hub", series(*noisy)).is_leak


def test_what_shrinks_does_not_grow() -> None:
    assert growth("memory hub", series(*(200 * MB - MB * second for second in range(100)))).grown == 0


def test_records_may_grow_and_anything_else_on_disk_may_not() -> None:
    values = [MB * second for second in range(100)]
    assert not growth("disk metrics.jsonl", series(*values)).is_leak
    assert growth("disk metrics.jsonl", series(*values)).slope == pytest.approx(MB)
    assert growth("disk whatever", series(*values)).is_leak


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(soak.InvariantViolatedError, match="too few"):
        growth("memory hub", series(1.0, 2.0, 3.0))


@pytest.mark.parametrize(("size", "is_leak"), [(30_000, True), (0, False)])
def test_a_process_that_leaks_is_caught(size: int, is_leak: bool) -> None:
    """A real one: up to 3 MB a second. The other does as much and keeps nothing."""
    process = subprocess.Popen([sys.executable, "-c", LEAK, str(size)], stdout=subprocess.PIPE)
    found, pause, began = Series(), Event(), time.monotonic()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while (now := time.monotonic() - began) < 8:
            found.seconds.append(now)
            found.values.append(soak.state(psutil.Process(process.pid))["memory"])
            pause.wait(0.1)
    finally:
        process.kill()
        process.communicate()
    assert growth("memory leak", found).is_leak == is_leak


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_a_run_does_not_grow() -> None:
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:  # a short path: Ray's sockets lie under it
        watched = soak.watch(soak.configuration(Path(folder), real=False), 60, print)
    assert watched.steps > 50
    found = watched.found()
    assert {"memory hub", "memory learner-0", "memory sampler-0", "files rewarder-0", "threads driver"} <= found.keys()
    assert {"disk ledger", "disk blobs", "disk weights", "disk timeline", "disk metrics.jsonl"} <= found.keys()
    assert [what for what, one in found.items() if one.is_leak] == []
