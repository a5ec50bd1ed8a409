"""Consistency of frames over a tiny ViT and a tiny CLIP, against the sums written out from the models' parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates
from transformers import CLIPImageProcessorPil, CLIPModel, ViTModel

from common.config import JudgeConfig
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.frame_features import similarity, to_previous
from rewarders.judges.registry import open_judge
from tests.support.tiny_encoders import SIZE, tiny_clip, tiny_siglip, tiny_vit

ASKED = Prompt(0, "p", "walks")
KINDS = ("subject_consistency", "background_consistency", "i2v_subject")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Kind -> model folder."""
    place = tmp_path_factory.mktemp("models")
    vit, clip = tiny_vit(place / "vit"), tiny_clip(place / "clip")
    side = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side).save_pretrained(clip)
    return {"subject_consistency": vit, "i2v_subject": vit, "background_consistency": clip}


def noise(frames: int, seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Frames that differ in brightness and texture."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (frames, 4, 4, 3)).repeat(height // 4, 1).repeat(width // 4, 2)
    return base.astype(np.uint8)


def judged(kind: str, folders: dict[str, str], clip: np.ndarray, prompt: Prompt = ASKED) -> float:
    (found,) = open_judge("a", JudgeConfig(kind=kind, path=folders[kind])).judge([Clip(clip, 8.0)], [prompt])
    assert isinstance(found, dict), found
    assert list(found) == [kind]
    return found[kind]


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=1, keepdim=True)).double().numpy()


def bilinear(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(width, height) samples of the frame, each between the four nearest pixels: no antialiasing."""
    rows = [
        np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
        for old, n in zip(frame.shape, size[::-1], strict=False)
    ]
    grid = np.meshgrid(*rows, indexing="ij")
    return np.stack([map_coordinates(frame[..., one].astype(float), grid, order=1) for one in range(3)], -1).round()


def bicubic_middle(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resized to (width, height) with antialiasing, and of that the middle of the model's size."""
    left, top = (round((side - SIZE) / 2) for side in size)
    picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    return picture[top : top + SIZE, left : left + SIZE]


def class_tokens(folder: str, clip: np.ndarray, size: tuple[int, int], resize=bilinear) -> np.ndarray:
    """One frame at a time: resized to (width, height), normalised by 0.5, the class token of the last layer."""
    model, rows = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval(), []
    for frame in clip:
        picture = resize(frame, size) / 255.0
        pixels = torch.tensor((picture - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            rows.append(model(pixels, interpolate_pos_encoding=True).last_hidden_state[0, 0])
    return unit(torch.stack(rows))


def image_embeddings(folder: str, clip: np.ndarray) -> np.ndarray:
    """CLIP's tower and projection, frames of the model's size, in CLIP's colours."""
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.tensor(((clip / 255.0 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return unit(model.visual_projection(model.vision_model(pixels).pooler_output))


def consistency(rows: np.ndarray) -> float:
    """VBench's sum, a frame at a time."""
    found = []
    for t in range(1, len(rows)):
        former, first = max(0.0, rows[t] @ rows[t - 1]), max(0.0, rows[t] @ rows[0])
        found.append((former + first) / 2)
    return 100 * float(np.mean(found))


def test_similarities_by_hand() -> None:
    rows = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    assert to_previous(rows).tolist() == pytest.approx([0.6, 0.8, 0.0])
    assert similarity(rows, rows[:1]).tolist() == pytest.approx([1.0, 0.6, 0.0, 0.0])  # the last is -1


def test_consistency_of_the_subject(folders) -> None:
    clip = noise(18, 1)  # more frames than one forward pass takes
    wanted = consistency(class_tokens(folders["subject_consistency"], clip, (SIZE, SIZE)))
    assert 1 < wanted < 99
    assert judged("subject_consistency", folders, clip) == pytest.approx(wanted, abs=1e-3)


def test_frames_keep_their_aspect_ratio(folders) -> None:
    """48 x 72 becomes 32 x 48: the position embeddings are interpolated, nothing is cropped."""
    clip = noise(3, 2, 48, 72)
    wanted = consistency(class_tokens(folders["subject_consistency"], clip, (48, 32)))
    assert judged("subject_consistency", folders, clip) == pytest.approx(wanted, abs=1e-3)
    edge = clip.copy()
    edge[1, :, 60:] = 0
    assert judged("subject_consistency", folders, edge) != pytest.approx(wanted, abs=1e-2)


def test_consistency_of_the_background(folders) -> None:
    clip = noise(5, 3)
    wanted = consistency(image_embeddings(folders["background_consistency"], clip))
    assert 1 < wanted < 99
    assert judged("background_consistency", folders, clip) == pytest.approx(wanted, abs=1e-3)


def test_the_background_is_that_of_the_middle(folders) -> None:
    """CLIP's input: the shorter side resized, then the centre; 48 x 72 becomes 32 x 48, of which 8 columns go."""
    clip = noise(3, 2, 48, 72)
    edge = clip.copy()
    edge[1, :, 62:] = 0
    value = judged("background_consistency", folders, clip)
    assert judged("background_consistency", folders, edge) == pytest.approx(value, abs=1e-6)
    edge[1, :, 50:] = 0
    assert judged("background_consistency", folders, edge) != pytest.approx(value, abs=1e-2)


def test_the_image_counts_once_and_consecutive_frames_by_mean_and_worst(folders) -> None:
    """Frames of 40 x 60 become 36 x 54, 256/224 of the model's size, and of these the middle 32 x 32 counts."""
    clip, image = noise(5, 4, 40, 60), noise(1, 5, 40, 60)[0]
    shown = np.concatenate([image[None], clip])
    rows = class_tokens(folders["i2v_subject"], shown, (54, 36), bicubic_middle)
    to_image = max(max(0.0, rows[t] @ rows[0]) for t in range(1, 6))
    consecutive = [max(0.0, rows[t] @ rows[t - 1]) for t in range(2, 6)]
    wanted = 40 * to_image + 30 * np.mean(consecutive) + 30 * min(consecutive)
    asked = Prompt(0, "p", "walks", encode_png(image))
    assert judged("i2v_subject", folders, clip, asked) == pytest.approx(wanted, abs=0.2)  # PIL rounds otherwise
    shown = clip.copy()
    shown[3] = image  # one frame is the image: the first part is complete
    assert judged("i2v_subject", folders, shown, asked) > 40


def test_a_prompt_without_an_image_has_no_score(folders) -> None:
    judge = open_judge("a", JudgeConfig(kind="i2v_subject", path=folders["i2v_subject"]))
    assert judge.judge([Clip(noise(2, 6), 8.0)], [ASKED]) == ["prompt p has no image"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_clip_has_the_highest_value_and_one_frame_has_none(folders, kind: str) -> None:
    frame = noise(1, 7)
    asked = Prompt(0, "p", "walks", encode_png(frame[0]))
    assert judged(kind, folders, frame.repeat(3, 0), asked) == pytest.approx(100, abs=1e-3)
    judge = open_judge("a", JudgeConfig(kind=kind, path=folders[kind]))
    assert judge.judge([Clip(frame, 8.0)], [asked]) == ["a clip of 1 frame; at least 2 are needed"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_does_not_depend_on_the_batch(folders, kind: str) -> None:
    judge = open_judge("a", JudgeConfig(kind=kind, path=folders[kind]))
    clips = [Clip(noise(frames, frames), 8.0) for frames in (3, 20, 17)]
    asked = [Prompt(0, "p", "walks", encode_png(clip.frames[0])) for clip in clips]
    together = judge.judge(clips, asked)
    assert together == [judge.judge([clip], [one])[0] for clip, one in zip(clips, asked, strict=True)]
    assert len({str(one) for one in together}) == 3


def test_digests_tell_kinds_and_weights_apart(folders, tmp_path: Path) -> None:
    configs = [JudgeConfig(kind=kind, path=folders[kind]) for kind in KINDS]
    configs.append(JudgeConfig(kind="i2v_subject", path=tiny_vit(tmp_path, seed=1)))
    assert len({open_judge("a", config).digest for config in configs}) == 4


def test_other_models_are_refused(tmp_path: Path) -> None:
    other = tiny_siglip(tmp_path / "siglip")
    for kind, needed in (("subject_consistency", "ViTModel"), ("background_consistency", "CLIPModel")):
        with pytest.raises(ConfigError, match=r"reward\.judges\.a: path: must be a model folder or hub id"):
            open_judge("a", JudgeConfig(kind=kind))
        with pytest.raises(ConfigError, match=rf"reward\.judges\.a: path = .*{needed}"):
            open_judge("a", JudgeConfig(kind=kind, path=other))
