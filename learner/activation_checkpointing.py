"""Activations that are computed again in the backward pass instead of kept: less memory for more work.

What a block of the transformer keeps, and what is done twice (S tokens, width d, b bytes per number):

| `learner.gradient_checkpointing` | kept of a block | done again |
|---|---|---|
| off | 23 S d b, 14 S d b with adapters on the attention | nothing |
| selective | its input and what attention gave: 2 S d b | all but attention |
| full | its input: S d b | all |

Attention is 4 S^2 d of a block's 4 S^2 d + 24 S d^2 operations, about half at 49 frames of 480 x 720 in CogVideoX-5B:
`selective` does without that half for one S d b more.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["off", "selective", "full"]

aten = torch.ops.aten
ATTENTION = [  # what scaled_dot_product_attention becomes, on whichever device
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def recompute_in(transformer: Any, how: Recompute) -> None:
    """Let every block of a diffusers `transformer` keep only what `how` says."""
    if how == "off":
        return
    contexts = partial(create_selective_checkpoint_contexts, ATTENTION) if how == "selective" else None

    def call(block: torch.nn.Module, *inputs: Any) -> Any:
        extra: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
        return checkpoint(block.__call__, *inputs, use_reentrant=False, **extra)

    transformer.enable_gradient_checkpointing(call)
