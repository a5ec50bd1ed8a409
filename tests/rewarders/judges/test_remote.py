"""A judge over HTTP, between a real server and a real client on loopback: scores, refusals, silence, change."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest

from common.config import JudgeConfig, load_config
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.messages import Prompt, ScoreTask
from rewarders.head_files import load_heads
from rewarders.interface import Clip, JudgeFailedError, JudgeResult, JudgeUnavailableError
from rewarders.judges.registry import open_judge, open_rewards
from rewarders.judges.remote import RemoteJudge
from rewarders.judges.server import RewardsAsJudge
from rewarders.rewarder import rewarder_for
from tests.support.rewarders.serving import serving


class Grey:
    """Mean of the clip and of the first frame's bytes; refuses dark clips; NaN for the caption ``nan``."""

    outputs = ("mean", "image")

    def __init__(self, digest: str = "grey-1") -> None:
        self.digest, self.asked, self.go = digest, [], Event()
        self.go.set()

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        assert self.go.wait(20)
        self.asked += prompts
        if any(clip.frames.max() < 10 for clip in clips):
            raise ValueError("too dark")
        return [self._opinion(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]

    def _opinion(self, clip: Clip, prompt: Prompt) -> dict[str, float]:
        mean = math.nan if prompt.text == "nan" else float(clip.frames.mean())
        return {"mean": mean, "image": float(len(prompt.image or b""))}


def clip(grey: int, frames: int = 3, fps: int = 8) -> Clip:
    pixels = np.full((frames, 48, 64, 3), grey, np.uint8)
    return Clip(pixels, fps, encode_mp4(pixels, fps))


def prompt(text: str = "walks", image: bytes | None = None) -> Prompt:
    return Prompt(0, "p", text, image, character="robot")


def remote(url: str, **changes: Any) -> RemoteJudge:
    return RemoteJudge(JudgeConfig(kind="remote", url=url, **({"timeout": 10, "retries": 0} | changes)))


def test_scores_come_back_with_reasons_for_those_that_are_missing():
    grey = Grey()
    with serving({"grey": grey}) as url:
        judge = remote(url)
        assert (judge.outputs, judge.digest) == (("mean", "image"), "grey-1")
        asked = [prompt(image=b"1234"), prompt("nan"), prompt(image=b"12"), prompt()]
        found = judge.judge([clip(80), clip(80), clip(0), Clip(np.empty(0), 8, b"no video")], asked)
        health = httpx.get(f"{url}/health").json()
    assert found[0] == {"mean": pytest.approx(80, abs=2), "image": 4.0}
    assert found[1] == "mean: no finite score"
    assert re.fullmatch(r"judge mean, image: ValueError: too dark \(test_remote.py:\d+\)", str(found[2]))
    assert "not a readable video" in str(found[3])
    assert health == {"status": "ok", "scored": 1, "refused": 3}
    assert {one.character for one in grey.asked} == {"robot"}


def test_the_heads_served_give_the_scores_of_the_heads_here():
    heads = load_heads("toon")
    frames = np.random.default_rng(0).integers(0, 255, (9, 48, 64, 3), np.uint8)
    task = ScoreTask("0-0-v0", prompt("a robot walks"), encode_mp4(frames, 8))
    here = load_config().reward
    (wanted,) = rewarder_for(open_rewards(here), here).score([task])
    with serving({"heads": RewardsAsJudge(heads)}) as url:
        away = load_config(
            None, {"reward.path": "", "reward.judges.a.kind": "remote", "reward.judges.a.url": url}
        ).reward
        (found,) = rewarder_for(open_rewards(away), away).score([task])
    assert found.values == {f"a.{name}": value for name, value in wanted.values.items()}


def test_the_server_sees_what_the_configuration_says():
    grey = Grey()
    with serving({"grey": grey}) as url:
        judge = open_judge("a", JudgeConfig(kind="remote", url=url, fps=4, frames=2, low=0, high=50, retries=0))
        (found,) = judge.judge([clip(40, frames=4)], [prompt()])
        assert isinstance(found, dict)
        assert found["mean"] == pytest.approx(80, abs=4)
        with pytest.raises(ValueError, match="a clip of 1 frames at 4 per second; 2 frames are needed"):
            judge.judge([clip(40, frames=2)], [prompt()])


def test_a_token_is_needed_where_there_is_one(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("open-sesame\n")
    file.chmod(0o600)
    with serving({"grey": Grey()}, token="open-sesame") as url:
        assert len(remote(url, token_file=str(file)).judge([clip(80)], [prompt()])) == 1
        with pytest.raises(ConfigError, match="401"):
            remote(url)
        for path in ("/judges", "/score", "/nothing"):
            for token in ("", "open-sesam", "open-sesame2", "ö"):
                headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
                assert httpx.post(f"{url}{path}", headers=headers).status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="group or others may use it"):
        remote(url, token_file=str(file))


def test_a_request_that_is_too_large_is_refused_and_smaller_ones_are_not():
    noise = np.random.default_rng(0).integers(0, 255, (9, 48, 64, 3), np.uint8)
    large = Clip(noise, 8, encode_mp4(noise, 8))
    assert large.file is not None
    with serving({"grey": Grey()}, most_bytes=len(large.file) + 2000) as url:
        judge = remote(url)
        assert len(judge.judge([large], [prompt()])) == 1
        with pytest.raises(ValueError, match="413"):
            judge.judge([large, large], [prompt(), prompt()])
        start = b'--b\r\nContent-Disposition: form-data; name="clips"; filename="a"\r\n\r\n'
        pieces = [start, *[b"x" * 1000] * (len(large.file) // 1000 + 10)]
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert httpx.post(f"{url}/score", content=iter(pieces), headers=kind).status_code == 413
        assert len(judge.judge([large], [prompt()])) == 1


@pytest.mark.parametrize(
    ("request_part", "status"),
    [
        ("no json", 422),
        ('{"judge": "grey", "prompts": []}', 422),
        ('{"judge": "grey", "prompts": [{"text": "a"}, {"text": "b"}]}', 422),
        ('{"judge": "grey", "prompts": [{"text": "a", "image": true}]}', 422),
        ('{"judge": "red", "prompts": [{"text": "a"}]}', 404),
    ],
)
def test_requests_of_another_form_are_refused(request_part, status):
    with serving({"grey": Grey()}) as url:
        answer = httpx.post(f"{url}/score", data={"request": request_part}, files=[("clips", b"x")])
    assert answer.status_code == status


def test_a_slow_judge_loses_its_clips_and_finally_stops_the_worker():
    grey = Grey()
    with serving({"grey": grey}) as url:
        judge = remote(url, timeout=0.3, retries=1)
        grey.go.clear()
        for _ in range(2):
            with pytest.raises(JudgeUnavailableError, match="no answer in 2 attempts: ReadTimeout"):
                judge.judge([clip(80)], [prompt()])
        with pytest.raises(JudgeFailedError, match="no answer in 2 attempts"):
            judge.judge([clip(80)], [prompt()])
        grey.go.set()


def test_another_server_takes_over():
    with serving({"grey": Grey()}) as url, serving({"grey": Grey()}) as gone:
        judge = remote(f"{url},{gone}", retries=1)
        assert len(judge.judge([clip(80)], [prompt()])) == 1
        two = remote(f"{gone},{url}", retries=1)
    with serving({"grey": Grey()}) as other:
        two._next_server = iter([gone, other, gone, other])
        for _ in range(2):
            assert len(two.judge([clip(80)], [prompt()])) == 1


def test_a_changed_digest_is_refused():
    grey = Grey()
    with serving({"grey": grey}) as url:
        judge = remote(url)
        grey.digest = "grey-2"
        with pytest.raises(JudgeFailedError, match="judge grey has changed"):
            judge.judge([clip(80)], [prompt()])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"url": ""}, "url: must be at least one http"),
        ({"url": "ftp://x"}, "must be http://HOST:PORT or https://HOST:PORT"),
        ({"url": "http://127.0.0.1:9"}, "no answer in 1 attempts"),
        ({"path": "red"}, r"path = 'red': .* serves blue, grey"),
        ({}, "serves blue, grey; set path to one of them"),
        ({"token_file": "/nowhere"}, "cannot read the token"),
    ],
)
def test_wrong_addresses_get_one_line(changes, line):
    with serving({"grey": Grey(), "blue": Grey()}) as url:
        config = {"url": url} | changes
        with pytest.raises(ConfigError, match=f"reward.judges.a: .*{line}"):
            open_judge("a", JudgeConfig(kind="remote", retries=0, **config))


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": "http://127.0.0.1:9"},
        {"http_proxy": "http://127.0.0.1:9", "no_proxy": "10.0.0.0/8"},
        {"ALL_PROXY": "socks5h://127.0.0.1:9"},
        {"HTTP_PROXY": "no address"},
    ],
    ids=["http", "cidr", "socks", "malformed"],
)
def test_proxies_of_the_environment_are_not_asked(environment, monkeypatch: pytest.MonkeyPatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with serving({"grey": Grey()}) as url:
        assert len(remote(url).judge([clip(80)], [prompt()])) == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"proxy": "http://127.0.0.1:9"}, "no answer through the proxy http://127.0.0.1:9 in 1 attempts: ConnectError"),
        ({"proxy": "ftp://x"}, "proxy = 'ftp://x': must be http://HOST:PORT or socks5://HOST:PORT"),
        ({"url": "http://[::1"}, r"url = 'http://\[::1': Invalid port"),
        ({"url": "http://"}, "must be http://HOST:PORT"),
    ],
)
def test_a_configured_proxy_is_named(changes, line):
    with serving({"grey": Grey()}) as url, pytest.raises(ConfigError, match=line):
        remote(**({"url": url} | changes))
