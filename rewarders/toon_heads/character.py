"""Character consistency: is it the first frame's figure all through?"""

from __future__ import annotations

from rewarders.toon_heads.head import AnimeHead


class CharacterConsistency(AnimeHead):
    """Frames and first frame to the share of frames with the same figure."""

    dimension = "character"
    VIEWS = ("frame", "previous", "first")
    SEARCH = True
