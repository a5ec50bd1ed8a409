"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import StorageError
from common.files import read_file, replacing, write_whole


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


def test_a_pipe_is_no_file_to_wait_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_file(tmp_path / "file") == b"x"
    os.mkfifo(tmp_path / "pipe.mp4")
    for place, why in (
        (tmp_path / "pipe.mp4", "a pipe or a device"),
        (Path("/dev/zero"), "a pipe or a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "gone", "No such file"),
    ):
        with pytest.raises(OSError, match=why):
            read_file(place)
