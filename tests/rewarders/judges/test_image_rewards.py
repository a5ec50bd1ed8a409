"""Image rewards over a tiny `CLIPModel`, against the sums written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.image_rewards import AESTHETIC_FILE, Aesthetic, ClipScore, Hps, ImageReward, frame_weights
from rewarders.judges.registry import open_judge
from tests.support.tiny_encoders import SIZE as BLIP_SIZE
from tests.support.tiny_encoders import tiny_blip, tiny_tokenizer

SIZE, WIDTH = 8, 6
ASKED = Prompt(0, "p", "a robot walks")


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP model of a few thousand parameters, its processor, and an aesthetic head."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", "a", "robot", "walks", "cat"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=16
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    CLIPProcessor(pictures, fast).save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0}
    vision = sizes | {"image_size": SIZE, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    head = {"layers.0.weight": torch.randn(4, WIDTH), "layers.0.bias": torch.randn(4)}
    head |= {"layers.2.weight": torch.randn(1, 4), "layers.2.bias": torch.full((1,), 5.0)}
    save_file(head, folder / "aesthetic.safetensors")
    return folder


@pytest.fixture(scope="module")
def blip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BLIP, ImageReward's processing, and five linear layers numbered as in the published file."""
    folder = tmp_path_factory.mktemp("blip")
    tiny_blip(folder, seed=1)
    tiny_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": BLIP_SIZE}, crop_size={"height": BLIP_SIZE, "width": BLIP_SIZE}
    ).save_pretrained(folder)
    torch.manual_seed(2)
    widths, layers = (16, 12, 8, 6, 4, 1), {}
    for number, inputs, outputs in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        layers |= {f"mlp.layers.{number}.weight": torch.randn(outputs, inputs) / inputs**0.5}
        layers |= {f"mlp.layers.{number}.bias": torch.randn(outputs)}
    save_file(layers, folder / "image_reward.safetensors")
    return folder


def seen(picture: Image.Image) -> torch.Tensor:
    """``[1, 3, H, W]``: a picture in CLIP's colours."""
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    values = (np.asarray(picture) / 255.0 - mean) / deviation
    return torch.tensor(values.transpose(2, 0, 1)[None], dtype=torch.float32)


def noise(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, 12, 16, 3), np.uint8)


def embeddings(folder: Path, clip: np.ndarray) -> torch.Tensor:
    """Unit image embeddings, one frame at a time, from the model's parts."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    rows = []
    for frame in clip:
        pixels = processor(images=frame, return_tensors="pt")["pixel_values"]
        rows.append(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0])
    rows = torch.stack(rows)
    return rows / rows.norm(dim=1, keepdim=True)


def test_clip_score_of_frames(clip_model: Path):
    judge = ClipScore(JudgeConfig(kind="clip_score", path=str(clip_model)), "cpu")
    clip = noise(5, 1)
    model, processor = CLIPModel.from_pretrained(clip_model).eval(), CLIPProcessor.from_pretrained(clip_model)
    tokens = processor(text=[ASKED.text], return_tensors="pt")
    with torch.no_grad():
        text = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        wanted = 2.5 * (embeddings(clip_model, clip) @ (text / text.norm())).clamp(min=0).mean()
    assert judge.score([clip], [ASKED]) == [pytest.approx(float(wanted), abs=1e-5)]
    other = Prompt(0, "p", "cat")
    assert judge.score([clip], [other]) != judge.score([clip], [ASKED])


def test_clip_score_on_the_scale_of_cosines(clip_model: Path):
    """With high = 2.5 the score is 100 cos, as HuViDPO's table 1 has it."""
    clip, asked = noise(4, 8), Prompt(0, "p", "cat")
    judge = open_judge("a", JudgeConfig(kind="clip_score", path=str(clip_model), high=2.5))
    model, processor = CLIPModel.from_pretrained(clip_model).eval(), CLIPProcessor.from_pretrained(clip_model)
    with torch.no_grad():
        text = model.text_projection(model.text_model(**processor(text=["cat"], return_tensors="pt")).pooler_output)
        cosines = torch.cosine_similarity(embeddings(clip_model, clip), text).clamp(min=0)
    assert cosines.max() > 0
    assert judge.judge([Clip(clip, 8.0)], [asked]) == [
        {"clip_score": pytest.approx(float(100 * cosines.mean()), abs=1e-3)}
    ]


def test_aesthetic_head_and_the_weights_of_frames(clip_model: Path):
    clip = noise(3, 2)
    kept = load_file(clip_model / "aesthetic.safetensors")
    with torch.no_grad():
        hidden = embeddings(clip_model, clip) @ kept["layers.0.weight"].T + kept["layers.0.bias"]
        each = (hidden @ kept["layers.2.weight"].T + kept["layers.2.bias"])[:, 0]
    for how, weights in (("uniform", [1 / 3] * 3), ("central", [0.2119416, 0.5761169, 0.2119416])):
        judge = Aesthetic(JudgeConfig(kind="aesthetic", path=str(clip_model), frame_weights=how), "cpu")
        wanted = float((each * torch.tensor(weights)).sum())
        assert judge.score([clip], [ASKED]) == [pytest.approx(wanted, abs=1e-4)]


def test_hps_sees_the_whole_frame_between_black_bars(clip_model: Path):
    judge = Hps(JudgeConfig(kind="hps", path=str(clip_model)), "cpu")
    model, processor = CLIPModel.from_pretrained(clip_model).eval(), CLIPProcessor.from_pretrained(clip_model)
    clip, values = noise(3, 4), []  # 12 x 16: 6 x 8 of 8 x 8
    with torch.no_grad():
        text = model.text_projection(
            model.text_model(**processor(text=[ASKED.text], return_tensors="pt")).pooler_output
        )
        for frame in clip:
            canvas = Image.new("RGB", (SIZE, SIZE))
            canvas.paste(Image.fromarray(frame).resize((8, 6), Image.Resampling.BICUBIC), (0, 1))
            image = model.visual_projection(model.vision_model(pixel_values=seen(canvas)).pooler_output)
            values.append(100 * torch.cosine_similarity(image, text).item())
    assert judge.score([clip], [ASKED]) == [pytest.approx(float(np.mean(values)), abs=1e-3)]
    assert min(values) < 0 < max(values) or np.ptp(values) > 1  # frames of different values, so that all are seen
    (found,) = open_judge("a", JudgeConfig(kind="hps", path=str(clip_model))).judge([Clip(clip, 8.0)], [ASKED])
    assert found == {"hps": pytest.approx(100 * (np.mean(values) - 10) / 30, abs=1e-2)}


def image_rewards(folder: Path, clip: np.ndarray, caption: str) -> list[float]:
    """ImageReward's equation, a frame at a time: transformers' own pass with an image, and the layers in numpy."""
    model, layers = (
        BlipForImageTextRetrieval.from_pretrained(folder).eval(),
        load_file(folder / "image_reward.safetensors"),
    )
    tokens, values = tiny_tokenizer()([caption], return_tensors="pt", truncation=True, max_length=35), []
    for frame in clip:
        picture = Image.fromarray(frame)  # 24 x 40 becomes 32 x 53, of which the middle 32 x 32 is seen
        shorter = BLIP_SIZE / min(picture.size)
        wide, high = (int(shorter * side) for side in picture.size)
        left, top = (wide - BLIP_SIZE) // 2, (high - BLIP_SIZE) // 2
        picture = picture.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        with torch.no_grad():
            hidden = model(tokens["input_ids"], seen(picture), attention_mask=tokens["attention_mask"]).question_embeds
        row = hidden[0, 0].numpy()
        for number in (0, 2, 4, 6, 7):
            row = layers[f"mlp.layers.{number}.weight"].numpy() @ row + layers[f"mlp.layers.{number}.bias"].numpy()
        values.append((float(row[0]) - 0.16717362830052426) / 1.0333394966054072)
    return values


def test_image_reward_of_frames(blip_model: Path):
    clip = np.random.default_rng(5).integers(0, 255, (18, 24, 40, 3), np.uint8)  # more than one forward pass takes
    caption = "a robot walks"
    each = image_rewards(blip_model, clip, caption)
    assert np.std(each) > 1e-3
    for how, weights in (("uniform", np.full(18, 1 / 18)), ("central", frame_weights("central", 18).numpy())):
        judge = ImageReward(JudgeConfig(kind="image_reward", path=str(blip_model), frame_weights=how), "cpu")
        assert judge.score([clip], [Prompt(0, "p", caption)]) == [pytest.approx(weights @ each, abs=1e-4)]
    (found,) = open_judge("a", JudgeConfig(kind="image_reward", path=str(blip_model))).judge([Clip(clip, 8.0)], [ASKED])
    assert found == {"image_reward": pytest.approx(100 * (np.mean(each) + 3) / 6, abs=1e-2)}


def test_image_reward_reads_35_tokens_of_a_caption(blip_model: Path):
    judge = ImageReward(JudgeConfig(kind="image_reward", path=str(blip_model)), "cpu")
    clip, read = noise(1, 6), "the robot walks " * 11  # 33 words between [CLS] and [SEP]
    value = {text: judge.score([clip], [Prompt(0, "p", text)])[0] for text in (read, read + "zombie", "zombie " + read)}
    assert value[read + "zombie"] == value[read] == pytest.approx(image_rewards(blip_model, clip, read)[0], abs=1e-4)
    assert value["zombie " + read] != pytest.approx(value[read], abs=1e-4)


@pytest.mark.parametrize("kind", [ClipScore, Hps, Aesthetic, ImageReward])
def test_a_value_does_not_depend_on_the_batch(clip_model: Path, blip_model: Path, kind: type):
    folder = blip_model if kind is ImageReward else clip_model
    judge = kind(JudgeConfig(kind="a", path=str(folder)), "cpu")
    clips = [noise(frames, frames) for frames in (3, 40, 17)]
    together = judge.score(clips, [ASKED] * 3)
    assert together == [judge.score([clip], [ASKED])[0] for clip in clips]
    assert len(set(together)) == 3


def test_as_a_judge_of_a_run(clip_model: Path):
    config = JudgeConfig(kind="aesthetic", path=str(clip_model), fps=4, frames=2)
    judge = open_judge("beauty", config)
    clip = noise(5, 3)
    (found,) = judge.judge([Clip(clip, 8.0)], [ASKED])
    raw = Aesthetic(config, "cpu").score([clip[[0, 4]]], [ASKED])[0]
    assert found == {"aesthetic": pytest.approx(100 * (raw - 1) / 9)}
    same = open_judge("other", config)
    assert same.digest == judge.digest
    central = open_judge("beauty", config.model_copy(update={"frame_weights": "central"}))
    assert central.digest != judge.digest


def test_weights_of_frames_sum_to_one():
    assert frame_weights("central", 1).tolist() == [1.0]
    for frames in (2, 9, 49):
        weights = frame_weights("central", frames)
        assert float(weights.sum()) == pytest.approx(1)
        assert weights.argmax() in (frames // 2, (frames - 1) // 2)


def test_missing_and_wrong_folders_are_named(tmp_path: Path, clip_model: Path):
    for kind in ("clip_score", "aesthetic"):
        with pytest.raises(ConfigError, match=r"reward\.judges\.a: path: must be a model folder or hub id"):
            open_judge("a", JudgeConfig(kind=kind))
        with pytest.raises(ConfigError, match=r"reward\.judges\.a: path = .*cannot be loaded as CLIPModel"):
            open_judge("a", JudgeConfig(kind=kind, path=str(tmp_path)))
    for file in clip_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "aesthetic.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"aesthetic\.safetensors is missing"):
        open_judge("a", JudgeConfig(kind="aesthetic", path=str(tmp_path)))
    save_file({"layers.0.weight": torch.ones(1, 3), "layers.0.bias": torch.ones(1)}, tmp_path / "aesthetic.safetensors")
    with pytest.raises(ConfigError, match=f"must lead from {WIDTH} features to 1"):
        open_judge("a", JudgeConfig(kind="aesthetic", path=str(tmp_path)))
    (tmp_path / "aesthetic.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"aesthetic\.safetensors: cannot be read as linear layers"):
        open_judge("a", JudgeConfig(kind="aesthetic", path=str(tmp_path)))


def test_an_incomplete_model_is_refused(tmp_path: Path, clip_model: Path, blip_model: Path):
    for file in clip_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    CLIPVisionModel.from_pretrained(clip_model).save_pretrained(tmp_path / "tower")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "tower" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"a complete CLIPModel: weights missing: \S+, \S+, \S+ and \d+ more$"):
        open_judge("a", JudgeConfig(kind="hps", path=str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    torch.save(CLIPModel.from_pretrained(clip_model).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded as CLIPModel"):  # a pickle, though a whole one
        open_judge("a", JudgeConfig(kind="hps", path=str(tmp_path)))
    (tmp_path / "blip").mkdir()
    for file in blip_model.iterdir():
        (tmp_path / "blip" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "blip" / "image_reward.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"image_reward\.safetensors is missing"):
        open_judge("a", JudgeConfig(kind="image_reward", path=str(tmp_path / "blip")))


def test_vbenchs_aesthetic_quality_has_one_layer(tmp_path: Path, clip_model: Path):
    """A `torch.nn.Linear` under the names that `douga reward convert` gives it; a tenth of it is VBench's value."""
    for file in clip_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(3)
    layer = torch.nn.Linear(WIDTH, 1)
    save_file({f"layers.0.{name}": tensor for name, tensor in layer.state_dict().items()}, tmp_path / AESTHETIC_FILE)
    clip = noise(4, 9)
    with torch.no_grad():
        wanted = float(layer(embeddings(clip_model, clip)).mean() / 10)
    judge = open_judge("a", JudgeConfig(kind="aesthetic", path=str(tmp_path), low=0, high=10))
    assert judge.judge([Clip(clip, 8.0)], [ASKED]) == [{"aesthetic": pytest.approx(100 * wanted, abs=1e-3)}]


@pytest.mark.parametrize("kind", [ClipScore, Hps, Aesthetic])
@pytest.mark.parametrize("weights", ["uniform", "central"])
def test_with_a_gradient_the_score_is_nearly_the_same(clip_model: Path, kind: Any, weights: Any) -> None:
    """PIL rounds resized pixels, the differentiable path does not; the mean over the frames is the score."""
    judge = kind(JudgeConfig(kind="any", path=str(clip_model), frame_weights=weights), "cpu")
    check_gradient(judge, wide_clips())


def test_image_reward_has_a_gradient(blip_model: Path) -> None:
    check_gradient(ImageReward(JudgeConfig(kind="image_reward", path=str(blip_model)), "cpu"), wide_clips())


def wide_clips() -> np.ndarray:
    """uint8 [2, 5, 20, 30, 3], smooth."""
    rows, columns = np.meshgrid(np.linspace(0, 3, 20), np.linspace(0, 4, 30), indexing="ij")
    waves = [np.sin(rows + 0.3 * phase)[..., None] * np.cos(columns[..., None] + np.arange(3)) for phase in range(10)]
    return (127 + 120 * np.stack(waves)).astype(np.uint8).reshape(2, 5, 20, 30, 3)


def check_gradient(judge: ClipScore | Hps | Aesthetic | ImageReward, clips: np.ndarray) -> None:
    asked = [ASKED, Prompt(1, "q", "a cat walks")]
    x = (torch.from_numpy(clips).movedim(-1, 2).float() / 255).requires_grad_()
    frames = judge.frame_scores(x, asked)
    assert frames.shape == (2, 5)
    scores = judge.score(list(clips), asked)
    assert frames.mean(1).tolist() == pytest.approx(scores, rel=2e-2)
    (gradient,) = torch.autograd.grad(frames.sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
