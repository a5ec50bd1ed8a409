"""The items of a survey: clips to rate, and pairs of comparable clips.

Two clips are compared if they were made for the same caption and first frame and, where these have clips of several
sources (base and aligned model, two generators), have different sources. Clips that are alone with their caption and
first frame are compared within their category; then each keeps its own.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
    seed: int | None = None  # the generator's
    file: Path | None = None  # the mp4 file; None: the clip is in a run's blobs
    first_frame_file: Path | None = None
    read: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)
    first_frame: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)  # PNG or another image

    @cached_property
    def condition(self) -> tuple[str, str]:
        """What the clip was made for: its caption and a digest of its first frame, empty if it has none."""
        try:
            image = self.first_frame() if self.first_frame else b""
        except OSError:  # deleted since; the page says so
            image = b""
        return self.prompt, blake2b(image, digest_size=12).hexdigest() if image else ""

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
    by_condition: dict[tuple[str, str], list[SurveyClip]] = defaultdict(list)
    by_category: dict[str, list[SurveyClip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.name):
        by_condition[clip.condition].append(clip)
    for alone in [group[0] for group in by_condition.values() if len(group) == 1]:
        if alone.category is not None:
            by_category[alone.category].append(alone)
    return [group for group in (*by_condition.values(), *by_category.values()) if len(group) > 1]


def _comparable(group: Sequence[SurveyClip]) -> list[tuple[SurveyClip, SurveyClip]]:
    several = len({clip.source for clip in group}) > 1
    return [(one, other) for one, other in combinations(group, 2) if not several or one.source != other.source]
