"""Runs on disk whose pairs have playable clips, and a thread that serves their page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from common.config import RunConfig, to_toml
from common.data.video import encode_mp4
from common.messages import Candidate
from common.web.auth import listen
from deploy.inspect.snapshot import RunReader
from deploy.inspect.web.app import make_app
from deploy.inspect.web.videos import VideoCache
from deploy.inspect.web.view import DashboardState
from deploy.run_dir.jsonl import EVENTS, METRICS, TIMELINE, JsonLines
from tests.support.exchange import fakes
from tests.support.exchange.fakes import small
from tests.support.rewarders.survey import frames
from tests.support.runs import event, span, step

CONFIG = {"exchange__max_lag": 20, "exchange__pipeline_depth": 20, "steps": 20, "mode": "serial"}


def playable(lease: Any, index: int, weights: object = 0) -> Candidate:
    """A fake candidate with a real clip of 16 frames, 2 seconds."""
    made = fakes_candidate(lease, index, weights)
    object.__setattr__(made, "clip", encode_mp4(frames(lease.prompt.ordinal % 7 + index), 8))
    return made


fakes_candidate = fakes.candidate


def begun(root: Path, **flags: Any) -> tuple[Path, RunConfig]:
    """A run folder that holds only its configuration."""
    config = small(**CONFIG | {"root": str(root), "name": "mine"} | flags)
    folder = root / "mine"
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(config))
    return folder, config


def write(folder: Path, file: str, *records: dict[str, Any]) -> None:
    with JsonLines(folder / file) as lines:
        for record in records:
            lines.write(**record)


def history(folder: Path, start: float) -> None:
    """Two steps, a refresh, a resume and an alarm, beginning at second `start`."""
    write(folder, EVENTS, event(start, "started"), event(start + 40, "resumed", step=1),
          event(start + 55, "alarm", step=2, rule="motion", action="warn", words="71 % of <b>motion</b>"))  # fmt: skip
    write(folder, METRICS, step(1, start + 30), step(2, start + 50, refreshed=True))
    work = [("sampler-0", 0, 25.0, 1), ("rewarder-0", 25, 2.0, 4), ("learner-0", 27, 3.0, 1), ("sampler-0", 41, 5.0, 1)]
    write(folder, TIMELINE, *(span(worker, start + began, seconds, units) for worker, began, seconds, units in work))


def killed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after three pairs and two steps, 100 s after its start."""
    monkeypatch.setattr("tests.support.exchange.fakes.candidate", playable)
    folder, config = begun(root)
    exchange = fakes.open_exchange(folder, config)
    fakes.make_pairs(exchange, 3)
    exchange.close()
    history(folder, time.time() - 100)
    return folder


@contextmanager
def serving(folder: Path, token: str = "") -> Iterator[str]:
    """Serve the page of a run inside the context; yields its address."""
    with listen("127.0.0.1", 0, token) as listening, closing(VideoCache(folder / "blobs")) as screening:
        app = make_app(DashboardState(RunReader(folder)), screening, token)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
