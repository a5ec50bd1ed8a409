"""The models that benchmarks use: the embedded one, a pipeline folder, or a published family with random weights.

```
families.json ──> configs, with the classes' defaults ──> parts on the device, in the dtype ──> ModelFolder
```

No weights are downloaded: the time of a kernel depends on shapes and dtypes, not on values. Benchmarks say so where
values matter: how much a block cache skips, and rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from common.errors import ConfigError
from common.models.cogvideox import (
    ModelFolder,
    build_tokenizer,
    open_model,
    torch_dtype,
)
from common.models.pipeline_folder import with_defaults
from common.models.shapes import tiles
from common.toon.world import CHARACTERS
from deploy.planning.model_sizes import (
    ModelSizes,
    families,
    family_config,
    family_sizes,
    folder_sizes,
)

TOON = "toon"
SEED = 0  # of the random weights

Part = TypeVar("Part", bound=torch.nn.Module)


@dataclass(frozen=True)
class RandomModel(ModelFolder):
    """A `ModelFolder` without a folder: each `load_*` creates the part, always with the same random weights.

    Weights have the classes' own initialization: small, finite, and not zero, so that no kernel gets cheaper.
    """

    text_encoder_config: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def parts(self) -> dict[str, str]:
        """See `ModelFolder.parts`. Empty, because there are no files."""
        return {}

    def load_transformer(self, dtype: torch.dtype | str, device: torch.device | str) -> CogVideoXTransformer3DModel:
        """See `ModelFolder.load_transformer`."""
        make: Any = CogVideoXTransformer3DModel.from_config
        return _make(lambda: make(self.transformer_config), dtype, device)

    def load_vae(
        self, dtype: torch.dtype | str, device: torch.device | str, tiling: bool = False
    ) -> AutoencoderKLCogVideoX:
        """See `ModelFolder.load_vae`."""
        make: Any = AutoencoderKLCogVideoX.from_config
        model = _make(lambda: make(self.vae_config), dtype, device).requires_grad_(False)
        if tiling:
            model.enable_tiling(**tiles(self.vae_config))
        return model

    def load_text_encoder(self, dtype: torch.dtype | str, device: torch.device | str) -> T5EncoderModel:
        """See `ModelFolder.load_text_encoder`."""
        config = T5Config(**self.text_encoder_config)
        return _make(lambda: T5EncoderModel(config), dtype, device).requires_grad_(False)

    def load_tokenizer(self) -> T5Tokenizer:
        """A tokenizer with a small vocabulary; captions are padded to the same length anyway."""
        words = {word for name in CHARACTERS for word in name.split("_")}
        return build_tokenizer(sorted(words), self.max_text_length)


def _make(make: Callable[[], Part], dtype: torch.dtype | str, device: torch.device | str) -> Part:
    """Create a part directly on the device and in the dtype, so that it never takes more memory."""
    device, dtype = torch.device(device), torch_dtype(dtype)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _default_dtype(dtype), device:
        torch.manual_seed(SEED)
        part = make()
        torch.nn.Module.to(part, dtype)  # position tables are created in float64
        return part.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_model(family: str, changes: Mapping[str, Mapping[str, Any]] | None = None) -> RandomModel:
    """A published family with random weights.

    `changes` overrides config keys of the parts ``transformer``, ``vae`` and ``text_encoder``.
    """

    def config(part: str) -> dict[str, Any]:
        return dict(family_config(family, part)) | dict((changes or {}).get(part, {}))

    return RandomModel(
        Path(family_sizes(family).name),
        with_defaults(CogVideoXTransformer3DModel, config("transformer")),
        with_defaults(AutoencoderKLCogVideoX, config("vae")),
        with_defaults(CogVideoXDPMScheduler, config("scheduler")),
        config("text_encoder"),
    )


def open_named(name: str) -> ModelFolder:
    """Open the model that ``--model`` names. Raises `ConfigError` for an unknown name."""
    if name in families():
        return random_model(name)
    if name != TOON and not Path(name).is_dir():
        allowed = ", ".join((TOON, *families()))
        raise ConfigError(f"--model {name}: allowed are {allowed}, or a CogVideoX pipeline folder")
    return open_model(name)


def sizes_of(model: ModelFolder) -> ModelSizes:
    """The model's sizes as in `deploy.planning.model_sizes`."""
    if isinstance(model, RandomModel):
        return ModelSizes(model.path.name, model.transformer_config, model.vae_config, model.text_encoder_config)
    return folder_sizes(model.path)
