"""The data of the page: groups and their videos, curves, and runs that start, end or lost their clips."""

from __future__ import annotations

import re
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from common.config import load_config
from common.data.video import clip_length, decode_clip, encode_mp4, plays_everywhere
from common.exchange.storage.blobs import BlobStore, raw
from deploy.inspect.snapshot import RunReader
from deploy.inspect.web import videos, view
from deploy.inspect.web.app import make_app
from deploy.inspect.web.videos import VideoCache
from deploy.inspect.web.view import DashboardState
from tests.support.exchange.fakes import make_pairs, open_exchange, train
from tests.support.runs import step
from tests.support.web_runs import begun, killed, write


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after three pairs and two steps."""
    monkeypatch.setattr(view, "FRESH", -1.0)  # every request reads the run
    return killed(tmp_path, monkeypatch)


@pytest.fixture
def client(run: Path):
    made = VideoCache(run / "blobs")
    yield TestClient(make_app(DashboardState(RunReader(run)), made), base_url="http://127.0.0.1")
    made.close()


def ask(client: TestClient, tag: str = "") -> dict[str, Any]:
    answer = client.get("/api/run", params={"tag": tag})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_page_loads_nothing_from_other_hosts(client) -> None:
    for path, kind in (("/", "text/html"), ("/watch.js", "javascript"), ("/watch.css", "text/css")):
        answer = client.get(path)
        assert (answer.status_code, kind in answer.headers["content-type"]) == (200, True)
        assert "://" not in answer.text


def test_the_newest_pairs_with_scores_and_videos(client) -> None:
    pairs = ask(client)["groups"]
    assert [one["ordinal"] for one in pairs] == [2, 1, 0]
    first = pairs[0]
    assert (first["text"], first["version"], first["state"]) == ("cat 2 walks", 0, "ready")
    assert [one["name"] for one in first["kept"]] == ["chosen", "rejected"]
    chosen, rejected = first["kept"]
    assert (chosen["reward"], rejected["scores"]["motion"]) == (pytest.approx(80.0), 30.0)
    video = client.get(f"/{first['clip']}")
    assert (video.status_code, video.headers["content-type"]) == (200, "video/mp4")
    assert plays_everywhere(video.content)
    assert clip_length(video.content) == (16, 8.0)
    assert decode_clip(video.content).shape == (16, 192, 512, 3)
    part = client.get(f"/{first['clip']}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, video.content[10:20])


def test_a_deleted_clip_is_404_and_a_cached_video_still_plays(client, run) -> None:
    first, second, _ = ask(client)["groups"]
    assert client.get(f"/{first['clip']}").status_code == 200
    for blob in (run / "blobs").iterdir():
        blob.unlink()
    assert client.get(f"/{first['clip']}").status_code == 200
    gone = client.get(f"/{second['clip']}")
    assert (gone.status_code, gone.json()) == (404, {"detail": "the clip no longer exists"})
    assert len(ask(client)["groups"]) == 3
    for name in ("groups/99.mp4", "groups/..%2f..%2fledger.sqlite.mp4", "groups/-1.mp4"):
        assert client.get(f"/{name}").status_code in (404, 422)


def test_pairs_whose_clips_were_deleted_after_training_give_way_to_those_that_have_theirs(client, run) -> None:
    config = load_config(run / "config.toml")
    exchange = open_exchange(run, config)
    train(exchange, 1)
    trained = {one["ordinal"] for one in ask(client)["groups"] if one["state"] == "trained"}
    assert trained == {0, 1}
    exchange.record_checkpoint(1)
    left = ask(client)["groups"]
    assert [(one["ordinal"], client.get(f"/{one['clip']}").status_code) for one in left] == [(2, 200)]
    make_pairs(exchange, 1)
    assert [one["ordinal"] for one in ask(client)["groups"]] == [3, 2]
    train(exchange, 2)
    exchange.record_checkpoint(2)
    exchange.close()
    ended = ask(client)["groups"]
    assert [one["ordinal"] for one in ended] == [3, 2, 1, 0]  # none has its clips: their scores are still there
    assert {(one["clip"], one["why"]) for one in ended} == {(None, "the clip no longer exists")}


def test_the_video_cache_is_bounded(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(videos, "KEPT", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    made = VideoCache(run / "blobs")
    client = TestClient(make_app(DashboardState(RunReader(run)), made), base_url="http://127.0.0.1")
    (shown,) = (tmp_path / "scratch").iterdir()
    pairs = ask(client)["groups"]
    for pair in pairs:
        assert client.get(f"/{pair['clip']}").status_code == 200
    assert len(list(shown.iterdir())) == 2
    made.close()
    assert not shown.exists()


def test_large_videos_are_scaled_down(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    data = raw(encode_mp4(np.zeros((5, 480, 720, 3), np.uint8), 16))
    one, other = (store.write([data]).file for _ in range(2))
    with closing(VideoCache(store.folder)) as made:
        assert decode_clip(made.video([one, other]).read_bytes()).shape == (5, 320, 960, 3)


def test_curves_are_sent_only_when_they_have_changed(client, run) -> None:
    told = ask(client)
    drawn = {one["title"]: one for one in told["curves"]["drawn"]}
    assert list(drawn) == [
        *("Batch mean reward", "Loss", "Learning rate", "Gradient norm", "Lag"),
        *("Dpo logits", "Reward margin", "Chosen error", "Rejected error", "Accuracy", "Gap"),
    ]
    told_now = {title: drawn[title]["now"] for title in ("Batch mean reward", "Gap", "Learning rate", "Accuracy")}
    assert told_now == {"Batch mean reward": "75", "Gap": "0.0625", "Learning rate": "5e-06", "Accuracy": "0.75"}
    svg = drawn["Gap"]["svg"]
    assert [svg.count(f'class="{kind}"') for kind in ("push", "refresh", "alarm", "resume")] == [2, 1, 1, 1]
    assert "71 % of &lt;b&gt;motion" in svg
    at = {kind: re.findall(f'class="{kind}" x1="([0-9.]+)"', svg) for kind in ("push", "refresh", "alarm", "resume")}
    assert at == {"push": ["220.0", "388.0"], "refresh": ["388.0"], "alarm": ["388.0"], "resume": ["220.0"]}
    assert ">step 2</text>" in svg
    tag = told["curves"]["tag"]
    assert ask(client, tag)["curves"] is None
    write(run, "metrics.jsonl", step(3, time.time()))
    assert ask(client, tag)["curves"]["tag"] != tag
    assert "sampler-0: sampling, 5.0 s" in told["lanes"]


def test_steps_recorded_before_a_curve_existed_are_left_out_of_it(client, run) -> None:
    old = step(3, time.time())
    del old["lr"], old["metrics"]["accuracy"]
    (run / "metrics.jsonl").unlink()
    write(run, "metrics.jsonl", old)
    titles = [one["title"] for one in ask(client)["curves"]["drawn"]]
    assert "Loss" in titles
    assert not {"Learning rate", "Accuracy"} & set(titles)
    write(run, "metrics.jsonl", step(4, time.time(), lr=1e-4))
    drawn = {one["title"]: one for one in ask(client)["curves"]["drawn"]}
    assert drawn["Learning rate"]["now"] == "0.0001"
    points = {title: re.findall(r'points="([^"]*)"', one["svg"])[0].split() for title, one in drawn.items()}
    assert [len(points[title]) for title in ("Loss", "Learning rate", "Accuracy")] == [2, 1, 1]
    assert points["Learning rate"][0].split(",")[0] == points["Loss"][1].split(",")[0]


def test_a_run_that_is_starting_and_one_whose_folder_is_gone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(view, "FRESH", -1.0)
    folder, _ = begun(tmp_path)
    client = TestClient(
        make_app(DashboardState(RunReader(folder)), VideoCache(folder / "blobs")), base_url="http://localhost"
    )
    told = ask(client)
    assert (told["status"]["phase"], told["status"]["words"]) == ("not running", "not started yet")
    assert (told["groups"], told["curves"]["drawn"], told["lanes"]) == ([], [], None)
    (folder / "ledger.sqlite").touch()
    assert ask(client)["groups"] == []
    (folder / "config.toml").unlink()
    answer = client.get("/api/run")
    assert answer.status_code == 503
    assert "no such configuration file" in answer.json()["detail"]


def test_simulated_work_has_no_clips(tmp_path: Path, monkeypatch) -> None:
    folder, config = begun(tmp_path, simulate=True)
    exchange = open_exchange(folder, config)
    make_pairs(exchange, 1)
    exchange.close()
    client = TestClient(
        make_app(DashboardState(RunReader(folder)), VideoCache(folder / "blobs")), base_url="http://localhost"
    )
    (pair,) = ask(client)["groups"]
    assert (pair["clip"], pair["why"]) == (None, "simulated work has no clips")


def test_without_the_token_there_is_no_data(run) -> None:
    app = make_app(DashboardState(RunReader(run)), VideoCache(run / "blobs"), "correct horse battery")
    client = TestClient(app, base_url="http://10.0.0.5")
    for door in ("/api/run", "/groups/0.mp4"):
        assert client.get(door).status_code == 401
    assert client.post("/api/login", json={"token": "correct horse battery"}).status_code == 200
    assert client.get("/api/run").status_code == 200
