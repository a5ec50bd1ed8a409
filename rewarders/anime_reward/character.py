"""Character consistency (Eq. 10): S_cc = 1/N sum_i Cos(BLIP(M_i), fea_c).

```
first frame ── GroundingDINO ──> box ── SAM 2 over [first frame, I_1 .. I_N] ──> masks ── cut out ── BLIP ──> f_0 .. f_N
stored character (gallery/NAME.png), else f_0 ────────────────────────────────────────────── BLIP ──> f
                                                                                score = mean over i >= 1 of cos(f_i, f)
```

A missing character is a result, not an error. If GroundingDINO finds none in the first frame, or SAM 2 loses it in
every frame, the clip scores 0 and is counted in `missed`. All candidates of a prompt share the first frame, so a
picture without a character makes them tie in this dimension. A frame in which the character is lost counts as 0.
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
from torch import nn
from torch.nn import functional

from common.errors import ConfigError
from common.images import decode_layer
from common.messages import Prompt
from rewarders.anime_reward.encoders import Vision, resolve_folder
from rewarders.anime_reward.heads import EMPTY, SEEN, FrameHead, mean_of, pack
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.tracking import Detector, Tracker, cut_out
from rewarders.anime_reward.video import FRAMES, Frames, with_reference

log = logging.getLogger(__name__)


class CharacterHead(FrameHead):
    """Cosine similarities in a space initialised as BLIP's own. Slot 0 holds the stored character."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__(width, slots)
        self.project = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.project.weight)

    def likeness(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the mean cosine similarity ``[n]``, -1..1; lost frames count as 0."""
        state, frames, _ = self.unpack(rows)
        figures = functional.normalize(self.project(frames), dim=2)
        cosine = (figures[:, 1:] * figures[:, :1]).sum(2) * (state[:, 1:] == SEEN)
        return mean_of(cosine, state[:, 1:] != EMPTY)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps rows ``[n, D]`` to scores ``[n]``, 0..100; negative similarity is clamped to 0."""
        return 100 * self.likeness(rows).clamp(0, 1)


class TrackedCharacter(EncoderReward):
    """Whether every frame shows the stored character.

    The option `gallery` is a folder of pictures NAME.png (or .jpg), with NAME as in `Prompt.character`; transparent
    pixels are masked out. `phrase` and `threshold` are GroundingDINO's.
    """

    dimension = "character"
    ROLES = ("detector", "tracker", "vision")
    TRAINED = ("vision",)
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES, "gallery": "", "phrase": "character.", "threshold": 0.5}
    PATHS = ("gallery",)

    def build(self) -> None:
        self.detector = Detector(self.folders["detector"], self.options["phrase"], self.device)
        self.tracker = Tracker(self.folders["tracker"], self.device)
        self.vision = Vision(self.folders["vision"], self.device)
        self.head = CharacterHead(self.vision.width, 1 + self.options["frames"])
        files = _gallery(self.options["gallery"], self.base)
        self.identity += _digest(files)
        self.pictures = {name: _picture(file) for name, file in files.items()}
        self.stored: dict[str, torch.Tensor] = {}
        self.missed: Counter[str] = Counter()

    def refresh(self) -> None:
        """Forgets the stored characters' embeddings."""
        self.stored = {}

    def locate(self, clip: np.ndarray, prompt: Prompt) -> np.ndarray:
        """Returns the character's bool masks ``[1 + n, H, W]`` in the first frame and the n sampled ones; ``[0, H, W]``
        if there is none in the first frame."""
        frames = self._frames(clip, prompt)
        box = self.detector(frames[0], self.options["threshold"])
        return np.zeros((0, *frames.shape[1:3]), bool) if box is None else self.tracker(frames, box)

    def clip_features(self, clip: Frames, prompt: Prompt, found: np.ndarray | None) -> torch.Tensor:
        assert found is not None  # see `locate`
        frames, detected = self._frames(clip, prompt), len(found) > 0
        lost = np.asarray(~found.any((1, 2))) if detected else np.ones(len(frames), bool)
        figures = torch.zeros(len(frames), self.vision.width, device=self.device)
        for i in np.flatnonzero(~lost):
            figures[i] = self.vision(cut_out(frames[i], found[i])[None])[0]
        stored = self._stored(prompt.character or "")
        if stored is not None:
            figures[0] = stored
        if not detected or lost[1:].all() or (lost[0] and stored is None):
            self._count_miss("lost in every frame" if detected else "no character in the first frame", prompt)
            lost[1:] = True
        return pack(figures, 1 + self.options["frames"], lost=torch.from_numpy(lost).to(self.device))

    def _frames(self, clip: Frames, prompt: Prompt) -> Any:
        return with_reference(clip, prompt, self.options["frames"])

    def _stored(self, name: str) -> torch.Tensor | None:
        """Returns the embedding of a character of the gallery."""
        if name in self.pictures and name not in self.stored:
            self.stored[name] = self.vision(self.pictures[name][None])[0]
        return self.stored.get(name)

    def _count_miss(self, why: str, prompt: Prompt) -> None:
        self.missed[why] += 1
        log.warning("character of prompt %s: %s; scored 0 (%d clips before)", prompt.id, why, self.missed.total() - 1)

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the cosine similarity, which has a gradient where the score is clamped at 0."""
        return functional.mse_loss(self.head.likeness(features), scores / 100)  # type: ignore[operator]


def _gallery(path: str, base: Path | None) -> dict[str, Path]:
    """Returns the pictures by character name. Raises `ConfigError` if the folder is missing or has none."""
    if not path:
        return {}
    folder = resolve_folder(path, base)
    files = sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]) if folder else []
    if not files:
        raise ConfigError(f"gallery {path!r}: not a folder with pictures NAME.png")
    return {file.stem: file for file in files}


def _digest(pictures: dict[str, Path]) -> str:
    """Changes if a stored picture changes, because its scores do."""
    hasher = blake2b(digest_size=16)
    for name, file in pictures.items():
        hasher.update(f"{name}|".encode() + blake2b(file.read_bytes(), digest_size=16).digest())
    return f"|gallery={hasher.hexdigest()}"


def _picture(file: Path) -> np.ndarray:
    """Loads a stored character, masked and padded as the clip's figures are."""
    try:
        picture = np.asarray(decode_layer(file.read_bytes()).convert("RGBA"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be decoded as a picture: {error}") from None
    opaque = picture[..., 3] > 127
    return cut_out(picture[..., :3], opaque if opaque.any() else np.ones_like(opaque))
