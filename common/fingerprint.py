"""Whether two machines hold the same model, told without reading gigabytes."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from common.config import ConfigError

SAMPLE = 1 << 20  # bytes read at either end of a file
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
