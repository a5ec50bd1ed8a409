"""Ratings and pairs on disk: a round trip, and bad rows are named, counted and left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.ratings import (
    RatedClip,
    RatedPair,
    dimensions,
    read_pairs,
    read_ratings,
    to_rating,
    to_score,
    write_pairs,
    write_ratings,
)
from common.data.video import encode_mp4
from common.errors import ConfigError

ALICE_AND_BOB = {"alice": {"smoothness": 4, "motion": 5.0}, "bob": {"smoothness": 3}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips, one first frame, and what only looks like them."""
    (tmp_path / "clips").mkdir()
    for name, level in (("a", 10), ("b", 20), ("c", 30)):
        (tmp_path / f"clips/{name}.mp4").write_bytes(encode_mp4(np.full((3, 16, 16, 3), level, np.uint8), 8))
    whole = (tmp_path / "clips/a.mp4").read_bytes()
    (tmp_path / "clips/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "clips/empty.mp4").write_bytes(b"")
    Image.new("RGB", (16, 16)).save(tmp_path / "first.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


def row(clip: str = "clips/a.mp4", **columns: object) -> dict[str, object]:
    return {"clip": clip, "prompt": "a robot walks", "source": "toon", "ratings": ALICE_AND_BOB} | columns


def lines(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows) + "\n")
    return file


def test_a_rating_is_a_score_and_back() -> None:
    assert [to_score(rating) for rating in (1, 2, 3.5, 5)] == [0, 25, 62.5, 100]
    assert [to_rating(score) for score in (0, 25, 62.5, 100)] == [1, 2, 3.5, 5]


def test_what_is_written_is_read(folder: Path) -> None:
    rows = [
        RatedClip(clip="clips/a.mp4", first_frame="first.png", prompt="läuft", source="real", ratings=ALICE_AND_BOB),
        RatedClip(clip="clips/b.mp4", prompt="x", character="robot", category="walk", source="toon"),
    ]
    write_ratings(folder / "r.jsonl", rows)
    read = read_ratings(folder / "r.jsonl")
    assert (list(read.rows), read.lines, read.bad) == (rows, (1, 2), ())
    assert read.place(read.rows[0].clip) == folder / "clips/a.mp4"
    assert dimensions(read.rows) == ["smoothness", "motion"]
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["broken.png", "first.png", "r.jsonl"]


def test_mean_opinion() -> None:
    clip = RatedClip.model_validate(row())
    assert [clip.mean_opinion(name) for name in ("smoothness", "motion", "appeal")] == [3.5, 5, None]
    assert clip.opinions("smoothness") == [4, 3]


BAD = [
    ("{", "not valid JSON"),
    ([1], "Input should be a valid dictionary"),
    (row("clips/none.mp4"), "clips/none.mp4: not a readable clip: No such file or directory"),
    (row("clips/cut.mp4"), "clips/cut.mp4: not a readable clip"),
    (row("clips/empty.mp4"), "clips/empty.mp4: not a readable clip"),
    (row("./clips/b.mp4"), "clips/b.mp4: already in line 1"),
    (row(first_frame="none.png"), "none.png: not a readable image: No such file or directory"),
    (row(first_frame="broken.png"), "broken.png: not a readable image"),
    (row(prompt=""), 'prompt = "": '),
    ({"clip": "clips/c.mp4", "source": "toon"}, "prompt: Field required"),
    (row(rating={}), "rating: Extra inputs are not permitted"),
    (row(ratings={"alice": {"motion": 6}}), "ratings.alice.motion = 6: Input should be less than or equal to 5"),
    (row(ratings={"alice": {"motion": 0.5}}), "ratings.alice.motion = 0.5: "),
    (row(ratings={"alice": {"motion": "4"}}), 'ratings.alice.motion = "4": Input should be a valid number'),
    (row(ratings={"alice": {"motion": True}}), "ratings.alice.motion = true: "),
    (row(prompt="\u200b\u200d"), "prompt = "),
    (row(prompt="a\0b"), "prompt: a zero character"),
    (row(prompt="a \ud83e"), "prompt: '\\ud83e' is half of a character"),
    ('{"clip": "a.mp4", "clip": "b.mp4"}', "not valid JSON: 'clip' is there twice"),
    (row(ratings={"alice": {"motion": float("nan")}}), "not valid JSON: NaN is no number of JSON"),
]


def test_bad_rows_are_named_counted_and_left_out(folder: Path) -> None:
    good = row("clips/b.mp4")
    file = lines(folder / "r.jsonl", good, "", *(bad for bad, _ in BAD), row("clips/c.mp4"))
    read = read_ratings(file)
    assert [one.clip for one in read.rows] == ["clips/b.mp4", "clips/c.mp4"]
    assert read.lines == (1, 3 + len(BAD))
    for line, (bad, (_, why)) in enumerate(zip(read.bad, BAD, strict=True), start=3):
        assert str(bad).startswith(f"{file}:{line}: {why}")
        assert "\n" not in str(bad)
    summary = read.summary().splitlines()
    assert summary[0] == f"{file}: 2 rows, {len(BAD)} bad rows skipped:"
    assert summary[1] == f"  {read.bad[0]}"
    assert summary[-1] == f"  and {len(BAD) - 10} more"


def test_files_without_a_good_row(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.jsonl: no such file$"):
        read_ratings(folder / "none.jsonl")
    with pytest.raises(ConfigError, match=r"r.jsonl: no rows in it$"):
        read_ratings(lines(folder / "r.jsonl", ""))
    with pytest.raises(ConfigError, match=r"r.jsonl:1: not valid JSON: .*; all 2 rows are bad$"):
        read_ratings(lines(folder / "r.jsonl", "{", "["))
    (folder / "latin.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"latin.jsonl: cannot be read"):
        read_ratings(folder / "latin.jsonl")


def test_pairs(folder: Path) -> None:
    rows = [
        RatedPair(prompt="x", chosen="clips/a.mp4", rejected="clips/b.mp4", chosen_rating=4.5, rejected_rating=2),
        RatedPair(prompt="x", first_frame="first.png", chosen="clips/c.mp4", rejected="clips/b.mp4", annotators=3),
    ]
    write_pairs(folder / "p.jsonl", rows)
    assert list(read_pairs(folder / "p.jsonl").rows) == rows
    pair = {"prompt": "x", "chosen": "clips/a.mp4", "rejected": "clips/b.mp4"}
    (folder / "clips/copy.mp4").write_bytes((folder / "clips/a.mp4").read_bytes())
    bad = [
        (pair | {"rejected": "clips/copy.mp4"}, "clips/a.mp4 and clips/copy.mp4 are the same video"),
        (pair | {"chosen": "clips/b.mp4", "rejected": "clips/a.mp4"}, "clips/a.mp4 and clips/b.mp4: already in line 1"),
        (pair | {"chosen": "clips/../clips/b.mp4"}, "chosen and rejected are the same clip, clips/../clips/b.mp4"),
        (pair | {"chosen_rating": 2, "rejected_rating": 2}, "chosen_rating 2 is not above rejected_rating 2"),
        (pair | {"chosen": "clips/cut.mp4"}, "clips/cut.mp4: not a readable clip"),
        (pair | {"annotators": 0}, "annotators = 0: "),
    ]
    read = read_pairs(lines(folder / "q.jsonl", pair, *(one for one, _ in bad)))
    assert len(read.rows) == 1
    for found, (_, why) in zip(read.bad, bad, strict=True):
        assert found.why.startswith(why)


def test_columns_of_an_older_version_are_refused_with_their_new_names(folder: Path) -> None:
    old = {"prompt": "x", "winner": "clips/a.mp4", "loser": "clips/b.mp4", "winner_rating": 4}
    message = (
        r"p.jsonl:1: renamed columns: winner, loser, winner_rating; write chosen, rejected, chosen_rating instead$"
    )
    with pytest.raises(ConfigError, match=message):
        read_pairs(lines(folder / "p.jsonl", old))


def test_it_imports_no_torch() -> None:
    code = "import sys, common.data.ratings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
