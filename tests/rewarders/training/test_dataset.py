"""Rated clips: their scores, prompts and broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data.ratings import BadRow, RatedClip, read_ratings, write_ratings
from common.errors import ConfigError
from rewarders.training.dataset import RatedDataset, prompt_text
from tests.support.rewarders.rated_clips import grey_clips, rated


def test_scores_are_mean_opinions(tmp_path: Path) -> None:
    file = grey_clips(tmp_path, 3, 1, real=True)
    rows = list(read_ratings(file).rows)
    given = [{"a": {"light": 2}, "b": {"light": 3}}, {"a": {"dark": 5}}, {}]
    write_ratings(file, [row.model_copy(update={"ratings": one}) for row, one in zip(rows, given, strict=True)])
    data = rated(file)
    assert [row.clip for row in data.rows] == [row.clip for row in rows[:2]]
    assert data.scores("light")[0] == 37.5
    assert np.isnan(data.scores("light")[1])
    assert data.candidates().tolist() == [False, False]
    assert data.prompt(1).image == (tmp_path / "1.png").read_bytes()
    write_ratings(file, [row.model_copy(update={"ratings": {}}) for row in rows])
    with pytest.raises(ConfigError, match="none of its 3 clips has a rating"):
        rated(file)


def test_a_clip_that_breaks_off_is_named(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 2, 1))
    (tmp_path / "clips/0-0.mp4").write_bytes(b"gone since")
    (_, first), (_, second) = data.clips([0, 1])
    assert isinstance(first, BadRow)
    assert str(first).startswith(f"{tmp_path}/ratings.jsonl:1: clips/0-0.mp4: ")
    assert isinstance(second, np.ndarray)


def test_rows_are_of_the_file(tmp_path: Path) -> None:
    table = read_ratings(grey_clips(tmp_path, 1, 1))
    assert isinstance(RatedDataset(table).rows[0], RatedClip)


def test_captions_are_compared_by_letters_and_digits() -> None:
    assert prompt_text(" A robot\twalks, RIGHT!\n") == prompt_text("a robot walks right") == "a robot walks right"
    assert prompt_text("Ｃａｆｅ\u0301: 2 cats") == prompt_text("café 2 CATS.")
    assert prompt_text("走る、少女。") != prompt_text("走る、少年。")
    assert prompt_text("3 cats") != prompt_text("2 cats")
