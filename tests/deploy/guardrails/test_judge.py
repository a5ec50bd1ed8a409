"""A run whose only judge is a server, and what happens when the server stops; held-out judges that score nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.config import JudgeConfig, RunConfig
from common.errors import ConfigError, RunFailed
from common.messages import Prompt
from deploy.run_dir.jsonl import EVENTS, METRICS, read_json_lines
from deploy.runtime import serial
from deploy.runtime.hub import Hub
from rewarders.interface import Clip, JudgeResult
from tests.support import toy
from tests.support.rewarders.serving import serving
from tests.support.tiny import tiny_pipeline


class Hashes:
    """Two values from a clip's bytes, 0..4."""

    outputs, digest = ("look", "move"), "hashes-1"

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        rewards = [toy.HashReward(output) for output in self.outputs]
        return [{one.dimension: one.score([clip.frames], [])[0] / 25 for one in rewards} for clip in clips]


def config(root: Path, url: str) -> RunConfig:
    judge = {"kind": "remote", "url": url, "high": "4", "retries": "0", "timeout": "20", "outputs.look": "1"}
    flags = {f"reward.judges.a.{key}": value for key, value in judge.items()}
    return toy.config(root, **{"reward.path": ""}, **flags)


def test_a_run_stops_when_its_remote_judge_fails_and_resumes(tmp_path: Path):
    tiny_pipeline(tmp_path / "model")
    with ExitStack() as server:
        asked = config(tmp_path, server.enter_context(serving({"h": Hashes()})))

        def stop() -> bool:
            if (asked.folder / METRICS).exists() and read_json_lines(asked.folder / METRICS):
                server.close()  # after the first step
            return False

        with pytest.raises(RunFailed, match=r"no answer in 1 attempts: ConnectError.*the same command resumes the run"):
            serial.run(asked, stop=stop)
    with serving({"h": Hashes()}) as url:
        result = serial.run(config(tmp_path, url)).result
    assert result is not None
    assert result["step"] == 4
    assert set(result["learned"]) == {"reward", "a.look", "a.move"}
    assert result["learned"]["reward"] == result["learned"]["a.look"]  # the output without a weight does not count


class Faces:
    """A held-out judge that finds nothing in any clip."""

    outputs, digest = ("face",), "faces"

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        pass

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        return ["no face" for _ in clips]


def guarded(root: Path, **judge: str) -> RunConfig:
    tiny_pipeline(root / "model")
    flags = {f"guardrails.judges.held.{key}": value for key, value in judge.items()}
    return toy.config(root, **{"guardrails.prompts": 2, "steps": 1}, **flags)


@pytest.mark.parametrize("mode", ["serial", "cluster"])
def test_a_held_out_judge_that_refuses_the_size_is_refused_before_a_folder_is_made(tmp_path: Path, mode: str) -> None:
    config = guarded(tmp_path, kind="frame_ssim", frames="16").model_copy(update={"mode": mode})
    words = r"^guardrails\.judges held: no clip of 9x48x64 at 8 fps can be scored: .* 16 frames"
    with pytest.raises(ConfigError, match=words):
        serial.run(config, toy.rewards()) if mode == "serial" else Hub(config).open()
    assert not config.folder.exists()


def test_a_held_out_judge_that_scores_nothing_ends_the_run_at_the_first_probe(tmp_path: Path) -> None:
    config = guarded(tmp_path, kind=f"{__name__}:Faces")
    words = r"^guardrails\.judges held: it scored neither the first clips .* nor made ones: no face; the run ends"
    with pytest.raises(ConfigError, match=words):
        serial.run(config, toy.rewards())
    assert read_json_lines(config.folder / EVENTS)[-1]["exit_code"] == 2
