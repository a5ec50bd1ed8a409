"""Fingerprints of model folders: detect a different base model without reading gigabytes.

A run's adapters, versions and checkpoints record the fingerprint of each part of their base model (`model_parts`). An
adapter can be loaded into any model of the same shapes, but is only useful on the one it was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from common.errors import ConfigError
from common.toon import WEIGHTS

SAMPLE = 1 << 20  # bytes read at each end of a file
TOON_PIPELINE = WEIGHTS / "pipeline"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")  # folders of a diffusers pipeline
MODEL_SUFFIXES = {".json", ".safetensors", ".model", ".txt"}  # other files, such as READMEs and caches, are ignored


def fingerprint(folder: Path, whole: bool = False) -> str:
    """blake2b-128 in hex over names, sizes, first and last MiB of a folder's model files, or all of their bytes.

    It detects a wrong path. Unless `whole`, it does not detect models that differ only in the middle of a file.
    """
    hasher = blake2b(digest_size=16)
    files = sorted(file for file in folder.rglob("*") if file.suffix in MODEL_SUFFIXES)
    if not files:
        raise ConfigError(f"{folder}: no model files in it")
    for file in files:
        size = file.stat().st_size
        hasher.update(f"{file.relative_to(folder)}|{size}\n".encode())
        with file.open("rb") as opened:
            if whole:
                while part := opened.read(SAMPLE):
                    hasher.update(part)
                continue
            hasher.update(opened.read(SAMPLE))
            opened.seek(max(SAMPLE, size - SAMPLE))
            hasher.update(opened.read(SAMPLE))
    return hasher.hexdigest()


def model_folder(path: str | Path) -> Path:
    """The folder of `model.path`: a path, "toon" for the embedded pipeline, or a hub id with a snapshot in the cache.

    Nothing is downloaded: workers of a run must not get different snapshots.

    Raises:
        ConfigError: there is no such folder or snapshot.
    """
    if str(path) == "toon":
        if not (TOON_PIPELINE / "model_index.json").exists():
            raise ConfigError(
                f"model.path = 'toon': no complete pipeline in {TOON_PIPELINE}; build it with: douga toon build"
            )
        return TOON_PIPELINE
    folder = cached_snapshot(str(path)) or Path(path)
    if not folder.is_dir():
        name, _, revision = str(path).partition("@")
        download = f"hf download {name}{f' --revision {revision}' if revision else ''}"
        hint = f", nor a snapshot of it in the hub's cache; get one with: {download}" * is_hub_id(str(path))
        raise ConfigError(
            f"model.path = {str(path)!r}: no folder {folder}{hint}; allowed: 'toon', a pipeline folder, or a hub id, "
            "OWNER/NAME or OWNER/NAME@REVISION, in the cache"
        )
    return folder


def lora_hint(place: str | Path) -> str:
    """What to say of a folder that is no model because it holds a LoRA alone; empty for others."""
    is_lora = any(Path(place).glob("*lora*.safetensors"))
    return "; a LoRA is no whole model: name the run that it was exported from" * is_lora


def is_hub_id(path: str) -> bool:
    """Whether `path` has the form OWNER/NAME or OWNER/NAME@REVISION and is no folder here."""
    return (
        bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", path))
        and not path.startswith(".")
        and not Path(path).exists()
    )


def cached_snapshot(path: str) -> Path | None:
    """The snapshot of a hub id in the local cache of huggingface_hub (HF_HOME); None if there is none."""
    if not is_hub_id(path):
        return None
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import, and seldom needed

    name, _, revision = path.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (OSError, ValueError):  # not in the cache; not a valid id
        return None


def model_parts(path: str | Path) -> dict[str, str]:
    """The fingerprint of every part of a pipeline folder. `path` is as for `model_folder`."""
    folder = model_folder(path)
    return {part: fingerprint(folder / part) for part in PARTS}


def check_same_model(what: str, made_on: Mapping[str, str], here: Mapping[str, str], path: str | Path) -> None:
    """Check that `what`, made on the parts `made_on`, belongs to the model at `path` with the parts `here`.

    Results of simulated runs record no parts and match any model.

    Raises:
        ConfigError: names the parts that differ.
    """
    other = [part for part, digest in made_on.items() if here.get(part) != digest]
    if other:
        raise ConfigError(
            f"{what}: made on another base model than model.path = {str(path)!r}, whose files differ in "
            f"{', '.join(other)}; set model.path to the model that the run was started with, in any folder"
        )
