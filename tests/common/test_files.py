"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import StorageError
from common.files import replacing, write_whole


def full() -> None:
    raise OSError(28, os.strerror(28))


def wrong() -> None:
    raise ZeroDivisionError


def replace(file: Path, then: Callable[[], None]) -> None:
    with replacing(file) as draft:
        draft.write_text("new")
        then()


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    write_whole(file, "old")
    with pytest.raises(StorageError, match=r"targets\.json.*[Nn]o space left"):
        replace(file, full)
    with pytest.raises(ZeroDivisionError):
        replace(file, wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["targets.json"]
    assert file.read_text() == "old"
