"""A process that is killed at any point and resumed ends with the same weights as one that was never killed.

The loop is real, the models are not: weights are a hash that folds in every pair, latents are a hash of weights and
seed, scores a function of the latents. The loop runs once and its folder is copied at every boundary: before and after
every call, and inside calls before every blob is written or deleted. Each copy is what SIGKILL would have left; it is
resumed and must reach the same weights, the same queue and the same evaluation.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.exchange.api import State
from common.exchange.storage.blobs import BlobStore
from common.messages import Purpose, ScoreTask
from tests.support.exchange.fakes import (
    candidate,
    conditioning,
    digest,
    heldout,
    open_exchange,
    score,
    small,
    weight_version,
)


def raw_score(task: ScoreTask) -> float:
    """Four levels, so that some groups tie. Every 16th score on average is NaN."""
    return nan if task.clip[5] % 16 == 0 else 25.0 * (task.clip[6] % 4)


@dataclass
class Run:
    """One process with sampler, rewarder and learner. Its folder stays after a kill."""

    folder: Path
    config: RunConfig
    steps: int
    checkpoint_every: int
    learner_first: bool
    tick: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.exchange = open_exchange(self.folder, self.config)
        self.exchange._ledger.run("PRAGMA synchronous = OFF")  # only kills are tested here, not power cuts
        self.step, self.weights = self.read("checkpoint", [0, "base"])
        self.exchange.rollback(self.step)
        per = self.config.learner.steps_per_push
        if self.exchange.next_version() == 0 or self.version_step() < self.step // per * per:
            self.publish()

    def read(self, name: str, default: Any) -> Any:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else default

    def write(self, name: str, value: Any) -> None:
        (self.folder / "writing").write_text(json.dumps(value))
        (self.folder / "writing").replace(self.folder / f"{name}.json")
        self.tick()

    def version_step(self) -> int:
        return self.stored()[str(self.exchange.current_version())][0]

    def stored(self) -> dict[str, list[Any]]:
        return self.read("versions", {})

    def call(self, name: str, *arguments: Any) -> Any:
        answer = getattr(self.exchange, name)(*arguments)
        self.tick()
        return answer

    def sampler(self) -> bool:
        version = self.exchange.current_version()
        lease = self.call("lease_sampling", "sampler-0", version)
        if lease is None:
            return False
        while True:
            self.call("submit_conditioning", lease, conditioning(lease.prompt))
            for index in lease.indices:
                self.call("submit_candidate", lease, candidate(lease, index, self.stored()[str(version)][1]))
            if lease.indices[-1] == len(lease.seeds) - 1:
                return True
            lease = self.call("lease_sampling", "sampler-0", version)

    def rewarder(self) -> bool:
        tasks = self.call("lease_candidates", "rewarder-0", 3)
        self.call("submit_scores", "rewarder-0", [score(task, raw_score(task)) for task in tasks])
        return bool(tasks)

    def learner(self) -> bool:
        pairs = self.call("lease_batch", "learner-0", self.step + 1, self.config.learner.batch_size)
        if not pairs:
            return False
        self.step += 1
        for one in pairs:
            condition = (one.conditioning.prompt_embeds, one.conditioning.image_latent)
            data = (bytes(array.data) for array in (*one.latents, *condition) if array)
            self.weights = digest(self.weights, self.step, one.selection.weights[0], one.lag, *data).hex()
        self.call("commit_step", self.step, [one.ordinal for one in pairs])
        if self.step % self.config.learner.steps_per_push == 0:
            self.publish()
        if self.step % self.checkpoint_every == 0:
            self.write("checkpoint", [self.step, self.weights])
            self.call("record_checkpoint", self.step)
        return True

    def publish(self) -> None:
        version = self.exchange.next_version()
        self.write("versions", self.stored() | {str(version): [self.step, self.weights]})
        pushes = self.step // self.config.learner.steps_per_push
        self.call("announce", weight_version(version, self.step, pushes))

    def evaluate(self) -> list[bytes]:
        """The clips of two held-out prompts under the current version."""
        version = self.exchange.current_version()
        self.call("enqueue", heldout(2), version)
        while self.rewarder() or self.sampler():
            pass
        return [result.candidate.clip for result in self.exchange.results(Purpose.EVAL, version)]

    def finish(self) -> tuple[object, ...]:
        """Run to the end. Returns everything that a kill must not change."""
        order = [self.sampler, self.rewarder, self.learner]
        if self.learner_first:
            order.reverse()
        while self.step < self.steps:
            if not any(work() for work in order):
                raise RuntimeError(f"step {self.step} is stuck: {self.exchange.refusal}")
        clips = self.evaluate()
        self.exchange.check()
        trained, wasted = self.exchange.counts()[State.TRAINED], self.exchange.wasted()
        self.exchange.close()
        assert set(wasted) <= {"death", "nan"}
        return self.weights, clips, trained


@pytest.fixture(autouse=True)
def _no_disk_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def snapshots(run: Run, target: Path, every: int, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Run to the end, copying the folder at every `every`th boundary."""
    seen = 0

    def tick() -> None:
        nonlocal seen
        if seen % every == 0:
            shutil.copytree(run.folder, target / f"{seen:04}")
        seen += 1

    write, delete = BlobStore.write, BlobStore.delete
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "write", lambda store, arrays: (write(store, arrays), tick())[0])
        patch.setattr(BlobStore, "delete", lambda store, name: (tick(), delete(store, name))[1])
        run.tick = tick
        return run.finish()


CASES = {
    "samplers run ahead": ({"exchange__max_lag": 1}, 4, 2, False),
    "push every second step": ({"exchange__max_lag": 0, "learner__steps_per_push": 2}, 6, 3, False),
    "learner first, priority order": (
        {"exchange__max_lag": 2, "exchange__order": "priority"}, 5, 2, True
    ),
    "priority order, pairs expire": ({"exchange__max_lag": 1, "exchange__order": "priority"}, 6, 4, False),
    "pairs trained twice": ({"exchange__max_times_trained": 2, "exchange__max_lag": 1}, 6, 4, False),
    "one group at a time": ({"exchange__pipeline_depth": 1, "learner__keep_checkpoints": 2}, 5, 2, False),
}  # fmt: skip


def kill_at(case: str, every: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a case, copy it at every `every`th boundary, and resume each copy."""
    flags, steps, checkpoint_every, learner_first = CASES[case]
    rest = (small(**flags), steps, checkpoint_every, learner_first)
    (folder / "killed").mkdir()
    expected = snapshots(Run(folder / "run", *rest), folder / "killed", every, monkeypatch)
    copies = sorted((folder / "killed").iterdir())
    assert len(copies) * every > 100
    for copy in copies:
        assert Run(copy, *rest).finish() == expected, f"killed at boundary {copy.name}"
        shutil.rmtree(copy)


@pytest.mark.parametrize("case", CASES)
def test_runs_killed_at_some_boundaries_end_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(case, 13 if case == "samplers run ahead" else 29, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_runs_killed_at_every_boundary_end_the_same(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(case, 1, tmp_path, monkeypatch)


def test_runs_killed_twice_end_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = (small(), 4, 2, False)
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    expected = snapshots(Run(tmp_path / "run", *rest), tmp_path / "first", 71, monkeypatch)
    for copy in sorted((tmp_path / "first").iterdir()):
        target = tmp_path / "second" / copy.name
        target.mkdir()
        assert snapshots(Run(copy, *rest), target, 53, monkeypatch) == expected
        for again in sorted(target.iterdir()):
            assert Run(again, *rest).finish() == expected, f"killed at {copy.name}, then at {again.name}"
