"""The six toon heads as one table, and the `Reward` that scores clips with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.messages import Prompt
from common.toon.world import FRAMES, HEIGHT, WIDTH
from common.weights.tensors import state_digest
from rewarders.first_frame import reference_frame
from rewarders.gradient.pixels import to_bytes
from rewarders.toon_heads.network import HeadNetwork, View, bag_of_words

CHUNK = 4  # clips in every forward pass: a fixed batch size keeps floating-point sums independent of the batch
DIGITS = 3  # decimals of a score
CLIP_SHAPE = (FRAMES, HEIGHT, WIDTH, 3)


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The inputs of one head."""

    dimension: str
    views: tuple[View, ...]
    caption: bool = False  # reads the prompt's words
    search: bool = False  # searches every patch of a frame in the first frame


HEADS = {
    spec.dimension: spec
    for spec in (
        # Does the figure flicker or shake? The second difference in time is zero for steady motion.
        HeadSpec("smoothness", ("frame", "previous", "bend")),
        # Does the figure move as much as the caption's action asks for? Walking instead of running scores half.
        HeadSpec("motion", ("frame", "previous", "first"), caption=True),
        # Is the figure drawn well, or warped? Compared with the undistorted first frame.
        HeadSpec("appeal", ("frame", "first")),
        # Share of frames that show the caption's action.
        HeadSpec("text", ("frame", "previous", "first"), caption=True),
        # Does the clip stay in the scene of the first frame?
        HeadSpec("image", ("frame", "first")),
        # Share of frames that show the same figure as the first frame.
        HeadSpec("character", ("frame", "previous", "first"), search=True),
    )
}


class ToonHead(HeadNetwork):
    """One row of `HEADS` as a `rewarders.interface.Reward`, with freshly initialised weights.

    Scores are 0 (worst) .. 100, rounded to `DIGITS` decimals, and NaN if the weights are not finite.
    """

    def __init__(self, dimension: str) -> None:
        spec = HEADS[dimension]
        super().__init__(spec.views, spec.caption, spec.search)
        self.dimension = dimension

    @property
    def digest(self) -> str:
        """blake2b-128 of the weights, hex."""
        return state_digest(self.state_dict())

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """Returns one score per clip, uint8 ``[9, 48, 64, 3]``. A score does not depend on the rest of the batch.

        The first frame is the prompt's image, or the clip's own frame 0 if the prompt has none. Raises `ValueError`
        for clips of another shape and for unequal numbers of clips and prompts.
        """
        if len(clips) != len(prompts):
            raise ValueError(f"{self.dimension}: {len(clips)} clips but {len(prompts)} prompts")
        for clip in clips:
            if clip.dtype != np.uint8 or clip.shape != CLIP_SHAPE:
                raise ValueError(
                    f"{self.dimension}: a clip is {clip.dtype} {list(clip.shape)}, not uint8 {list(CLIP_SHAPE)}"
                )
        self.eval()
        values: list[float] = []
        for start in range(0, len(clips), CHUNK):
            values += self._score_chunk(clips[start : start + CHUNK], prompts[start : start + CHUNK])
        return values

    def frame_scores(self, clips: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """See `DifferentiableReward.frame_scores`. Frame 0, which no head judges, gets the mean of the others."""
        if tuple(clips.shape[1:]) != (FRAMES, 3, HEIGHT, WIDTH):
            raise ValueError(
                f"{self.dimension}: clips are {list(clips.shape)}, not [n, {FRAMES}, 3, {HEIGHT}, {WIDTH}]"
            )
        self.eval()
        pixels = to_bytes(clips)
        firsts = [reference_frame(clip, prompt) for clip, prompt in zip(pixels, prompts, strict=True)]
        words = bag_of_words([prompt.text for prompt in prompts])
        first = to_pixels(torch.from_numpy(np.stack(firsts)))
        badness = self(clips, first.to(clips.device), words.to(clips.device))
        scores = 100 * (1 - badness)
        return torch.cat([scores.mean(1, keepdim=True), scores], 1)

    def _score_chunk(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """Scores up to `CHUNK` clips, padded to exactly `CHUNK`."""
        padding = CHUNK - len(clips)
        video = np.stack([*clips, *[clips[0]] * padding])
        firsts = [reference_frame(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        words = bag_of_words([prompt.text for prompt in prompts] + [""] * padding)
        device = next(self.parameters()).device
        badness = self(
            to_pixels(torch.from_numpy(video).to(device)),
            to_pixels(torch.from_numpy(np.stack([*firsts, *[firsts[0]] * padding])).to(device)),
            words.to(device),
        )
        return [round(100.0 * (1.0 - value), DIGITS) for value in badness.mean(1).tolist()[: len(clips)]]


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Converts uint8 ``[..., H, W, 3]`` to float32 ``[..., 3, H, W]`` in [0, 1]."""
    return frames.movedim(-1, -3).float().div(255)
