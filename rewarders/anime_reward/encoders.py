"""Locates and loads the pretrained encoders, and computes their embeddings, on any device.

Scores are computed in float32, a clip at a time and without gradients. Where gradients are needed (`douga reward train
--encoders`, algorithms that follow the gradient of a reward), an encoder takes `Encoder.per_pass` frames at a time and
keeps no activations: the backward pass computes those of one pass again. So memory does not grow with the clip or the
batch, and the gradient is that of the whole batch.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BlipForImageTextRetrieval,
    BlipVisionModel,
)
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.files import new_folder
from common.models.pretrained import from_pretrained, load_model
from rewarders.anime_reward.video import Frames, Pixels

FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # downloaded from the hub; no pickles
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
ANY_SIZE = {"idefics2", "idefics2_vision"}  # towers without a fixed input size
SIZE = 224  # their input size in pixels, as in the published AnimeReward
BARE_TOWERS = {"blip_vision_model": BlipVisionModel, "idefics2_vision": Idefics2VisionTransformer}
POOLED_TEXT = {"clip_text_model", "siglip_text_model"}  # text towers of joint models, alone or within one


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


def load(role: str, folder: Path, kind: Any = AutoModel) -> Any:
    """Loads the pretrained model in `folder`, frozen, float32. Raises `ConfigError` as `load_model` does."""
    model, _ = load_model(kind, folder, _where(role, folder), dtype=torch.float32)
    return model.eval().requires_grad_(False)


def load_tower(role: str, folder: Path, name: str, kind: Any = AutoModel) -> tuple[Any, bool]:
    """Loads a model of which one tower is used: its part `name`, or all of it if it has no such part.

    Returns the model and whether the tower's pooler can be used. The files of published ViT classifiers have none, and
    `transformers` draws one at random: such a tower counts as one without a pooler. Raises `ConfigError` if any other
    weight of the tower is missing.
    """
    model, missing = load_model(
        kind, folder, _where(role, folder), lambda model, missing: _needed(model, missing, name), dtype=torch.float32
    )
    return model.eval().requires_grad_(False), missing.isdisjoint(_pooler(model, name))


def _needed(model: Any, missing: Set[str], name: str) -> Set[str]:
    """Returns those `missing` weights that a tower's embedding depends on: all of its own, but for a whole pooler."""
    own = {weight for weight in missing if weight.startswith(_prefix(model, name))}
    pooler = _pooler(model, name)
    return own - pooler if pooler <= own else own


def _pooler(model: Any, name: str) -> set[str]:
    start = f"{_prefix(model, name)}pooler."
    return {weight for weight, _ in model.named_parameters() if weight.startswith(start)}


def _prefix(model: Any, name: str) -> str:
    return f"{name}." if hasattr(model, name) else ""


def _where(role: str, folder: Path) -> str:
    return f"{role} model {folder}"


def image_processor(role: str, folder: Path) -> Any:
    """Always PIL's: torchvision resizes differently, and scores must not depend on what is installed."""
    return from_pretrained(AutoImageProcessor, folder, _where(role, folder), "an image processor", backend="pil")


def tokenizer(role: str, folder: Path) -> Any:
    """Loads the folder's tokenizer."""
    return from_pretrained(AutoTokenizer, folder, _where(role, folder), "a tokenizer")


def pixels(role: str, folder: Path, config: Any) -> Pixels:
    """Returns the preprocessing of the vision model of `config`."""
    processor = image_processor(role, folder)
    size = SIZE if config.model_type in ANY_SIZE else config.image_size
    size = size if isinstance(size, int) else size[0]
    return Pixels(
        size, tuple(processor.image_mean), tuple(processor.image_std), Image.Resampling(int(processor.resample))
    )


def _kind(role: str, folder: Path) -> Any:
    """Returns the class that loads a vision tower. AutoModel has none for some bare towers, and its BLIP class is
    deprecated."""
    kind = from_pretrained(AutoConfig, folder, _where(role, folder), "the config of a known model").model_type
    return {"blip": BlipForImageTextRetrieval, **BARE_TOWERS}.get(kind, AutoModel)


class Encoder(ABC):
    """A pretrained model, or the tower of one, that can be fine-tuned and saved."""

    tower: Any  # the part that is used and trained
    pooled = True  # whether it has a pooler whose output is used
    per_pass = 16  # frames at a time where gradients are needed

    def __init__(self, role: str, folder: Path, device: str) -> None:
        self.role, self.folder, self.device = role, folder, device

    def save(self, folder: Path) -> None:
        """Writes the tower and its preprocessing as a `transformers` folder, which replaces `folder` atomically.

        A pooler that is not used is left out, so that the saved tower is loaded as one without.
        """
        state = self.tower.state_dict()
        kept = {name: tensor for name, tensor in state.items() if self.pooled or not name.startswith("pooler.")}
        with new_folder(folder) as draft:
            self.tower.save_pretrained(draft, state_dict=kept)
            self._save_preprocessing(draft)

    @abstractmethod
    def _save_preprocessing(self, folder: Path) -> None:
        """Writes the image processor or tokenizer, or both."""

    def _run(self, embed: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Returns ``embed(*inputs)``, in float32; see the module's docstring on gradients."""
        if not torch.is_grad_enabled():
            return embed(*inputs).float()
        passes = zip(*(one.split(self.per_pass) for one in inputs), strict=True)
        return torch.cat([checkpoint(embed, *one, use_reentrant=False) for one in passes]).float()


class Vision(Encoder):
    """E_v: the vision tower of SigLIP, CLIP, BLIP, ViT, or of a vision-language model such as Idefics2."""

    def __init__(self, folder: Path, device: str, role: str = "vision") -> None:
        super().__init__(role, folder, device)
        model, self.pooled = load_tower(role, folder, "vision_model", _kind(role, folder))
        self.tower = getattr(model, "vision_model", model).to(device)
        config = self.tower.config
        if not hasattr(config, "image_size"):
            raise ConfigError(f"{_where(role, folder)}: {type(model).__name__} has no vision tower")
        self.pixels = pixels(role, folder, config)
        self.width: int = config.hidden_size

    def __call__(self, frames: Frames) -> torch.Tensor:
        """Maps n frames to float32 ``[n, width]``: pooled, or the mean over tokens if there is no
        pooler."""
        return self._run(self._embedded, self.pixels(frames).to(self.device))

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.tower(pixel_values=images)
        pooled = getattr(seen, "pooler_output", None) if self.pooled else None
        return seen.last_hidden_state.mean(1) if pooled is None else pooled

    def _save_preprocessing(self, folder: Path) -> None:
        image_processor(self.role, self.folder).save_pretrained(folder)


class Text(Encoder):
    """E_t: the text tower of CLIP or SigLIP, or a BERT-like model."""

    def __init__(self, folder: Path, device: str, role: str = "text") -> None:
        super().__init__(role, folder, device)
        model, pooled = load_tower(role, folder, "text_model")
        self.tower = getattr(model, "text_model", model).to(device)
        self.pooled = pooled and (hasattr(model, "text_model") or self.tower.config.model_type in POOLED_TEXT)
        self.words = CaptionTokenizer(role, folder, self.tower.config)
        self.width: int = self.tower.config.hidden_size

    def __call__(self, text: str) -> torch.Tensor:
        """Maps a caption to float32 ``[width]``: a joint model's pooled output, else the first token."""
        words = self.words(text, self.device)
        return self._run(lambda *tokens: self._embedded(dict(zip(words, tokens, strict=True))), *words.values())[0]

    def _embedded(self, words: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen = self.tower(**words)
        return seen.pooler_output if self.pooled else seen.last_hidden_state[:, 0]

    def _save_preprocessing(self, folder: Path) -> None:
        self.words.tokenizer.save_pretrained(folder)


class ImageText(Encoder):
    """M_CLIP: both towers of CLIP or SigLIP, with their shared embedding space."""

    def __init__(self, folder: Path, device: str, role: str = "clip") -> None:
        super().__init__(role, folder, device)
        self.tower = load(role, folder).to(device)
        if not hasattr(self.tower, "get_text_features"):
            raise ConfigError(
                f"{_where(role, folder)}: {type(self.tower).__name__} has no joint embedding space of text and images"
            )
        self.pixels = pixels(role, folder, self.tower.config.vision_config)
        self.words = CaptionTokenizer(role, folder, self.tower.config.text_config)
        self.temperature = float(self.tower.logit_scale.exp())

    def images(self, frames: Frames) -> torch.Tensor:
        """Maps n frames to float32 ``[n, D]``."""
        images = self.pixels(frames).to(self.device)
        return self._run(lambda part: self.tower.get_image_features(pixel_values=part).pooler_output, images)

    def text(self, text: str) -> torch.Tensor:
        """Maps a sentence to float32 ``[D]``."""
        return self.tower.get_text_features(**self.words(text, self.device)).pooler_output[0].float()

    def _save_preprocessing(self, folder: Path) -> None:
        image_processor(self.role, self.folder).save_pretrained(folder)
        self.words.tokenizer.save_pretrained(folder)


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
