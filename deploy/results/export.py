"""Exports a run's weights in the formats of diffusers, for use without douga (`douga export`).

```
LoRA run   DIR/pytorch_lora_weights.safetensors    pipe.load_lora_weights(DIR)
full run   DIR/model_index.json, transformer/ ...  pipe = CogVideoXImageToVideoPipeline.from_pretrained(DIR)
```

A pipeline's tensors are bit for bit those of the version. An adapter's scale, alpha / rank, is multiplied into B, and
the metadata says alpha = rank. So W + B A is right, for tools that read no metadata as for those that do. With a scale
that is no power of two, B is rounded once to its dtype.

An export shares no file with the base model: tools that rewrite an export must not change the base. Its other parts are
copies, which share disk blocks until one of them is written if the file system can do that (`FICLONE`). DIR is created
atomically.

With the same seed, steps, scheduler and guidance the loaded pipeline gives the sampler's latents, apart from the
differences that `actors/denoise.py` lists. One of them matters to users: the pipeline squeezes an image of another
aspect ratio, where douga crops it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import CogVideoXImageToVideoPipeline
from safetensors.torch import save_file

from common.config import LoraConfig, RunConfig
from common.errors import ConfigError, StorageError
from common.files import new_folder
from common.messages import WeightVersion
from common.models.cogvideox import ModelFolder, open_model
from common.models.lora import adapter_state, inject_lora, peft_settings
from common.weights.store import WeightStore, check_fits

INDEX, TRANSFORMER = "model_index.json", "transformer"
FICLONE = 0x40049409  # ioctl of Linux: share the blocks of another file (btrfs, XFS)


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
        transformer_lora_layers={**scaled_adapter(state, config.learner.lora)},
        transformer_lora_adapter_metadata=peft_settings(config.learner.lora) | {"lora_alpha": config.learner.lora.rank},
    )


def scaled_adapter(state: Mapping[str, torch.Tensor], lora: LoraConfig) -> dict[str, torch.Tensor]:
    """The adapter with its scale alpha / rank in B, so that the layer's weight is W + B A."""
    scale = lora.alpha / lora.rank
    return {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in state.items()}


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
    """Copies all files of a folder. Symbolic links, as in the Hugging Face cache, become files."""
    for file in source.rglob("*"):
        if file.is_dir():
            continue
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, place)


def _copy(source: Path, target: Path) -> None:
    """Copies a file. The copy shares the disk blocks that neither side changes, if the file system can."""
    with source.open("rb") as read, target.open("wb") as written:
        try:
            fcntl.ioctl(written.fileno(), FICLONE, read.fileno())
            return
        except OSError:  # another file system, or one that cannot
            pass
    shutil.copyfile(source, target)


def size_of(folder: Path) -> int:
    """The bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
