"""The heads' benchmark on a few clips: every row and aim is there."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from benchmarks import heads
from benchmarks.harness import as_json
from common.config import DIMENSIONS
from common.toon.prompts import ToonPrompts, shot_of
from common.toon.world import render


def test_rows_and_aims() -> None:
    report = heads.measure(Namespace(rendered=24, sampled=6))
    assert len(report.rows) == 3 * len(DIMENSIONS)
    assert all(-1 <= row.ours <= 1 and row.other is not None and 0 <= row.other <= 1 for row in report.rows)
    # The embedded heads on clips with defects: no luck on 24 clips brings 0.5 on average.
    assert np.mean([row.ours for row in report.rows[:6]]) > 0.5
    rendered, policy, wrong_caption = report.aims
    assert rendered.value == min(row.ours for row in report.rows[:6])
    assert policy.met == (min(row.ours for row in report.rows[6:12]) >= 0.6)
    assert wrong_caption.value == min(row.ours for row in report.rows[12:])
    # What all clips heard says nothing of text; how far a figure went that did another thing is not known.
    limits = {where: [row.limit for row in report.rows[i : i + 6]] for where, i in zip("rpd", (0, 6, 12), strict=True)}
    assert limits["r"] == [None] * 6
    assert [name for name, limit in zip(DIMENSIONS, limits["p"], strict=True) if limit is None] == ["text"]
    assert [name for name, limit in zip(DIMENSIONS, limits["d"], strict=True) if limit is None] == ["motion"]
    assert all(-1 <= limit <= 1 for limit in [*limits["p"], *limits["d"]] if limit is not None)
    assert as_json(report)["name"] == "heads"


def test_clean_clips_are_rated_well() -> None:
    """Nothing is lost of rendered clips; text and motion are full where the prompt was heard, else none and unknown."""
    prompts = ToonPrompts(1).heldout(3, 1)
    clips = [render(shot_of(prompt)) for prompt in prompts]
    shots = [heads._captioned_shot(prompt, wrong_caption=False) for prompt in prompts]
    heard = heads._rated(clips, shots, wrong_caption=False)
    assert sorted(heard) == sorted(DIMENSIONS)
    assert all(value.min() > 95 for value in heard.values())
    shots = [heads._captioned_shot(prompt, wrong_caption=True) for prompt in prompts]
    assert all(shot.action != shot_of(prompt).action for shot, prompt in zip(shots, prompts, strict=True))
    unheard = heads._rated([render(shot) for shot in shots], shots, wrong_caption=True)
    assert unheard["text"].tolist() == [0, 0, 0]
    assert np.isnan(unheard["motion"]).all()
    assert unheard["appeal"].min() > 95
