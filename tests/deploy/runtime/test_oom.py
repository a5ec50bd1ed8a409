"""Too little memory: one line, exit code 3, nothing lost; a worker that would fail again is not restarted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import RunConfig
from common.errors import RunFailed
from common.messages import Prompt
from deploy.run_dir.layout import read_result
from deploy.runtime import driver, serial
from deploy.runtime.oom import OutOfMemory, describe_death, kernel_kills, needed_by
from tests.support import toy
from tests.support.tiny import tiny_pipeline

ROOT = Path(__file__).parents[3]
BOUND = r"asked for \d\.\d\d GB, \d\.\d\d of \d\.\d\d GB are free of this process's memory limit \(ulimit -v\)"
GPU = (
    "CUDA out of memory. Tried to allocate 17.80 GiB. "
    "GPU 0 has a total capacity of 23.64 GiB of which 2.15 GiB is free."
)


class Greedy(toy.HashReward):
    """Allocates more than any machine has. With `worked` (a file): only once, after it has scored a clip of the run."""

    def __init__(self, dimension: str, worked: Path | None = None) -> None:
        super().__init__(dimension)
        self.worked, self.scored = worked, 0

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        self.scored += prompts[0].id != "rehearsal"
        if self.worked is None or (self.scored > 1 and not self.worked.exists()):
            if self.worked is not None:
                self.worked.touch()
            torch.empty(10**15, dtype=torch.uint8)
        return super().score(clips, prompts)


def tight(root: Path, room: int, **flags: Any) -> tuple[int, str]:
    """Exit code and last line of the toy run in `room` MiB, with a wider model and larger clips than usual."""
    sizes = {"model.height": 96, "model.width": 128, "learner.batch_size": 6, "sampler.candidates": 8}
    words = [f"{name}={value}" for name, value in ({"steps": 1, "evaluation.clips": 0} | sizes | flags).items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tight", str(root), str(room), *words],
        *(), capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.timeout(600)
def test_a_run_resumes_with_settings_that_need_less_memory(tmp_path: Path) -> None:
    """A real memory limit: too low for the sampler, then for the learner, then high enough."""
    tiny_pipeline(tmp_path / "model", num_attention_heads=4, attention_head_dim=64)
    place = tmp_path / "runs" / "toy"
    code, line = tight(tmp_path, 300, **{"sampler.micro_batch": 8})
    assert code == 3
    assert re.match(
        rf"douga: sampler-0: out of memory: {BOUND}; use sampler\.micro_batch = 1 and resume the run; "
        r"in a new run \(another --name\) use sampler\.vae_tiling, model\.dtype = \"bfloat16\", smaller model\.frames, "
        rf"height, width; douga plan {place}/config\.toml --model\.device cuda:0 computes the memory needed$",
        line,
    )
    less = {"sampler.micro_batch": 1, "sampler.offload": True}
    code, line = tight(tmp_path, 350, **less)
    assert code == 3
    assert re.match(
        rf"douga: learner-0: out of memory: {BOUND}; use "
        r"learner\.gradient_checkpointing = \"selective\", learner\.gradient_checkpointing = \"full\", "
        r"learner\.micro_batch = 1 and resume the run; in a new run \(another --name\) use "
        r"learner\.optimizer = \"adamw_8bit\", "
        r"learner\.train = \"lora\", ",
        line,
    )
    code, _ = tight(tmp_path, 350, **less, **{"learner.micro_batch": 1, "learner.gradient_checkpointing": "full"})
    assert code == 0
    result = read_result(place)
    assert result is not None
    assert (result["step"], result["prompts"]) == (1, 2)


def test_a_rewarder_in_one_process(tmp_path: Path) -> None:
    tiny_pipeline(tmp_path / "model", num_layers=1)
    config = toy.config(tmp_path)
    words = (
        r"^rewarder-0: out of memory: asked for 1000000\.00 GB, \d+\.\d\d of \d+\.\d\d GB are free of the host's memory"
    )
    more = r"; use reward\.batch = 1 and resume the run; douga plan "
    with pytest.raises(OutOfMemory, match=words + more):
        serial.run(config, [Greedy("motion"), *toy.rewards()[:1], *toy.rewards()[2:]])
    outcome = serial.run(toy.config(tmp_path, **{"reward.batch": 1}), toy.rewards())
    assert outcome.step == 4


@pytest.mark.timeout(280)
def test_a_worker_that_never_had_enough_memory_is_not_restarted(tmp_path: Path) -> None:
    """A worker that had enough memory before is restarted, and the run finishes."""
    tiny_pipeline(tmp_path / "model", num_layers=1)
    config = toy.config(
        tmp_path, mode="cluster", **{"cluster.sampler.count": 1, "cluster.restart_seconds": 0.1, "steps": 2}
    )
    said = toy.Said()
    with pytest.raises(RunFailed, match=r"^rewarder-0: out of memory: asked for 1000000\.00 GB, .*reward\.batch = 1"):
        driver.run(config, wanting("motion", None), progress=said)
    assert not [line for line in said.lines if " died " in line]
    outcome = driver.run(config, wanting("motion", tmp_path / "worked"), progress=said)
    assert outcome.finished
    (death,) = [line for line in said.lines if " died " in line]
    assert death.startswith("rewarder-0 died (rewarder-0: out of memory: asked for 1000000.00 GB")


def wanting(dimension: str, worked: Path | None) -> list[toy.HashReward]:
    return [Greedy(dimension, worked), *(one for one in toy.rewards() if one.dimension != dimension)]


# The line.


def line_of(worker: str, **flags: Any) -> str:
    config = RunConfig() if not flags else toy.config(Path("/nowhere"), **flags)
    with pytest.raises(OutOfMemory) as caught, needed_by(worker, config):
        raise torch.OutOfMemoryError(GPU)
    return str(caught.value)


def test_a_gpu_that_is_too_small() -> None:
    line = line_of("sampler-3", **{"model.device": "cuda:0", "model.dtype": "bfloat16", "sampler.micro_batch": 4})
    assert line == (
        "sampler-3: out of memory: asked for 19.11 GB, 2.31 of 25.38 GB are free of GPU 0; use "
        "sampler.micro_batch = 1, sampler.offload and resume the run; in a new run (another --name) use "
        "sampler.vae_tiling, smaller model.frames, height, width; douga plan CONFIG computes the memory needed"
    )


def test_only_remaining_settings_that_help_are_named() -> None:
    ranks = {"mode": "cluster", "cluster.learner.count": 2}
    assert "learner.zero_stage = 3" in line_of("learner-1", **ranks)
    assert "learner.zero_stage" not in line_of("learner-0")
    assert "gradient_checkpointing" not in line_of("learner-0", **{"learner.gradient_checkpointing": "full"})
    halfway = line_of("learner-0", **{"learner.gradient_checkpointing": "selective"})
    assert 'gradient_checkpointing = "full"' in halfway
    assert '"selective"' not in halfway
    assert "offload" not in line_of("learner-0")
    assert 'learner.reference = "host"' in line_of("learner-0", **{"model.device": "cuda:0"})
    assert "reference" not in line_of("learner-0", **{"model.device": "cuda:0", "learner.train": "lora"})
    assert "offload" not in line_of("sampler-0")  # the CPU has only host memory
    cached = line_of("sampler-0", **{"sampler.cache_threshold": 0.1})
    assert "in a new run (another --name) use sampler.micro_batch = 1" in cached


def test_the_innermost_role_is_named_once_and_other_errors_pass() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^sampler-0: out of memory"),
        needed_by("learner-0", RunConfig()),
        needed_by("sampler-0", RunConfig()),
    ):
        raise MemoryError
    with pytest.raises(ValueError, match=r"^out of memory$"), needed_by("sampler-0", RunConfig()):
        raise ValueError("out of memory")


# Processes that are killed.

DEAD = (
    "The actor died unexpectedly before finishing this task. class_name: Process pid: 32294 The actor is dead because "
    "its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a "
    "connection error code 2. End of file."
)


def test_a_process_that_died_without_a_word() -> None:
    rewarder = RunConfig()
    assert describe_death("rewarder-0", DEAD, rewarder, 0).startswith(
        "its process was killed (SIGKILL) or crashed, without an error of its own; `dmesg` on its node tells whether "
        "it was out of memory: if so, use reward.batch = 1 and resume the run; douga plan "
    )
    assert describe_death("sampler-1", DEAD, rewarder, 1).startswith(
        "its process was killed; meanwhile the kernel's OOM killer ended 1 on this machine; use sampler."
    )
    low = "Task was killed due to the node running low on memory. Memory on the node was 22.9GB / 23.5GB (0.975)"
    assert describe_death("rewarder-0", low, rewarder, 0).startswith(
        "Ray ended its process because the node ran out of memory; use reward.batch = 1 "
    )
    assert (
        describe_death("learner-0", "The actor died: node 7 is gone", rewarder, 0) == "The actor died: node 7 is gone"
    )


def test_the_kernels_count_of_kills(tmp_path: Path) -> None:
    file = tmp_path / "vmstat"
    assert kernel_kills(file) == 0
    file.write_text("drop_slab 0\noom_kill 17\npgfault 3\n")
    assert kernel_kills(file) == 17
    file.write_text("drop_slab 0\n")
    assert kernel_kills(file) == 0


@contextmanager
def memory_group(most: int) -> Iterator[Path]:
    """A control group whose processes may use `most` bytes together."""
    place = Path("/sys/fs/cgroup/memory") / f"douga-{os.getpid()}"
    try:
        place.mkdir()
        (place / "memory.limit_in_bytes").write_text(str(most))
    except OSError as error:
        pytest.skip(f"no control group for memory can be made here: {error}")
    try:
        yield place
    finally:
        place.rmdir()


def test_the_kernel_counts_a_process_that_it_kills() -> None:
    with memory_group(64 << 20) as group:
        before = kernel_kills()
        join = f"open('{group}/cgroup.procs', 'w').write(str(__import__('os').getpid()))"
        code = f"{join}; kept = [b'x' * (1 << 20) for _ in range(1000)]"
        done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert kernel_kills() > before
