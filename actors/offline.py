"""A sampler whose training candidates were made before the run: it encodes them instead of denoising.

```
RecordedPairs(ordinal) ──> winner, loser ──> frames at the model's rate and size ──> VAE ──> candidates 0 and 1
                           captions, first frames ──────────────────> T5, VAE ──> conditioning of both
```

Exchange and learner see groups like all others. Held-out prompts are sampled as ever. What a group says of its policy
version is when it was encoded: no policy of the run made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from actors.prompts.source import PromptSource, fitted
from actors.sampler import Sampler
from common.config import ModelConfig, RunConfig
from common.data.offline_pairs import PairClip, RecordedPairs, frame_places
from common.data.video import clip_length, decode_frames, encode_mp4
from common.errors import ConfigError
from common.messages import Candidate, Conditioning, Prompt, Purpose, SerializedTensor, candidate_id
from common.models.cogvideox import ModelFolder
from common.toon.prompts import encode_png
from common.weights.tensors import from_array, to_array

CACHED_CLIPS = 256  # encoded clips kept: few clips make many pairs


@dataclass(frozen=True)
class RecordedPrompts:
    """A `PromptSource` whose training prompts are those of recorded pairs; held-out ones are `others`'."""

    recorded: RecordedPairs
    others: PromptSource
    model: ModelConfig

    def __call__(self, ordinal: int) -> Prompt:
        """The winner's prompt: the group's, for whoever looks at it."""
        pair = self.recorded(ordinal)
        image = first_frame_of(pair.winner, self.model)
        return Prompt(ordinal, f"pair-{ordinal}", pair.winner.text, image, Purpose.TRAIN, category=pair.category)

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """See `PromptSource.heldout`."""
        return self.others.heldout(count, seed)


class RecordedSampler(Sampler):
    """A `Sampler` that takes training candidates from `recorded`."""

    def __init__(self, model: ModelFolder, config: RunConfig, recorded: RecordedPairs, worker: str) -> None:
        super().__init__(model, config, worker)
        self._recorded = recorded
        self._latents_of = lru_cache(maxsize=CACHED_CLIPS)(self._encode_clip)

    def encode(self, prompt: Prompt) -> Conditioning:
        """Of a training prompt both ends' conditions, the winner's first: [2, L, D] and [2, 1, C, h, w]."""
        if prompt.purpose is not Purpose.TRAIN:
            return super().encode(prompt)
        ends = self._recorded(prompt.ordinal).clips
        made = [super(RecordedSampler, self).encode(self._prompt(end)) for end in ends]
        images = [one.image_latent for one in made if one.image_latent is not None]
        return Conditioning(_stacked([one.prompt_embeds for one in made]), _stacked(images) if images else None)

    def _prompt(self, end: PairClip) -> Prompt:
        return Prompt(0, end.clip.stem, end.text, first_frame_of(end, self._config.model))

    def parts(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> Iterator[list[Candidate]]:
        """See `SamplingLoop.parts`."""
        if prompt.purpose is not Purpose.TRAIN:
            yield from super().parts(prompt, conditioning, seeds, indices)
            return
        ends = self._recorded(prompt.ordinal).clips
        yield [self._recorded_candidate(prompt, index, seeds[index], ends[index].clip) for index in sorted(indices)]

    def _recorded_candidate(self, prompt: Prompt, index: int, seed: int, clip: Path) -> Candidate:
        size = self._config.model
        latents, data = self._latents_of(clip)
        name = candidate_id(prompt.ordinal, index, self.version)
        numbers = (prompt.ordinal, index, seed, self.version)
        return Candidate(name, *numbers, latents, data, size.fps, size.height, size.width)

    def _encode_clip(self, clip: Path) -> tuple[SerializedTensor, bytes]:
        """x0 latents [F, C, h, w] of a clip, and what of it the model sees, as mp4. `ConfigError` when it is broken."""
        size = self._config.model
        pixels = frames_of(clip, size)
        latents = self.latents_of(pixels)
        if tuple(latents.shape) != self._shape:
            raise ConfigError(f"{clip}: encoded to {list(latents.shape)}; the model takes {list(self._shape)}")
        return to_array(latents), encode_mp4(pixels, size.fps)


def _stacked(arrays: Sequence[SerializedTensor]) -> SerializedTensor:
    return to_array(torch.stack([from_array(array) for array in arrays]))


def frames_of(clip: Path, size: ModelConfig, count: int | None = None) -> np.ndarray:
    """The first `count` (default: all the model takes) frames, uint8 [count, H, W, 3], at the model's rate and size.

    Scaled until they just cover the frame and cut evenly at both sides, as first frames are. `ConfigError` when the
    clip is broken or too short.
    """
    try:
        data = clip.read_bytes()
        places = frame_places(*clip_length(data), size.frames, size.fps)[:count]
        frames = decode_frames(data, places)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{clip}: {error}") from None
    return np.stack([fitted(Image.fromarray(frame), size.height, size.width) for frame in frames])


def first_frame_of(end: PairClip, size: ModelConfig) -> bytes:
    """The image file of an end's first frame; without one, the clip's own first frame as PNG."""
    if end.first_frame is None:
        return encode_png(frames_of(end.clip, size, 1)[0])
    try:
        return end.first_frame.read_bytes()
    except OSError as error:
        raise ConfigError(f"{end.first_frame}: cannot be read: {error.strerror}") from None
