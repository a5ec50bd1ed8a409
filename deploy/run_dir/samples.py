"""``samples.json`` and ``settings.json``: what `douga sample` writes about its clips, for the commands that read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError

SAMPLES, SETTINGS = "samples.json", "settings.json"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Returns one record per clip, with at least ``clip`` and ``text``. Raises `ConfigError` for an invalid file."""
    path = folder / SAMPLES
    records = _read(path)
    if not isinstance(records, list) or not all(isinstance(r, dict) and {"clip", "text"} <= r.keys() for r in records):
        raise ConfigError(f"{path}: expected a list of objects with clip and text, as `douga sample` writes it")
    return records


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns what the clips of the folder were made with. Raises `ConfigError` for a missing or invalid file."""
    path = folder / SETTINGS
    settings = _read(path)
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected an object, as `douga sample` writes it")
    return settings


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
