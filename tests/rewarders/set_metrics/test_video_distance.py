"""The distance of videos over a tiny VideoMAE, against its parts and SciPy."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessorPil, VideoMAEModel

from common.config import SetMetricConfig
from common.data.video import decode_clip, encode_mp4
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.rewarder import read_clip
from rewarders.set_metrics import open_set_metric
from rewarders.set_metrics.video_distance import FrechetVideoDistance
from tests.support.tiny_encoders import SIZE, tiny_siglip, tiny_videomae

NOTHING = """

class Nothing:
    def __init__(self, config, device): ...
"""
KIND, FRAMES, WIDTH = "frechet_video_distance", 4, 16


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_videomae(tmp_path_factory.mktemp("videomae"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 videos at 8 frames per second, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "more").mkdir()
    for i in range(20):
        (folder / ("more" if i == 3 else ".") / f"{i:02d}.mp4").write_bytes(encode_mp4(noise(i), 8))
    (folder / "list.txt").write_text("not a video")
    return folder


def noise(seed: int, frames: int = 6, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (frames, 4, 4, 3)).repeat(size[0] // 4, 1).repeat(size[1] // 4, 2)
    return (0.5 * base + rng.integers(0, 127)).astype(np.uint8)


def asked(clips: Iterable[np.ndarray | Clip]) -> Iterator[tuple[Clip, Prompt]]:
    for i, clip in enumerate(clips):
        yield clip if isinstance(clip, Clip) else Clip(clip, 8.0), Prompt(i, f"p{i}", "walks")


def metric(encoder: str, reference: Path | str, fps: float = 0.0) -> FrechetVideoDistance:
    made = open_set_metric(SetMetricConfig(kind=KIND, path=encoder, reference=str(reference), fps=fps))
    assert isinstance(made, FrechetVideoDistance)
    return made


def features(encoder: str, clips: Iterable[np.ndarray]) -> np.ndarray:
    """Rows ``[n, D]`` from the classifier's parts, for clips of the model's size; colours normalised by hand."""
    model, rows = VideoMAEForVideoClassification.from_pretrained(encoder).eval(), []
    for clip in clips:
        pixels = torch.tensor((clip[:FRAMES] / 255.0 - 0.5) / 0.5, dtype=torch.float32).permute(0, 3, 1, 2)[None]
        with torch.no_grad():
            rows.append(model.fc_norm(model.videomae(pixels).last_hidden_state.mean(1))[0].double().numpy())
    return np.stack(rows)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    c1, c2 = np.cov(one.T, bias=True), np.cov(other.T, bias=True)
    root = np.real(sqrtm(c1 @ c2 + 0j))
    return float(((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root))


def test_the_distance_of_two_sets(encoder: str, real: Path) -> None:
    made = [noise(seed) for seed in range(100, 125)]
    found = metric(encoder, real).measure(asked(made))
    videos = [decode_clip(file.read_bytes()) for file in sorted(real.rglob("*.mp4"))]
    wanted = distance(features(encoder, made), features(encoder, videos))
    assert wanted > 0.01
    assert found == {KIND: pytest.approx(wanted, rel=1e-3)}


def test_the_same_clips_have_no_distance_and_others_a_larger_one(encoder: str, real: Path) -> None:
    made = metric(encoder, real)
    same = made.measure(asked(read_clip(file.read_bytes()) for file in sorted(real.rglob("*.mp4"))))
    near, far = (
        made.measure(asked(np.clip(noise(seed).astype(int) + shift, 0, 255).astype(np.uint8) for seed in range(20)))
        for shift in (10, 120)
    )
    assert same[KIND] == pytest.approx(0, abs=1e-6)
    assert same[KIND] < near[KIND] < far[KIND]


def test_the_first_frames_are_read(encoder: str, real: Path) -> None:
    made = metric(encoder, real)
    long = [noise(seed, 9) for seed in range(20)]
    assert made.measure(asked(long)) == made.measure(asked(clip[:FRAMES] for clip in long))
    halved = metric(encoder, real, fps=4)
    with pytest.raises(ConfigError, match=r"reference = .*00\.mp4: a clip of 3 frames at 4 per second; 4 are needed"):
        halved.measure(asked(long))


def test_a_frame_rate_selects_frames(encoder: str, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.mp4").write_bytes(encode_mp4(noise(i, 8), 16))
    made = [noise(seed, 7) for seed in range(20, 30)]
    found = metric(encoder, tmp_path, fps=8).measure(asked(made))
    reference = [decode_clip(file.read_bytes())[::2] for file in sorted(tmp_path.glob("*.mp4"))]
    assert found[KIND] == pytest.approx(distance(features(encoder, made), features(encoder, reference)), rel=1e-3)
    with pytest.raises(ValueError, match="the clips have 8 frames per second, the reference 16: set fps"):
        metric(encoder, tmp_path).measure(asked(made))


def test_clips_of_different_rates_and_short_clips_are_refused(encoder: str, real: Path) -> None:
    made, good = metric(encoder, real), Clip(noise(1), 8.0)
    with pytest.raises(ValueError, match="prompt p1: 16 frames per second, clips before it 8: set fps"):
        made.measure(asked([good, Clip(noise(2), 16.0)]))
    with pytest.raises(ValueError, match="prompt p1: a clip of 3 frames at 8 per second; 4 are needed"):
        made.measure(asked([good, Clip(noise(2, 3), 8.0)]))
    with pytest.raises(ValueError, match="a covariance needs at least 2 clips, not 1"):
        made.measure(asked([good]))


def test_clips_are_read_one_at_a_time(encoder: str, real: Path) -> None:
    """Each clip is overwritten when the next one is asked for."""
    buffer = np.zeros_like(noise(0))

    def streamed() -> Iterator[np.ndarray]:
        for seed in range(40, 60):
            buffer[:] = noise(seed)
            yield buffer

    made = metric(encoder, real)
    assert made.measure(asked(streamed())) == made.measure(asked([noise(seed) for seed in range(40, 60)]))


def test_fewer_clips_than_features_are_told(encoder: str, real: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = metric(encoder, real)
    with caplog.at_level(logging.WARNING, "rewarders.set_metrics"):
        made.measure(asked(noise(seed) for seed in range(WIDTH + 1)))
        assert caplog.messages == []
        made.measure(asked(noise(seed) for seed in range(WIDTH)))
    (line,) = caplog.messages
    assert line.startswith("frechet_video_distance: 16 clips for 16 features, so it is too large; compare it only")


def test_a_saved_reference_gives_the_same_number(encoder: str, real: Path, tmp_path: Path) -> None:
    first, file = metric(encoder, real), tmp_path / "reference.npz"
    first.save_reference(file)
    made = [noise(seed) for seed in range(60, 80)]
    again = metric(encoder, file)
    assert again.measure(asked(made)) == first.measure(asked(made))
    with np.load(file) as stored:
        assert stored["mean"].shape == (WIDTH,)
        assert stored["covariance"].shape == (WIDTH, WIDTH)
        assert (int(stored["count"]), float(stored["fps"])) == (20, 8.0)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def test_a_reference_of_another_encoder_or_rate_is_refused(encoder: str, real: Path, tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    metric(encoder, real).save_reference(file)
    other = tiny_videomae(tmp_path / "other", seed=1)
    squeezed = tiny_videomae(tmp_path / "squeezed")
    VideoMAEImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_center_crop=False).save_pretrained(squeezed)
    for path, fps in ((other, 0), (squeezed, 0), (encoder, 4)):
        with pytest.raises(ConfigError, match="made with other weights, preprocessing or fps"):
            metric(path, file, fps)


def test_damaged_references_are_refused(encoder: str, real: Path, tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    for content in (b"", b"no archive"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"reference = .*reference\.npz': cannot be read"):
            metric(encoder, file)
    metric(encoder, real).save_reference(file)
    with np.load(file) as stored:
        good = dict(stored)
    for change, line in (
        ({"mean": np.zeros(3)}, "must be of 16 features"),
        ({"covariance": np.full((WIDTH, WIDTH), np.nan)}, "not finite"),
        ({"mean": np.array(["a", None], object)}, "cannot be read"),
    ):
        np.savez(file, **(good | change))
        with pytest.raises(ConfigError, match=line):
            metric(encoder, file)


def test_missing_references_are_named(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference: must be a folder of real clips, or a file of their features"):
        metric(encoder, "")
    with pytest.raises(ConfigError, match=r"must be a folder of videos, or a \.npz file"):
        metric(encoder, tmp_path / "none")
    with pytest.raises(ConfigError, match="0 videos; at least 2 are needed"):
        metric(encoder, tmp_path)
    (tmp_path / "a.mp4").write_bytes(encode_mp4(noise(0), 8))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(ConfigError, match=r"reference = .*b\.mp4: 8 bytes that are not a readable video"):
        metric(encoder, tmp_path).measure(asked([noise(0), noise(1)]))


def test_frames_are_sized_as_the_image_processor_says(real: Path, tmp_path: Path) -> None:
    """Squeezed, without normalised colours, as the content-debiased FVD has it."""
    folder = tiny_videomae(tmp_path)
    processor = VideoMAEImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, do_normalize=False
    )
    processor.save_pretrained(folder)
    made = metric(folder, real)
    black = made._encoder(made._encoder.window(Clip(np.zeros((4, 48, 96, 3), np.uint8), 8.0)))
    model = VideoMAEForVideoClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model.fc_norm(model.videomae(torch.zeros(1, 4, 3, SIZE, SIZE)).last_hidden_state.mean(1))[0]
    np.testing.assert_allclose(black, wanted.numpy(), atol=1e-5)


def test_an_encoder_without_a_classifier(real: Path, tmp_path: Path) -> None:
    folder = tiny_videomae(tmp_path, kind=VideoMAEModel)
    made, clip = metric(folder, real), noise(5)
    pixels = torch.tensor((clip[:FRAMES] / 255.0 - 0.5) / 0.5, dtype=torch.float32).permute(0, 3, 1, 2)[None]
    with torch.no_grad():
        wanted = VideoMAEModel.from_pretrained(folder).eval()(pixels).last_hidden_state.mean(1)[0]
    np.testing.assert_allclose(made._encoder(made._encoder.window(Clip(clip, 8.0))), wanted.numpy(), atol=1e-5)


def test_wrong_encoders_are_refused(encoder: str, real: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a model of type siglip_vision_model; must be a VideoMAE"):
        metric(tiny_siglip(tmp_path / "siglip"), real)
    with pytest.raises(ConfigError, match="path: must be a model folder or hub id"):
        metric("", real)
    larger = tiny_videomae(tmp_path / "larger")
    VideoMAEImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}).save_pretrained(larger)
    with pytest.raises(ConfigError, match="makes 40 x 40 pixels; the model needs 32 x 32"):
        metric(larger, real)


def example(start: str) -> str:
    """A block of docs/evaluation.md."""
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if block.startswith(start)]
    return block


def test_the_example_of_the_docs(
    encoder: str, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    for seed in range(3):
        Path(f"made/{seed}.mp4").write_bytes(encode_mp4(noise(seed + 30), 8))
    code = example("from pathlib").replace("/models/videomae", encoder).replace("/data/real", str(real))
    exec(code.replace("cuda", "cpu"), {})
    assert capsys.readouterr().out.startswith("{'frechet_video_distance': ")
    assert np.load("real.npz")["count"] == 20


def test_a_metric_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the docs."""
    (tmp_path / "longest.py").write_text(example("# longest.py") + NOTHING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "longest", raising=False)
    made = open_set_metric(SetMetricConfig(kind="longest:Longest"))
    assert made.measure(asked([noise(0, 3), noise(1, 7)])) == {"frames": 7.0}
    with pytest.raises(ConfigError, match="must be a SetMetric"):
        open_set_metric(SetMetricConfig(kind="longest:Nothing"))
    with pytest.raises(ConfigError, match="kind = 'fvd': must be frechet_video_distance or a class as package"):
        open_set_metric(SetMetricConfig(kind="fvd"))
