"""``douga reward serve`` in a separate process, and the addresses that it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from common.config import DIMENSIONS, JudgeConfig
from common.data.video import encode_mp4
from common.messages import Prompt
from common.toon.world import ACTIONS, SCENES, Shot, render
from deploy.cli.main import main
from rewarders.interface import Clip
from rewarders.judges.registry import open_judge


def test_serve_serves_the_embedded_heads_until_sigterm(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("correct-horse-battery")
    token.chmod(0o600)
    words = [sys.executable, "-m", "deploy.cli", "reward", "serve", "--port", "0", "--token-file", str(token)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = next(line for line in process.stderr if line.startswith("judges at")).split()[-1]
            assert httpx.get(f"{url}/judges").status_code == 401
            judge = open_judge("a", JudgeConfig(kind="remote", url=url, token_file=str(token)))
            frames = render(Shot("robot", next(iter(SCENES)), next(iter(ACTIONS)), 0))
            (found,) = judge.judge([Clip(frames, 8, encode_mp4(frames, 8))], [Prompt(0, "p", "a robot walks")])
            assert tuple(found) == DIMENSIONS
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--host", "example.org"], "--host example.org: an IP address is needed"),
        (["--host", "192.0.2.1", "--token-file", "{token}"], "--host 192.0.2.1 --port 8100: "),
        (["--reward.path", "nowhere", "--port", "0"], "no folder of reward heads at nowhere"),
        (["--reward.judges.heads.kind", "x:Y", "--port", "0"], "reward.judges.heads: the heads of reward.path"),
        (["--token-file", "nowhere"], "nowhere: cannot read the token"),
        (["--colour", "red"], "--colour: unknown key"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, line):
    token = tmp_path / "token"
    token.write_text("correct-horse-battery")
    token.chmod(0o600)
    assert main(["reward", "serve", *(word.format(token=token) for word in words)]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
