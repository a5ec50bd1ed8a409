"""The recipe's server in a separate process, with a stand-in for the published script, called by our remote judge."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.config import DIMENSIONS, JudgeConfig
from common.data.video import encode_mp4
from common.images import encode_png
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.registry import open_judge

RECIPE = Path("deploy/rewards/recipes/animereward/server.py")
STAND_IN = Path(__file__).parents[2] / "support" / "animereward_standin.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server's address, and the script's folder."""
    folder = tmp_path_factory.mktemp("reward")
    shutil.copy(STAND_IN, folder / "reward_infer.py")
    (folder / "weights").mkdir()
    (folder / "weights" / "model.pth").write_text("0.25")
    words = [sys.executable, str(RECIPE), str(folder / "reward_infer.py"), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "running on http://" in line)
            yield line.split("http://")[1].split()[0], folder
        finally:
            process.kill()


def clip(grey: int, frames: int = 7) -> Clip:
    pixels = np.full((frames, 48, 64, 3), grey, np.uint8)
    return Clip(pixels, 8, encode_mp4(pixels, 8))


def test_clips_are_scored_one_after_the_other_by_models_loaded_once(served: tuple[str, Path]):
    address, folder = served
    judge = open_judge("anime", JudgeConfig(kind="remote", url=f"http://{address}", retries=0))
    assert judge.outputs == DIMENSIONS
    image = encode_png(np.full((48, 64, 3), 51, np.uint8))
    prompts = [Prompt(i, "p", text, image) for i, text in enumerate(["robot", "robot walks", "dark", "nobody"])]
    prompts.append(Prompt(4, "p", "robot", None))
    found = judge.judge([clip(204), clip(102, 5), clip(0), clip(204), clip(204)], prompts)
    wanted = {"smoothness": 25, "motion": 1, "appeal": 80, "text": 5, "image": 20, "character": 7}
    assert found[0] == {name: pytest.approx(value, abs=1) for name, value in wanted.items()}
    second = {"smoothness": 25, "motion": 2, "appeal": 40, "text": 11, "image": 20, "character": 5}
    assert found[1] == {name: pytest.approx(value, abs=1) for name, value in second.items()}
    assert found[2:] == [
        "RuntimeError: no character found",
        "character: no finite score",
        "ValueError: AnimeReward needs the first frame",
    ]
    assert list((folder / "character_save").iterdir()) == []


def test_another_script_is_refused(tmp_path: Path):
    (tmp_path / "other.py").write_text("print('hello')\n")
    words = [sys.executable, str(RECIPE), str(tmp_path / "other.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "no line `video_prompt = ...`" in done.stderr
    assert "hello" not in done.stdout
