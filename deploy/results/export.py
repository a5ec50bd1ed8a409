"""Exports a run's weights in the formats of diffusers, for use without douga (`douga export`).

```
LoRA run   DIR/pytorch_lora_weights.safetensors    pipe.load_lora_weights(DIR)
full run   DIR/model_index.json, transformer/ ...  pipe = CogVideoXImageToVideoPipeline.from_pretrained(DIR)
```

The tensors are bit for bit those of the version. An adapter's scale, alpha / rank, is in the file's metadata, where
diffusers reads it. The untrained parts of a pipeline are hard links to the base model's files if the file system
supports them, else copies. DIR is created atomically.

With the same seed, steps, scheduler and guidance the loaded pipeline gives the sampler's latents, apart from the
differences that `actors/denoise.py` lists. One of them matters to users: the pipeline squeezes an image of another
aspect ratio, where douga crops it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import CogVideoXImageToVideoPipeline
from safetensors.torch import save_file

from common.config import RunConfig
from common.errors import ConfigError, StorageError
from common.files import new_folder
from common.messages import WeightVersion
from common.models.cogvideox import ModelFolder, open_model
from common.models.lora import adapter_state, inject_lora, peft_settings
from common.weights.store import WeightStore, check_fits

INDEX, TRANSFORMER = "model_index.json", "transformer"


def export(config: RunConfig, store: WeightStore, version: int, out: Path) -> str:
    """Writes a published version of the run to the new or empty folder `out`. Returns the Python code that loads it.

    Raises `ConfigError` if the version does not fit the base model, or if `out` is not empty or cannot be written, and
    `NotFoundError` if there is no such version.
    """
    _check_free(out)
    model = open_model(config.model.path)
    manifest, state = store.load(version)
    try:
        with new_folder(out.resolve()) as folder:
            if manifest.kind == "adapter":
                _write_adapter(folder, config, model, manifest, state)
            else:
                _write_pipeline(folder, config, model, manifest, state)
    except StorageError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{error.filename or out}: {error.strerror}; {out} was not created") from None
    load = f"pipe = {_index(model)['_class_name']}.from_pretrained"
    if config.model.attention != "full":
        load = f"# trained with model.attention = {config.model.attention!r}; diffusers has full attention only\n{load}"
    if manifest.kind == "adapter":
        return f'{load}("{model.path}")\npipe.load_lora_weights("{out}")'
    return f'{load}("{out}")'


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists and is not an empty folder; choose another")


def _write_adapter(
    folder: Path, config: RunConfig, model: ModelFolder, version: WeightVersion, state: Mapping[str, torch.Tensor]
) -> None:
    transformer = model.empty_transformer(config.model.dtype)
    inject_lora(transformer, config.learner.lora, config.seed)
    own = adapter_state(transformer)
    check_fits(version, state, own, own.keys())
    CogVideoXImageToVideoPipeline.save_lora_weights(  # text-to-video models have the same format
        folder,
        transformer_lora_layers=dict(state),
        transformer_lora_adapter_metadata=peft_settings(config.learner.lora),
    )


def _write_pipeline(
    folder: Path, config: RunConfig, model: ModelFolder, version: WeightVersion, state: Mapping[str, torch.Tensor]
) -> None:
    own = model.empty_transformer(config.model.dtype).state_dict()
    check_fits(version, state, own, own.keys())
    for part in (name for name, kind in _index(model).items() if isinstance(kind, list) and kind[0]):
        if part != TRANSFORMER:
            _take_over(model.path / part, folder / part)
    (folder / TRANSFORMER).mkdir()
    for file in (INDEX, f"{TRANSFORMER}/config.json"):
        shutil.copyfile(model.path / file, folder / file)
    # diffusers writes this metadata too, and some tools require it.
    save_file(dict(state), folder / TRANSFORMER / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _index(model: ModelFolder) -> dict[str, object]:
    return json.loads((model.path / INDEX).read_text("utf-8"))


def _take_over(source: Path, target: Path) -> None:
    """Hard-links or copies all files of a folder. Symbolic links, as in the Hugging Face cache, are resolved first."""
    for file in source.rglob("*"):
        if file.is_dir():
            continue
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), place)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, place)
