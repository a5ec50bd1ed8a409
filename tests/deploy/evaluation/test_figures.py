"""Means over prompts, paired changes and wins, worked out by hand; prompts that a model lacks are left out of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from common.candidate_set.folder import read_set
from common.errors import ConfigError
from deploy.evaluation.figures import Evaluation, MeasuredModel, compare, measure
from tests.support.candidates import group, make_set


def model(folder: Path, label: str, scores: dict[int, Sequence[float]], name: str = "appeal") -> MeasuredModel:
    """A model whose clips of prompt `number` have `scores[number]`."""
    made = [group(number, given, name=name) for number, given in scores.items()]
    return measure(label, read_set(make_set(folder / label, made)), None)


def compared(folder: Path, *scores: dict[int, Sequence[float]]) -> Evaluation:
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
    assert found.left_out == {"a": ["prompt-7"], "b": ["prompt-2", "prompt-7"], "c": ["prompt-2"]}


def test_only_figures_of_every_clip_are_compared(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a", {0: [1.0], 1: [2.0]}), model(tmp_path, "b", {0: [1.0], 1: [2.0]}, name="motion")
    with pytest.raises(ConfigError, match="a, b: no score in common"):
        compare([a, b], "a")
    with pytest.raises(ConfigError, match="1 prompts in common; compare models on the same prompts"):
        compare([a, model(tmp_path, "c", {0: [1.0], 5: [2.0]})], "a")


def test_changes_are_listed_by_prompt(tmp_path: Path) -> None:
    found = compared(tmp_path, {0: [10.0], 1: [20.0]}, {0: [11.0], 1: [18.0]})
    assert [found.changes["b"][key]["appeal"] for key in found.prompts] == [1.0, -2.0]
