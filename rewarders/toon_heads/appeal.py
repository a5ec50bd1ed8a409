"""Visual appeal: is the figure drawn right, or bent out of shape?"""

from __future__ import annotations

from rewarders.toon_heads.head import AnimeHead


class Appeal(AnimeHead):
    """Frames to a value, each beside the undistorted first one."""

    dimension = "appeal"
    VIEWS = ("frame", "first")
