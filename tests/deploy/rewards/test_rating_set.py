"""Rating sets: clips of every generator and the source video, and rendered clips with ratings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.config import ModelConfig, load_config
from common.data.ratings import REAL, read_ratings
from common.data.video import decode_clip, encode_mp4
from common.errors import ConfigError
from common.toon.world import DIMENSIONS
from deploy.rewards import rating_set
from deploy.rewards.rating_set import Generator, Inputs, build_from_videos, build_toon, source_clip
from rewarders.training.dataset import RatedDataset
from rewarders.training.split import split_rated
from tests.support.tiny import tiny_pipeline


def video(frames: int, fps: int = 16) -> bytes:
    """Frame t is grey of value 5 t, 96 x 160 pixels, with white margins that a clip of 48 x 64 cuts off."""
    clip = np.full((frames, 96, 160, 3), 255, np.uint8)
    clip[:, :, 16:-16] = (5 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    return encode_mp4(clip, fps)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tiny_pipeline(tmp_path_factory.mktemp("model"))
    return Generator("tiny", load_config(None, {"model.path": str(folder), "sampler.steps": "2"}))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "long.mp4").write_bytes(video(20))
    (folder / "short.mp4").write_bytes(video(10))
    rows = [{"video": "long.mp4", "prompt": "a robot", "character": "Bob", "category": "walk"}]
    rows.append({"video": "short.mp4", "prompt": "a zombie"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_source_clip_is_the_videos_own_time_at_the_models_size() -> None:
    clip = source_clip(video(20), ModelConfig())
    assert clip.shape == (9, 48, 64, 3)
    # 16 frames a second seen at 8: every second one, from the third on
    assert clip.mean((1, 2, 3)) == pytest.approx(5.0 * np.arange(2, 20, 2), abs=2)
    with pytest.raises(ValueError, match=r"18 frames at 16 .* too few: the model takes 9 at 8 from frame 3 on"):
        source_clip(video(18), ModelConfig())


def test_generators_and_the_source_are_rated_alike(generator: Generator, videos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "out"
    inputs = Inputs(videos, captions=videos / "captions.jsonl")
    file = build_from_videos(inputs, out, [generator], 2, 0, lines.append)
    table = read_ratings(file)
    assert table.bad == ()
    assert sorted((row.prompt, row.source) for row in table.rows) == [
        *[("a robot", REAL)],
        *[("a robot", "tiny")] * 2,
        *[("a zombie", "tiny")] * 2,
    ]
    robots = [row for row in table.rows if row.prompt == "a robot"]
    assert {(row.character, row.category, row.first_frame) for row in robots} == {
        ("Bob", "walk", robots[0].first_frame)
    }
    assert all(row.ratings == {} and "tiny" not in row.clip and REAL not in row.clip for row in table.rows)
    shapes = {decode_clip(table.place(row.clip).read_bytes()).shape for row in table.rows}
    assert shapes == {(9, 48, 64, 3)}
    assert any("short.mp4: no source clip: 10 frames at" in line for line in lines)
    assert "1 source clips; 1 prompts have none" in lines
    assert lines[-2:] == ["real: 1 clips, of 1 of 2 captions", "tiny: 4 clips, of 2 of 2 captions"]
    assert len({row.seed for row in table.rows if row.source == "tiny"}) == 4


def test_an_interrupted_build_resumes(
    generator: Generator, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    parts = (Inputs(videos, captions=videos / "captions.jsonl"), out, [generator], 2, 0)
    sampled: list[int] = []
    sample = rating_set.Sampler.sample

    def once(self, prompt, conditioning, seeds, indices):
        if len(sampled) == 1 and not (out / rating_set.RATINGS).exists() and stop:
            raise KeyboardInterrupt
        sampled.append(prompt.ordinal)
        return sample(self, prompt, conditioning, seeds, indices)

    monkeypatch.setattr(rating_set.Sampler, "sample", once)
    stop = [True]
    with pytest.raises(KeyboardInterrupt):
        build_from_videos(*parts, print)
    before = {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    stop.clear()
    file = build_from_videos(*parts, print)
    assert sampled == [0, 1]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    content = file.read_text()
    assert build_from_videos(*parts, print).read_text() == content  # finished: nothing is made again
    assert sampled == [0, 1]
    with pytest.raises(ConfigError, match="made from other inputs or with other options; choose another --out"):
        build_from_videos(*parts[:3], 3, 0, print)


@pytest.mark.parametrize("names", [[], ["a", "a"], ["real"]])
def test_generators_need_names_of_their_own(names: list[str], generator: Generator, videos: Path) -> None:
    generators = [Generator(name, generator.config) for name in names]
    with pytest.raises(ConfigError, match="at least one is needed, with unique names other than 'real'"):
        build_from_videos(Inputs(videos), videos / "out", generators, 1, 0, print)


def test_rendered_clips_are_rated_by_the_renderer(tmp_path: Path) -> None:
    table = read_ratings(build_toon(tmp_path, 5, 2, 0, lambda line: None))
    assert len(table.rows) == 15
    real = [row for row in table.rows if row.source == REAL]
    assert len(real) == len({row.prompt for row in table.rows}) == 5
    assert {tuple(row.ratings["renderer"].values()) for row in real} == {(5.0,) * 6}
    others = [row.mean_opinion(name) for row in table.rows if row.source != REAL for name in DIMENSIONS]
    assert min(filter(None, others)) < 3
    data = RatedDataset(table)
    parts = split_rated(data, 0)
    assert {row.character for row in (data.rows[i] for i in parts.train)} == {"mixed"}
    assert {data.rows[i].character for i in np.concatenate([parts.validation, parts.test])} == {
        "female_person",
        "male_adventurer",
    }
    with pytest.raises(ConfigError, match="4 prompts with 1 clips each: at least 5 prompts with 1 clip are needed"):
        build_toon(tmp_path / "few", 4, 1, 0, print)
