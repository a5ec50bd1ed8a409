"""Motion: is there as much of it as the prompt's action asks for?"""

from __future__ import annotations

from rewarders.toon_heads.head import AnimeHead


class Motion(AnimeHead):
    """Clip and caption to a value: running at a walk's pace is half a run."""

    dimension = "motion"
    VIEWS = ("frame", "previous", "first")
    CAPTION = True
