"""The sampling benchmark: both ways make the same clips, operations are counted right, all rows are there."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest

from actors.sampler import Sampler
from benchmarks import sampling
from common.clips import decode_clip
from common.models import ModelFolder, open_model
from tests.tiny import tiny_pipeline


def given(model: str, **more: object) -> argparse.Namespace:
    values = {"device": "cpu", "rounds": 1, "steps": 2, "guidance": 3.0, "micro_batch": 4, "quality": 2}
    return argparse.Namespace(model=model, **(values | {"shortcuts": ["half the steps"]} | more))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(tiny_pipeline(tmp_path_factory.mktemp("tiny")))


def test_both_ways_make_the_same_clips(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = given("toon")
    config = sampling.settings(asked)
    (prompt,) = sampling.prompts(asked, model, 1)
    mine = sampling.ours(Sampler(model, config), prompt, [5, 6])
    theirs = sampling.plain(sampling.open_pipeline(model, config), config, prompt, [5, 6])
    for one, other in zip(mine, theirs, strict=True):
        assert np.abs(decode_clip(one).astype(float) - decode_clip(other)).mean() < 1


def test_operations_are_those_of_the_layers(model: ModelFolder) -> None:
    """Twice the layers, and the difference by hand: 2 operations for every weight and token, and attention's products.

    Width 32, 3 x 6 x 8 patches of latents and 12 words: 156 tokens. A layer: q, k, v, out and the MLP of 4 x 32 are
    12 x 32 x 32 weights a token; two adaptive norms of 16 x 192 weights a clip; attention 2 products of 156 x 156 x 32.
    """
    config = sampling.settings(given("toon", guidance=1.0, steps=5))
    more = replace(model, transformer_config=model.transformer_config | {"num_layers": 4})
    difference = sampling.operations(more, config) - sampling.operations(model, config)
    layer = 2 * 156 * 12 * 32 * 32 + 2 * 2 * 16 * 192 + 2 * 2 * 156 * 156 * 32
    assert difference == 5 * 2 * layer


def test_every_shortcut_changes_something() -> None:
    asked = given("toon")
    plain = sampling.settings(asked).sampler
    for words, flags in sampling.SHORTCUTS.items():
        assert (sampling.settings(asked, **flags).sampler != plain) == (words != "half the steps")


def test_the_report() -> None:
    report = sampling.measure(given("toon"))
    words = [row.case for row in report.rows]
    assert words[0] == "4 candidates, exact; other: the pipeline 4 times"
    assert words[1] == "half the steps; other: exact"
    assert [one.split(":")[1].split(" [")[0].rpartition(" ")[0].strip() for one in words[2:]] == [
        "reward",
        "oracle's identity",
        "oracle's motion",
        "oracle's smoothness",
    ]
    assert all(row.ours > 0 and row.other and row.other > 0 for row in report.rows)
    assert report.rows[0].limit is not None
    assert report.rows[0].limit > report.rows[0].ours
    assert report.aims[0].met == (report.aims[0].value >= 1.5)
