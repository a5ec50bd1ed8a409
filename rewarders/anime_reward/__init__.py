"""AnimeReward ("Aligning Anime Video Generation with Human Feedback", 2025, Eq. 5-11) on pretrained encoders.

One class per dimension. To add one, subclass `reward.EncoderReward` and add the class to `CLASSES`. Class names, option
names and the tensors of a head are saved with it, so renaming one makes saved heads unreadable. `reward.py` has the
equations and the deviations from the paper. Importing this package loads no weights.
"""

from __future__ import annotations

from rewarders.anime_reward.appeal import KeyFrameAppeal
from rewarders.anime_reward.character import TrackedCharacter
from rewarders.anime_reward.image import VideoImageConsistency
from rewarders.anime_reward.motion import PromptedMotion
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.smoothness import VideoSmoothness
from rewarders.anime_reward.text import VideoTextConsistency

CLASSES: dict[str, type[EncoderReward]] = {
    kind.__name__: kind
    for kind in (
        VideoSmoothness,
        PromptedMotion,
        KeyFrameAppeal,
        VideoTextConsistency,
        VideoImageConsistency,
        TrackedCharacter,
    )
}

__all__ = [
    "CLASSES",
    "EncoderReward",
    "KeyFrameAppeal",
    "PromptedMotion",
    "TrackedCharacter",
    "VideoImageConsistency",
    "VideoSmoothness",
    "VideoTextConsistency",
]
