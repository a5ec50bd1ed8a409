"""Assigns items to annotators and takes their answers. The page calls only this module.

At most `annotators` people get an item; answers and items on an annotator's screen both count. An annotator's next task
is the item already on their screen (so a reload changes nothing), else one that others have started (so items are
completed), else any. Each annotator has a different random order, so that fatigue does not affect the same clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rewarders.annotation.items import Pair, SurveyClip, short_key
from rewarders.annotation.rubric import Rubric
from rewarders.annotation.store import Answer, Store

Kind = Literal["rate", "compare"]
Side = Literal["left", "right", "tie"]
SHOWN_SECONDS = 600.0  # an item that is not answered in this time is assigned to another annotator
NAME_LENGTH = 40


class UnknownItemError(LookupError):
    """There is no such clip or pair."""


@dataclass(frozen=True)
class Survey:
    """The items, the rubric and the answers of one run or folder."""

    clips: Sequence[SurveyClip]
    pairs: Sequence[Pair]
    rubric: Rubric
    store: Store
    annotators: int = 3
    seed: int = 0

    @cached_property
    def _clips(self) -> dict[str, SurveyClip]:
        return {clip.key: clip for clip in self.clips}

    @cached_property
    def _pairs(self) -> dict[str, Pair]:
        return {pair.key: pair for pair in self.pairs}

    # Tasks.

    def next(self, annotator: str, kind: Kind) -> dict[str, Any]:
        """Returns the annotator's current task and progress; ``task`` is None if nothing is left."""
        annotator = checked_name(annotator)
        with self.store.transaction():
            answers = self.store.answers(self._kind(kind))
            item = self._choose(annotator, kind, answers)
            if item is not None:
                self.store.show(annotator, self._kind(kind), item, SHOWN_SECONDS)
            task = None if item is None else self._task(annotator, kind, item)
            return {"task": task, "progress": self._progress(annotator, kind, answers)}

    def _kind(self, kind: Kind) -> str:
        """Ratings under different rubrics are different kinds of answers."""
        return f"rate:{self.rubric.name}" if kind == "rate" else "compare"

    def _items(self, kind: Kind) -> list[str]:
        return [one.key for one in (self.clips if kind == "rate" else self.pairs)]

    def _choose(self, annotator: str, kind: Kind, answers: Sequence[Answer]) -> str | None:
        shown = self.store.shown(self._kind(kind))
        free = self._available(annotator, kind, answers, shown)
        if shown.get(annotator) in free:
            return shown[annotator]
        counts = Counter(answer.item for answer in answers)
        return min(free, key=lambda item: (-counts[item], short_key(self.seed, annotator, item)), default=None)

    def _available(self, annotator: str, kind: Kind, answers: Sequence[Answer], shown: dict[str, str]) -> set[str]:
        """Returns the items that this annotator may still get."""
        own = {answer.item for answer in answers if answer.annotator == annotator}
        taken = {(answer.annotator, answer.item) for answer in answers} | set(shown.items())
        others = Counter(item for who, item in taken if who != annotator)
        return {item for item in self._items(kind) if item not in own and others[item] < self.annotators}

    def _progress(self, annotator: str, kind: Kind, answers: Sequence[Answer]) -> dict[str, int]:
        known = set(self._items(kind))
        own = sum(answer.annotator == annotator and answer.item in known for answer in answers)
        left = len(self._available(annotator, kind, answers, self.store.shown(self._kind(kind))))
        counts = Counter(answer.item for answer in answers if answer.item in known)
        complete = sum(count >= self.annotators for count in counts.values())
        return {"mine": own, "left": left, "complete": complete, "items": len(known)}

    def _task(self, annotator: str, kind: Kind, item: str) -> dict[str, Any]:
        previous = self.store.latest_answer(annotator, self._kind(kind), item)
        if kind == "rate":
            clip = self.clip(item)
            return {"item": item, "clips": [item], "conditions": [_condition(clip)], "said": previous}
        pair = self.pair(item)
        sides = self._sides(annotator, pair)
        shown = sides[:1] if pair.first.condition == pair.second.condition else sides
        side = None if previous is None else self._side(annotator, pair, previous["choice"])
        clips, conditions = [clip.key for clip in sides], [_condition(clip) for clip in shown]
        return {"item": item, "clips": clips, "conditions": conditions, "said": side}

    def _sides(self, annotator: str, pair: Pair) -> tuple[SurveyClip, SurveyClip]:
        """Returns (left, right): random for each annotator and pair, and stable."""
        swapped = int(short_key(self.seed, "sides", annotator, pair.key), 16) % 2
        return (pair.second, pair.first) if swapped else (pair.first, pair.second)

    def _side(self, annotator: str, pair: Pair, choice: str) -> Side:
        if choice == "tie":
            return "tie"
        left, _ = self._sides(annotator, pair)
        return "left" if (left is pair.first) == (choice == "first") else "right"

    # Answers.

    def rate(self, annotator: str, clip: str, ratings: dict[str, int]) -> None:
        """Stores 1..5 in every dimension. Raises `UnknownItemError` for an unknown clip, `ValueError` for invalid
        ratings."""
        annotator = checked_name(annotator)
        self.clip(clip)
        self.rubric.check(ratings)
        self.store.answer(annotator, self._kind("rate"), clip, dict(ratings))

    def choose(self, annotator: str, pair: str, side: Side) -> None:
        """Stores which side is better, as this annotator saw them. Raises `UnknownItemError` for an unknown pair."""
        annotator = checked_name(annotator)
        chosen = self.pair(pair)
        left, _ = self._sides(annotator, chosen)
        first = (side == "left") == (left is chosen.first)
        choice = "tie" if side == "tie" else "first" if first else "second"
        self.store.answer(annotator, "compare", pair, {"choice": choice})

    def undo(self, annotator: str, kind: Kind) -> bool:
        """Takes back the annotator's last answer; its item becomes their next task. Returns False if there is none."""
        annotator = checked_name(annotator)
        with self.store.transaction():
            item = self.store.undo(annotator, self._kind(kind))
            if item in self._items(kind):
                self.store.show(annotator, self._kind(kind), str(item), SHOWN_SECONDS)
            return item is not None

    # Lookup.

    def given(self, kind: Kind) -> list[Answer]:
        """Returns the answers that count, about items that still exist."""
        known = set(self._items(kind))
        return [answer for answer in self.store.answers(self._kind(kind)) if answer.item in known]

    def clip(self, key: str) -> SurveyClip:
        """Returns the clip with this key."""
        return _lookup(self._clips, key, "clip")

    def pair(self, key: str) -> Pair:
        """Returns the pair with this key."""
        return _lookup(self._pairs, key, "pair")


def checked_name(annotator: str) -> str:
    """Returns the name with whitespace normalised. Raises `ValueError` if it is empty, too long or not printable."""
    name = " ".join(annotator.split())
    if not name or len(name) > NAME_LENGTH or not name.isprintable():
        raise ValueError(f"a name must have 1 to {NAME_LENGTH} printable characters")
    return name


def _condition(clip: SurveyClip) -> dict[str, Any]:
    """What a clip was made for. A task has one of these per clip, or a single one if all clips share it."""
    return {"prompt": clip.prompt, "first_frame": clip.key if clip.first_frame is not None else None}


def _lookup(items: dict[str, Any], key: str, what: str) -> Any:
    if key not in items:
        raise UnknownItemError(f"no such {what}")
    return items[key]
