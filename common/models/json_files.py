"""Reads the JSON files of model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import read_file

LFS = b"version https://git-lfs"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ConfigError` if it is missing, unreadable or no object."""
    try:
        data = json.loads(read_file(file).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{file}: missing; this is not a complete CogVideoX pipeline folder") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        check_pointer(file)
        raise ConfigError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return data


def check_pointer(file: Path) -> None:
    """Raise `ConfigError` if a file is what Git LFS leaves in its place when it is not installed."""
    try:
        with file.open("rb") as opened:
            pointer = opened.read(len(LFS)) == LFS
    except OSError:
        return
    if pointer:
        raise ConfigError(f"{file}: cannot be loaded: a Git LFS pointer, not the file itself; run: git lfs pull")
