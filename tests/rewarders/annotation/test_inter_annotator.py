"""The figures, against numbers from the literature and by hand."""

from __future__ import annotations

import pytest

from rewarders.annotation import inter_annotator
from rewarders.annotation.inter_annotator import alpha, majority, results, win_rate
from tests.support.rewarders.survey import all_of, survey

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C/D: 4 observers, 12 units, gaps.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


def test_alpha_equals_the_published_example():
    answers = [
        (f"observer {row}", f"unit {column:02d}", float(value))
        for row, values in enumerate(OBSERVERS)
        for column, value in enumerate(values)
        if value is not None
    ]
    assert alpha(answers, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert alpha(answers, "ordinal") == pytest.approx(0.815, abs=1e-3)


def test_there_is_no_alpha_without_two_opinions_that_could_differ():
    assert alpha([], "ordinal") is None
    assert alpha([("ann", "a", 1.0), ("ben", "b", 5.0)], "ordinal") is None
    assert alpha([("ann", "a", 3.0), ("ben", "a", 3.0)], "ordinal") is None


@pytest.mark.parametrize(
    ("choices", "chosen"),
    [
        (("first", "first", "second"), "first"),
        (("second", "tie", "second"), "second"),
        (("first", "second", "tie"), "tie"),
        (("first", "second"), "tie"),
        (("tie", "tie", "first"), "tie"),
        (("second",), "second"),
    ],
)
def test_the_majority_of_three(choices, chosen):
    assert majority(choices) == chosen


def test_the_win_rate_has_wilsons_interval():
    found = win_rate("new", "old", ["first"] * 8 + ["second"] * 2 + ["tie"] * 5)
    assert (found.wins, found.losses, found.ties, found.rate) == (8, 2, 5, 0.8)
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = 0.8, n = 10, z = 1.959964
    assert (found.low, found.high) == (pytest.approx(0.49016, abs=1e-5), pytest.approx(0.94332, abs=1e-5))
    assert win_rate("new", "old", ["tie"]).rate is None


def test_the_results_of_a_survey(tmp_path):
    asked = survey(tmp_path)
    for person, liked in (("ann", 5), ("ben", 5), ("cleo", 4)):
        for clip in asked.clips:
            asked.rate(person, clip.key, all_of(asked, liked if clip.source == "aligned" else 2))
        for _ in asked.pairs[:2]:
            task = asked.next(person, "compare")["task"]
            clips = [asked.clip(key).source for key in task["clips"]]
            asked.choose(person, task["item"], ("left", "right")[clips.index("aligned")])
    found = results(asked)
    assert found["annotators"] == [{"name": name, "rated": 6, "compared": 2} for name in ("ann", "ben", "cleo")]
    assert found["win_rates"] == [
        {"source": "aligned", "against": "base", "wins": 2, "losses": 0, "ties": 0, "rate": 1.0,
         "low": pytest.approx(0.34238, abs=1e-5), "high": pytest.approx(1.0)}
    ]  # fmt: skip
    by_source = {(one["source"], one["dimension"]): one["mean"] for one in found["opinions"]}
    assert by_source["aligned", "text"] == pytest.approx(14 / 3)
    assert by_source["base", "text"] == 2
    percent = {(one["source"], one["dimension"]): one["percent"] for one in found["opinions"]}
    assert percent["aligned", "text"] == pytest.approx(100 * (14 / 3) / 5)  # 93.3
    assert percent["base", "text"] == 40
    assert found["pairs"] == {"all": 3, "answered": 2, "complete": 2, "ties": 0, "alpha": found["pairs"]["alpha"]}
    assert all(one["alpha"] > 0.8 for one in found["ratings"])
    assert found["clips"] == {"all": 6, "rated": 6, "complete": 6, "by_ratings": [0, 0, 0, 6]}


def test_coverage_counts_the_clips_by_their_ratings(tmp_path):
    asked = survey(tmp_path, annotators=2)
    for person, count in (("ann", 4), ("ben", 2), ("cleo", 1)):
        for clip in asked.clips[:count]:
            asked.rate(person, clip.key, all_of(asked, 3))
    found = results(asked)["clips"]
    assert found == {"all": 6, "rated": 4, "complete": 2, "by_ratings": [2, 2, 2]}  # one clip has three


def test_win_rates_do_not_depend_on_the_order_within_a_pair(tmp_path):
    asked = survey(tmp_path)
    pair = asked.pairs[0]
    assert {pair.first.source, pair.second.source} == {"base", "aligned"}
    choice = "first" if pair.first.source == "base" else "second"
    asked.store.answer("ann", "compare", pair.key, {"choice": choice})
    (found,) = inter_annotator.results(asked)["win_rates"]
    assert (found["source"], found["wins"], found["losses"]) == ("aligned", 0, 1)
