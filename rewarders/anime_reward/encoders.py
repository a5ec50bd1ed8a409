"""Locates and loads the frozen encoders, and computes their embeddings. All float32, on any device."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, BlipForImageTextRetrieval
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from rewarders.anime_reward.video import Pixels

FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # downloaded from the hub; no pickles
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
ANY_SIZE = {"idefics2", "idefics2_vision"}  # towers without a fixed input size
SIZE = 224  # their input size in pixels, as in the published AnimeReward


def resolve_folder(path: str, base: Path | None = None) -> Path | None:
    """Returns the folder `path`, relative to `base` or to the working directory; None if neither exists."""
    places = [*([base / path] if base else []), Path(path)]
    return next((place.resolve() for place in places if place.is_dir()), None)


def locate_model(role: str, path: str, base: Path | None = None) -> Path:
    """Returns the folder of the model `path`: a folder (see `resolve_folder`) or a hub id, which is downloaded."""
    folder = resolve_folder(path, base)
    if folder is not None:
        return folder
    if not HUB_ID.fullmatch(path):
        raise ConfigError(f"{role} model {path!r}: no such folder, and not a hub id")
    try:
        return Path(snapshot_download(path, allow_patterns=FILES))
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such model, or no access
        reraise_oom(error)
        raise ConfigError(f"{role} model {path!r}: no such folder, and not on the hub: {one_line(error)}") from None


def load(role: str, folder: Path, kind: Any = AutoModel, tower: str = "") -> Any:
    """Loads the pretrained model in `folder`, frozen, float32.

    Raises `ConfigError` if it is not a `kind`, or if weights are missing: those of `tower` if the model has one, else
    any.
    """
    try:
        model, loading = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        reraise_oom(error)
        raise ConfigError(f"{role} model {folder}: cannot be loaded as {kind.__name__}: {one_line(error)}") from None
    needed = f"{tower}." if hasattr(model, tower or "-") else ""
    missing = sorted(name for name in loading["missing_keys"] if name.startswith(needed) and "pooler" not in name)
    if missing or loading["mismatched_keys"]:
        raise ConfigError(
            f"{role} model {folder}: not the weights of {type(model).__name__}: "
            f"{len(missing)} missing ({', '.join(missing[:2])}), {len(loading['mismatched_keys'])} of another shape"
        )
    return model.eval().requires_grad_(False)


def load_component(role: str, folder: Path, make: Callable[[Path], Any], what: str) -> Any:
    """Loads a tokenizer, an image processor or a config. Raises `ConfigError` if `folder` has none."""
    try:
        return make(folder)
    except Exception as error:
        reraise_oom(error)
        raise ConfigError(f"{role} model {folder}: no {what}: {one_line(error)}") from None


def image_processor(role: str, folder: Path) -> Any:
    """Always PIL's: torchvision resizes differently, and scores must not depend on what is installed."""
    return load_component(
        role, folder, lambda path: AutoImageProcessor.from_pretrained(path, backend="pil"), "image processor"
    )


def tokenizer(role: str, folder: Path) -> Any:
    """Loads the folder's tokenizer."""
    return load_component(role, folder, AutoTokenizer.from_pretrained, "tokenizer")


def pixels(role: str, folder: Path, config: Any) -> Pixels:
    """Returns the preprocessing of the vision model of `config`."""
    processor = image_processor(role, folder)
    size = SIZE if config.model_type in ANY_SIZE else config.image_size
    size = size if isinstance(size, int) else size[0]
    return Pixels(
        size, tuple(processor.image_mean), tuple(processor.image_std), Image.Resampling(int(processor.resample))
    )


def _kind(role: str, folder: Path) -> Any:
    """Returns the class that loads a vision tower. AutoModel has none for a bare Idefics2 tower, and its BLIP class
    is deprecated."""
    kind = load_component(role, folder, AutoConfig.from_pretrained, "config.json of a known model").model_type
    return {"blip": BlipForImageTextRetrieval, "idefics2_vision": Idefics2VisionTransformer}.get(kind, AutoModel)


class Vision:
    """E_v: the vision tower of SigLIP, CLIP, BLIP, ViT, or of a vision-language model such as Idefics2."""

    def __init__(self, folder: Path, device: str, role: str = "vision") -> None:
        model = load(role, folder, _kind(role, folder), "vision_model")
        self.tower = getattr(model, "vision_model", model).to(device)
        config = self.tower.config
        if not hasattr(config, "image_size"):
            raise ConfigError(f"{role} model {folder}: {type(model).__name__} has no vision tower")
        self.pixels = pixels(role, folder, config)
        self.width: int = config.hidden_size
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        """Maps uint8 ``[n, H, W, 3]`` to float32 ``[n, width]``: pooled, or the mean over tokens if there is no
        pooler."""
        seen = self.tower(pixel_values=self.pixels(frames).to(self.device))
        pooled = getattr(seen, "pooler_output", None)
        return seen.last_hidden_state.mean(1) if pooled is None else pooled


class Text:
    """E_t: the text tower of CLIP or SigLIP, or a BERT-like model."""

    def __init__(self, folder: Path, device: str, role: str = "text") -> None:
        model = load(role, folder, tower="text_model")
        self.pooled = hasattr(model, "text_model")
        self.tower = getattr(model, "text_model", model).to(device)
        self.words = CaptionTokenizer(role, folder, self.tower.config)
        self.width: int = self.tower.config.hidden_size
        self.device = device

    @torch.no_grad()
    def __call__(self, text: str) -> torch.Tensor:
        """Maps a caption to float32 ``[width]``."""
        seen = self.tower(**self.words(text, self.device))
        return (seen.pooler_output if self.pooled else seen.last_hidden_state[:, 0])[0]


class CaptionTokenizer:
    """Tokenizes captions for a text tower: truncates at its limit, and pads if it was trained so (SigLIP)."""

    def __init__(self, role: str, folder: Path, config: Any) -> None:
        self.tokenizer = tokenizer(role, folder)
        self.length = min(self.tokenizer.model_max_length, config.max_position_embeddings)
        self.padding = "max_length" if config.model_type.startswith("siglip") else False

    def __call__(self, text: str, device: str) -> Mapping[str, torch.Tensor]:
        """Returns token ids and, if the tokenizer makes one, the attention mask, ``[1, L]`` each."""
        return self.tokenizer(
            text, truncation=True, max_length=self.length, padding=self.padding, return_tensors="pt"
        ).to(device)
