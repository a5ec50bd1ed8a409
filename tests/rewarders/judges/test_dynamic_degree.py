"""VBench's dynamic degree: the rule by hand, and the judge with a RAFT whose flow is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.controls import compare_with_controls
from rewarders.interface import Clip
from rewarders.judges.dynamic_degree import RAFT_FILE, DynamicDegree, moves, padded
from rewarders.judges.registry import open_judge
from rewarders.optical_flow.raft import Raft
from tests.support.rafts import arbitrary, raft_of_flow, saved

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = Prompt(0, "p", "walks")


def noise(frames: int, height: int = 128, width: int = 136) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


def judged(path: str, frames: np.ndarray, fps: float = 8.0) -> float | str:
    (found,) = open_judge("a", JudgeConfig(kind="dynamic_degree", path=path)).judge([Clip(frames, fps)], [ASKED])
    return found if isinstance(found, str) else found["dynamic_degree"]


@pytest.mark.parametrize(
    ("frames", "fast", "moving"),
    [
        (49, 12, True),  # round(4 * 49 / 16) = round(12.25)
        (49, 11, False),
        (25, 6, True),  # round(6.25): what is left of 49 frames at 16 per second
        (25, 5, False),
        (10, 2, True),  # round(2.5) = 2
        (10, 1, False),
        (2, 1, True),
        (2, 0, False),
    ],
)
def test_a_quarter_of_the_pairs_must_be_fast(frames: int, fast: int, moving: bool) -> None:
    limit = 6 * 480 / 256  # 11.25 pixels
    speeds = [limit + 0.01] * fast + [limit - 0.01] * (frames - 1 - fast)
    assert moves(speeds, frames, (480, 720)) is moving
    assert moves(speeds[::-1], frames, (720, 480)) is moving


def test_the_threshold_grows_with_the_shorter_side(tmp_path: Path) -> None:
    """128 pixels: 3 pixels. A flow of (2.4, -1.9) has length 3.06."""
    fast, slow = raft_of_flow(tmp_path / "fast", 2.4, -1.9), raft_of_flow(tmp_path / "slow", 2.4, -1.7)
    assert judged(fast, noise(2)) == 100
    assert judged(slow, noise(2)) == 0
    assert judged(fast, noise(2, 136, 160)) == 0  # 3.19 pixels


def test_the_speed_is_that_of_the_fastest_twentieth(tmp_path: Path) -> None:
    """Against RAFT's flow, sorted here, of frames that have to be padded by 3 and 5 pixels."""
    model = Raft().eval()
    model.load_state_dict(arbitrary(model.state_dict()))
    judge = DynamicDegree(JudgeConfig(kind="dynamic_degree", path=saved(tmp_path, model)), "cpu")
    frames = noise(3, 125, 131)
    wide = [np.pad(one, ((1, 2), (2, 3), (0, 0)), mode="edge") for one in frames]
    for found, before, after in zip(judge.speeds(frames), wide, wide[1:], strict=False):
        pair = [torch.tensor(one.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32) for one in (before, after)]
        with torch.inference_mode():
            flow = model(*pair, 20)[0].double().numpy()
        lengths = np.sort(np.sqrt(flow[0] ** 2 + flow[1] ** 2).ravel())[::-1]
        assert found == pytest.approx(lengths[: int(128 * 136 * 0.05)].mean(), rel=1e-4)


def test_frames_that_8_divides_are_not_padded() -> None:
    frame = noise(1)[0]
    assert torch.equal(padded(frame), torch.tensor(frame).permute(2, 0, 1)[None] / 127.5 - 1)


def test_clips_are_read_at_about_8_frames_per_second(tmp_path: Path) -> None:
    path = raft_of_flow(tmp_path, 9.0)
    assert judged(path, noise(2), 11.9) == 100  # round(1.49): every frame
    assert judged(path, noise(2), 12.1) == "a clip of 2 frames at 12.1 per second; 2 are needed at about 8"
    assert judged(path, noise(3), 16) == 100
    assert judged(path, noise(1)) == "a clip of 1 frames at 8 per second; 2 are needed at about 8"
    assert judged(path, noise(2, 120, 160)) == "a clip of 120 x 160 pixels; each side must have at least 121"
    assert judged(path, noise(2, 121, 121)) == 100


def test_the_controls_stand_beside_it(tmp_path: Path) -> None:
    """This RAFT sees the same motion in all three clips, so every case is a tie."""
    judge = open_judge("a", JudgeConfig(kind="dynamic_degree", path=raft_of_flow(tmp_path, 9.0)))
    found = compare_with_controls(judge, [(Clip(noise(2), 8.0), ASKED)])
    assert {name: one["dynamic_degree"].preferred for name, one in found.items()} == {"frozen": 0.5, "flicker": 0.5}
    assert found["frozen"]["dynamic_degree"].clip_mean == 100


def test_digests_tell_weights_apart(tmp_path: Path) -> None:
    paths = [raft_of_flow(tmp_path / str(x), x) for x in (1.0, 2.0)]
    assert len({open_judge("a", JudgeConfig(kind="dynamic_degree", path=path)).digest for path in paths}) == 2


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward.judges.a: path = '': must be a folder with raft.safetensors"):
        open_judge("a", JudgeConfig(kind="dynamic_degree"))
    save_file({"fnet.conv1.weight": torch.zeros(2)}, tmp_path / RAFT_FILE)
    with pytest.raises(
        ConfigError, match=r"raft.safetensors: cannot be read as the weights of RAFT: .*Missing key"
    ) as error:
        open_judge("a", JudgeConfig(kind="dynamic_degree", path=str(tmp_path)))
    assert "\n" not in str(error.value)
