"""One iteration: every phase is there, the clock is the innermost phase's, and the sampler gets the learned weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import iteration
from benchmarks.iteration import OPENING, PHASES, PhaseTimer
from benchmarks.random_models import random_model
from common.errors import ConfigError
from common.toon.prompts import ToonPrompts
from deploy.planning.model_sizes import families
from rewarders.head_files import load_heads
from tests.support.small_models import SIZE, small_model


def given(**more: Any) -> argparse.Namespace:
    size = dict.fromkeys(("frames", "height", "width"))
    asked = {"steps": 2, "micro_batch": 4, "vae_tiling": False, "seed": 0, "checkpointing": None}
    return argparse.Namespace(**({"model": "toon", "device": "cpu"} | size | asked | more))


def test_all_phases_run_and_the_sampler_holds_the_published_version() -> None:
    report = iteration.measure(given())
    *phases, whole = report.rows
    assert [row.case for row in phases] == list(PHASES.values())
    assert all(row.ours > 0 for row in phases)
    assert whole.ours == pytest.approx(sum(row.ours for row in phases[len(OPENING) :]))
    assert report.aims[0].met


def test_a_version_that_is_not_loaded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration.TimedSampler, "load", lambda *_: None)
    assert not iteration.measure(given()).aims[0].met


def test_a_tie_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration.ScalingHead, "score", lambda self, clips, prompts: [50.0] * len(clips))
    with pytest.raises(ConfigError, match=r"all 4 candidates tied \(tied\); another --seed makes others"):
        iteration.measure(given())


@pytest.mark.parametrize("family", families())
def test_every_family_goes_through(family: str, tmp_path: Path) -> None:
    timer = PhaseTimer("cpu")
    asked = given(model=family, micro_batch=None, **SIZE)
    assert iteration.iterate(asked, small_model(family), tmp_path, timer)
    assert timer.seconds.keys() == PHASES.keys()


def test_the_inner_phase_stops_the_outer_one_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(iteration.time, "perf_counter", lambda: now[0])
    timer = PhaseTimer("cpu")
    with timer.phase("commit"):
        now[0] += 1
        with timer.phase("step"):
            now[0] += 10
        now[0] += 2
    now[0] += 100  # nobody's
    with timer.phase("step"):
        now[0] += 20
    assert timer.seconds == {"commit": 3, "step": 30}


def test_heads_take_clips_of_any_size() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (49, 96, 128, 3), np.uint8)
    small = iteration.scaled(clip)
    assert small.shape == (9, 48, 64, 3)
    assert iteration.scaled(small) is small
    assert not np.array_equal(small[0], small[-1])
    head, prompt = load_heads("toon")[0], ToonPrompts(0)(0)
    assert iteration.ScalingHead(head).score([clip], [prompt]) == head.score([small], [prompt])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_full_size_with_two_layers_on_a_gpu(tmp_path: Path) -> None:
    timer = PhaseTimer("cuda:0")
    model = random_model("5b-i2v", {"transformer": {"num_layers": 2}})
    assert iteration.iterate(given(model="5b-i2v", device="cuda:0", micro_batch=1), model, tmp_path, timer)
    assert timer.peaks.keys() == PHASES.keys()
    assert max(timer.peaks.values()) > 10e9  # T5 alone is 9.5 GB
