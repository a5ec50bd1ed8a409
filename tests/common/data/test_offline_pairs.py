"""Pairs from files: which pairs, in which order, and unusable clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from common.config import ModelConfig
from common.data.offline_pairs import PAIRS_PER_CLIP, OfflinePairs, PairClip, _two_of
from common.data.ratings import RatedClip, RatedPair, write_pairs, write_ratings
from common.data.video import encode_mp4
from common.errors import ConfigError
from deploy.runtime.inputs.offline_pairs import name_faults
from tests.support.rewarders.survey import frames, write_clips
from tests.support.videos import cut, quarters, video

MODEL = ModelConfig(frames=9, height=48, width=64, fps=8)


def rated(folder: Path, opinions: Mapping[str, tuple[str, int]], count: int = 16) -> Path:
    """A ratings file of name -> (category, rating)."""
    write_clips(folder, list(opinions), count)
    rows = [
        RatedClip(clip=name, prompt="it walks", category=category, source="a", ratings={"ann": {"text": rating}})
        for name, (category, rating) in opinions.items()
    ]
    write_ratings(folder / "ratings.jsonl", rows)
    return folder / "ratings.jsonl"


def test_all_pairs_of_a_category_with_different_opinions_are_made(tmp_path):
    file = rated(tmp_path, {"a.mp4": ("walk", 5), "b.mp4": ("walk", 2), "c.mp4": ("walk", 2), "d.mp4": ("jump", 4)})
    pairs = OfflinePairs(file, MODEL, seed=0).pairs
    names = {(pair.chosen.clip.name, pair.rejected.clip.name) for pair in pairs}
    assert names == {("a.mp4", "b.mp4"), ("a.mp4", "c.mp4")}
    assert {(pair.chosen.score, pair.rejected.score) for pair in pairs} == {(100.0, 25.0)}


def test_one_category_can_be_chosen(tmp_path):
    opinions = {"a.mp4": ("walk", 5), "b.mp4": ("walk", 2), "c.mp4": ("jump", 2), "d.mp4": ("jump", 4)}
    file = rated(tmp_path, opinions)
    assert {pair.category for pair in OfflinePairs(file, MODEL, 0).pairs} == {"walk", "jump"}
    (pair,) = OfflinePairs(file, MODEL, 0, "jump").pairs
    assert (pair.chosen.clip.name, pair.rejected.clip.name) == ("d.mp4", "c.mp4")
    with pytest.raises(ConfigError, match=r"pairs_category = 'smile': .* has pairs of jump, walk"):
        OfflinePairs(file, MODEL, 0, "smile")
    write_pairs(tmp_path / "pairs.jsonl", [RatedPair(prompt="p", chosen="a.mp4", rejected="b.mp4")])
    with pytest.raises(ConfigError, match="has pairs of no category"):
        OfflinePairs(tmp_path / "pairs.jsonl", MODEL, 0, "walk")


def test_an_opinion_is_the_mean_over_annotators_of_their_means(tmp_path):
    write_clips(tmp_path, ["a.mp4", "b.mp4"])
    given = {"ann": {"text": 5, "appeal": 4}, "ben": {"text": 3}}
    row = RatedClip(clip="a.mp4", prompt="p", source="s", ratings=given)
    other = RatedClip(clip="b.mp4", prompt="p", source="s", ratings={"ann": {"text": 1}})
    write_ratings(tmp_path / "r.jsonl", [row, other])
    (pair,) = OfflinePairs(tmp_path / "r.jsonl", MODEL, 0).pairs
    assert pair.chosen.score == (3.75 - 1) * 25


def test_pairs_keep_their_ratings_and_unrated_ones_score_100_and_0(tmp_path):
    write_clips(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
    rows = [
        RatedPair(prompt="p", chosen="a.mp4", rejected="b.mp4", chosen_rating=4, rejected_rating=3),
        RatedPair(prompt="p", chosen="c.mp4", rejected="a.mp4"),
    ]
    write_pairs(tmp_path / "pairs.jsonl", rows)
    found = OfflinePairs(tmp_path / "pairs.jsonl", MODEL, 0).pairs
    assert [(pair.chosen.score, pair.rejected.score) for pair in found] == [(75.0, 50.0), (100.0, 0.0)]


def test_a_rejected_clip_keeps_its_own_caption_and_image(tmp_path):
    write_clips(tmp_path, ["a.mp4", "b.mp4"])
    for name in ("a.png", "b.png"):
        Image.fromarray(frames(9, 1)[0]).save(tmp_path / name)
    row = {"prompt": "p", "first_frame": "a.png", "chosen": "a.mp4", "rejected": "b.mp4"}
    for more, text, image in (
        ({}, "p", "a.png"),
        ({"rejected_prompt": "q", "rejected_first_frame": "b.png"}, "q", "b.png"),
        ({"rejected_prompt": "q"}, "q", None),
    ):
        write_pairs(tmp_path / "pairs.jsonl", [RatedPair(**row, **more)])
        (pair,) = OfflinePairs(tmp_path / "pairs.jsonl", MODEL, 0).pairs
        assert (pair.chosen.text, pair.chosen.first_frame) == ("p", tmp_path / "a.png")
        assert (pair.rejected.text, pair.rejected.first_frame) == (text, None if image is None else tmp_path / image)
    with pytest.raises(ValueError, match="rejected_first_frame needs rejected_prompt"):
        RatedPair(**row, rejected_first_frame="b.png")


def test_without_categories_only_clips_of_one_prompt_are_paired(tmp_path):
    write_clips(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
    rows = [
        RatedClip(clip=f"{name}.mp4", prompt=prompt, source="s", ratings={"ann": {"text": rating}})
        for name, prompt, rating in (("a", "p", 5), ("b", "q", 3), ("c", "p", 1))
    ]
    write_ratings(tmp_path / "r.jsonl", rows)
    (pair,) = OfflinePairs(tmp_path / "r.jsonl", MODEL, 0).pairs
    assert (pair.chosen.clip.name, pair.rejected.clip.name, pair.category) == ("a.mp4", "c.mp4", None)


def test_of_a_large_group_random_pairs_are_taken():
    clips = [PairClip(Path(f"{number}.mp4"), "p", None, float(number)) for number in range(300)]
    pairs = _two_of(clips, seed=1)
    assert len(pairs) == len({(one.clip, other.clip) for one, other in pairs}) == PAIRS_PER_CLIP * 300
    assert pairs == _two_of(clips, seed=1) != _two_of(clips, seed=2)
    assert len(list(_two_of(clips[:65], seed=1))) == 65 * 64 // 2


def test_all_pairs_come_once_an_epoch_in_an_order_of_the_seed(tmp_path):
    file = rated(tmp_path, {f"{rating}.mp4": ("walk", rating) for rating in range(1, 6)})
    offline = OfflinePairs(file, MODEL, seed=1)
    epochs = [[offline(ordinal) for ordinal in range(start, start + 10)] for start in (0, 10)]
    for epoch in epochs:
        assert set(map(id, epoch)) == set(map(id, offline.pairs))
    assert epochs[0] != epochs[1]
    assert epochs[0] == [OfflinePairs(file, MODEL, seed=1)(ordinal) for ordinal in range(10)]
    assert epochs[0] != [OfflinePairs(file, MODEL, seed=2)(ordinal) for ordinal in range(10)]


def test_clips_that_are_too_short_are_named_and_left_out(tmp_path):
    file = rated(tmp_path, {"a.mp4": ("walk", 5), "b.mp4": ("walk", 2), "c.mp4": ("walk", 1)})
    (tmp_path / "c.mp4").write_bytes(encode_mp4(frames(0, 8), 8))
    offline = OfflinePairs(file, MODEL, 0)
    assert [pair.rejected.clip.name for pair in offline.pairs] == ["b.mp4"]
    (fault,) = offline.faults.values()
    assert "c.mp4: 8 frames at 8 frames per second are too few: the model takes 9 at 8" in fault
    with pytest.raises(ConfigError, match=r"no pair to train on: .*too few"):
        OfflinePairs(file, ModelConfig(frames=17, fps=8), 0)


def test_a_stream_copied_cut_has_no_frames_before_it(tmp_path):
    (tmp_path / "a.mp4").write_bytes(cut(video(quarters(16), options={"g": "100", "bf": "0"}), 1.25))
    (tmp_path / "a.txt").write_text("a square walks")
    with pytest.raises(ConfigError, match=r"a.mp4: 6 frames at 8 frames per second are too few: the model takes 9"):
        OfflinePairs(tmp_path, MODEL, 0)


def test_skipped_rows_are_named_and_what_is_left_is_counted(tmp_path):
    file = rated(tmp_path, {"a.mp4": ("walk", 5), "b.mp4": ("walk", 2), "c.mp4": ("jump", 1), "d.mp4": ("jump", 4)})
    good = file.read_text()
    file.write_text(f'{good}{good.splitlines()[0]}\n{{"clip": "gone.mp4"}}\nno json\n')
    offline = OfflinePairs(file, MODEL, 0)
    assert [row.line for row in offline.bad_rows] == [5, 6, 7]
    said: list[str] = []
    name_faults(offline, said.append)
    rows, left = said
    assert rows.startswith(f"{file}: bad rows left out (3):\n  {file}:5: a.mp4: already in line 1\n  {file}:6: ")
    assert f"\n  {file}:7: not valid JSON" in rows
    assert left == f"{file}: 2 pairs of 4 clips in 2 categories"


def test_equal_opinions_alone_are_no_pairs(tmp_path):
    file = rated(tmp_path, {"a.mp4": ("walk", 3), "b.mp4": ("walk", 3)})
    with pytest.raises(ConfigError, match="no pair to train on, because all opinions are equal"):
        OfflinePairs(file, MODEL, 0)


def test_a_folder_gives_each_clip_alone(tmp_path):
    write_clips(tmp_path, ["a.mp4", "b.mp4"])
    (tmp_path / "a.txt").write_text("a square walks\n")
    with pytest.raises(ConfigError, match=r"b.mp4: no caption; write it to b\.txt in the same folder"):
        OfflinePairs(tmp_path, MODEL, 0)
    (tmp_path / "b.txt").write_text("it too")
    pairs = OfflinePairs(tmp_path, MODEL, 0).pairs
    assert [(pair.chosen.clip.name, pair.chosen.text, len(pair.clips)) for pair in pairs] == [
        ("a.mp4", "a square walks", 1),
        ("b.mp4", "it too", 1),
    ]


def test_a_pairs_file_with_old_columns_is_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "winner": "a.mp4", "loser": "b.mp4"}\n')
    with pytest.raises(ConfigError, match="renamed columns: winner, loser; write chosen, rejected instead"):
        OfflinePairs(tmp_path / "pairs.jsonl", MODEL, 0)


def test_an_unreadable_file_is_reported_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"pairs .*none.jsonl: no such file"):
        OfflinePairs(tmp_path / "none.jsonl", MODEL, 0)
    (tmp_path / "bad.jsonl").write_text("no json\n")
    with pytest.raises(ConfigError, match=r"bad.jsonl:1: not valid JSON: .*; all 1 rows are bad"):
        OfflinePairs(tmp_path / "bad.jsonl", MODEL, 0)
