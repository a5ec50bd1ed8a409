"""A diffusers text-to-image pipeline from a folder: makes the first frame of a clip from its caption.

Every class that `diffusers.AutoPipelineForText2Image` knows works, such as Stable Diffusion, SDXL, PixArt or Flux.
Models are loaded one by one and passed to the pipeline, because a pipeline that loads them itself draws missing weights
at random and only logs it. Only safetensors and classes of diffusers and transformers are loaded: no pickles, no code
from the folder.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image, ModelMixin
from PIL import Image

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.models.cogvideox import torch_dtype
from common.models.pretrained import from_pretrained, load_model

INDEX = "model_index.json"
ARGUMENTS = {"steps": "num_inference_steps", "guidance": "guidance_scale"}  # option -> argument of the pipeline


@dataclass(frozen=True)
class ImageSettings:
    """What an image depends on beside model, caption and seed. Steps and guidance: None is the pipeline's default."""

    height: int = 480  # pixels; of CogVideoX's clips
    width: int = 720
    steps: int | None = None
    guidance: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("height", "width", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value}: must be at least 1")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise ConfigError(f"--guidance {self.guidance}: must be finite, and at least 0")


class TextToImage:
    """Makes images of captions. `ConfigError` if the folder holds no complete text-to-image pipeline."""

    def __init__(self, folder: Path, settings: ImageSettings, device: str, log: Callable[[str], None]) -> None:
        self._folder, self._log = folder, log
        _check_device(device)
        self._pipeline: Any = _load(folder, torch_dtype(settings.dtype)).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._options = call_options(type(self._pipeline), settings)
        self._size = {"height": settings.height, "width": settings.width}

    def __call__(self, caption: str, seed: int) -> Image.Image | None:
        """The RGB image of a caption, or None if the pipeline's safety checker blacked it out.

        The noise is drawn on the CPU, so that it is the same on all devices. A pipeline that refuses the size makes its
        own size from then on.
        """
        try:
            return self._make(caption, seed)
        except ValueError as error:  # of the pipeline's own check of its arguments
            if not self._size or "height" not in str(error):
                raise
            self._use_own_size(one_line(error))
        return self(caption, seed)

    @torch.inference_mode()
    def _make(self, caption: str, seed: int) -> Image.Image | None:
        noise = torch.Generator("cpu").manual_seed(seed)
        options = self._size | self._options
        made = self._pipeline(prompt=caption, generator=noise, output_type="pil", **options)
        if any(getattr(made, "nsfw_content_detected", None) or ()):
            return None
        return made.images[0].convert("RGB")

    def _use_own_size(self, reason: str) -> None:
        self._log(f"{self._folder}: {reason}; making images of the pipeline's own size, which runs scale and crop")
        self._size = {}


def call_options(pipeline: type, settings: ImageSettings) -> dict[str, Any]:
    """Steps and guidance, if given, as arguments of a pipeline's call. `ConfigError` if it does not take one."""
    known = inspect.signature(pipeline.__call__).parameters
    options = {}
    for option, argument in ARGUMENTS.items():
        value = getattr(settings, option)
        if value is not None and argument not in known:
            raise ConfigError(f"--{option} {value}: {pipeline.__name__} takes no {argument}")
        if value is not None:
            options[argument] = value
    return options


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reraise_oom(error)
        raise ConfigError(f"--device {device}: cannot be used: {one_line(error)}") from None


def _load(folder: Path, dtype: torch.dtype) -> Any:
    where = str(folder)
    models: dict[str, Any] = {}
    for name, kind in _model_classes(folder).items():
        part = str(folder / name)
        options: dict[str, Any] = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype}
        models[name], _ = load_model(kind, part, part, local_files_only=True, **options)
        models[name].eval()
    what = "a text-to-image pipeline"
    options = {"local_files_only": True, "use_safetensors": True, "torch_dtype": dtype}
    return from_pretrained(AutoPipelineForText2Image, where, where, what, **options, **models)


def _model_classes(folder: Path) -> dict[str, type]:
    """Component -> class, of those components of a pipeline folder that have weights."""
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        named = {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}
        whole = isinstance(index["_class_name"], str) and all(map(_is_class_name, named.values()))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: not a pipeline folder: no {INDEX} in it") from None
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"{folder / INDEX}: not the index of a pipeline: {one_line(error)}") from None
    if not whole:
        raise ConfigError(f"{folder / INDEX}: names code of its own; only classes of diffusers and transformers load")
    classes = {name: _class(folder, name, *value) for name, value in named.items() if value[0] is not None}
    return {name: kind for name, kind in classes.items() if issubclass(kind, torch.nn.Module)}


def _is_class_name(value: list[Any]) -> bool:
    """Whether it is [library, class], or [null, null] for a component that is left out."""
    return len(value) == 2 and (value == [None, None] or all(isinstance(word, str) for word in value))


def _class(folder: Path, name: str, library: str, kind: str) -> type:
    """The class of a component. Older pipelines name a module of diffusers.pipelines as the library."""
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    try:
        found = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError):
        found = None
    if not isinstance(found, type):
        raise ConfigError(
            f"{folder / INDEX}: {name} is a {library}.{kind}, not a class of the installed diffusers or transformers"
        )
    return found
