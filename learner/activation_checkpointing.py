"""Activation checkpointing: recomputes activations in the backward pass instead of storing them, to save memory.

Bytes stored per transformer block, and what is recomputed (S tokens, width d, b bytes per element):

| `learner.gradient_checkpointing` | stored per block | recomputed |
|---|---|---|
| off | 23 S d b; 14 S d b with LoRA on the attention layers | nothing |
| selective | the block's input and the attention output: 2 S d b | all but attention |
| full | the block's input: S d b | all |

Attention takes 4 S^2 d of a block's 4 S^2 d + 24 S d^2 operations, about half for CogVideoX-5B at 49 frames of
480 x 720. For S d b more bytes than `full`, `selective` avoids recomputing it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["off", "selective", "full"]

aten = torch.ops.aten
ATTENTION = [  # the kernels behind scaled_dot_product_attention on all devices
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def recompute_in(transformer: Any, how: Recompute) -> None:
    """Enable activation checkpointing mode `how` on every block of a diffusers `transformer`."""
    if how == "off":
        return
    contexts = partial(create_selective_checkpoint_contexts, ATTENTION) if how == "selective" else None

    def call(block: torch.nn.Module, *inputs: Any) -> Any:
        extra: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
        return checkpoint(block.__call__, *inputs, use_reentrant=False, **extra)

    transformer.enable_gradient_checkpointing(call)
