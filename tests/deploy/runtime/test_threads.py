"""The number of CPU threads belongs to a run: a resume from a shell with another OMP_NUM_THREADS changes no bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.config import to_toml
from deploy.run_dir import layout
from deploy.runtime.workers.threads import set_worker_threads, threads_kept
from tests.support import toy
from tests.support.tiny import tiny_pipeline

RUN = """
import sys
from pathlib import Path
from deploy.runtime import serial
from tests.support import toy

for argument in sys.argv[1:]:
    root, _, calls = argument.partition("=")
    stop = toy.after(int(calls), lambda: True) if calls else lambda: False
    serial.run(toy.config(Path(root), steps=2, **{"evaluation.prompts": 0}), toy.rewards(), stop=stop)
"""


def run(threads: int, *roots: str) -> None:
    """Runs in a process whose environment asks for `threads`. ``ROOT=CALLS`` stops at the CALLS-th check."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-c", RUN, *roots], env=environment, check=True, timeout=200)


def weights(root: Path) -> str:
    result = layout.read_result(toy.config(root).folder)
    assert result is not None
    return result["weights_digest"]


@pytest.mark.timeout(400)
def test_a_resume_with_another_omp_num_threads_ends_in_the_same_weights(tmp_path: Path) -> None:
    one, two, resumed = roots = [tmp_path / name for name in ("one", "two", "resumed")]
    model = tiny_pipeline(tmp_path / "model")
    for root in roots:
        root.mkdir()
        (root / "model").symlink_to(model)
    run(2, str(two), f"{resumed}=4")
    assert layout.read_result(toy.config(resumed).folder) is None
    run(1, str(one), str(resumed))
    assert weights(resumed) == weights(two)
    assert weights(resumed) != weights(one)  # the number matters here, so the test can fail


@pytest.fixture
def kept_after() -> Iterator[None]:
    """Checks that the number of this process is restored."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("kept_after")
def test_the_first_start_records_the_number_of_the_process(tmp_path: Path) -> None:
    with threads_kept(toy.config(tmp_path), print) as config:
        assert config.threads == torch.get_num_threads()


@pytest.mark.usefixtures("kept_after")
def test_the_number_comes_from_the_configuration_then_from_the_folder(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    file = toy.config(tmp_path).folder / layout.CONFIG
    file.parent.mkdir(parents=True)
    with threads_kept(toy.config(tmp_path, threads=before + 1), print) as config:
        assert config.threads == torch.get_num_threads() == before + 1
    file.write_text(to_toml(config))
    with threads_kept(toy.config(tmp_path), print) as config:
        assert config.threads == torch.get_num_threads() == before + 1
    with threads_kept(toy.config(tmp_path, threads=before), print) as config:
        assert config.threads == torch.get_num_threads() == before


@pytest.mark.usefixtures("kept_after")
def test_more_threads_than_cores_are_reported(tmp_path: Path) -> None:
    said: list[str] = []
    with threads_kept(toy.config(tmp_path, threads=1000), said.append):
        pass
    cores = len(os.sched_getaffinity(0))
    assert said == [
        f"1000 CPU threads on {cores} cores: slow; --threads {cores} is faster, but changes "
        "the last bits of the weights"
    ]


def test_a_worker_computes_with_the_number_of_the_cluster(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        set_worker_threads(toy.config(tmp_path, **{"cluster.threads": before + 1}))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
