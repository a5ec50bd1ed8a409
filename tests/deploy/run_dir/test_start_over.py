"""A run folder without work may start over with another configuration; one with work may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.simulated import SimulatedSampler
from common.config import RunConfig
from common.errors import ConfigError
from deploy.run_dir import layout
from deploy.run_dir.jsonl import EVENTS, JsonLines
from deploy.run_dir.start_over import has_work
from deploy.runtime import serial
from deploy.runtime.hub import Hub
from tests.runs.test_simulate import config, ledger


def opened(made: RunConfig) -> None:
    """A run that was started and has done nothing."""
    middle = Hub(made)
    middle.open()
    middle.close()


def ended(folder: Path, event: str) -> None:
    with JsonLines(folder / EVENTS) as events:
        events.write(event=event, step=0)


def sampled(made: RunConfig) -> None:
    """A run with one group whose clips have no scores."""
    opened(made)
    exchange = ledger(made)
    assert SimulatedSampler(made, "sampler-0").work(exchange)
    exchange.close()


def test_a_run_that_did_nothing_starts_over(tmp_path: Path) -> None:
    first, second = config(tmp_path, seed=1), config(tmp_path, seed=2)
    opened(first)
    (first.folder / "my notes.txt").write_text("kept")
    assert (first.folder / "ledger.sqlite").exists()
    said: list[str] = []
    with layout.claim(second, said.append) as folder:
        assert layout.find_run(str(folder))[1] == second
        kept = ["config.toml", "ledger.lock", "logs", "my notes.txt", "prometheus"]
        assert sorted(path.name for path in folder.iterdir()) == [*kept]
    assert said == [f"{folder}: nothing was trained or scored there; it starts over with the changed configuration"]


def test_clips_without_scores_are_kept_unless_the_run_failed(tmp_path: Path) -> None:
    first, second = config(tmp_path, seed=1), config(tmp_path, seed=2)
    sampled(first)
    for event in ("started", "interrupted"):
        ended(first.folder, event)
        with pytest.raises(ConfigError, match="another configuration: seed"), layout.claim(second):
            pass
    ended(first.folder, "failed")
    with layout.claim(second) as folder:
        assert not (folder / "ledger.sqlite").exists()
        assert not (folder / "blobs").exists()


def test_a_run_with_scores_is_refused_even_if_it_failed(tmp_path: Path) -> None:
    first, second = config(tmp_path, seed=1), config(tmp_path, seed=2)
    assert serial.run(first.model_copy(update={"mode": "serial"})).result is not None
    ended(first.folder, "failed")
    with pytest.raises(ConfigError, match="another configuration: seed"), layout.claim(second):
        pass
    with pytest.raises(ConfigError, match="another configuration: seed"):
        layout.finished_result(second)


def test_a_damaged_ledger_counts_as_work(tmp_path: Path) -> None:
    made = config(tmp_path)
    opened(made)
    assert not has_work(made.folder)
    (made.folder / "ledger.sqlite").write_bytes(b"no database" * 100)
    assert has_work(made.folder)


def test_the_same_configuration_resumes_what_did_nothing(tmp_path: Path) -> None:
    made = config(tmp_path)
    sampled(made)
    with layout.claim(made) as folder:
        assert (folder / "ledger.sqlite").exists()
