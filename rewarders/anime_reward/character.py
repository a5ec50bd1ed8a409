"""Character consistency: S_char = mean over frames of Cos(BLIP(mask_i I_i), BLIP(character)).

```
first frame ── GroundingDINO ──> box ── SAM 2 over [first frame, I_1 .. I_N] ──> masks ── cut out ── BLIP ──> f_0 .. f_N
the stored character (gallery/NAME.png), or else f_0 ──────────────────────────────────────── BLIP ──> f
                                                                                score = mean over i >= 1 of cos(f_i, f)
```

No character found is an outcome, not an error: where GroundingDINO sees none in the first frame, or SAM 2 loses it in
every frame, the clip scores 0 and is counted in `missed`. All candidates of one prompt share the first frame, so a
picture without a character ties them in this dimension. A frame in which the character is lost counts as 0.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from common.errors import ConfigError
from common.messages import Prompt
from rewarders.anime_reward.encoders import Vision, here
from rewarders.anime_reward.heads import EMPTY, SEEN, FrameHead, mean_of, pack
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.tracking import Detector, Tracker, cut_out
from rewarders.anime_reward.video import FRAMES, sample
from rewarders.toon_heads.heads import first_frame

log = logging.getLogger(__name__)


class CharacterHead(FrameHead):
    """Cosines in a space that starts as BLIP's own; slot 0 is the stored character."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__(width, slots)
        self.project = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.project.weight)

    def likeness(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean cosine ``[n]``, -1..1; lost frames are 0."""
        state, frames, _ = self.unpack(rows)
        figures = functional.normalize(self.project(frames), dim=2)
        cosine = (figures[:, 1:] * figures[:, :1]).sum(2) * (state[:, 1:] == SEEN)
        return mean_of(cosine, state[:, 1:] != EMPTY)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, D]`` -> scores ``[n]``, 0..100; unlike is 0, not less."""
        return 100 * self.likeness(rows).clamp(0, 1)


class TrackedCharacter(EncoderReward):
    """Frames and the stored character to a value: is it the same figure all through?

    The option `gallery` is a folder of pictures NAME.png (or .jpg), NAME as in `Prompt.character`; what is transparent
    in them is left out. The phrase and the threshold are GroundingDINO's.
    """

    dimension = "character"
    ROLES = ("detector", "tracker", "vision")
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES, "gallery": "", "phrase": "character.", "threshold": 0.5}
    PATHS = ("gallery",)

    def build(self) -> None:
        self.detector = Detector(self.folders["detector"], self.options["phrase"], self.device)
        self.tracker = Tracker(self.folders["tracker"], self.device)
        self.vision = Vision(self.folders["vision"], self.device)
        self.head = CharacterHead(self.vision.width, 1 + self.options["frames"])
        pictures = _gallery(self.options["gallery"], self.beside)
        self.identity += _digest(pictures)
        self.stored = {name: self.vision(_picture(file)[None])[0] for name, file in pictures.items()}
        self.missed: Counter[str] = Counter()

    def look(self, clip: np.ndarray, prompt: Prompt) -> torch.Tensor:
        slots = self.options["frames"]
        frames = np.concatenate([first_frame(clip, prompt)[None], sample(clip, slots)])
        box = self.detector(frames[0], self.options["threshold"])
        masks = np.zeros(frames.shape[:3], bool) if box is None else self.tracker(frames, box)
        lost = np.asarray(~masks.any((1, 2)))
        figures = torch.zeros(len(frames), self.vision.width, device=self.device)
        for i in np.flatnonzero(~lost):
            figures[i] = self.vision(cut_out(frames[i], masks[i])[None])[0]
        known = self.stored.get(prompt.character or "")
        if known is not None:
            figures[0] = known
        if box is None or lost[1:].all() or (lost[0] and known is None):
            self._miss("no character in the first frame" if box is None else "lost at once", prompt)
            lost[1:] = True
        return pack(figures, 1 + slots, lost=torch.from_numpy(lost).to(self.device))

    def _miss(self, why: str, prompt: Prompt) -> None:
        self.missed[why] += 1
        log.warning("character of prompt %s: %s; scored 0, as %d before", prompt.id, why, self.missed.total() - 1)

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the cosine, which goes on where the score is cut off at 0."""
        return functional.mse_loss(self.head.likeness(features), scores / 100)  # type: ignore[operator]


def _gallery(where: str, beside: Path | None) -> dict[str, Path]:
    """Pictures by the name of their character. `ConfigError` for a folder that is not there or has none."""
    if not where:
        return {}
    folder = here(where, beside)
    files = sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]) if folder else []
    if not files:
        raise ConfigError(f"gallery {where!r}: no folder with pictures NAME.png")
    return {file.stem: file for file in files}


def _digest(pictures: dict[str, Path]) -> str:
    """Another picture of a character is another score."""
    whole = blake2b(digest_size=16)
    for name, file in pictures.items():
        whole.update(f"{name}|".encode() + blake2b(file.read_bytes(), digest_size=16).digest())
    return f"|gallery={whole.hexdigest()}"


def _picture(file: Path) -> np.ndarray:
    """A stored character, cut out and padded as the clip's figures are."""
    try:
        picture = np.asarray(Image.open(file).convert("RGBA"))
    except OSError as error:
        raise ConfigError(f"{file}: no readable picture: {error}") from None
    opaque = picture[..., 3] > 127
    return cut_out(picture[..., :3], opaque if opaque.any() else np.ones_like(opaque))
