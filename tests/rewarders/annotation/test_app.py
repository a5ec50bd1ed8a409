"""The page's requests: authentication, refused input, videos with ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from fastapi.testclient import TestClient

from common.data.video import decode_clip, plays_everywhere
from rewarders.annotation.app import make_app
from rewarders.annotation.playback import PlaybackCheck
from rewarders.annotation.survey import Survey
from tests.support.rewarders.survey import all_of, survey

TOKEN = "correct horse battery"


@pytest.fixture
def asked(tmp_path: Path) -> Survey:
    return survey(tmp_path)


@pytest.fixture
def screening() -> Iterator[PlaybackCheck]:
    made = PlaybackCheck()
    yield made
    made.close()


@pytest.fixture
def client(asked: Survey, screening: PlaybackCheck) -> TestClient:
    return TestClient(make_app(asked, screening), base_url="http://127.0.0.1")


@pytest.fixture
def guarded(asked: Survey, screening: PlaybackCheck) -> TestClient:
    return TestClient(make_app(asked, screening, TOKEN), base_url="http://10.0.0.5")


def ask(client: TestClient, kind: str = "rate", annotator: str = "ann") -> dict:
    answer = client.get("/api/next", params={"kind": kind, "annotator": annotator})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_page_loads_only_local_files(client):
    for path, kind in (("/", "text/html"), ("/annotate.js", "javascript"), ("/annotate.css", "text/css")):
        answer = client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert "://" not in answer.text.replace("http://www.w3.org", "")


def test_a_round_of_rating(client, asked):
    task = ask(client)["task"]
    body = {"annotator": "ann", "item": task["item"], "ratings": all_of(asked, 4)}
    after = client.post("/api/rate", json=body).json()
    assert after["progress"] == {"mine": 1, "left": 5, "complete": 0, "items": 6}
    assert after["task"]["item"] != task["item"]
    back = client.post("/api/undo", json={"annotator": "ann", "kind": "rate"}).json()
    assert (back["undone"], back["task"]["item"], back["task"]["said"]) == (True, task["item"], all_of(asked, 4))


def test_a_round_of_comparing_shows_in_the_results(client):
    task = ask(client, "compare")["task"]
    client.post("/api/choose", json={"annotator": "ann", "item": task["item"], "side": "tie"})
    found = client.get("/api/results").json()
    assert found["pairs"]["answered"] == found["pairs"]["ties"] == 1
    assert found["annotators"] == [{"name": "ann", "rated": 0, "compared": 1}]


def test_invalid_answers_are_refused_with_a_message(client, asked):
    item, good = ask(client)["task"]["item"], all_of(asked, 3)
    bad = [
        ({"annotator": "ann", "item": item, "ratings": good | {"text": 0}}, 422, "text = 0: a rating is 1 to 5"),
        ({"annotator": "ann", "item": item, "ratings": good | {"text": 2.5}}, 422, ""),
        ({"annotator": "ann", "item": item, "ratings": good | {"text": True}}, 422, ""),
        ({"annotator": "ann", "item": item, "ratings": good, "more": 1}, 422, ""),
        ({"annotator": " ", "item": item, "ratings": good}, 422, "a name must have 1 to 40 printable characters"),
        ({"annotator": "ann", "item": "x", "ratings": good}, 404, "no such clip"),
    ]
    for body, status, message in bad:
        answer = client.post("/api/rate", json=body)
        assert answer.status_code == status
        assert message in str(answer.json()["detail"])
    assert asked.given("rate") == []


def test_a_video_is_served_in_ranges(client, asked, screening):
    clip = asked.clips[0]
    whole = client.get(f"/clips/{clip.key}")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    part = client.get(f"/clips/{clip.key}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    assert client.get(f"/clips/{clip.key}", headers={"Range": "bytes=99999999-"}).status_code == 416


def test_every_video_is_one_that_every_browser_plays(client, asked):
    kinds = {av.open(str(clip.file)).streams.video[0].codec_context.pix_fmt for clip in asked.clips}
    assert kinds == {"yuv420p", "yuv444p"}
    for clip in asked.clips:
        served = client.get(f"/clips/{clip.key}").content
        assert plays_everywhere(served)
        assert len(decode_clip(served)) == 16


@pytest.mark.parametrize(
    "key", ["..%2f..%2fannotations.sqlite", "annotations.sqlite", "base%2f0.mp4", "%00", "x" * 5000]
)
def test_no_path_from_a_request_is_used_as_a_path(client, key):
    for room in ("clips", "frames"):
        assert client.get(f"/{room}/{key}").status_code == 404


def test_a_clip_that_vanished_is_a_404(client, asked):
    asked.clips[0].file.unlink()
    answer = client.get(f"/clips/{asked.clips[0].key}")
    assert answer.status_code == 404
    assert "cannot be read" in answer.json()["detail"]


def test_without_a_token_only_loopbacks_names_are_served(asked, screening):
    app = make_app(asked, screening)
    for name, status in (("127.0.0.1:8710", 200), ("localhost", 200), ("evil.example", 400), ("10.0.0.5", 400)):
        assert TestClient(app, base_url=f"http://{name}").get("/api/survey").status_code == status


def test_with_a_token_requests_without_it_are_refused(guarded, asked):
    doors = ["/api/survey", "/api/next?kind=rate&annotator=a", "/api/results", f"/clips/{asked.clips[0].key}"]
    for door in [*doors, f"/frames/{asked.clips[0].key}"]:
        for given in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x"):
            answer = guarded.get(door, headers={} if given is None else {"Authorization": given})
            assert answer.status_code == 401
    for post, body in (("rate", {"item": "x", "ratings": {}}), ("choose", {"item": "x", "side": "tie"})):
        assert guarded.post(f"/api/{post}", json={"annotator": "a"} | body).status_code == 401
    assert guarded.post("/api/undo", json={"annotator": "a", "kind": "rate"}).status_code == 401
    assert guarded.get("/").status_code == 200  # the page, which asks for it


def test_the_token_opens_as_bearer_and_by_cookie(guarded):
    assert guarded.get("/api/survey", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert guarded.post("/api/login", json={"token": "wrong"}).status_code == 401
    assert guarded.get("/api/survey").status_code == 401
    answer = guarded.post("/api/login", json={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert guarded.get("/api/survey").status_code == 200
