"""Text-video consistency: does the figure do what the caption says?"""

from __future__ import annotations

from rewarders.toon_heads.head import AnimeHead


class TextConsistency(AnimeHead):
    """Clip and caption to the share of frames that show the caption's action."""

    dimension = "text"
    VIEWS = ("frame", "previous", "first")
    CAPTION = True
