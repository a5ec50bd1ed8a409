"""The split: linked rows stay together, and the test part shares nothing with training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data.ratings import BadRow, RatedClip, read_ratings, write_ratings
from common.errors import ConfigError
from rewarders.training.dataset import RatedDataset, Split, hash_keys, split, unseen
from tests.support.rewarders.rated_clips import grey_clips, rated


def leak_keys(*rows: str) -> list[frozenset[str]]:
    return [frozenset(row.split()) for row in rows]


def test_no_leak_key_is_in_two_parts() -> None:
    rng = np.random.default_rng(0)
    rows = [frozenset({f"prompt {rng.integers(90)}", f"character {rng.integers(60)}"}) for _ in range(120)]
    parts = split(rows, 0, "r")
    sides = [frozenset().union(*(rows[i] for i in part)) for part in (parts.train, parts.validation, parts.test)]
    assert all(not a & b for i, a in enumerate(sides) for b in sides[:i])
    assert sorted(np.concatenate([parts.train, parts.validation, parts.test])) == list(range(120))
    assert all(sides)


def test_links_reach_through_others() -> None:
    """1 and 3 share nothing, but both share something with 2."""
    rows = leak_keys("p1 c1", "p2 c1", "p2 c2", "p4", "p5", "p6")
    for seed in range(4):
        parts = split(rows, seed, "r")
        assert {0, 1, 2} <= set(parts.train.tolist())  # the largest group, to the largest share
        assert len(parts.validation) == len(parts.test) == 1


def test_shares_are_kept_and_the_seed_decides() -> None:
    rows = [frozenset({f"p{i // 2}"}) for i in range(200)]
    parts = split(rows, 0, "r")
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [140, 30, 30]
    assert split(rows, 0, "r").test.tolist() == parts.test.tolist() != split(rows, 1, "r").test.tolist()


def test_too_few_groups_say_what_links_them() -> None:
    with pytest.raises(ConfigError, match=r"r: 3 rated clips form 1 groups .* need 3 \(3 share the 'character_bob'\)$"):
        split(leak_keys("p1 character_bob", "p2 character_bob", "p3 character_bob"), 0, "r")
    assert isinstance(split(leak_keys("a", "b", "c"), 0, "r"), Split)


def test_rows_share_prompts_pictures_and_characters(tmp_path: Path) -> None:
    file = grey_clips(tmp_path, 4, 1)
    one, two, three, four = read_ratings(file).rows
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    rows = [
        one,
        two.model_copy(update={"prompt": " GREY  0"}),
        three.model_copy(update={"first_frame": "copy.png", "character": "Bob"}),
        four.model_copy(update={"character": "bob"}),
    ]
    write_ratings(file, rows)
    data = rated(file)
    with pytest.raises(ConfigError, match="4 rated clips form 1 groups"):
        split(data.leak_keys(), 0, "r")
    assert data.groups().tolist() == [0, 1, 2, 3]  # only equal prompts *and* pictures compete
    known = hash_keys(data.leak_keys()[3])
    assert unseen(data.leak_keys(), known).tolist() == [0, 1]


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
