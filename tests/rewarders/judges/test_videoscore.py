"""VideoScore over a tiny Idefics2: its inputs, its range, and invalid folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Idefics2Config,
    Idefics2ImageProcessor,
    Idefics2Model,
    Idefics2Processor,
    PreTrainedTokenizerFast,
)

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.registry import open_judge
from rewarders.judges.videoscore import Idefics2Regression, VideoScore

WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "rate",
    "a",
    "robot",
    "cat",
]
SIZE = 8


def tiny(folder: Path, labels: int = 5, frames: str = "rate {text} ") -> Path:
    """An Idefics2 of a few thousand parameters with a layer `score`, as the published checkpoints lie on disk."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        additional_special_tokens=WORDS[3:6],
    )  # fmt: skip
    pictures = Idefics2ImageProcessor(do_image_splitting=False, size={"shortest_edge": SIZE, "longest_edge": SIZE})
    Idefics2Processor(pictures, fast, image_seq_len=2).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "mistral", "vocab_size": len(WORDS), "num_key_value_heads": 2, "pad_token_id": 2}
    config = Idefics2Config(
        text_config=sizes | text,
        vision_config={**sizes, "image_size": SIZE, "patch_size": 4},
        perceiver_config={"resampler_n_latents": 2, "resampler_depth": 1, "resampler_n_heads": 2,
                          "resampler_head_dim": 8, "num_key_value_heads": 1, "hidden_size": 16},
        image_token_id=WORDS.index("<image>"), num_labels=labels,
    )  # fmt: skip
    Idefics2Regression(config).save_pretrained(folder)
    (folder / "prompt.txt").write_text(frames)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("videoscore"))


def noise(frames: int, seed: int = 0) -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 255, (frames, 12, 16, 3), np.uint8), 8.0)


def prompt(text: str) -> Prompt:
    return Prompt(0, "p", text)


def test_every_frame_and_the_caption_are_read(model: Path):
    judge = VideoScore(JudgeConfig(kind="videoscore", path=str(model)), "cpu")
    clip = noise(3)
    (found,) = judge.judge([clip], [prompt("a robot")])
    assert isinstance(found, dict)
    assert tuple(found) == ("visual", "temporal", "dynamic", "text", "factual")
    assert len(set(found.values())) == 5
    assert judge.judge([clip, clip], [prompt("a cat"), prompt("a robot")])[1] == found
    assert judge.judge([clip], [prompt("a cat")]) != [found]
    for frame in range(3):
        other = clip.frames.copy()
        other[frame] = 255 - other[frame]
        assert judge.judge([Clip(other, 8.0)], [prompt("a robot")]) != [found]


def test_values_of_one_to_four_become_0_to_100(model: Path):
    config = JudgeConfig(kind="videoscore", path=str(model), frames=3)
    (raw,) = VideoScore(config, "cpu").judge([noise(3)], [prompt("a robot")])
    (found,) = open_judge("vs", config).judge([noise(3)], [prompt("a robot")])
    assert isinstance(raw, dict)
    assert found == {name: pytest.approx(100 * (value - 1) / 3) for name, value in raw.items()}


def test_a_clip_of_fewer_frames_is_refused(model: Path):
    judge = open_judge("vs", JudgeConfig(kind="videoscore", path=str(model)))
    with pytest.raises(ValueError, match="a clip of 9 frames at 8 per second; 16 frames are needed"):
        judge.judge([noise(9)], [prompt("a robot")])


def test_invalid_folders_are_named(tmp_path: Path):
    def line(folder: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            open_judge("vs", JudgeConfig(kind="videoscore", path=str(folder)))
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "cannot be loaded as Idefics2Regression" in line(tmp_path / "empty")
    assert "the model has 4 outputs" in line(tiny(tmp_path / "four", labels=4))
    assert "must contain {text} once, not 0 times" in line(tiny(tmp_path / "no-place", frames="rate"))
    bare = tiny(tmp_path / "bare")
    Idefics2Model(Idefics2Config.from_pretrained(bare)).save_pretrained(bare)
    assert "not a complete Idefics2Regression: weights missing: score.weight" in line(bare)
    (tmp_path / "no-place" / "prompt.txt").unlink()
    assert "must hold the prompt that the model was trained on" in line(tmp_path / "no-place")
