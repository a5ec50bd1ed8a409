"""The published families with few weights, for clips of 9 frames of 48 x 64 pixels."""

from __future__ import annotations

from typing import Any

from benchmarks.random_models import RandomModel, random_model

FRAMES, HEIGHT, WIDTH = 9, 48, 64
SIZE = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}

# The published configs determine the computation; these keys only shrink it.
SMALL: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "time_embed_dim": 16, "text_embed_dim": 32,
        "max_text_seq_length": 12, "sample_frames": FRAMES, "sample_height": HEIGHT // 4, "sample_width": WIDTH // 4,
    },
    "vae": {
        "block_out_channels": [4, 8, 8], "layers_per_block": 1, "norm_num_groups": 2,
        "down_block_types": ["CogVideoXDownBlock3D"] * 3, "up_block_types": ["CogVideoXUpBlock3D"] * 3,
    },
    "text_encoder": {"d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 64},
}  # fmt: skip


def small_model(family: str) -> RandomModel:
    """The family's parts, each with a few thousand weights."""
    offset = {"ofs_embed_dim": SMALL["transformer"]["time_embed_dim"]} if family == "1.5-5b-i2v" else {}
    return random_model(family, SMALL | {"transformer": SMALL["transformer"] | offset})
