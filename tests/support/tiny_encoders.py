"""Random vision, text, detection and tracking models small enough for unit tests, as folders that `transformers` loads.

They are the real classes; only the sizes are toys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    PreTrainedTokenizerFast,
    Sam2VideoConfig,
    Sam2VideoModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

SIZE = 32  # pixels
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "character", "a", "the", "robot", "zombie", "walks", "runs", "jumps")
ENDS = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
READER = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
}


def tiny_siglip(folder: Path, seed: int = 0, hidden_size: int = 16) -> str:
    """A vision tower."""
    _seeded(
        seed, lambda: SiglipVisionModel(SiglipVisionConfig(**{**TOWER, "hidden_size": hidden_size}))
    ).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return str(folder)


def blind_to_blue(folder: str) -> str:
    """Sets the weights of a vision tower's blue channel to 0: nothing of it is in the features."""
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    (name,) = (name for name in weights if name.endswith("patch_embedding.weight"))
    weights[name][:, 2] = 0
    save_file(weights, file, {"format": "pt"})
    return folder


def tiny_vit(folder: Path, seed: int = 0, pooler: bool = False) -> str:
    """A ViT: a published classifier, whose file has no pooler, or with `pooler` the bare model, whose file has one."""
    config = ViTConfig(**TOWER)
    _seeded(seed, lambda: ViTModel(config) if pooler else ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return str(folder)


def tiny_idefics2(folder: Path, seed: int = 0) -> str:
    """A complete vision-language model. Its vision tower has no pooler, 16 features, and accepts images of any size."""
    size = {name: READER[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    config = Idefics2Config(
        vision_config=TOWER | {"image_size": 224, "patch_size": 56},
        text_config={"model_type": "mistral", **size, "num_attention_heads": 2, "num_key_value_heads": 2},
        perceiver_config={"hidden_size": 16, "resampler_n_latents": 2, "resampler_depth": 1, "resampler_n_heads": 2}
        | {"resampler_head_dim": 8, "num_key_value_heads": 2},
        image_token_id=5,
    )
    _seeded(seed, lambda: Idefics2ForConditionalGeneration(config)).save_pretrained(folder)
    Idefics2ImageProcessorPil().save_pretrained(folder)
    return str(folder)


def tiny_idefics2_tower(folder: Path, seed: int = 0) -> str:
    """The vision tower of `tiny_idefics2` on its own."""
    whole = Idefics2ForConditionalGeneration.from_pretrained(tiny_idefics2(folder / "whole", seed))
    whole.model.vision_model.save_pretrained(folder)
    Idefics2ImageProcessorPil().save_pretrained(folder)
    return str(folder)


def tiny_clip(folder: Path, seed: int = 0) -> str:
    """Both towers, with 16 shared features."""
    config = CLIPConfig(vision_config=TOWER, text_config=READER | ENDS, projection_dim=16)
    _seeded(seed, lambda: CLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_videomae(folder: Path, seed: int = 0, kind: Any = VideoMAEForVideoClassification, **config: Any) -> str:
    """A VideoMAE over 4 frames with 16 features, by default with a classifier for 3 classes."""
    size = TOWER | {"num_frames": 4, "tubelet_size": 2, "num_labels": 3}
    _seeded(seed, lambda: kind(VideoMAEConfig(**size | config))).save_pretrained(folder)
    VideoMAEImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        folder
    )
    return str(folder)


def tiny_blip(folder: Path, seed: int = 0) -> str:
    """BLIP with both towers."""
    config = BlipConfig(
        vision_config=TOWER,
        text_config=READER | ENDS | {"encoder_hidden_size": 16},
        projection_dim=16,
    )
    _seeded(seed, lambda: BlipForImageTextRetrieval(config)).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return str(folder)


def tiny_bert(folder: Path, seed: int = 0) -> str:
    """A text encoder, 16 features wide."""
    _seeded(seed, lambda: BertModel(BertConfig(**READER))).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_detector(folder: Path, seed: int = 0) -> str:
    """GroundingDINO. It has tied box heads, so it cannot be saved with fewer than two decoder layers."""
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=SIZE,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(**READER),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        max_text_len=40,
        disable_custom_kernels=True,
    )
    _seeded(seed, lambda: GroundingDinoForObjectDetection(config)).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 256}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_tracker(folder: Path, seed: int = 0, sees_all: bool = False, sees_none: bool = False) -> str:
    """SAM 2's video model for images of 64 pixels.

    With `sees_all` the mask covers every pixel of every frame, with `sees_none` none, because the mask decoder's last
    layers are set accordingly. Otherwise masks come from random weights.
    """
    config = Sam2VideoConfig(
        image_size=64,
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [64, 64],
                "hidden_size": 8,
                "blocks_per_stage": [1, 1, 1, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [4, 2, 2, 2],
                "global_attention_blocks": [],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": 64},
        mask_decoder_config={
            "hidden_size": 128,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    model = _seeded(seed, lambda: Sam2VideoModel(config))
    decoder = model.mask_decoder
    with torch.no_grad():
        decoder.pred_obj_score_head.proj_out.bias.fill_(-9.0 if sees_none else 9.0)
        if sees_all:
            for network in decoder.output_hypernetworks_mlps:
                network.proj_out.weight.zero_()
                network.proj_out.bias.fill_(1.0)
            decoder.conv_s0.bias.fill_(9.0)
    model.save_pretrained(folder)
    return str(folder)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; unknown words are [UNK]."""
    ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=40,
    )


def _seeded(seed: int, make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for weights in model.parameters():
            if weights.ndim > 1:  # like trained weights: by default all images give almost the same features
                torch.nn.init.normal_(weights, std=weights[0].numel() ** -0.5)
        return model
