"""A dimension at full size: named models, options, a head, and scores that depend on nothing else."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
from rewarders.anime_reward.encoders import find, here
from rewarders.anime_reward.heads import opinion_loss

DIGITS = 3  # decimals of a score


class EncoderReward(ABC):
    """One dimension of AnimeReward over pretrained models, as a `rewarders.anime_reward.trainable.TrainableReward`.

    Subclasses say which models (`ROLES`) and options (`OPTIONS`, with defaults) they take, load them in `build`, and
    make one clip's row of features in `look`. Clips go through the models one by one: their floating-point sums must
    not depend on who shares the batch, and one clip's frames fill a GPU.
    """

    dimension: str
    ROLES: ClassVar[tuple[str, ...]]
    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    PATHS: ClassVar[tuple[str, ...]] = ()  # options that are folders: what counts is what lies there
    head: nn.Module
    identity: str  # what is frozen, told by its files

    def __init__(
        self,
        models: Mapping[str, str],
        options: Mapping[str, Any] | None = None,
        device: str = "cpu",
        beside: Path | None = None,
    ) -> None:
        """`models` by role, each a folder (relative ones also `beside` the file that names it) or a hub id.

        `ConfigError` for a role or an option that lacks or is unknown, and for a model that cannot be loaded.
        """
        kind = type(self).__name__
        if set(models) != set(self.ROLES):
            raise ConfigError(
                f"{kind}: its models are {', '.join(self.ROLES)}, not {', '.join(sorted(models)) or 'none'}"
            )
        given = dict(options or {})
        wrong = [name for name, value in given.items() if not _fits(value, self.OPTIONS.get(name))]
        if wrong:
            raise ConfigError(f"{kind}: option {wrong[0]} = {given[wrong[0]]!r}; it takes {_allowed(self.OPTIONS)}")
        self.models, self.options, self.device = dict(models), {**self.OPTIONS, **given}, device
        self.beside = beside
        self.folders = {role: find(role, models[role], beside) for role in self.ROLES}
        self.identity = "|".join(f"{role}={fingerprint(folder)}" for role, folder in self.folders.items())
        self.build()
        self.head.to(device).eval()

    @classmethod
    def create(
        cls, models: Mapping[str, str], device: str = "cpu", seed: int = 0, options: Mapping[str, Any] | None = None
    ) -> Self:
        """A fresh head, drawn from `seed`, over `models`. Errors as for the class itself."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(models, options, device)

    @abstractmethod
    def build(self) -> None:
        """Load the encoders of `self.folders` and make `self.head`."""

    @abstractmethod
    def look(self, clip: np.ndarray, prompt: Prompt) -> torch.Tensor:
        """One clip's row of features, float32 ``[D]``."""

    @property
    def digest(self) -> str:
        """blake2b-128, hex, over class, options, the models' fingerprints and the head's weights."""
        whole = blake2b(digest_size=16)
        options = {name: value for name, value in self.options.items() if name not in self.PATHS}
        whole.update(f"{type(self).__name__}|{json.dumps(options, sort_keys=True)}|{self.identity}|".encode())
        whole.update(state_digest(self.head.state_dict()).encode())
        return whole.hexdigest()

    def description(self, into: Path) -> dict[str, object]:
        """What a file in the folder `into` says, so that it can be made again. Folders inside are named from there."""
        return {
            "dimension": self.dimension,
            "class": type(self).__name__,
            "models": {role: self._named(where, into) for role, where in self.models.items()},
            "options": {
                name: self._named(value, into) if name in self.PATHS else value for name, value in self.options.items()
            },
            "digest": self.digest,
        }

    def _named(self, value: str, into: Path) -> str:
        folder = here(value, self.beside) if value else None
        if folder is None:
            return value  # a hub id, or nothing
        inside = folder.is_relative_to(into.resolve())
        return str(folder.relative_to(into.resolve()) if inside else folder)

    def features(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> torch.Tensor:
        """float32 ``[n, D]``; a row depends on its clip (uint8 ``[F, H, W, 3]``) and prompt alone.

        `ValueError` for clips of another shape, or for another number of prompts than clips.
        """
        if len(clips) != len(prompts):
            raise ValueError(f"{self.dimension}: {len(clips)} clips but {len(prompts)} prompts")
        for clip in clips:
            if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
                raise ValueError(f"{self.dimension}: a clip is {clip.dtype} {list(clip.shape)}, not uint8 [F, H, W, 3]")
        with torch.no_grad():
            rows = [self.look(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        return torch.stack(rows) if rows else torch.empty(0, 0)

    @torch.no_grad()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """Scores 0 (worst) .. 100, rounded to `DIGITS` decimals; NaN when the weights are not finite.

        `ValueError` as for `features`.
        """
        self.head.eval()
        return [round(self.head(row[None]).item(), DIGITS) for row in self.features(clips, prompts)]

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See `TrainableReward.loss`."""
        return opinion_loss(self.head(features), scores)


def _fits(value: object, default: object) -> bool:
    """Whether an option's value is of the default's kind; an int will do for a float, a bool for nothing but a bool."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is type(default) and value > 0  # type: ignore[operator]
    return default is not None and type(value) is type(default)


def _allowed(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} (such as {value!r})" for name, value in options.items()) or "no options"
