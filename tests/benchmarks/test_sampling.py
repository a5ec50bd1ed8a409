"""The sampling benchmark: both ways make the same clips, operations are counted right, all rows are there."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest

from actors.sampler import Sampler
from benchmarks import sampling
from benchmarks.device import operations
from benchmarks.options import prompts_for
from benchmarks.random_models import sizes_of
from common.data.video import decode_clip
from common.models.cogvideox import ModelFolder, open_model
from tests.support.tiny import tiny_pipeline


def given(model: str, **more: object) -> argparse.Namespace:
    values = {"device": "cpu", "rounds": 1, "steps": 2, "guidance": 3.0, "micro_batch": 4, "quality": 2}
    values |= {"shortcuts": ["half the steps"], "vae_tiling": False, "frames": None, "height": None, "width": None}
    return argparse.Namespace(model=model, **(values | more))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(tiny_pipeline(tmp_path_factory.mktemp("tiny")))


def test_both_ways_make_the_same_clips(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = given("toon")
    config = sampling.settings(asked)
    (prompt,) = prompts_for(asked, model).heldout(1, 0)
    mine = sampling.ours(Sampler(model, config), prompt, [5, 6])
    theirs = sampling.plain(sampling.open_pipeline(model, config), config, prompt, [5, 6])
    for one, other in zip(mine, theirs, strict=True):
        assert np.abs(decode_clip(one).astype(float) - decode_clip(other)).mean() < 1


def test_operations_are_those_of_the_layers(model: ModelFolder) -> None:
    """Twice the layers, and the difference by hand: 2 operations for every weight and token, and attention's products.

    Width 32, 3 x 6 x 8 patches of latents and 12 words: 156 tokens. A layer: q, k, v, out and the MLP of 4 x 32 are
    12 x 32 x 32 weights a token; attention 2 products of 156 x 156 x 32.
    """
    config = sampling.settings(given("toon", guidance=1.0, steps=5))
    sizes = sizes_of(model)
    more = replace(sizes, transformer=sizes.transformer | {"num_layers": 4})
    layer = 2 * 156 * 12 * 32 * 32 + 2 * 2 * 156 * 156 * 32
    assert operations(more, config)[0] - operations(sizes, config)[0] == 5 * 2 * layer


def test_every_shortcut_changes_something() -> None:
    asked = given("toon")
    plain = sampling.settings(asked).sampler
    changed = [sampling.shortened(asked, name).sampler for name in sampling.SHORTCUTS]
    assert plain not in changed
    assert len(set(map(repr, changed))) == len(changed)


def test_the_report() -> None:
    report = sampling.measure(given("toon"))
    cases = [row.case for row in report.rows]
    assert cases[0] == "4 candidates, exact; other: the pipeline 4 times"
    assert cases[1].endswith("ratio: MFU")
    assert cases[2] == "half the steps; other: exact"
    assert [one.split(":")[1].split(" [")[0].rpartition(" ")[0].strip() for one in cases[3:]] == [
        "reward",
        "oracle's identity",
        "oracle's motion",
        "oracle's smoothness",
    ]
    assert all(row.ours > 0 and row.other and row.other > 0 for row in report.rows)
    speed, use = report.rows[:2]
    assert speed.limit is not None
    assert use.ratio is not None
    assert use.ratio.median == pytest.approx(speed.ours / speed.limit)  # on a CPU both stand on the same peak
    assert report.aims[0].met == (report.aims[0].value >= 1.5)
