"""Statistics of the answers: mean opinion scores, win rates with intervals, and inter-annotator agreement.

| figure | here | definition |
|---|---|---|
| mean opinion | `MeanOpinion` | mean over clips of the mean over annotators; 95 % interval over clips |
| percent | `MeanOpinion.percent` | 100 mean / 5, the scale of HuViDPO's Table 2 |
| majority | `majority` | the choice of more than half of a pair's annotators; without one, a tie |
| win rate | `WinRate` | wins / (wins + losses) over pairs by majority, ties excluded; 95 % Wilson interval |
| Krippendorff's alpha | `alpha` | 1: full agreement, 0: as by chance; ordinal for ratings, nominal for choices |

Krippendorff, "Content Analysis" (2018), chapter 12: alpha = 1 - observed / expected disagreement, for any number of
annotators and missing answers; above 0.8 is reliable, below 0.667 is not. Computed by the package `krippendorff`.

Deviation: HuViDPO says that scores were "converted to percentages", not how. We take the share of the highest rating,
so that the worst possible mean, 1, is 20 %.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import krippendorff
import numpy as np
from scipy.stats import binomtest

from common.intervals import mean_interval
from rewarders.annotation.items import Pair, SurveyClip
from rewarders.annotation.rubric import HIGHEST
from rewarders.annotation.store import Answer
from rewarders.annotation.survey import Survey

Choice = Literal["first", "second", "tie"]
BY_SOURCE = ("opinions", "win_rates")  # of `results`
CODES = {"first": 0.0, "second": 1.0, "tie": 2.0}


@dataclass(frozen=True, slots=True)
class MeanOpinion:
    """The mean opinion score of one source's clips in one dimension, 1..5."""

    source: str
    dimension: str
    clips: int
    mean: float
    low: float | None  # None for a single clip
    high: float | None
    percent: float  # of the highest rating, 20..100


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often clips of `source` were preferred to clips of `against` for the same prompts."""

    source: str
    against: str
    wins: int
    losses: int
    ties: int
    rate: float | None  # None when no pair was decided
    low: float | None
    high: float | None


def majority(choices: Sequence[Choice]) -> Choice:
    """Returns the choice of more than half, else a tie."""
    choice, count = Counter(choices).most_common(1)[0]
    return choice if 2 * count > len(choices) else "tie"


def alpha(answers: Sequence[tuple[str, str, float]], level: Literal["ordinal", "nominal"]) -> float | None:
    """Returns Krippendorff's alpha of (annotator, item, value), or None if no item has two answers or all values are
    equal."""
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
    """Returns the win rate of `outcomes`, one per pair, "first" where `source` won."""
    counts = Counter(outcomes)
    wins, losses = counts["first"], counts["second"]
    rate = low = high = None
    if wins + losses:
        interval = binomtest(wins, wins + losses).proportion_ci(method="wilson")
        rate, low, high = wins / (wins + losses), float(interval.low), float(interval.high)
    return WinRate(source, against, wins, losses, counts["tie"], rate, low, high)


def results(survey: Survey) -> dict[str, Any]:
    """Returns all statistics of a survey for JSON: ``annotators``, ``ratings``, ``opinions``, ``pairs``,
    ``win_rates``."""
    rated, compared = survey.given("rate"), survey.given("compare")
    return {
        "rubric": survey.rubric.name,
        "annotators": _annotators(rated, compared),
        "clips": _coverage(survey, rated),
        "ratings": [_agreement(name, rated) for name in survey.rubric.names],
        "opinions": [asdict(one) for one in _mean_opinions(survey, rated)],
        "pairs": _pairs(survey, compared),
        "win_rates": [asdict(one) for one in _win_rates(survey, compared)],
    }


def without_sources(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the statistics that do not name what made the clips: those that annotators may see."""
    return {name: value for name, value in found.items() if name not in BY_SOURCE}


def _coverage(survey: Survey, rated: Sequence[Answer]) -> dict[str, Any]:
    """How many clips have how many ratings: ``by_ratings[k]`` clips have k, the last one that many or more."""
    counts = Counter(answer.item for answer in rated)
    clips = Counter(min(counts[clip.key], survey.annotators) for clip in survey.clips)
    by_ratings = [clips[k] for k in range(survey.annotators + 1)]
    every = len(survey.clips)
    return {"all": every, "rated": every - by_ratings[0], "complete": by_ratings[-1], "by_ratings": by_ratings}


def _annotators(rated: Sequence[Answer], compared: Sequence[Answer]) -> list[dict[str, Any]]:
    ratings, choices = (Counter(answer.annotator for answer in answers) for answers in (rated, compared))
    return [{"name": name, "rated": ratings[name], "compared": choices[name]} for name in sorted({*ratings, *choices})]


def _agreement(dimension: str, rated: Sequence[Answer]) -> dict[str, Any]:
    triples = [(answer.annotator, answer.item, float(answer.value[dimension])) for answer in rated]
    return {"dimension": dimension, "answers": len(triples), "alpha": alpha(triples, "ordinal")}


def _mean_opinions(survey: Survey, rated: Sequence[Answer]) -> list[MeanOpinion]:
    found = []
    by_clip = group_by_item(rated)
    for source in sorted({clip.source for clip in survey.clips}):
        mine = [by_clip[clip.key] for clip in survey.clips if clip.source == source and clip.key in by_clip]
        for dimension in survey.rubric.names if mine else ():
            found.append(_mean_opinion(source, dimension, [mean_rating(answers, dimension) for answers in mine]))
    return found


def _mean_opinion(source: str, dimension: str, means: Sequence[float]) -> MeanOpinion:
    if len(means) < 2:
        return MeanOpinion(source, dimension, len(means), means[0], None, None, _percent(means[0]))
    interval = mean_interval(means)
    percent = _percent(interval.mean)
    return MeanOpinion(source, dimension, len(means), interval.mean, interval.low, interval.high, percent)


def _percent(mean: float) -> float:
    return 100 * mean / HIGHEST


def group_by_item(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Groups answers by clip or pair."""
    found: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.item].append(answer)
    return dict(found)


def mean_rating(answers: Sequence[Answer], dimension: str) -> float:
    """Returns the mean over annotators, 1..5."""
    return float(np.mean([answer.value[dimension] for answer in answers]))


def decisions(survey: Survey, compared: Sequence[Answer]) -> list[tuple[Pair, list[Choice]]]:
    """Returns the pairs that have answers, each with its choices."""
    found = group_by_item(compared)
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
    swapped: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie"}
    for pair, choices in decisions(survey, compared):
        chosen, ordered = majority(choices), _ordered(pair)
        if ordered is not None:
            outcome = chosen if ordered[0] is pair.first else swapped[chosen]
            outcomes[ordered[0].source, ordered[1].source].append(outcome)
    return [win_rate(*sources, found) for sources, found in sorted(outcomes.items())]


def _ordered(pair: Pair) -> tuple[SurveyClip, SurveyClip] | None:
    """Returns a pair's clips by source name, the base model last; None if both have the same source."""
    if pair.first.source == pair.second.source:
        return None
    one, other = sorted((pair.first, pair.second), key=lambda clip: (clip.source == "base", clip.source))
    return one, other
