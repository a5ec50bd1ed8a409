"""Ray's folder fits the sockets that Ray puts into it, or the message says which variable to change."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ConfigError
from deploy.machine import folders
from deploy.machine.folders import RAY_PATH, ROOM, ray_folder, temporary_folder


def long_folder(parent: Path, length: int, letter: str = "x") -> Path:
    """A new folder whose path has `length` bytes."""
    rest = length - len(os.fsencode(parent)) - 1
    count, more = divmod(rest, len(letter.encode()))
    folder = parent / (letter * count + "x" * more)
    folder.mkdir()
    return folder


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with room for names, whatever pytest's own is called."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="d") as folder:
        yield Path(folder)


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # Python looks once


def test_a_folder_of_the_longest_length_holds_a_socket(short: Path) -> None:
    folder = long_folder(short, ROOM)
    assert ray_folder({"RAY_TMPDIR": str(folder)}) == folder / "ray"
    path = Path(f"{folder}{RAY_PATH}")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(path))
    with socket.socket(socket.AF_UNIX) as own, pytest.raises(OSError, match="AF_UNIX path too long"):
        own.bind(f"{path}x")


@pytest.mark.parametrize("length", [ROOM + 1, 100, 200])
@pytest.mark.parametrize("letter", ["x", " ", "ö", "動"])
def test_a_long_tmpdir_is_not_used_for_ray(
    length: int, letter: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(long_folder(short, length, letter), monkeypatch)
    assert ray_folder({}) == Path("/tmp/ray")
    assert len(os.fsencode(temporary_folder())) == length  # everything else stays where the user wants it


def test_a_short_tmpdir_is_used_for_ray(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(short, monkeypatch)
    assert ray_folder({}) == short / "ray"


def test_a_tmpdir_that_does_not_exist_is_replaced(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(short / "missing", monkeypatch)
    assert ray_folder({}) == Path("/tmp/ray")
    assert not (short / "missing").exists()


def test_a_tmpdir_that_cannot_be_written_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Path("/proc"), monkeypatch)
    assert ray_folder({}) == Path("/tmp/ray")


def test_ray_tmpdir_is_not_replaced_but_refused(short: Path) -> None:
    folder = long_folder(short, 60)
    with pytest.raises(ConfigError, match=rf"^RAY_TMPDIR = '{folder}': 60 bytes long, .* at most {ROOM}$"):
        ray_folder({"RAY_TMPDIR": str(folder)})
    with pytest.raises(ConfigError, match=r"^RAY_TMPDIR = '/proc': cannot be written: No such file or directory$"):
        ray_folder({"RAY_TMPDIR": "/proc"})


def test_without_any_folder_the_message_says_what_to_set(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(long_folder(short, 100), monkeypatch)
    monkeypatch.setattr(folders, "SHORT", ("/proc", "/sys"))
    with pytest.raises(ConfigError, match=r"^no folder for Ray: /tmp/d\w+/x+: 100 bytes long.*; set RAY_TMPDIR to a"):
        ray_folder({})


def test_without_any_temporary_folder_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Path("/proc"), monkeypatch)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc", "/sys"])
    with pytest.raises(ConfigError, match=r"^no folder for temporary files: TMPDIR = '/proc', /tmp and /var/tmp"):
        temporary_folder()
