"""The Qwen2-VL captioner over a tiny random model of the real classes: it runs, sees the frames, and is greedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from actors.prompts.captioner import Qwen2VLCaptioner
from common.errors import ConfigError
from tests.support.torn import without

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def tiny_qwen(folder: Path) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *SPECIAL])}
    Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(SPECIAL[1:])).save_pretrained(folder)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "eos_token_id": vocabulary["<|im_end|>"],
            "bos_token_id": vocabulary["<|endoftext|>"],
            "pad_token_id": vocabulary["<|endoftext|>"],
        },
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():  # untrained eyes see next to nothing: open them
        for parameter in model.model.visual.parameters():
            parameter.mul_(20)
    model.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}).save_pretrained(folder)
    return folder


def test_it_describes_what_it_sees(tmp_path: Path) -> None:
    captioner = Qwen2VLCaptioner(str(tiny_qwen(tmp_path)))
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    caption = captioner(frames)
    assert caption == captioner(frames)
    assert caption != captioner(np.zeros_like(frames))
    seen = captioner._images(images=list(frames), return_tensors="pt")["image_grid_thw"]
    turn = captioner._chat_turn(seen)
    assert turn.count("<|image_pad|>") == int(seen.prod(1).sum()) // 4
    assert turn.count("<|vision_start|>") == 3


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^captioner .*: cannot be loaded as AutoImageProcessor: ") as error:
        Qwen2VLCaptioner(str(tmp_path))
    assert "\n" not in str(error.value)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    name = "model.visual.patch_embed.proj.weight"
    without(tiny_qwen(tmp_path), name.replace("model.", ""))
    with pytest.raises(ConfigError) as error:
        Qwen2VLCaptioner(str(tmp_path))
    model = "Qwen2VLForConditionalGeneration"
    assert str(error.value) == f"captioner {tmp_path}: not a complete {model}: weights missing: {name}"
