"""A sampler for offline pairs: training candidates are encoded from existing clips instead of being denoised.

```
OfflinePairs(ordinal) ──> chosen, rejected ──> frames at the model's rate and size ──> VAE ──> candidates 0 and 1
                           captions, first frames ─────────────────────> T5, VAE ──> conditioning of each
```

For exchange and learner these are ordinary groups. Held-out prompts are sampled as usual. The policy version of such a
group only says when it was encoded; no policy of the run made its clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from actors.prompts.source import PromptSource
from actors.sampler import Sampler
from common.config import ModelConfig, RunConfig
from common.data.offline_pairs import OfflinePairs, PairClip
from common.data.player import frames_at, timeline
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.images import encode_png, first_frame_png, fit
from common.messages import Candidate, Conditioning, Prompt, Purpose, SerializedTensor, candidate_id
from common.models.cogvideox import ModelFolder
from common.weights.tensors import from_array, to_array

CACHED_CLIPS = 256  # cached encoded clips; each clip occurs in many pairs


@dataclass(frozen=True)
class OfflinePrompts:
    """A `PromptSource` with the offline pairs' training prompts and the held-out prompts of `others`."""

    pairs: OfflinePairs
    others: PromptSource
    model: ModelConfig

    def __call__(self, ordinal: int) -> Prompt:
        """The chosen clip's prompt. It stands for the group in reports and on the live page."""
        pair = self.pairs(ordinal)
        image = first_frame_of(pair.chosen, self.model)
        return Prompt(ordinal, f"pair-{ordinal}", pair.chosen.text, image, Purpose.TRAIN, category=pair.category)

    @property
    def training_prompts(self) -> int:
        """See `PromptSource.training_prompts`."""
        return len(self.pairs.pairs)

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """See `PromptSource.heldout`."""
        return self.others.heldout(count, seed)


class OfflineSampler(Sampler):
    """A `Sampler` that takes training candidates from `pairs`."""

    def __init__(self, model: ModelFolder, config: RunConfig, pairs: OfflinePairs, worker: str) -> None:
        super().__init__(model, config, worker)
        self._pairs = pairs
        self._latents_of = lru_cache(maxsize=CACHED_CLIPS)(self._encode_clip)

    def encode(self, prompt: Prompt) -> Conditioning:
        """See `Sampler.encode`. A training prompt has one condition per candidate: [N, L, D] and [N, 1, C, h, w]."""
        if prompt.purpose is not Purpose.TRAIN:
            return super().encode(prompt)
        clips = self._pairs(prompt.ordinal).clips
        encoded = [super(OfflineSampler, self).encode(self._prompt(clip)) for clip in clips]
        images = [one.image_latent for one in encoded if one.image_latent is not None]
        return Conditioning(_stacked([one.prompt_embeds for one in encoded]), _stacked(images) if images else None)

    def _prompt(self, clip: PairClip) -> Prompt:
        return Prompt(0, clip.clip.stem, clip.text, first_frame_of(clip, self._config.model))

    def parts(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> Iterator[list[Candidate]]:
        """See `SamplingLoop.parts`."""
        if prompt.purpose is not Purpose.TRAIN:
            yield from super().parts(prompt, conditioning, seeds, indices)
            return
        clips = self._pairs(prompt.ordinal).clips
        yield [self._offline_candidate(prompt, index, seeds[index], clips[index].clip) for index in sorted(indices)]

    def _offline_candidate(self, prompt: Prompt, index: int, seed: int, clip: Path) -> Candidate:
        size = self._config.model
        latents, data = self._latents_of(clip)
        name = candidate_id(prompt.ordinal, index, self.version)
        numbers = (prompt.ordinal, index, seed, self.version)
        return Candidate(name, *numbers, latents, data, size.fps, size.height, size.width)

    def _encode_clip(self, clip: Path) -> tuple[SerializedTensor, bytes]:
        """x0 latents [F, C, h, w] of a clip, and the encoded frames as mp4. Raises `ConfigError` if it is broken."""
        size = self._config.model
        pixels = frames_of(clip, size)
        latents = self.latents_of(pixels)
        if tuple(latents.shape) != self._shape:
            raise ConfigError(f"{clip}: encoded to {list(latents.shape)}; the model takes {list(self._shape)}")
        return to_array(latents), encode_mp4(pixels, size.fps)


def _stacked(arrays: Sequence[SerializedTensor]) -> SerializedTensor:
    return to_array(torch.stack([from_array(array) for array in arrays]))


def frames_of(clip: Path, size: ModelConfig, count: int | None = None) -> np.ndarray:
    """The first `count` frames of a clip, uint8 [count, H, W, 3], at the model's rate and size.

    The default `count` is the model's number of frames. Each is the one on screen at its time. Frames are scaled to
    cover the model's size and center-cropped, like first frames.

    Raises:
        ConfigError: the clip is broken or too short.
    """
    try:
        data = clip.read_bytes()
        frames = frames_at(data, timeline(data).places(size.frames, size.fps)[:count])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{clip}: {error}") from None
    return np.stack([fit(Image.fromarray(frame), size.height, size.width) for frame in frames])


def first_frame_of(clip: PairClip, size: ModelConfig) -> bytes:
    """A clip's first-frame image at the model's size, or, without one, the clip's own first frame; PNG."""
    if clip.first_frame is None:
        return encode_png(frames_of(clip.clip, size, 1)[0])
    try:
        return first_frame_png(clip.first_frame.read_bytes(), size.height, size.width)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{clip.first_frame}: cannot be read: {error}") from None
