"""``samples.json``: what `douga sample` says of the clips that it wrote, for whoever takes them from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError

SAMPLES = "samples.json"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """A record a clip, with ``clip`` and ``text`` at least. `ConfigError` for a file that is none of ours."""
    path = folder / SAMPLES
    try:
        records = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(records, list) or not all(isinstance(r, dict) and {"clip", "text"} <= r.keys() for r in records):
        raise ConfigError(f"{path}: expected a list of objects with clip and text, as `douga sample` writes it")
    return records
