"""The frozen models: found, loaded and asked for embeddings. All float32, on any device."""

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
from common.errors.oom import reraise_oom
from rewarders.anime_reward.video import Pixels

FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # what is taken from a hub: no pickles
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
ANY_SIZE = {"idefics2", "idefics2_vision"}  # towers that take every picture size
SIZE = 224  # pixels of a frame for those, as the published AnimeReward has it


def here(where: str, beside: Path | None = None) -> Path | None:
    """The folder `where`, `beside` a file that names it or as seen from here; None where there is none."""
    places = [*([beside / where] if beside else []), Path(where)]
    return next((place.resolve() for place in places if place.is_dir()), None)


def find(role: str, where: str, beside: Path | None = None) -> Path:
    """The folder of the model `where`: a folder (relative ones `beside` a file that names it, or here) or a hub id."""
    folder = here(where, beside)
    if folder is not None:
        return folder
    if not HUB_ID.fullmatch(where):
        raise ConfigError(f"{role} model {where!r}: there is no such folder")
    try:
        return Path(snapshot_download(where, allow_patterns=FILES))
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such model, no right to it
        reraise_oom(error)
        raise ConfigError(
            f"{role} model {where!r}: no such folder, and not to be had from the hub: {line(error)}"
        ) from None


def load(role: str, folder: Path, kind: Any = AutoModel, tower: str = "") -> Any:
    """The pretrained model in `folder`, frozen, float32.

    `ConfigError` where it is none of `kind`, or where weights lack: of its `tower` if it has one, else any.
    """
    try:
        model, told = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    except Exception as error:
        reraise_oom(error)
        raise ConfigError(f"{role} model {folder}: not loaded as {kind.__name__}: {line(error)}") from None
    needed = f"{tower}." if hasattr(model, tower or "-") else ""
    lacking = sorted(name for name in told["missing_keys"] if name.startswith(needed) and "pooler" not in name)
    if lacking or told["mismatched_keys"]:
        raise ConfigError(
            f"{role} model {folder}: not the weights of {type(model).__name__}: "
            f"{len(lacking)} tensors lack ({', '.join(lacking[:2])}), {len(told['mismatched_keys'])} of another shape"
        )
    return model.eval().requires_grad_(False)


def part(role: str, folder: Path, make: Callable[[Path], Any], what: str) -> Any:
    """A tokenizer or an image processor's numbers; `ConfigError` where `folder` has none."""
    try:
        return make(folder)
    except Exception as error:
        reraise_oom(error)
        raise ConfigError(f"{role} model {folder}: no {what}: {line(error)}") from None


def line(error: Exception) -> str:
    """An error's words on one line."""
    return " ".join(str(error).split())[:200]


def image_processor(role: str, folder: Path) -> Any:
    """The PIL one everywhere: torchvision's pixels differ, and scores must not depend on what is installed."""
    return part(role, folder, lambda path: AutoImageProcessor.from_pretrained(path, backend="pil"), "image processor")


def tokenizer(role: str, folder: Path) -> Any:
    """The folder's tokenizer."""
    return part(role, folder, AutoTokenizer.from_pretrained, "tokenizer")


def pixels(role: str, folder: Path, config: Any) -> Pixels:
    """How pictures are made for the vision model of `config`."""
    told = image_processor(role, folder)
    size = SIZE if config.model_type in ANY_SIZE else config.image_size
    size = size if isinstance(size, int) else size[0]
    return Pixels(size, tuple(told.image_mean), tuple(told.image_std), Image.Resampling(int(told.resample)))


def _kind(role: str, folder: Path) -> Any:
    """Which class loads a vision tower: AutoModel knows no Idefics2 tower alone, and its class for BLIP will go."""
    kind = part(role, folder, AutoConfig.from_pretrained, "config.json of a known model").model_type
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
        """uint8 ``[n, H, W, 3]`` -> float32 ``[n, width]``: pooled, or the tokens' mean if there is no pooler."""
        seen = self.tower(pixel_values=self.pixels(frames).to(self.device))
        pooled = getattr(seen, "pooler_output", None)
        return seen.last_hidden_state.mean(1) if pooled is None else pooled


class Text:
    """E_t: the text tower of CLIP or SigLIP, or BERT and its like."""

    def __init__(self, folder: Path, device: str, role: str = "text") -> None:
        model = load(role, folder, tower="text_model")
        self.pooled = hasattr(model, "text_model")
        self.tower = getattr(model, "text_model", model).to(device)
        self.words = Words(role, folder, self.tower.config)
        self.width: int = self.tower.config.hidden_size
        self.device = device

    @torch.no_grad()
    def __call__(self, text: str) -> torch.Tensor:
        """One caption -> float32 ``[width]``."""
        seen = self.tower(**self.words(text, self.device))
        return (seen.pooler_output if self.pooled else seen.last_hidden_state[:, 0])[0]


class Words:
    """Tokens as a text tower takes them: cut at what it can read, and padded where it was trained so (SigLIP)."""

    def __init__(self, role: str, folder: Path, config: Any) -> None:
        self.tokenizer = tokenizer(role, folder)
        self.length = min(self.tokenizer.model_max_length, config.max_position_embeddings)
        self.padding = "max_length" if config.model_type.startswith("siglip") else False

    def __call__(self, text: str, device: str) -> Mapping[str, torch.Tensor]:
        """Token ids, and a mask where the tokenizer makes one, ``[1, L]``."""
        return self.tokenizer(
            text, truncation=True, max_length=self.length, padding=self.padding, return_tensors="pt"
        ).to(device)
