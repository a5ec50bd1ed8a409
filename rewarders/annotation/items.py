"""The items of a survey: clips to rate, and pairs of comparable clips.

Two clips are compared if they have the same prompt and, where the prompt has clips of several sources (base and aligned
model, two generators), different sources. Clips that are alone in their prompt are compared within their category.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations
from pathlib import Path


@dataclass(frozen=True)
class SurveyClip:
    """One clip of a run or folder. `name` is unique there and does not change between starts."""

    name: str
    prompt: str
    source: str  # what made it; never shown to annotators
    character: str | None = None
    category: str | None = None
    file: Path | None = None  # the mp4 file; None: the clip is in a run's blobs
    first_frame_file: Path | None = None
    read: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)
    first_frame: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)  # PNG or another image

    @property
    def key(self) -> str:
        """The clip's name on the page; it does not reveal the source."""
        return short_key("clip", self.name)


@dataclass(frozen=True)
class Pair:
    """Two clips to compare. Their order has no meaning: the sides are drawn for each annotator."""

    first: SurveyClip
    second: SurveyClip

    @property
    def key(self) -> str:
        """The pair's name on the page."""
        return short_key("pair", self.first.name, self.second.name)


def short_key(*parts: object) -> str:
    """Returns a short hex name for `parts`; equal parts give equal names."""
    return blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()


def make_pairs(clips: Sequence[SurveyClip], most: int, seed: int) -> list[Pair]:
    """Returns all comparable pairs, or a sample of `most` of them, drawn with `seed`."""
    pairs = [Pair(*two) for group in _groups(clips) for two in _comparable(group)]
    if len(pairs) <= most:
        return pairs
    return sorted(random.Random(seed).sample(pairs, most), key=lambda pair: (pair.first.name, pair.second.name))


def _groups(clips: Iterable[SurveyClip]) -> list[list[SurveyClip]]:
    by_prompt: dict[str, list[SurveyClip]] = defaultdict(list)
    by_category: dict[str | None, list[SurveyClip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.name):
        by_prompt[clip.prompt].append(clip)
    for alone in [group[0] for group in by_prompt.values() if len(group) == 1]:
        by_category[alone.category].append(alone)
    return [group for group in (*by_prompt.values(), *by_category.values()) if len(group) > 1]


def _comparable(group: Sequence[SurveyClip]) -> list[tuple[SurveyClip, SurveyClip]]:
    several = len({clip.source for clip in group}) > 1
    return [(one, other) for one, other in combinations(group, 2) if not several or one.source != other.source]
