"""Exported files can be read by `common/data/ratings.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.data.ratings import read_pairs, read_ratings
from common.data.video import decode_clip
from common.errors import ConfigError
from common.images import encode_png
from rewarders.annotation.export import PAIRS, RATINGS, export
from rewarders.annotation.items import Pair
from rewarders.annotation.survey import Survey
from tests.support.rewarders.survey import all_of, survey


def vote(asked: Survey, pair: int, sources: dict[str, str | None]) -> None:
    """annotator -> the source they prefer, None for a tie."""
    for annotator, source in sources.items():
        chosen = asked.pairs[pair]
        choice = "tie" if source is None else "first" if chosen.first.source == source else "second"
        asked.store.answer(annotator, "compare", chosen.key, {"choice": choice})


def test_ratings_and_pairs_are_read_back(tmp_path):
    asked = survey(tmp_path / "clips_of", annotators=3)
    by_source = {clip.source: clip for clip in asked.clips if clip.prompt == asked.pairs[0].first.prompt}
    asked.rate("ann", by_source["aligned"].key, all_of(asked, 5))
    asked.rate("ben", by_source["aligned"].key, {"text": 4, "smoothness": 4, "appeal": 1})
    asked.rate("ann", by_source["base"].key, all_of(asked, 2))
    vote(asked, 0, {"ann": "aligned", "ben": "aligned", "cleo": "base"})
    vote(asked, 1, {"ann": "aligned", "ben": "base", "cleo": None})
    vote(asked, 2, {"ann": "base"})
    out = tmp_path / "deep" / "out"
    assert export(asked, out) == (
        f"{out}: 2 rated clips, 2 pairs; 1 ties left out; 2 clips have fewer than 3 annotators"
    )

    ratings, pairs = read_ratings(out / RATINGS), read_pairs(out / PAIRS)
    assert not ratings.bad
    assert not pairs.bad
    rated = {row.source: row for row in ratings.rows}
    assert rated["aligned"].ratings == {"ann": all_of(asked, 5), "ben": {"text": 4, "smoothness": 4, "appeal": 1}}
    assert rated["aligned"].mean_opinion("appeal") == 3
    assert ratings.place(rated["base"].clip).resolve() == by_source["base"].file.resolve()
    decided, alone = pairs.rows
    assert pairs.place(decided.chosen).resolve() == by_source["aligned"].file.resolve()
    assert (decided.chosen_rating, decided.rejected_rating, decided.annotators) == (4, 2, 3)
    assert (alone.chosen_rating, alone.annotators, alone.category) == (None, 1, "walk")


def test_a_comparison_overrides_contradicting_ratings(tmp_path):
    asked = survey(tmp_path / "clips_of")
    for clip in asked.clips:
        asked.rate("ann", clip.key, all_of(asked, 5 if clip.source == "base" else 1))
    vote(asked, 0, {"ann": "aligned"})
    export(asked, tmp_path / "out")
    (row,) = read_pairs(tmp_path / "out" / PAIRS).rows
    assert "aligned" in row.chosen
    assert row.chosen_rating is row.rejected_rating is None


def test_a_pair_across_first_frames_keeps_the_condition_of_both(tmp_path):
    asked = survey(tmp_path / "clips_of")
    first, second = (
        replace(clip, file=None, prompt="it walks", first_frame=lambda name=clip.name: picture(name))
        for clip in asked.clips[:2]
    )
    asked = replace(asked, clips=[first, second], pairs=[Pair(first, second)])
    asked.store.answer("ann", "compare", asked.pairs[0].key, {"choice": "second"})
    export(asked, tmp_path / "out")
    (row,) = read_pairs(tmp_path / "out" / PAIRS).rows
    read = [(tmp_path / "out" / name).read_bytes() for name in (row.first_frame, row.rejected_first_frame)]
    assert read == [picture(second.name), picture(first.name)]
    assert (row.prompt, row.rejected_prompt) == ("it walks", "it walks")


def picture(name: str) -> bytes:
    return encode_png(np.full((48, 64, 3), 7 * len(name) + ord(name[-5]), np.uint8))


def test_clips_without_a_file_are_written_beside(tmp_path):
    asked = survey(tmp_path / "clips_of")
    inside = [replace(clip, file=None) for clip in asked.clips]
    asked = replace(asked, clips=inside)
    asked.rate("ann", inside[0].key, all_of(asked, 3))
    export(asked, tmp_path / "out")
    (row,) = read_ratings(tmp_path / "out" / RATINGS).rows
    written = tmp_path / "out" / row.clip
    assert written.parent == tmp_path / "out" / "clips"
    assert len(decode_clip(written.read_bytes())) == 16


def test_answers_under_several_rubrics_come_together(tmp_path):
    asked = survey(tmp_path / "clips_of")
    key = asked.clips[0].key
    asked.rate("ann", key, all_of(asked, 3))
    more = survey(tmp_path / "clips_of", rubric="anime")
    more.rate("ann", key, all_of(more, 4))
    export(more, tmp_path / "out")
    (row,) = read_ratings(tmp_path / "out" / RATINGS).rows
    assert row.ratings == {"ann": all_of(more, 4) | all_of(asked, 3)} or row.ratings == {
        "ann": all_of(asked, 3) | all_of(more, 4)
    }


def test_existing_files_and_empty_surveys_are_refused(tmp_path):
    asked = survey(tmp_path / "clips_of")
    with pytest.raises(ConfigError, match="no answers yet"):
        export(asked, tmp_path / "out")
    asked.rate("ann", asked.clips[0].key, all_of(asked, 3))
    export(asked, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"ratings.jsonl: exists already; choose another folder"):
        export(asked, tmp_path / "out")
