"""What is said about scores that make no pairs, and when the run ends because of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from common.config import RunConfig, load_config
from common.exchange.api import State
from common.messages import Purpose, Score
from deploy.guardrails.pair_watch import NoPairsError, PairWatch

CLAMPED = "values outside of 0..100 are clamped; set reward.judges.red.low and high"


def config(**more: str) -> RunConfig:
    return load_config(None, {"reward.path": "", "reward.judges.red.kind": "mine:Red", **more})


def score(group: int, index: int, value: float, purpose: Purpose = Purpose.TRAIN) -> Score:
    return Score(f"{group}-{index}-v0", "r", {"red": value}, purpose=purpose)


class Run:
    """A watch, and the groups that it sees."""

    def __init__(self, **more: str) -> None:
        self.said: list[str] = []
        self.watch = PairWatch(config(**more), self.said.append)
        self.counts: dict[Any, int] = dict.fromkeys(State, 0)
        self.reasons: dict[int, str] = {}
        self.advance()

    def advance(self) -> None:
        self.watch.advance(self.counts, lambda: self.reasons)

    def groups(self, count: int, state: State, values: Sequence[float] = ()) -> None:
        for _ in range(count):
            self.group(state, values)

    def group(self, state: State, values: Sequence[float] = ()) -> None:
        number = sum(self.counts.values())
        self.watch.seen([score(number, index, value) for index, value in enumerate(values)])
        self.counts[state] += 1
        if state is State.FAILED:
            self.reasons[number] = f"nan score: red: no face {number}"
        self.advance()


def test_a_constant_judge_is_named_after_8_groups_and_ends_the_run_after_32():
    run = Run()
    for _ in range(31):
        run.group(State.TIED, [50.0, 50.0])
    assert run.said == [f"{n} groups in a row tied: red gave 50.00 to every clip" for n in (8, 16)]
    with pytest.raises(NoPairsError, match=r"^no pairs: 32 groups in a row tied: red gave 50.00 to every clip$"):
        run.group(State.TIED, [50.0, 50.0])


def test_values_below_the_range_are_named_at_once_and_again_as_the_cause():
    run = Run()
    run.group(State.TIED, [-0.5, -0.25])
    assert run.said == [f"red gave -0.50: {CLAMPED}"]
    for _ in range(30):
        run.group(State.TIED, [-0.75, -0.25])
    assert run.said[1] == f"8 groups in a row tied: red gave -0.75 to -0.25; {CLAMPED}"
    with pytest.raises(NoPairsError, match=r"red gave -0.75 to -0.25; values outside of 0..100 are clamped"):
        run.group(State.TIED, [-0.75, -0.25])


def test_a_saturated_judge():
    run = Run()
    with pytest.raises(NoPairsError, match=r"32 groups in a row tied: red gave 120.00 to 150.00; values outside"):
        run.groups(32, State.TIED, [120.0, 150.0])


def test_a_judge_of_the_caption_alone_gives_each_group_one_value():
    run = Run()
    for number in range(31):
        run.group(State.TIED, [float(number)] * 2)
    with pytest.raises(NoPairsError, match=r"32 groups in a row tied: red gave 0.00 to 31.00$"):
        run.group(State.TIED, [31.0, 31.0])


def test_ties_by_a_minimal_gap_are_said_and_do_not_end_the_run():
    run = Run(**{"algorithm.min_gap": "0.5"})
    for _ in range(40):
        run.group(State.TIED, [40.0, 60.0])
    assert run.said[0] == "8 groups in a row tied: a group's rewards differ too little; red gave 40.00 to 60.00"
    assert len(run.said) == 3


def test_a_pair_begins_the_count_again():
    run = Run()
    for _ in range(10):
        for _ in range(7):
            run.group(State.TIED, [50.0, 50.0])
        run.group(State.READY, [40.0, 50.0])
    assert run.said == []


def test_failed_groups_are_named_with_the_last_reason():
    run = Run()
    with pytest.raises(NoPairsError, match=r"^no pairs: 32 groups in a row failed: nan score: red: no face 31$"):
        run.groups(32, State.FAILED)
    assert run.said == [f"{n} groups in a row failed: nan score: red: no face {n - 1}" for n in (8, 16)]


def test_a_range_is_mentioned_once_and_rounding_not_at_all():
    run = Run()
    run.watch.seen([score(0, 0, 100.0001, Purpose.EVAL), score(0, 1, -0.0001, Purpose.EVAL)])
    assert run.said == []
    run.watch.seen([score(0, 0, 103.0, Purpose.EVAL), score(0, 1, 104.0, Purpose.EVAL)])
    assert run.said == [f"red gave 103.00: {CLAMPED}"]
