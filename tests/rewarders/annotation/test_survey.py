"""Assignment of items to annotators: limits, resume, undo, blind sides."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rewarders.annotation.items import Pair
from rewarders.annotation.survey import SHOWN_SECONDS, Survey, UnknownItemError
from tests.support.rewarders.survey import all_of, survey

PEOPLE = ("ann", "ben", "cleo", "dan", "eve")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def rate_all(asked: Survey, annotator: str, value: int = 3) -> list[str]:
    """Rate until nothing is left; the clips, in order."""
    done = []
    while (task := asked.next(annotator, "rate")["task"]) is not None:
        asked.rate(annotator, task["item"], all_of(asked, value))
        done.append(task["item"])
    return done


def test_each_clip_is_rated_by_as_many_as_asked_for_and_by_nobody_twice(tmp_path):
    asked = survey(tmp_path, annotators=2)
    done = {person: rate_all(asked, person) for person in PEOPLE}
    assert Counter(item for items in done.values() for item in items) == {clip.key: 2 for clip in asked.clips}
    assert all(len(items) == len(set(items)) for items in done.values())


def test_clips_on_a_screen_count_towards_the_limit(tmp_path):
    asked = survey(tmp_path, annotators=1)
    shown = [asked.next(person, "rate")["task"]["item"] for person in PEOPLE]
    assert len(set(shown)) == len(PEOPLE)


def test_many_at_once_never_share_a_clip(tmp_path):
    asked = survey(tmp_path, annotators=1)
    with ThreadPoolExecutor(5) as pool:
        done = list(pool.map(lambda person: rate_all(asked, person), PEOPLE))
    assert sorted(item for items in done for item in items) == sorted(clip.key for clip in asked.clips)


def test_started_items_come_first(tmp_path):
    asked = survey(tmp_path, annotators=3)
    first = asked.next("ann", "rate")["task"]["item"]
    asked.rate("ann", first, all_of(asked, 4))
    assert asked.next("ben", "rate")["task"]["item"] == first


def test_an_unanswered_clip_is_reassigned(tmp_path):
    clock = Clock()
    asked = survey(tmp_path, annotators=1, clock=clock)
    left = asked.next("ann", "rate")["task"]["item"]
    assert left not in rate_all(asked, "ben")
    clock.now += SHOWN_SECONDS + 1
    assert rate_all(asked, "ben") == [left]


def test_a_reload_and_a_restart_change_nothing(tmp_path):
    asked = survey(tmp_path)
    asked.rate("ann", asked.next("ann", "rate")["task"]["item"], all_of(asked, 5))
    before = asked.next("ann", "rate")
    assert asked.next("ann", "rate") == before
    asked.store.close()
    again = survey(tmp_path)
    assert again.next("  ann ", "rate") == before
    assert before["progress"] == {"mine": 1, "left": 5, "complete": 0, "items": 6}


def test_undo_steps_back_and_shows_the_earlier_answer(tmp_path):
    asked = survey(tmp_path)
    items = []
    for value in (1, 2):
        items.append(asked.next("ann", "rate")["task"]["item"])
        asked.rate("ann", items[-1], all_of(asked, value))
    for value, item in ((2, items[1]), (1, items[0])):
        assert asked.undo("ann", "rate")
        task = asked.next("ann", "rate")["task"]
        assert (task["item"], task["said"]) == (item, all_of(asked, value))
    assert not asked.undo("ann", "rate")
    assert asked.given("rate") == []


def test_a_second_answer_replaces_the_first(tmp_path):
    asked = survey(tmp_path)
    item = asked.next("ann", "rate")["task"]["item"]
    for value in (1, 5):
        asked.rate("ann", item, all_of(asked, value))
    assert [answer.value for answer in asked.given("rate")] == [all_of(asked, 5)]


def test_sides_are_drawn_for_each_annotator_and_answers_do_not_depend_on_them(tmp_path):
    asked = survey(tmp_path, annotators=64)
    people = [f"person {number}" for number in range(64)]
    lefts = Counter()
    for person in people:
        task = asked.next(person, "compare")["task"]
        lefts[asked.clip(task["clips"][0]).source] += 1
        aligned = next(place for place, key in enumerate(task["clips"]) if asked.clip(key).source == "aligned")
        asked.choose(person, task["item"], ("left", "right")[aligned])
    assert 16 < lefts["base"] < 48  # 64 fair draws leave this range once in 70,000 times; these are fixed by the seed
    pairs = {pair.key: pair for pair in asked.pairs}
    for answer in asked.given("compare"):
        assert getattr(pairs[answer.item], answer.value["choice"]).source == "aligned"


def test_an_undone_side_is_reported_as_the_annotator_saw_it(tmp_path):
    asked = survey(tmp_path, annotators=9)
    for person, side in zip(PEOPLE, ("left", "right", "tie", "right", "left"), strict=True):
        task = asked.next(person, "compare")["task"]
        asked.choose(person, task["item"], side)
        asked.undo(person, "compare")
        again = asked.next(person, "compare")["task"]
        assert (again["item"], again["clips"], again["said"]) == (task["item"], task["clips"], side)


def test_a_comparison_shows_what_each_clip_was_made_for(tmp_path):
    """Once if both were made for the same caption and image, else one for each side."""
    asked = survey(tmp_path)
    (shared,) = asked.next("ann", "compare")["task"]["conditions"]
    assert shared["prompt"] in {pair.first.prompt for pair in asked.pairs}
    one, other = (replace(asked.clips[i], first_frame=lambda i=i: b"%d" % i) for i in (0, 1))
    asked = replace(asked, clips=[one, other], pairs=[Pair(one, other)])
    task = asked.next("ben", "compare")["task"]
    assert [asked.clip(key).prompt for key in task["clips"]] == [said["prompt"] for said in task["conditions"]]
    assert [said["first_frame"] for said in task["conditions"]] == task["clips"]


def test_a_task_does_not_reveal_the_source(tmp_path):
    asked = survey(tmp_path)
    for kind in ("rate", "compare"):
        told = repr(asked.next("ann", kind))
        assert "base" not in told
        assert "aligned" not in told


def test_answers_to_another_rubric_are_kept_apart(tmp_path):
    asked = survey(tmp_path)
    rate_all(asked, "ann")
    asked.store.close()
    assert survey(tmp_path, rubric="anime").next("ann", "rate")["progress"]["left"] == 6


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "a\x00b"])
def test_names_are_normalised_and_checked(tmp_path, name):
    asked = survey(tmp_path)
    with pytest.raises(ValueError, match="1 to 40 printable"):
        asked.next(name, "rate")


def test_bad_answers_are_refused(tmp_path):
    asked = survey(tmp_path)
    clip, good = asked.clips[0].key, all_of(asked, 3)
    with pytest.raises(ValueError, match="text = 6: a rating is 1 to 5"):
        asked.rate("ann", clip, good | {"text": 6})
    with pytest.raises(ValueError, match="expected text, appeal, smoothness"):
        asked.rate("ann", clip, {"text": 3})
    with pytest.raises(UnknownItemError, match="no such clip"):
        asked.rate("ann", "../secret", good)
    with pytest.raises(UnknownItemError, match="no such pair"):
        asked.choose("ann", clip, "left")
    assert asked.given("rate") == []
