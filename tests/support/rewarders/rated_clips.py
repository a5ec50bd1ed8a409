"""Small rated clips on disk, and a reward over frozen features that learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.data.ratings import RatedClip, read_ratings, to_rating, write_ratings
from common.data.video import encode_mp4
from common.images import encode_png
from common.messages import Prompt
from rewarders.training.dataset import RatedDataset


def grey_clips(folder: Path, prompts: int, candidates: int = 3, real: bool = False) -> Path:
    """Clips of one grey level each. The rating of `light` is the level, that of `dark` the opposite.

    Every prompt has its own first frame.
    """
    rng = np.random.default_rng(prompts)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for p in range(prompts):
        frame = f"{p}.png"
        (folder / frame).write_bytes(encode_png(picture(p)))
        for k in range(candidates):
            level = int(rng.integers(256))
            clip = f"clips/{p}-{k}.mp4"
            (folder / clip).write_bytes(encode_mp4(np.full((3, 16, 16, 3), level, np.uint8), 8))
            score = level / 2.55
            given = {"light": round(to_rating(score), 3), "dark": round(to_rating(100 - score), 3)}
            source = "real" if real and k == 0 else "toy"
            rows.append(
                RatedClip(clip=clip, first_frame=frame, prompt=f"grey {p}", source=source, ratings={"eye": given})
            )
    write_ratings(folder / "ratings.jsonl", rows)
    return folder / "ratings.jsonl"


def picture(number: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A picture of 4 x 4 random colours, like no other: uint8 [height, width, 3]."""
    cells = np.random.default_rng([1, number]).integers(256, size=(4, 4, 3), dtype=np.uint8)
    return cells.repeat(height // 4, axis=0).repeat(width // 4, axis=1)


def blue_clips(folder: Path, prompts: int, dimension: str, candidates: int = 2, size: int = 32) -> Path:
    """Clips of one colour each. The rating of `dimension` is how blue they are; red and green are random."""
    rng = np.random.default_rng(prompts)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for p in range(prompts):
        frame = f"{p}.png"
        (folder / frame).write_bytes(encode_png(picture(p, size, size)))
        for k in range(candidates):
            colour = rng.integers(40, 216, 3)
            clip = f"clips/{p}-{k}.mp4"
            (folder / clip).write_bytes(encode_mp4(np.full((2, size, size, 3), colour, np.uint8), 8))
            given = {dimension: round(to_rating((int(colour[2]) - 40) / 1.76), 3)}
            rows.append(
                RatedClip(clip=clip, first_frame=frame, prompt=f"a robot {p}", source="toy", ratings={"eye": given})
            )
    write_ratings(folder / "ratings.jsonl", rows)
    return folder / "ratings.jsonl"


def rated(file: Path) -> RatedDataset:
    return RatedDataset(read_ratings(file))


class Light:
    """A `TrainableReward`: features are the mean level and a constant, the head is linear."""

    dimension = "light"

    def __init__(self, gain: float = 1.0, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head: nn.Module = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid(), nn.Flatten(0))
        self.gain, self.looked = gain, 0

    @classmethod
    def create(cls, models: Mapping[str, str], device: str = "cpu", seed: int = 0) -> Light:
        return cls(float(models.get("gain", 1)), seed)

    @property
    def digest(self) -> str:
        return "light"

    def features(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> torch.Tensor:
        self.looked += len(clips)
        if any(clip.shape[1] != 16 for clip in clips):
            raise ValueError("a clip is not 16 pixels high")
        return torch.tensor([[self.gain * float(clip.mean()) / 255, 1.0] for clip in clips])

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy(self.head(features), scores / 100)

    @torch.no_grad()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        return (100 * self.head(self.features(clips, prompts))).tolist()
