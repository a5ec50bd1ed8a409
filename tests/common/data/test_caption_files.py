"""Text files beside videos: whose caption each one is, or why that cannot be known."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import pytest

from common.data.caption_files import CaptionFiles
from common.data.folders import files_of
from common.errors import ConfigError


def folder(place: Path, videos: str, **texts: str) -> list[Path]:
    """A folder with empty videos and texts; returns the videos."""
    place.mkdir(exist_ok=True)
    for name in videos.split():
        (place / name).write_bytes(b"")
    for name, text in texts.items():
        (place / f"{name}.txt").write_text(text, "utf-8")
    return files_of(place, (".mp4", ".mov"))


def test_a_caption_is_text_without_marks_and_line_ends(tmp_path: Path) -> None:
    videos = folder(tmp_path, "a.mp4 b.mp4 c.v2.mp4")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa robot walks\r\n")
    (tmp_path / "c.v2.TXT").write_text("the second")
    texts = CaptionFiles(videos)
    assert [texts.caption(video) for video in videos] == ["a robot walks", "", "the second"]
    assert texts.strays() == []


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_caption_is_found_in_either_form_of_the_name(tmp_path: Path, forms: tuple[str, str]) -> None:
    video, text = (normalize(form, "\u00e9") for form in forms)
    (one,) = folder(tmp_path, f"{video}.mp4", **{text: "it walks"})
    assert CaptionFiles([one]).caption(one) == "it walks"


def test_texts_of_no_video_are_named(tmp_path: Path) -> None:
    videos = folder(tmp_path, "a.mp4", a="x", b="y", c="z")
    assert CaptionFiles(videos).strays() == [f"{tmp_path}: 2 .txt files describe no video: b.txt, c.txt"]


def test_a_caption_that_could_be_of_two_videos_is_refused(tmp_path: Path) -> None:
    videos = folder(tmp_path, "a.mov a.mp4 b.mp4 c.mov c.mp4", a="x", b="y")
    texts = CaptionFiles(videos)
    with pytest.raises(ConfigError, match=r"a\.txt: would be the caption of a\.mov, a\.mp4; give each its own name"):
        texts.caption(videos[0])
    assert [texts.caption(video) for video in videos[2:]] == ["y", "", ""]


def test_two_captions_of_a_video_are_refused(tmp_path: Path) -> None:
    (video,) = folder(tmp_path, "a.mp4", a="x")
    (tmp_path / "a.TXT").write_text("y")
    with pytest.raises(ConfigError, match=r"a\.mp4: has 2 captions, a\.TXT, a\.txt; keep one"):
        CaptionFiles([video]).caption(video)


def test_folders_do_not_mix(tmp_path: Path) -> None:
    videos = [*folder(tmp_path / "x", "a.mp4", a="x"), *folder(tmp_path / "y", "a.mp4", a="y")]
    assert [CaptionFiles(videos).caption(video) for video in videos] == ["x", "y"]


def test_a_link_to_nowhere_is_no_missing_caption(tmp_path: Path) -> None:
    videos = folder(tmp_path, "a.mp4")
    (tmp_path / "a.txt").symlink_to("gone.txt")
    with pytest.raises(ConfigError, match=r"'a\.txt' is a link to a file that is not there"):
        CaptionFiles(videos)
