"""Means over prompts, paired changes and wins, worked out by hand; prompts that a model lacks are left out of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.candidate_set.folder import read_set
from common.errors import ConfigError
from deploy.evaluation.figures import Evaluation, MeasuredModel, compare, measure
from deploy.evaluation.report import verdicts
from deploy.evaluation.tables import heading
from tests.support.candidates import group, make_set


def model(folder: Path, label: str, scores: Mapping[int, Sequence[float]], name: str = "appeal") -> MeasuredModel:
    """A model whose clips of prompt `number` have `scores[number]`."""
    made = [group(number, given, name=name) for number, given in scores.items()]
    return measure(label, read_set(make_set(folder / label, made)), None)


def compared(folder: Path, *scores: Mapping[int, Sequence[float]]) -> Evaluation:
    models = [model(folder, label, given) for label, given in zip("abc", scores, strict=False)]
    return compare(models, "a")


def test_a_prompt_counts_once_with_the_mean_of_its_clips(tmp_path: Path) -> None:
    found = compared(tmp_path, {0: [10.0, 30.0], 1: [50.0]}, {0: [40.0], 1: [50.0, 50.0]})
    row = found.figures["appeal"]
    assert row["a"]["mean"] == 35.0  # (20 + 50) / 2, and not (10 + 30 + 50) / 3
    assert row["b"]["mean"] == 45.0
    assert row["b"]["change"]["mean"] == 10.0
    assert (len(found.prompts), found.clips) == (2, 3)
    assert "change" not in row["a"]


def test_wins_ties_and_losses_are_shares_of_the_prompts(tmp_path: Path) -> None:
    base = {number: [50.0] for number in range(5)}
    other = {0: [50.5], 1: [80.0], 2: [50.4], 3: [49.6], 4: [49.5]}
    row = compared(tmp_path, base, other).figures["appeal"]["b"]
    assert (row["win"], row["lose"]) == (0.4, 0.2)
    assert row["tie"] == pytest.approx(0.4)


def test_the_interval_is_paired_by_prompt(tmp_path: Path) -> None:
    """Prompts differ by 100 points, but every one gains exactly 2: the change is certain."""
    base = {number: [10.0 * number] for number in range(10)}
    other = {number: [10.0 * number + 2] for number in range(10)}
    row = compared(tmp_path, base, other).figures["appeal"]["b"]
    assert row["change"] == {"mean": 2.0, "low": 2.0, "high": 2.0}
    assert row["high"] - row["low"] > 20


def test_prompts_that_a_model_lacks_are_left_out_of_all(tmp_path: Path) -> None:
    both = {0: [10.0], 1: [20.0]}
    found = compared(tmp_path, both | {2: [90.0]}, both, both | {7: [1.0]})
    assert [found.figures["appeal"][label]["mean"] for label in "abc"] == [15.0] * 3
    lacks = {"a": ["prompt-7"], "b": ["prompt-2", "prompt-7"], "c": ["prompt-2"]}
    assert found.left_out == {label: dict.fromkeys(names, "no clip") for label, names in lacks.items()}
    assert (found.clips, found.asked) == (2, 4)


def test_the_verdict_of_a_model_that_often_has_no_clip_says_so_and_names_the_prompts(tmp_path: Path) -> None:
    """20 prompts rise by 10, but the other model has no clip of 4 more, and one is refused on both sides."""
    base = {number: [50.0] for number in range(24)}
    sides = [
        model(tmp_path, label, given, "reward") for label, given in (("a", base), ("b", {n: [60.0] for n in range(20)}))
    ]
    sides = [replace(one, values={name: {"reward": row.scores["reward"]} for name, row in one.candidates.rows.items()})
             for one in sides]  # fmt: skip
    refused = {"a": {"bad": "no figure"}, "b": {"bad": "no figure", "prompt-20": "too dark"}}
    found = compare(sides, "a", refused)
    assert (found.clips, found.asked) == (20, 25)
    (line,) = verdicts(found)
    assert line.startswith("b: Not verified. more than 10 % of the clips have no score.")
    assert "bad (a: no figure)" in line
    assert "prompt-20 (b: too dark)" in line
    assert verdicts(compare([sides[0], replace(sides[0], label="b")], "a"))[0].startswith("b: Not verified. mean")


def test_a_prompt_without_a_reward_is_named(tmp_path: Path) -> None:
    given = {number: [50.0, 50.0] for number in range(12)}
    sides = [model(tmp_path, label, given, "reward") for label in "ab"]
    clip = next(name for name, row in sides[1].candidates.rows.items() if row.prompt_id == "prompt-3")
    sides[1] = replace(sides[1], values={**sides[1].values, clip: {}})
    found = compare(sides, "a")
    assert found.left_out == {"b": {"prompt-3": "no reward"}}
    assert found.counted["reward"] == 11
    assert "Left out, without a score: prompt-3 (b: no reward)." in verdicts(found)[0]


def test_other_seeds_are_not_called_the_same(tmp_path: Path) -> None:
    a = model(tmp_path, "a", {0: [1.0], 1: [2.0]})
    made = [group(number, [1.0], seed=seed) for number, seed in ((0, 0), (1, 5))]
    b = measure("b", read_set(make_set(tmp_path / "other", made)), None)
    assert compare([a, replace(a, label="b")], "a").same_seeds
    assert not compare([a, b], "a").same_seeds
    assert "2 prompts, other seeds;" in heading(compare([a, b], "a"))


def test_only_figures_of_every_clip_are_compared(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a", {0: [1.0], 1: [2.0]}), model(tmp_path, "b", {0: [1.0], 1: [2.0]}, name="motion")
    assert compare([a, b], "a").figures == {}
    with pytest.raises(ConfigError, match="1 prompts in common; compare models on the same prompts"):
        compare([a, model(tmp_path, "c", {0: [1.0], 5: [2.0]})], "a")


def test_changes_are_listed_by_prompt(tmp_path: Path) -> None:
    found = compared(tmp_path, {0: [10.0], 1: [20.0]}, {0: [11.0], 1: [18.0]})
    assert [found.changes["b"][key]["appeal"] for key in found.prompts] == [1.0, -2.0]
