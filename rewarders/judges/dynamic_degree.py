"""VBench's dynamic degree: whether a clip moves, by the optical flow of RAFT (`rewarders/optical_flow/raft.py`).

A clip with rate r is read at about 8 frames per second: every n-th frame, n = max(1, round(r / 8)). Of the F frames
that remain, H x W pixels each:

```
L_t = mean length of the flow from frame t to t+1, of the 5 % of pixels with the longest, in pixels
dynamic_degree = 1 if L_t > 6 min(H, W) / 256 for at least round(4 F / 16) of the F - 1 pairs, else 0
```

Raw values 0 and 1 are mapped to 0 and 100, so the mean over clips is the percentage that papers report.

Source: Huang et al. 2024 (VBench) and its public code, with 20 iterations of RAFT and raft-things.pth. Sides that 8
does not divide are padded with their edge, equally on both ends, and the padding counts as pixels, as there. round is
Python's, which takes 2.5 to 2. Deviations: at least one pair has to be fast, where VBench's rule for 2 frames asks for
none; and frames below `SMALLEST` are refused, where the public code divides by zero.

A frozen clip does not move. A flickering one may: RAFT takes changes of brightness for motion. More motion is not
better by itself, so this stands beside measures of quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from common.config import JudgeConfig
from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.messages import Prompt
from common.weights.tensors import state_digest
from rewarders.interface import Clip, JudgeResult
from rewarders.judges.adapter import InputSpec
from rewarders.judges.flow_metrics import fastest_mean
from rewarders.optical_flow.raft import SCALE, Raft
from rewarders.optical_flow.raft import SMALLEST as SMALLEST_PADDED

RAFT_FILE = "raft.safetensors"
ITERATIONS = 20
RATE = 8.0  # frames per second, about
THRESHOLD = 6.0 / 256  # of the shorter side
SMALLEST = SMALLEST_PADDED - SCALE + 1  # pixels, each side: padding makes it large enough


class DynamicDegree:
    """A `rewarders.interface.Judge` with one output, 0 or 1."""

    outputs = ("dynamic_degree",)
    needs = InputSpec(low=0.0, high=1.0)
    version = 1  # increase it with every change that alters a value

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` if the folder ``path`` has no `RAFT_FILE` with the weights of RAFT."""
        self.model = load_raft(judge.path).to(device)
        self.digest = f"{self.outputs[0]} {self.version} {state_digest(self.model.state_dict())}"
        self._device = device

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`. Clips are judged one by one."""
        return [self._result(clip) for clip in clips]

    def _result(self, clip: Clip) -> JudgeResult:
        frames = clip.frames[:: max(1, round(clip.fps / RATE))]
        height, width = frames.shape[1:3]
        if len(frames) < 2:
            return f"a clip of {len(clip.frames)} frames at {clip.fps:g} per second; 2 are needed at about {RATE:g}"
        if min(height, width) < SMALLEST:
            return f"a clip of {height} x {width} pixels; each side must have at least {SMALLEST}"
        return {self.outputs[0]: float(moves(self.speeds(frames), len(frames), (height, width)))}

    @torch.inference_mode()
    def speeds(self, frames: np.ndarray) -> list[float]:
        """L_t in pixels of uint8 frames ``[F, H, W, 3]``, F - 1 values."""
        shown = (padded(frame).to(self._device) for frame in frames)
        flows = (self.model(before, after, ITERATIONS) for before, after in pairwise(shown))
        return [fastest_mean(flow[0].permute(1, 2, 0).cpu().numpy()) for flow in flows]


def moves(speeds: Sequence[float], frames: int, size: tuple[int, int]) -> bool:
    """Whether a clip of `frames` frames of height and width `size` moves, given L_t of its pairs in pixels."""
    fast = sum(speed > THRESHOLD * min(size) for speed in speeds)
    return fast >= max(1, round(4 * frames / 16))


def padded(frame: np.ndarray) -> torch.Tensor:
    """RAFT's input ``[1, 3, h, w]``, values -1..1, of a uint8 frame ``[H, W, 3]``; `SCALE` divides h and w."""
    pixels = torch.tensor(frame).permute(2, 0, 1)[None].float() / 127.5 - 1
    down, across = (-length % SCALE for length in frame.shape[:2])
    edges = (across // 2, across - across // 2, down // 2, down - down // 2)
    return torch.nn.functional.pad(pixels, edges, mode="replicate")


def load_raft(path: str) -> Raft:
    """RAFT, frozen, with the weights in the folder `path`. Raises `ConfigError` if there are none, or others."""
    file = Path(path) / RAFT_FILE
    if not path or not file.is_file():
        raise ConfigError(f"path = {path!r}: must be a folder with {RAFT_FILE} (docs/published-rewards.md)")
    model = Raft()
    try:
        model.load_state_dict(load_file(file))
    except Exception as error:
        reraise_oom(error)
        raise ConfigError(f"{file}: cannot be read as the weights of RAFT: {one_line(error)}") from None
    return model.eval().requires_grad_(False)
