"""Training on ratings: features once, the head learns, training resumes, bad clips are left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.ratings import read_ratings, write_ratings
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.weights.tensors import state_digest
from rewarders.toon_heads.heads import CLIP_SHAPE
from rewarders.training import features as cache
from rewarders.training.dataset import RatedDataset
from rewarders.training.pixel_baselines import srcc
from rewarders.training.split import unseen
from rewarders.training.train import HeadTraining, seen_in_training, train_reward, train_toon_head
from tests.support.rewarders.rated_clips import Light, grey_clips, rated

PLAN = HeadTraining(epochs=40, batch=8, lr=0.3, patience=10)


def silent(line: str) -> None:
    del line


def test_features_are_computed_once(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 3, 2))
    light = Light()
    rows, cached, bad = cache.features(light, data, tmp_path / "f", silent)
    seen = cached[rows]
    assert (rows.tolist(), bad, light.looked) == (list(range(6)), [], 6)
    assert seen[:, 0].tolist() == pytest.approx((data.scores("light") / 100).tolist(), abs=0.02)
    again = Light()
    assert torch.equal(cache.features(again, data, tmp_path / "f", silent)[1][rows], seen)
    assert again.looked == 1  # only the compared row
    kept = sorted((tmp_path / "f").iterdir())
    kept[0].unlink()
    assert torch.equal(cache.features(Light(), data, tmp_path / "f", silent)[1][rows], seen)
    assert sorted((tmp_path / "f").iterdir()) == kept
    with pytest.raises(ConfigError, match="come from other models or options; delete the folder"):
        cache.features(Light(gain=2), data, tmp_path / "f", silent)


def test_clips_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 3, 1))

    class Picky(Light):
        def features(self, clips, prompts):
            if prompts[0].text == "grey 1":
                raise ValueError("too grey")
            return super().features(clips, prompts) * (float("nan") if prompts[0].text == "grey 2" else 1)

    rows, seen, bad = cache.features(Picky(), data, tmp_path / "f", silent)
    assert rows.tolist() == [0]
    assert len(seen) == 1
    assert [row.why for row in bad] == [
        "clips/1-0.mp4: too grey",
        "clips/2-0.mp4: its features are not finite",
    ]


def test_a_head_learns_and_stops(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 16, 3))
    lines: list[str] = []
    light = train_reward(data, Light(), {}, tmp_path / "heads", PLAN, lines.append)
    assert 2 < len(lines) <= 1 + PLAN.epochs
    assert "validation" in lines[1]
    rest = unseen(data, seen_in_training(tmp_path / "heads", "light"))
    assert 3 <= len(rest) <= 12
    scores = light.score([clip for _, clip in data.clips(rest)], [data.prompt(i) for i in rest])
    assert srcc(np.array(scores), data.scores("light")[rest]) > 0.99
    assert np.abs(np.array(scores) - data.scores("light")[rest]).max() < 12


def test_a_resumed_training_ends_in_the_same_head(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 6, 3))

    def cut(line: str) -> None:
        if "step 2/" in line:
            raise KeyboardInterrupt

    plan = HeadTraining(epochs=4, batch=8, lr=0.1)
    with pytest.raises(KeyboardInterrupt):
        train_reward(data, Light(), {}, tmp_path / "cut", plan, cut)
    resumed = Light()
    train_reward(data, resumed, {}, tmp_path / "cut", plan, silent)
    whole = train_reward(data, Light(), {}, tmp_path / "whole", plan, silent)
    assert resumed.looked == 1  # only the compared row was recomputed
    assert state_digest(resumed.head.state_dict()) == state_digest(whole.head.state_dict())


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 6, 3))
    plan = HeadTraining(epochs=1, batch=8)
    train_reward(data, Light(), {"head": "A"}, tmp_path / "h", plan, silent)
    with pytest.raises(ConfigError, match="was trained with other made_of and plan; delete it"):
        train_reward(data, Light(), {"head": "B"}, tmp_path / "h", HeadTraining(epochs=2, batch=8), silent)
    record = json.loads((tmp_path / "h/training/light/seen.json").read_text())
    assert record["clips"] == {"train": 12, "validation": 3, "test": 3}


def test_a_dimension_with_too_few_ratings(tmp_path: Path) -> None:
    file = grey_clips(tmp_path, 6, 1)
    rows = [row.model_copy(update={"ratings": {"a": {"dark": 3}}}) for row in read_ratings(file).rows]
    write_ratings(file, rows)
    with pytest.raises(ConfigError, match="light: 0 clips to train on and 0 to validate on; at least 2 each"):
        train_reward(rated(file), Light(), {}, tmp_path / "h", PLAN, silent)


@pytest.fixture(scope="module")
def toon(tmp_path_factory: pytest.TempPathFactory) -> RatedDataset:
    """Clips of the toon heads' size: of some the lower half flickers, which is rated; one is too small."""
    folder = tmp_path_factory.mktemp("toon")
    file = grey_clips(folder, 12, 2)
    rng = np.random.default_rng(0)
    rows = []
    for i, row in enumerate(read_ratings(file).rows):
        clip = np.full(CLIP_SHAPE if i else (9, 16, 16, 3), 120, np.uint8)
        if i % 2:
            clip[1::2, clip.shape[1] // 2 :] = rng.integers(160, 250)
        (folder / row.clip).write_bytes(encode_mp4(clip, 8))
        rows.append(row.model_copy(update={"ratings": {"eye": {"smoothness": 1 if i % 2 else 5}}}))
    write_ratings(file, rows)
    return rated(file)


def test_a_toon_head_learns_from_ratings_of_clips(toon: RatedDataset, tmp_path: Path) -> None:
    lines: list[str] = []
    plan = HeadTraining(epochs=8, batch=4, lr=4e-3)
    head = train_toon_head(toon, "smoothness", tmp_path, plan, lines.append)
    assert "left out" in lines[0]
    assert "[9, 16, 16, 3]; the toon heads take [9, 48, 64, 3]" in lines[0]
    rest = unseen(toon, seen_in_training(tmp_path, "smoothness"))
    rest = rest[rest > 0]
    scores = np.array(head.score([clip for _, clip in toon.clips(rest)], [toon.prompt(i) for i in rest]))
    good = toon.scores("smoothness")[rest] == 100
    assert scores[good].min() > scores[~good].max() + 20
    again: list[str] = []
    assert train_toon_head(toon, "smoothness", tmp_path, plan, again.append).digest == head.digest
    assert not any("step" in line for line in again)
