"""What the answers come to: mean opinions, win rates with intervals, and how far the annotators agree.

| figure | here | how |
|---|---|---|
| mean opinion | `Opinion` | mean over clips of the mean over annotators; 95 % bootstrap interval over clips |
| majority | `majority` | what more than half of a pair's annotators chose; where nothing has more than half, a tie |
| win rate | `WinRate` | wins / (wins + losses) over pairs by majority, ties apart; 95 % Wilson interval |
| Krippendorff's alpha | `alpha` | 1: they agree, 0: as by chance; ordinal for ratings, nominal for choices |

Krippendorff, "Content Analysis" (2018), chapter 12: alpha = 1 - observed / expected disagreement, for any number of
annotators and missing answers; above 0.8 is reliable, below 0.667 is not. Here it is the package `krippendorff`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import krippendorff
import numpy as np
from scipy.stats import binomtest

from common.bootstrap import bootstrap_mean
from rewarders.annotation.items import Clip, Pair
from rewarders.annotation.store import Answer
from rewarders.annotation.survey import Survey

Choice = Literal["first", "second", "tie"]
CODES = {"first": 0.0, "second": 1.0, "tie": 2.0}


@dataclass(frozen=True, slots=True)
class Opinion:
    """One dimension of one source's clips, 1..5."""

    source: str
    dimension: str
    clips: int
    mean: float
    low: float | None  # None for a single clip
    high: float | None


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often clips of `source` were preferred to clips of `against`, of the same prompts."""

    source: str
    against: str
    wins: int
    losses: int
    ties: int
    rate: float | None  # None when no pair was decided
    low: float | None
    high: float | None


def majority(choices: Sequence[Choice]) -> Choice:
    """What more than half chose, else a tie."""
    choice, count = Counter(choices).most_common(1)[0]
    return choice if 2 * count > len(choices) else "tie"


def alpha(answers: Sequence[tuple[str, str, float]], level: Literal["ordinal", "nominal"]) -> float | None:
    """Krippendorff's alpha of (annotator, item, value); None where no item has two answers or nothing varies."""
    who = {name: row for row, name in enumerate(sorted({name for name, _, _ in answers}))}
    items = {item: column for column, item in enumerate(sorted({item for _, item, _ in answers}))}
    table = np.full((len(who), len(items)), np.nan)
    for name, item, value in answers:
        table[who[name], items[item]] = value
    table = table[:, (~np.isnan(table)).sum(0) > 1]
    if len(np.unique(table[~np.isnan(table)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement=level))


def win_rate(source: str, against: str, outcomes: Sequence[Choice]) -> WinRate:
    """`outcomes`: one per pair, "first" where `source` won."""
    counts = Counter(outcomes)
    wins, losses = counts["first"], counts["second"]
    rate = low = high = None
    if wins + losses:
        interval = binomtest(wins, wins + losses).proportion_ci(method="wilson")
        rate, low, high = wins / (wins + losses), float(interval.low), float(interval.high)
    return WinRate(source, against, wins, losses, counts["tie"], rate, low, high)


def results(survey: Survey) -> dict[str, Any]:
    """All figures of a survey, ready for JSON: ``annotators``, ``ratings``, ``opinions``, ``pairs``, ``win_rates``."""
    rated, compared = survey.given("rate"), survey.given("compare")
    return {
        "rubric": survey.rubric.name,
        "annotators": _annotators(rated, compared),
        "clips": {"all": len(survey.clips), "rated": len({answer.item for answer in rated})},
        "ratings": [_agreement(name, rated) for name in survey.rubric.names],
        "opinions": [asdict(one) for one in _opinions(survey, rated)],
        "pairs": _pairs(survey, compared),
        "win_rates": [asdict(one) for one in _win_rates(survey, compared)],
    }


def _annotators(rated: Sequence[Answer], compared: Sequence[Answer]) -> list[dict[str, Any]]:
    ratings, choices = (Counter(answer.annotator for answer in answers) for answers in (rated, compared))
    return [{"name": name, "rated": ratings[name], "compared": choices[name]} for name in sorted({*ratings, *choices})]


def _agreement(dimension: str, rated: Sequence[Answer]) -> dict[str, Any]:
    triples = [(answer.annotator, answer.item, float(answer.value[dimension])) for answer in rated]
    return {"dimension": dimension, "answers": len(triples), "alpha": alpha(triples, "ordinal")}


def _opinions(survey: Survey, rated: Sequence[Answer]) -> list[Opinion]:
    found = []
    by_clip = by_item(rated)
    for source in sorted({clip.source for clip in survey.clips}):
        mine = [by_clip[clip.key] for clip in survey.clips if clip.source == source and clip.key in by_clip]
        for dimension in survey.rubric.names if mine else ():
            found.append(_opinion(source, dimension, [mean_rating(answers, dimension) for answers in mine]))
    return found


def _opinion(source: str, dimension: str, means: Sequence[float]) -> Opinion:
    if len(means) < 2:
        return Opinion(source, dimension, len(means), means[0], None, None)
    interval = bootstrap_mean(means)
    return Opinion(source, dimension, len(means), interval.mean, interval.low, interval.high)


def by_item(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers by what they are about."""
    found: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.item].append(answer)
    return dict(found)


def mean_rating(answers: Sequence[Answer], dimension: str) -> float:
    """The mean over annotators, 1..5."""
    return float(np.mean([answer.value[dimension] for answer in answers]))


def decisions(survey: Survey, compared: Sequence[Answer]) -> list[tuple[Pair, list[Choice]]]:
    """The pairs that have answers, with these."""
    found = by_item(compared)
    return [(pair, [one.value["choice"] for one in found[pair.key]]) for pair in survey.pairs if pair.key in found]


def _pairs(survey: Survey, compared: Sequence[Answer]) -> dict[str, Any]:
    decided = decisions(survey, compared)
    triples = [(answer.annotator, answer.item, CODES[answer.value["choice"]]) for answer in compared]
    return {
        "all": len(survey.pairs),
        "answered": len(decided),
        "complete": sum(len(choices) >= survey.annotators for _, choices in decided),
        "ties": sum(majority(choices) == "tie" for _, choices in decided),
        "alpha": alpha(triples, "nominal"),
    }


def _win_rates(survey: Survey, compared: Sequence[Answer]) -> list[WinRate]:
    outcomes: Mapping[tuple[str, str], list[Choice]] = defaultdict(list)
    for pair, choices in decisions(survey, compared):
        chosen = majority(choices)
        ends = _ordered(pair)
        if ends is not None:
            turned = {"first": "second", "second": "first", "tie": "tie"}
            outcomes[ends[0].source, ends[1].source].append(chosen if ends[0] is pair.first else turned[chosen])  # type: ignore[arg-type]
    return [win_rate(*sources, found) for sources, found in sorted(outcomes.items())]


def _ordered(pair: Pair) -> tuple[Clip, Clip] | None:
    """A pair of two sources in the order of their names, the base model last; None for one source."""
    if pair.first.source == pair.second.source:
        return None
    one, other = sorted((pair.first, pair.second), key=lambda clip: (clip.source == "base", clip.source))
    return one, other
