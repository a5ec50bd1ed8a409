"""A large rated set is never in memory as a whole: first frames are read when a clip needs them, and let go."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.ratings import read_ratings, write_ratings
from rewarders.toon_heads.heads import ToonHead
from rewarders.training.dataset import IMAGES, RatedDataset
from rewarders.training.features import features
from rewarders.training.report import BATCH, report
from rewarders.training.train import ClipHead
from tests.support.rewarders.rated_clips import Light, grey_clips, rated

PROMPTS, CANDIDATES = 40, 3
SIZE = 1 << 20  # bytes of a first frame; the clips have less than a KiB


def silent(line: str) -> None:
    del line


def compute_features(data: RatedDataset, folder: Path) -> None:
    features(Light(), data, folder / "f", silent)


def evaluate(data: RatedDataset, folder: Path) -> None:
    report([Light()], data, {}, silent, 100)


def clips_of_a_toon_head(data: RatedDataset, folder: Path) -> None:
    rows = np.arange(len(data.rows))
    ClipHead(ToonHead("smoothness"), data, rows, np.zeros((len(rows), 3, 16, 16, 3), np.uint8), data.scores("light"))


@pytest.fixture
def data(tmp_path: Path) -> RatedDataset:
    """Large first frames, with the rows source by source, so that those of one frame are far apart."""
    file = grey_clips(tmp_path, PROMPTS, CANDIDATES)
    for frame in tmp_path.glob("*.png"):
        frame.write_bytes(frame.read_bytes() + bytes(SIZE))  # decoders stop at the end of the picture
    rows = list(read_ratings(file).rows)
    write_ratings(file, [row for k in range(CANDIDATES) for row in rows[k::CANDIDATES]])
    return rated(file)


@pytest.mark.parametrize(("use", "held"), [(compute_features, 10), (evaluate, BATCH + 10), (clips_of_a_toon_head, 10)])
def test_few_first_frames_are_alive(
    data: RatedDataset, tmp_path: Path, use: Callable[[RatedDataset, Path], None], held: int
) -> None:
    tracemalloc.start()
    try:
        use(data, tmp_path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert SIZE < most < held * SIZE < PROMPTS * SIZE


def test_features_stay_on_disk_until_a_batch_needs_them(tmp_path: Path) -> None:
    wide, data = 1 << 16, rated(grey_clips(tmp_path, 6, 2))

    class Wide(Light):
        def features(self, clips, prompts):
            return super().features(clips, prompts).repeat(1, wide)

    def alive() -> int:
        return sum(type(thing) is torch.Tensor and thing.numel() >= 2 * wide for thing in gc.get_objects())

    before = alive()
    rows, cached, _ = features(Wide(), data, tmp_path / "f", silent)
    gc.collect()
    assert alive() == before
    batch = cached[np.array([3, 0])]
    assert batch.shape == (2, 2 * wide)
    assert batch[:, 0].tolist() == pytest.approx((data.scores("light")[rows[[3, 0]]] / 100).tolist(), abs=0.02)


@pytest.mark.parametrize("use", [compute_features, evaluate])
def test_a_first_frame_is_read_once_and_hashed_once(
    data: RatedDataset, tmp_path: Path, use: Callable[[RatedDataset, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    read = Path.read_bytes

    def counted(path: Path) -> bytes:
        reads[path.suffix] += 1
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    use(data, tmp_path)
    # Once to compare or hash it, once to use it, if it is no longer in memory.
    assert 2 * PROMPTS - IMAGES <= reads[".png"] <= 2 * PROMPTS
