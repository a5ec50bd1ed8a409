"""Whether it is the same model, on two machines or at two times, told without reading gigabytes.

Adapters, versions and checkpoints of a run say which base model they stand on, part by part (`model_parts`): an adapter
fits every model of the same shapes, and is of use on its own alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from common.errors import ConfigError

SAMPLE = 1 << 20  # bytes read at either end of a file
TOON_PIPELINE = Path(__file__).parents[1] / "toon" / "weights" / "pipeline"
PARTS = (
    "transformer",
    "vae",
    "text_encoder",
    "tokenizer",
    "scheduler",
)  # of a pipeline folder, as diffusers names them
KINDS = {".json", ".safetensors", ".model", ".txt"}  # what models are made of; notes and caches beside them are not


def fingerprint(folder: Path) -> str:
    """blake2b-128, hex, over the names, sizes, first and last MiB of a folder's model files.

    Not proof against somebody who builds two models with the same ends; proof enough against a mistaken path.
    """
    whole = blake2b(digest_size=16)
    files = sorted(file for file in folder.rglob("*") if file.suffix in KINDS)
    if not files:
        raise ConfigError(f"{folder}: no model files here")
    for file in files:
        size = file.stat().st_size
        whole.update(f"{file.relative_to(folder)}|{size}\n".encode())
        with file.open("rb") as opened:
            whole.update(opened.read(SAMPLE))
            opened.seek(max(SAMPLE, size - SAMPLE))
            whole.update(opened.read(SAMPLE))
    return whole.hexdigest()


def model_parts(path: str | Path) -> dict[str, str]:
    """The fingerprint of every part of the pipeline folder at `path` ('toon': the embedded one)."""
    folder = TOON_PIPELINE if str(path) == "toon" else Path(path)
    return {part: fingerprint(folder / part) for part in PARTS}


def check_same_model(what: str, made_on: Mapping[str, str], here: Mapping[str, str], path: str | Path) -> None:
    """`ConfigError` when `what` was made on other parts than those `here`, which lie at `path`, and says which differ.

    What was made without a model (`simulate`) says nothing of one, and stands on any.
    """
    other = [part for part, digest in made_on.items() if here.get(part) != digest]
    if other:
        raise ConfigError(
            f"{what}: made on another base model than model.path = {str(path)!r}, whose files differ in "
            f"{', '.join(other)}; give the model that the run was started with, it may lie anywhere"
        )
