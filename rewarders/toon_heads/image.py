"""Image-video consistency: does the video stay in the first frame's scene?"""

from __future__ import annotations

from rewarders.toon_heads.head import AnimeHead


class ImageConsistency(AnimeHead):
    """Video and first frame to a value."""

    dimension = "image"
    VIEWS = ("frame", "first")
