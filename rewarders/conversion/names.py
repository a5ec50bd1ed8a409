"""Names of published weights, and the sizes of the models they belong to, for `transformers`.

BLIP: github.com/salesforce/BLIP, whose vision tower is timm's ViT. CLIP: github.com/openai/CLIP and OpenCLIP.
"""

from __future__ import annotations

from typing import Any

import torch

from rewarders.conversion.checkpoints import Tensors, rename, required

HEAD = 64  # features of an attention head in every published BLIP and BERT
BLIP_VISION = {
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "blocks.": "encoder.layers.",
}  # in this order; the last norm is renamed on its own
CLIP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.": "vision_model.encoder.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    ".resblocks.": ".layers.",
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}  # in this order
CLIP_EXTRA = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's files


def clip_weights(published: Tensors) -> Tensors:
    """Returns OpenAI's or OpenCLIP's weights as those of `CLIPModel`."""
    weights: Tensors = {}
    for old, tensor in rename({k: v for k, v in published.items() if k not in CLIP_EXTRA}, CLIP).items():
        name = f"text_model.encoder.{old.removeprefix('transformer.')}" if old.startswith("transformer.") else old
        if name == "positional_embedding":
            weights["text_model.embeddings.position_embedding.weight"] = tensor
        elif name in ("visual_projection.weight", "text_projection.weight"):
            weights[name] = tensor.T
        elif ".in_proj_" in name:  # queries, keys and values in one
            rows = zip("qkv", tensor.chunk(3), strict=True)
            weights |= {name.replace("in_proj_", f"{letter}_proj."): one for letter, one in rows}
        else:
            weights[name] = tensor
    return weights


def blip_vision_weights(published: Tensors) -> Tensors:
    """Returns the weights of BLIP's vision tower as those of `BlipVisionModel`."""
    last = {name: one for name, one in published.items() if name.startswith("norm.")}
    others = {name: one for name, one in published.items() if name not in last}
    return rename(others, BLIP_VISION) | rename(last, {"norm.": "post_layernorm."})


def blip_vision_sizes(published: Tensors, where: str) -> dict[str, Any]:
    """Returns the sizes in `BlipVisionConfig`."""
    patches = required(published, "patch_embed.proj.weight", where)
    places = required(published, "pos_embed", where).shape[1] - 1
    width, _, patch, _ = patches.shape
    return {
        "hidden_size": width,
        "intermediate_size": len(required(published, "blocks.0.mlp.fc1.bias", where)),
        "num_hidden_layers": _count(published, "blocks."),
        "num_attention_heads": max(1, width // HEAD),
        "image_size": patch * round(places**0.5),
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }


def bert_sizes(published: Tensors, where: str) -> dict[str, Any]:
    """Returns the sizes in `BertConfig` and `BlipTextConfig`."""
    words = required(published, "embeddings.word_embeddings.weight", where)
    return {
        "vocab_size": len(words),
        "hidden_size": words.shape[1],
        "intermediate_size": len(required(published, "encoder.layer.0.intermediate.dense.bias", where)),
        "num_hidden_layers": _count(published, "encoder.layer."),
        "num_attention_heads": max(1, words.shape[1] // HEAD),
        "max_position_embeddings": len(required(published, "embeddings.position_embeddings.weight", where)),
        "layer_norm_eps": 1e-12,
    }


def _count(published: dict[str, torch.Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in published if name.startswith(prefix)})
