"""Visual smoothness: does the figure flicker or shake?"""

from __future__ import annotations

from rewarders.toon_heads.head import AnimeHead


class Smoothness(AnimeHead):
    """Frames to a value: the second difference in time is zero where all moves steadily."""

    dimension = "smoothness"
    VIEWS = ("frame", "previous", "bend")
