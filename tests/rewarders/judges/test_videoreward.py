"""VideoReward over a tiny Qwen2-VL: what it reads and where, against transformers' own pass and sums written out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLModel,
)

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.registry import open_judge
from rewarders.judges.videoreward import Qwen2VLReward, VideoReward, video_patches

READ_OUT = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    *READ_OUT,
)
QUESTION = (
    "<|im_start|>u\n<|vision_start|><|video_pad|><|vision_end|>"
    "look <|VQ_reward|> move <|MQ_reward|> {text} <|TA_reward|><|im_end|>"
)
GRID = (20, 28)  # 12 x 16 pixels grow to 280 x 392, the fewest that a frame may have: so many patches of 14 pixels
ASKED = Prompt(0, "p", "a robot")


def tiny(folder: Path, labels: int = 1, question: str = QUESTION, special: tuple[str, ...] = SPECIAL) -> Path:
    """A Qwen2-VL of a few thousand parameters with a layer `rm_head`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *special])}
    Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(special[1:])).save_pretrained(folder)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(letters) + len(SPECIAL),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        num_labels=labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2VLReward(config)
        for weights in model.parameters():
            if weights.ndim > 1:  # as wide as trained ones: what is drawn by default hardly tells one clip from another
                torch.nn.init.normal_(weights, std=weights[0].numel() ** -0.5)
    model.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    (folder / "prompt.txt").write_text(question)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("videoreward"))


def noise(frames: int, seed: int = 0) -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 255, (frames, 12, 16, 3), np.uint8), 2.0)


def patches_by_hand(frames: np.ndarray) -> np.ndarray:
    """Qwen2-VL's order, ``[F/2 h w, 3 * 2 * 14 * 14]``: pairs, then squares of 2 x 2 patches, then the four in one."""
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    large = [Image.fromarray(frame).resize((28 * 14, 20 * 14), Image.Resampling.BICUBIC) for frame in frames]
    pixels = (np.stack(large) / 255.0 - mean) / deviation
    rows = [
        [
            pixels[2 * pair + time, 14 * (2 * y + v) + i, 14 * (2 * x + u) + j, colour]
            for colour in range(3)
            for time in range(2)
            for i in range(14)
            for j in range(14)
        ]
        for pair in range(len(frames) // 2)
        for y in range(GRID[0] // 2)
        for x in range(GRID[1] // 2)
        for v in range(2)
        for u in range(2)
    ]
    return np.array(rows, np.float32)


def by_hand(folder: Path, clip: Clip, caption: str) -> dict[str, float]:
    """The equation: `transformers`' whole Qwen2-VL up to its last hidden states, then numpy."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer, pairs = Qwen2Tokenizer.from_pretrained(folder), len(clip.frames) // 2
    pads = "<|video_pad|>" * (pairs * 10 * 14)
    ids = tokenizer(QUESTION.replace("{text}", caption).replace("<|video_pad|>", pads), return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        hidden = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=torch.where(ids == tokenizer.convert_tokens_to_ids("<|video_pad|>"), 2, 0),
            pixel_values_videos=torch.tensor(patches_by_hand(clip.frames)),
            video_grid_thw=torch.tensor([[pairs, *GRID]]),
            output_hidden_states=True,
        ).hidden_states[-1][0]
    head = load_file(folder / "model.safetensors")["rm_head.weight"].numpy()
    norm = {"visual": (3.6757, 2.2476), "motion": (1.1646, 1.3811), "text": (2.8105, 2.5121)}
    found = {}
    for i, (token, (name, (mean, deviation))) in enumerate(zip(READ_OUT, norm.items(), strict=True)):
        (place,) = np.flatnonzero(ids[0].numpy() == tokenizer.convert_tokens_to_ids(token))
        found[name] = (float(head[i % len(head)] @ hidden[place].numpy()) - mean) / deviation
    return found


def test_patches_are_in_the_order_of_qwen2_vl():
    clip, pictures = noise(4), Qwen2VLImageProcessorPil()
    patches, grid = video_patches(pictures, clip.frames)
    assert grid.tolist() == [2, *GRID]
    assert np.allclose(patches.numpy(), patches_by_hand(clip.frames), atol=1e-5)
    still = np.repeat(clip.frames[:1], 2, axis=0)  # a pair of the same frame is what the processor makes of an image
    alone = pictures(images=[clip.frames[0]], size={"shortest_edge": 100352, "longest_edge": 200704})["pixel_values"]
    assert np.array_equal(video_patches(pictures, still)[0].numpy(), alone)


def test_a_frame_has_at_most_448_by_448_pixels():
    _, grid = video_patches(Qwen2VLImageProcessorPil(), np.zeros((2, 480, 720, 3), np.uint8))
    assert grid.tolist() == [1, 26, 38]  # 364 x 532, multiples of 28


@pytest.mark.parametrize("labels", [1, 3])
def test_values_are_read_at_the_three_tokens(tmp_path: Path, labels: int):
    folder, clip = tiny(tmp_path, labels), noise(4)
    (found,) = VideoReward(JudgeConfig(kind="videoreward", path=str(folder)), "cpu").judge([clip], [ASKED])
    assert isinstance(found, dict)
    assert found == pytest.approx(by_hand(folder, clip, "a robot"), abs=1e-4)
    assert np.ptp(list(found.values())) > 0.01


def test_every_frame_and_the_caption_are_read(model: Path):
    judge = VideoReward(JudgeConfig(kind="videoreward", path=str(model)), "cpu")
    clip, cat = noise(4), Prompt(0, "p", "a cat")
    (found,) = judge.judge([clip], [ASKED])
    assert judge.judge([noise(2), clip], [cat, ASKED])[1] == found
    (other,) = judge.judge([clip], [cat])
    assert isinstance(found, dict)
    assert isinstance(other, dict)
    assert other["text"] != found["text"]
    assert other["visual"] == pytest.approx(found["visual"], abs=1e-4)  # asked before the caption is read
    for frame in range(4):
        changed = clip.frames.copy()
        changed[frame] = 255 - changed[frame]
        assert judge.judge([Clip(changed, 2.0)], [ASKED]) != [found]


def test_weights_under_their_published_names(model: Path, tmp_path: Path):
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    old = load_file(model / "model.safetensors")
    old = {re.sub(r"^model\.(visual)|^(model)\.language_model", r"\1\2", name): kept for name, kept in old.items()}
    assert {name.split(".")[0] for name in old} == {"visual", "model", "rm_head"}
    save_file(old | {"lm_head.weight": old["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors")
    renamed, kept = (VideoReward(JudgeConfig(kind="videoreward", path=str(one)), "cpu") for one in (tmp_path, model))
    assert renamed.digest == kept.digest  # all weights are where they were


def test_a_clip_of_a_run_is_shown_in_pairs_at_two_a_second(model: Path):
    config = JudgeConfig(kind="videoreward", path=str(model))
    frames = np.random.default_rng(1).integers(0, 255, (17, 12, 16, 3), np.uint8)  # 5 frames at 2 a second: 4 are
    (found,) = open_judge("vr", config).judge([Clip(frames, 8.0)], [ASKED])
    (raw,) = VideoReward(config, "cpu").judge([Clip(frames[[0, 5, 11, 16]], 2.0)], [ASKED])
    assert isinstance(raw, dict)
    assert found == {name: pytest.approx(100 * (value + 3) / 6) for name, value in raw.items()}


def test_a_caption_with_reserved_tokens_is_refused(model: Path):
    judge = VideoReward(JudgeConfig(kind="videoreward", path=str(model)), "cpu")
    odd = [Prompt(0, "p", f"a {mark} robot") for mark in ("<|MQ_reward|>", "<|video_pad|>")]
    assert judge.judge([noise(2)] * 2, odd) == [
        "the caption contains <|MQ_reward|>, a token that the prompt template uses",
        "the caption contains <|video_pad|>, a token that the prompt template uses",
    ]


def test_invalid_folders_are_named(tmp_path: Path):
    def line(folder: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            open_judge("vr", JudgeConfig(kind="videoreward", path=str(folder)))
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert line(tmp_path / "empty").startswith("reward.judges.vr: path = ")
    assert "cannot be loaded as Qwen2VLReward" in line(tmp_path / "empty")
    assert "rm_head has 2 outputs; must be 1 or 3" in line(tiny(tmp_path / "two", labels=2))
    assert "must contain <|MQ_reward|> once, not 0 times" in line(
        tiny(tmp_path / "question", question=QUESTION.replace("<|MQ_reward|>", ""))
    )
    assert "its tokenizer has no <|TA_reward|>" in line(tiny(tmp_path / "words", special=SPECIAL[:-1]))
    bare = tiny(tmp_path / "bare")
    Qwen2VLModel(Qwen2VLConfig.from_pretrained(bare)).save_pretrained(bare)
    assert "not a complete Qwen2VLReward: weights missing: rm_head.weight" in line(bare)
    (tmp_path / "question" / "prompt.txt").unlink()
    assert "must hold the prompt that the model was trained on" in line(tmp_path / "question")
