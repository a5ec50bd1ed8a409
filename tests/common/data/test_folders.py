"""Files in folders: Unicode forms of names, hidden and foreign files, odd names."""

from __future__ import annotations

import os
from pathlib import Path
from unicodedata import normalize

import pytest

from common.data.folders import files_of, find_file
from common.errors import ConfigError

NAME = "Bäckerei é が.png"
ODD = ["a b.png", "#1.png", "100%.png", 'it\'s "x".png', "new\nline.png", "-dash.png", "~.png", "[a]*.png", "%20.png"]


@pytest.mark.parametrize(("on_disk", "asked"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_file_is_found_in_either_form_of_its_name(tmp_path: Path, on_disk: str, asked: str) -> None:
    folder = tmp_path / normalize(on_disk, "é")
    folder.mkdir()
    (folder / normalize(on_disk, NAME)).write_bytes(b"x")
    found = find_file(tmp_path, normalize(asked, f"é/{NAME}"))
    assert found == folder / normalize(on_disk, NAME)
    assert find_file(tmp_path, normalize(asked, str(folder / NAME))) == found  # an absolute path


def test_the_exact_name_comes_first(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / normalize(form, NAME)).write_text(form, encoding="utf-8")
    for form in ("NFC", "NFD"):
        assert find_file(tmp_path, normalize(form, NAME)).read_text("utf-8") == form


def test_a_missing_file_keeps_its_name(tmp_path: Path) -> None:
    assert find_file(tmp_path, "é/x.png") == tmp_path / "é" / "x.png"


def test_a_name_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ODD:
        (tmp_path / name).write_text(name, encoding="utf-8")
        assert find_file(tmp_path, name).read_text("utf-8") == name
    assert [path.name for path in files_of(tmp_path, (".png",))] == sorted(ODD)


def test_hidden_and_foreign_files_are_not_clips(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.mp4", "._a.mp4", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "a.mp4.part"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    assert [path.name for path in files_of(tmp_path, (".mp4",))] == ["a.mp4", "b.MP4"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"the name '\\udcff\.mp4' is not UTF-8; rename the file"):
        files_of(tmp_path, (".mp4",))
