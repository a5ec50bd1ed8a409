"""Base class of the dimensions: named models, options, a head, and scores that depend on nothing else.

A dimension has `transformers` encoders and a small head that is trained on human ratings (`douga reward train`). By
default the encoders stay frozen: features are computed once per clip, and a trained reward is a head of a few MB. With
``--encoders`` they are fine-tuned with the head, as in the paper; `rewarders/training/encoders.py` has what differs.

Deviations from the paper:
1. All dimensions are trained on mean ratings, also character, whose BLIP the paper trains to recognise characters.
2. Scores are bounded, 0..100. The published code divides the logits of smoothness and appeal by 100 without clamping.
3. Image and text: the published heads are linear in the two concatenated embeddings, so they cannot compare them. Ours
   use a distance (image; 100 if nothing changes) and a product (text).
4. Appeal follows the paper (SigLIP, aesthetic head), with every frame as a key frame (`appeal.py`); the published code
   uses a second Idefics2 instead. The clip's score is the mean of its frames'.
5. Captions are truncated at the text encoder's limit; the published code truncates them at 30 tokens.
6. Motion: four of the six levels of amplitude are interpolated, and the score is the expected level (`motion.py`). Two
   of the six classes of the published code are not amplitudes (several shots; no person).
7. Character: one character, GroundingDINO's most confident (published: up to five); cosine similarity with the stored
   character (published: a softmax over a closed gallery, meaningless for characters outside of it); SAM 2 alone tracks
   (published: SAMURAI); frames without the character count as 0, since a clip could otherwise drop it and score well.
8. Smoothness: the head sees how embeddings change, not the embeddings, which it would memorise.

| symbol | here | meaning |
|---|---|---|
| I_1 .. I_N | `video.sample_frames(clip)` | the clip's frames: all up to 81 (published code: 24, ActionCLIP: 8) |
| I_p | `reference_frame(clip, prompt)` | the image to animate |
| T | `prompt.text` | the caption |
| E_v, E_t | `encoders.Vision`, `encoders.Text` | encoders |
| Reg, Aes | `reward.head` | the trained part: regression, aesthetics |
| M_CLIP, T_m | `PromptedMotion.clip`, `motion.PROMPTS` | CLIP, and the motion prompts |
| KeyFrm | `video.sample_frames(clip)` | the key frames |
| M_i, fea_c | `tracking.Tracker`, `TrackedCharacter.stored` | the character in frame i; the stored character |
| R | `reward.preset = "equal"` | the mean of the six dimensions |

    (5) S_smooth = Reg(E_v(I_1, ..., I_N))              (6) S_motion = Cos(M_CLIP(V), M_CLIP(T_m))
    (7) S_appeal = Aes(SigLIP(I_0, ..., I_K)), I_i in KeyFrm(V)
    (8) S_tvc = Reg(E_v(V), E_t(T))                     (9) S_ivc = Reg(E_v(V), E_v(I_p))
    (10) S_cc = 1/N sum_i Cos(BLIP(M_i), fea_c)         (11) R = 1/|D| sum_d r_d
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from common.errors import ConfigError
from common.messages import Prompt
from common.models.fingerprint import fingerprint
from common.weights.tensors import state_digest
from rewarders.anime_reward.encoders import Encoder, locate_model, resolve_folder
from rewarders.anime_reward.heads import opinion_loss
from rewarders.anime_reward.video import SAMPLING, Frames
from rewarders.gradient.pixels import to_bytes

DIGITS = 3  # decimals of a score


class EncoderReward(ABC):
    """One dimension of AnimeReward over pretrained models; a `rewarders.anime_reward.trainable.TrainableReward`.

    Subclasses declare their models (`ROLES`) and options (`OPTIONS`, with defaults), load them in `build`, and compute
    one clip's feature row in `clip_features`. Clips go through the models one by one: floating-point sums must not
    depend on the rest of the batch, and the frames of one clip fill a GPU.
    """

    dimension: str
    ROLES: ClassVar[tuple[str, ...]]
    TRAINED: ClassVar[
        tuple[str, ...]
    ]  # the roles that can be fine-tuned; each is an `Encoder` in the attribute of its name
    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    PATHS: ClassVar[tuple[str, ...]] = ()  # options that are folders; their content counts, not their path
    METHOD: ClassVar[Mapping[str, str]] = {"frames": SAMPLING}  # what else decides the scores; recorded with the head
    head: nn.Module
    identity: str  # identifies the models by their files

    def __init__(
        self,
        models: Mapping[str, str],
        options: Mapping[str, Any] | None = None,
        device: str = "cpu",
        base: Path | None = None,
        tuned: Collection[str] = (),
    ) -> None:
        """`models` maps each role to a folder, absolute or relative to `base` or the working directory, or to a hub id.

        The files of the roles `tuned`, which were fine-tuned for this head, count in the digest byte for byte.
        Raises `ConfigError` for a missing or unknown role or option, and for a model that cannot be loaded.
        """
        kind = type(self).__name__
        if set(models) != set(self.ROLES):
            raise ConfigError(
                f"{kind}: needs the models {', '.join(self.ROLES)}, got {', '.join(sorted(models)) or 'none'}"
            )
        chosen = dict(options or {})
        invalid = [name for name, value in chosen.items() if not _is_valid(value, self.OPTIONS.get(name))]
        if invalid:
            raise ConfigError(
                f"{kind}: option {invalid[0]} = {chosen[invalid[0]]!r}; allowed: {_allowed(self.OPTIONS)}"
            )
        self.models, self.options, self.device = dict(models), {**self.OPTIONS, **chosen}, device
        self.base, self.tuned = base, tuple(role for role in self.TRAINED if role in tuned)
        self.folders = {role: locate_model(role, models[role], base) for role in self.ROLES}
        self.identity = "|".join(
            f"{role}={fingerprint(folder, whole=role in self.tuned)}" for role, folder in self.folders.items()
        )
        with torch.no_grad():
            self.build()
        self.head.to(device).eval()

    @classmethod
    def create(
        cls, models: Mapping[str, str], device: str = "cpu", seed: int = 0, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Creates a new head over `models`, initialised from `seed`. Raises as the constructor does."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(models, options, device)

    @abstractmethod
    def build(self) -> None:
        """Loads the encoders of `self.folders` and creates `self.head`."""

    def locate(self, clip: np.ndarray, prompt: Prompt) -> np.ndarray | None:
        """Returns what models that are never trained find in one clip, to be kept while the others train; None if there
        are none."""
        return None

    @abstractmethod
    def clip_features(self, clip: Frames, prompt: Prompt, found: np.ndarray | None) -> torch.Tensor:
        """Returns one clip's feature row, float32 ``[D]``; `found` is from `locate`."""

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The models that can be fine-tuned, by role."""
        return {role: getattr(self, role) for role in self.TRAINED}

    def refresh(self) -> None:  # noqa: B027 - most classes derive nothing
        """Updates what is derived from the encoders' weights; to be called whenever they have changed."""

    @property
    def digest(self) -> str:
        """blake2b-128 hex over class, options, method, the models' fingerprints and the head's weights."""
        hasher = blake2b(digest_size=16)
        options = {name: value for name, value in self.options.items() if name not in self.PATHS}
        parts = (json.dumps(part, sort_keys=True) for part in (options, self.METHOD))
        hasher.update("|".join((type(self).__name__, *parts, self.identity, "")).encode())
        hasher.update(state_digest(self.head.state_dict()).encode())
        return hasher.hexdigest()

    def description(self, folder: Path) -> dict[str, object]:
        """Returns the JSON description to save in `folder`. Paths inside `folder` are made relative to it."""
        return {
            "dimension": self.dimension,
            "class": type(self).__name__,
            "models": {role: self._portable_path(path, folder) for role, path in self.models.items()},
            "options": {
                name: self._portable_path(value, folder) if name in self.PATHS else value
                for name, value in self.options.items()
            },
            "method": dict(self.METHOD),
            **({"encoders": {role: self._size(role) for role in self.tuned}} if self.tuned else {}),
            "digest": self.digest,
        }

    def _size(self, role: str) -> dict[str, int]:
        """The size of a fine-tuned encoder's weights."""
        files = self.folders[role].glob("*.safetensors")
        parameters = self.encoders[role].tower.parameters()
        return {
            "parameters": sum(one.numel() for one in parameters),
            "bytes": sum(file.stat().st_size for file in files),
        }

    def _portable_path(self, value: str, root: Path) -> str:
        folder = resolve_folder(value, self.base) if value else None
        if folder is None:
            return value  # a hub id, or empty
        inside = folder.is_relative_to(root.resolve())
        return str(folder.relative_to(root.resolve()) if inside else folder)

    def features(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> torch.Tensor:
        """Returns float32 ``[n, D]``; a row depends only on its clip (uint8 ``[F, H, W, 3]``) and prompt.

        Raises `ValueError` for clips of another shape and for unequal numbers of clips and prompts.
        """
        self.check(clips, prompts)
        with torch.no_grad():
            rows = [
                self.clip_features(clip, prompt, self.locate(clip, prompt))
                for clip, prompt in zip(clips, prompts, strict=True)
            ]
        return torch.stack(rows) if rows else torch.empty(0, 0)

    def check(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> None:
        """Raises `ValueError` as `features` does."""
        if len(clips) != len(prompts):
            raise ValueError(f"{self.dimension}: {len(clips)} clips but {len(prompts)} prompts")
        for clip in clips:
            if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
                raise ValueError(f"{self.dimension}: a clip is {clip.dtype} {list(clip.shape)}, not uint8 [F, H, W, 3]")

    @torch.no_grad()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """Returns scores 0 (worst) .. 100, rounded to `DIGITS` decimals; NaN if the weights are not finite.

        Raises `ValueError` as `features` does.
        """
        self.head.eval()
        return [round(self.head(row[None]).item(), DIGITS) for row in self.features(clips, prompts)]

    def frame_scores(self, clips: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """See `DifferentiableReward.frame_scores`. A clip's score counts for each of its frames: they are judged
        together. What `locate` finds has no gradient."""
        self.head.eval()
        rows = [
            self.clip_features(clip, prompt, self._located(to_bytes(clip), prompt))
            for clip, prompt in zip(clips, prompts, strict=True)
        ]
        return self.head(torch.stack(rows))[:, None].expand(-1, clips.shape[1])

    @torch.no_grad()
    def _located(self, clip: np.ndarray, prompt: Prompt) -> np.ndarray | None:
        return self.locate(clip, prompt)

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See `TrainableReward.loss`."""
        return opinion_loss(self.head(features), scores)


def _is_valid(value: object, default: object) -> bool:
    """Whether an option has its default's type. A float option accepts an int; a bool option only a bool."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is type(default) and value > 0  # type: ignore[operator]
    return default is not None and type(value) is type(default)


def _allowed(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} (such as {value!r})" for name, value in options.items()) or "no options"
