"""Sparse-causal attention (`model.attention`), the one of HuViDPO (arXiv 2502.01690, equations 10 and 11, restated here
from the description in section 3.3).

The queries of frame i see the keys and values of the first and the previous frame:

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V,    Q = W_Q z_i,  K = W_K [z_0; z_{i-1}],  V = W_V [z_0; z_{i-1}]

Deviations, all because CogVideoX has one attention over caption, space and time, where the paper's U-Net has several:
1. Caption tokens are keys of every frame too, and attend to everything.
2. A frame is one step of the token sequence: 4 video frames, or 8 for CogVideoX 1.5 (the first has the padding).
3. Frame 0 has no previous frame, and that of frame 1 is frame 0: both see frame 0 once. In the paper it counts twice.
4. Nothing else connects a frame with itself or with other frames; the U-Net has temporal attention and convolutions.
   So a model that was pretrained with full attention has to be fine-tuned before its clips are any good.

| symbol | here | meaning |
|---|---|---|
| B, H, d | | batch, heads, width of a head |
| L, F, P | `text`, `frames`, `frame` | caption tokens, frames, tokens of a frame; S = L + F P |

Attention then takes L S + 2 P (L + P) + (F - 2) P (L + 2 P) products of queries and keys instead of S^2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn.functional import scaled_dot_product_attention

AttentionKind = Literal["full", "sparse_causal"]


def set_attention(transformer: Any, kind: AttentionKind, shape: tuple[int, int, int, int]) -> None:
    """Make all blocks of `transformer` use attention of `kind`, for latents of `shape` (F, C, h, w)."""
    if kind == "sparse_causal":
        _, _, height, width = shape
        frame = height * width // transformer.config["patch_size"] ** 2
        transformer.set_attn_processor(SparseCausalProcessor(frame))


class SparseCausalProcessor:
    """diffusers' `CogVideoXAttnProcessor2_0` with `sparse_causal` in place of full attention."""

    def __init__(self, frame: int) -> None:
        self._frame = frame

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video [B, F P, width] and caption [B, L, width] after attention."""
        text = encoder_hidden_states.shape[1]
        states = torch.cat([encoder_hidden_states, hidden_states], 1)
        query, key, value = (
            layer(states).unflatten(2, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (
            _placed(part if norm is None else norm(part), text, image_rotary_emb)
            for norm, part in ((attn.norm_q, query), (attn.norm_k, key))
        )
        mixed = sparse_causal(query, key, value, text, self._frame).transpose(1, 2).flatten(2)
        mixed = attn.to_out[1](attn.to_out[0](mixed))
        return mixed[:, text:], mixed[:, :text]


def sparse_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, text: int, frame: int) -> torch.Tensor:
    """The attention of the module docstring for `query`, `key` and `value` [B, H, L + F P, d]; the result like `query`.

    Raises `ValueError` if the video is not a whole number of frames.
    """
    frames, rest = divmod(query.shape[2] - text, frame)
    if rest:
        raise ValueError(f"{query.shape[2] - text} video tokens: no multiple of the {frame} tokens of a frame")
    first, second = text + frame, text + 2 * frame
    parts = [
        scaled_dot_product_attention(query[:, :, :text], key, value),
        scaled_dot_product_attention(query[:, :, text:second], key[:, :, :first], value[:, :, :first]),
    ]
    if frames > 2:
        parts.append(_later_frames(query, key, value, text, frame))
    return torch.cat(parts, 2)


def _later_frames(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, text: int, frame: int) -> torch.Tensor:
    """Attention of frames 2 .. F-1, [B, H, (F - 2) P, d]: one call, with the frames in the batch."""
    first, count = text + frame, (query.shape[2] - text) // frame - 2

    def seen(part: torch.Tensor) -> torch.Tensor:
        """Caption, first and previous frame of each frame, [B (F - 2), H, L + 2 P, d]."""
        shared = part[:, :, None, :first].expand(-1, -1, count, -1, -1)
        previous = part[:, :, first:-frame].unflatten(2, (count, frame))
        return torch.cat([shared, previous], 3).transpose(1, 2).flatten(0, 1)

    own = query[:, :, first + frame :].unflatten(2, (count, frame)).transpose(1, 2).flatten(0, 1)
    mixed = scaled_dot_product_attention(own, seen(key), seen(value))
    return mixed.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)


def _placed(part: torch.Tensor, text: int, rotary: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Queries or keys with their rotary positions, which captions do not have."""
    if rotary is None:
        return part
    return torch.cat([part[:, :, :text], apply_rotary_emb(part[:, :, text:], rotary)], 2)  # type: ignore[list-item]
