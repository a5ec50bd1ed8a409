"""``samples.json``: the records that `douga sample` writes about its clips, for the commands that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError

SAMPLES = "samples.json"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Returns one record per clip, with at least ``clip`` and ``text``. Raises `ConfigError` for an invalid file."""
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
