"""With only torch, diffusers and peft installed, serial mode works; other features name what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(folder: Path, missing: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "tests.support.bare",
        missing,
        "run",
        "--root",
        str(folder),
        "--name",
        "bare",
        *words,
    ]
    env = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_serial_runs_need_neither_ray_nor_zmq_nor_deepspeed(tmp_path: Path) -> None:
    words = ("--mode", "serial", "--steps", "1", "--evaluation.prompts", "2", "--evaluation.clips", "0")
    sizes = ("--learner.batch-size", "1", "--learner.train", "lora", "--sampler.steps", "2")
    ended = run(tmp_path, "ray,zmq,deepspeed", *words, *sizes)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (record,) = (tmp_path / "bare" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(record)["grad_norm"] > 0


def test_missing_packages_are_named(tmp_path: Path) -> None:
    for missing, words, said in (
        ("ray", ("--mode", "cluster"), "mode = 'cluster': needs the package ray, which is not installed"),
        ("deepspeed", ("--mode", "serial", "--learner.zero-stage", "2"), "need the package deepspeed"),
    ):
        ended = run(tmp_path, missing, *words)
        assert ended.returncode == 2, ended.stderr[-2000:]
        assert said in ended.stderr
        # bitsandbytes writes a line of its own
        ours = [line for line in ended.stderr.splitlines() if "kernels-community" not in line]
        assert len(ours) == 1, ended.stderr
