"""`douga annotate`: finds clips in runs and folders, needs a token off loopback, loses no answers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from common.config import to_toml
from common.data.ratings import RatedClip, write_ratings
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.exchange.queries import heldout_clips
from deploy.annotate.sources import find_clips
from deploy.cli.main import main
from tests.support.exchange.fakes import (
    candidate,
    heldout,
    make_pairs,
    open_exchange,
    sample,
    score_all,
    small,
    weight_version,
)
from tests.support.rewarders.survey import frames, write_clips


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose ledger has training groups and two evaluations of three prompts; its clips can be played."""
    folder, config = tmp_path / "run", small(root=str(tmp_path), name="run")
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(config))

    def playable(lease, index, weights=0):
        made = candidate(lease, index, weights)
        object.__setattr__(made, "clip", encode_mp4(frames(lease.prompt.ordinal % 7 + index), 8))
        return made

    monkeypatch.setattr("tests.support.exchange.fakes.candidate", playable)
    exchange = open_exchange(folder, config)
    make_pairs(exchange, 2)
    for version in (0, 1):
        if version:
            exchange.announce(weight_version(version, 1, 1))
        exchange.enqueue(heldout(3), version)
        for _ in range(3):
            sample(exchange, version)
    score_all(exchange)
    exchange.close()
    return folder


def test_a_runs_heldout_clips_are_found_and_its_training_clips_are_not(run: Path):
    folder, clips = find_clips(run)
    assert folder == run
    assert sorted(clip.source for clip in clips) == ["base"] * 3 + ["version 1"] * 3
    assert {clip.prompt for clip in clips} == {"dog jumps"}
    assert len({clip.name for clip in clips}) == 6
    first = clips[0].first_frame
    assert first is not None
    assert first() == b"dog"


def test_clips_are_found_while_the_run_is_running(run: Path):
    exchange = open_exchange(run, small())
    try:
        assert len(heldout_clips(run)) == 6
        assert sample(exchange, 1) is not None  # finding clips took no lock
    finally:
        exchange.close()


def test_clips_are_found_in_three_kinds_of_folders(tmp_path: Path):
    bare = tmp_path / "bare"
    write_clips(bare, ["one/a.mp4", "two/a.mp4", "b.mp4"])
    (bare / "one" / "a.txt").write_text("a square walks\n")
    found = {clip.name: (clip.source, clip.prompt) for clip in find_clips(bare)[1]}
    assert found == {"b.mp4": ("bare", ""), "one/a.mp4": ("one", "a square walks"), "two/a.mp4": ("two", "")}

    samples = tmp_path / "samples"
    write_clips(samples, ["0000.mp4"])
    (samples / "samples.json").write_text(json.dumps([{"clip": "0000.mp4", "text": "it walks", "version": 3}]))
    (clip,) = find_clips(samples)[1]
    assert (clip.name, clip.prompt, clip.source) == ("0000.mp4", "it walks", "version 3")

    rated = tmp_path / "rated"
    write_clips(rated, ["x.mp4"])
    write_ratings(rated / "ratings.jsonl", [RatedClip(clip="x.mp4", prompt="walks", source="real", category="walk")])
    (clip,) = find_clips(rated)[1]
    assert (clip.name, clip.prompt, clip.source, clip.category) == ("x.mp4", "walks", "real", "walk")


def test_unplayable_clips_are_reported_and_left_out(tmp_path: Path, capsys):
    write_clips(tmp_path, ["good.mp4"])
    for number in range(7):
        (tmp_path / f"bad{number}.mp4").write_bytes(b"no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert [clip.name for clip in find_clips(tmp_path)[1]] == ["good.mp4"]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 6
    assert re.match(r"douga: bad0.mp4: .*not a readable video.*; left out", told[0])
    assert told[-1] == "douga: 8 clips left out in total"


def douga(*words: Any) -> int:
    return main(["annotate", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: neither a run nor a folder"),
        (["."], "contains no playable clip"),
        ([".", "--host", "0.0.0.0"], "others could reach it; set DOUGA_TOKEN or --token"),
        ([".", "--host", "example.org"], "--host example.org: an IP address is needed"),
        ([".", "--token", "short"], "5 characters are too few; 16 or more"),
        ([".", "--annotators", "0"], "--annotators 0: must be at least 1"),
        ([".", "--port", "70000"], "allowed are 0 to 65535"),
        ([".", "--rubric", "none"], "allowed: anime, huvidpo or a TOML file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DOUGA_TOKEN", raising=False)
    assert douga(*words) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told


class Server:
    """`douga annotate` in a separate process on a free port."""

    def __init__(self, *words: Any) -> None:
        command = [sys.executable, "-m", "deploy.cli", "annotate", *map(str, words), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, "")
        self.url = next(found[1] for line in lines if (found := re.search(r"open (http://\S+)/", line)))

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def test_answers_survive_a_kill_and_are_exported(run: Path, tmp_path: Path, capsys):
    server = Server(run, "--rubric", "huvidpo")
    for done in range(2):
        task = server.ask("/api/next?kind=rate&annotator=ann")["task"]
        ratings = {"text": 5, "smoothness": 4, "appeal": done + 1}
        server.ask("/api/rate", {"annotator": "ann", "item": task["item"], "ratings": ratings})
    task = server.ask("/api/next?kind=compare&annotator=ann")["task"]
    server.ask("/api/choose", {"annotator": "ann", "item": task["item"], "side": "left"})
    assert server.end(signal.SIGKILL) == -signal.SIGKILL

    again = Server(run, "--rubric", "huvidpo")
    try:
        assert again.ask("/api/next?kind=rate&annotator=ann")["progress"]["mine"] == 2
    finally:
        assert again.end(signal.SIGINT) in (0, 130)
    assert douga(run, "--rubric", "huvidpo", "--results") == 0
    shown = capsys.readouterr().out
    assert "version 1 over base" in shown
    assert "100.0 %" in shown  # text: both clips got 5 of 5
    assert re.search(r"ann\W+2\W+1\W", shown)
    assert re.search(r"coverage.*\n(.*\n){3}\W+3\W+0\W+2\W+0\W+1\W+2\W+0\W+\d", shown)  # clips by ratings
    assert douga(run, "--rubric", "huvidpo", "--export", tmp_path / "out") == 0
    assert "2 rated clips, 1 pairs; 0 ties left out" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "clips").glob("*.mp4"))) >= 2


def test_a_folder_of_videos_has_every_kind_and_captions_as_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clip = encode_mp4(frames(1), 8)
    for name in ("a.mp4", "b.MOV", "._a.mp4", "sub/c.mp4", ".trash/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(clip)
    (tmp_path / "a.txt").write_bytes("\ufeffit walks \u00e9\r\n".encode("utf-16"))
    (tmp_path / "lost.txt").write_text("x")
    _, clips = find_clips(tmp_path)
    assert [(one.name, one.prompt) for one in clips] == [("a.mp4", "it walks \u00e9"), ("b.MOV", ""), ("sub/c.mp4", "")]
    assert capsys.readouterr().err == f"douga: {tmp_path}: 1 .txt files describe no video: lost.txt\n"
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="byte 0xe9 in line 1 is not UTF-8"):
        find_clips(tmp_path)
