"""Merging joins sets without repeating a candidate, and can be repeated after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.candidate_set.folder import read_set, writing_to
from common.candidate_set.merge import merge
from common.errors import ConfigError
from common.messages import Score
from tests.support.candidates import WEIGHTS, group, make_set


def test_sets_are_joined(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", [group(1, [10.0, 20.0]), group(2, [30.0])])
    two = make_set(tmp_path / "two", [group(2, [30.0]), group(3, [40.0])])
    said: list[str] = []
    assert merge(tmp_path / "all", [one, two], said.append) == 4
    found = read_set(tmp_path / "all")
    assert [row.prompt_id for row in found.rows.values()] == ["prompt-1", "prompt-1", "prompt-2", "prompt-3"]
    assert list(found.faults()) == []
    assert said[1].endswith("two: 1 of 2 candidates added")
    assert merge(tmp_path / "all", [one, two], said.append) == 0
    assert read_set(tmp_path / "all").digest == found.digest


def test_more_candidates_of_a_prompt_enlarge_its_group(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", [group(1, [10.0, 20.0])])
    two = make_set(tmp_path / "two", [group(1, [30.0, 40.0], seed=5)])
    merge(tmp_path / "all", [one, two], lambda _: None)
    (rows,) = read_set(tmp_path / "all").groups().values()
    assert [row.scores["appeal"] for row in rows] == [10.0, 30.0, 20.0, 40.0]


def test_scores_that_a_candidate_lacks_are_added(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", [group(1, [10.0])])
    two = make_set(tmp_path / "two", [group(1, [99.0])])
    (name,) = read_set(two).rows
    with writing_to(two) as writer:
        writer.add_scores({name: Score(name, "judge-2", {"vs": 55.0})})
    merge(one, [two], lambda _: None)
    assert read_set(one).rows[name].scores == {"appeal": 10.0, "vs": 55.0}  # its own score of appeal stays


def test_sets_of_other_settings_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    one = make_set(tmp_path / "one", [group(1, [10.0])])
    two = make_set(tmp_path / "two", [group(2, [10.0])], model__frames=49)
    with pytest.raises(ConfigError, match=r"two: .*model.frames \(49 there, 9 here\)"):
        merge(tmp_path / "all", [one, two], lambda _: None)
    assert not (tmp_path / "all").exists()
    assert read_set(one).rows.keys().isdisjoint(read_set(two).rows)
    assert all(row.weights == WEIGHTS for row in read_set(one).rows.values())
