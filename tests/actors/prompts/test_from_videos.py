"""Prompts from a folder of videos: the third frame, and a caption from a file, a text beside, or a captioner."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.prompts.from_videos import from_videos
from actors.prompts.source import FilePrompts
from common.data.video import encode_mp4
from common.errors import ConfigError


def video(path: Path, frames: int = 9) -> Path:
    """Frame t is grey of value 20 t."""
    levels = (20 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    path.write_bytes(encode_mp4(np.broadcast_to(levels, (frames, 48, 64, 3)).copy(), 8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("b.mp4", "a.mp4"):
        video(videos / name)
    (videos / "notes.md").write_text("not a video")
    return videos


def test_the_third_frame_becomes_the_image(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("a robot walks\n")
    (folder / "b.txt").write_text("a zombie jumps")
    file = from_videos(folder, tmp_path / "out")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["id"], row["prompt"]) for row in rows] == [("a.mp4", "a robot walks"), ("b.mp4", "a zombie jumps")]
    image = np.asarray(Image.open(file.parent / rows[0]["image"]), int)
    assert image.shape == (48, 64, 3)
    assert np.abs(image - 40).max() <= 2
    source = FilePrompts(file, seed=0)
    assert {source(0).text, source(1).text} == {"a robot walks", "a zombie jumps"}


def test_captions_from_a_file_come_first_and_a_captioner_last(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("video,prompt\na.mp4,from the file\n")
    (folder / "a.txt").write_text("from the text")
    shown: list[np.ndarray] = []

    def captioner(frames: np.ndarray) -> str:
        shown.append(frames)
        return " from the captioner "

    file = from_videos(folder, tmp_path / "out", captions, captioner)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["from the file", "from the captioner"]
    assert [frames.shape for frames in shown] == [(8, 48, 64, 3)]
    assert shown[0][-1].mean() == pytest.approx(160, abs=2)


def test_bad_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder of videos"):
        from_videos(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no videos in it; looked for \.mp4"):
        from_videos(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"a\.mp4: no caption; give a captions file, a a\.txt, or a captioner"):
        from_videos(folder, tmp_path / "out")
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"prompt": "a cat"}\n')
    with pytest.raises(ConfigError, match=r"captions\.jsonl:1: no 'video'"):
        from_videos(folder, tmp_path / "out", captions)


def test_labels_without_captions_leave_the_captions_to_others(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "labels.csv"
    captions.write_text("video,category\na.mp4,waving\n")
    file = from_videos(folder, tmp_path / "out", captions, lambda frames: "from the captioner")
    first = json.loads(file.read_text().splitlines()[0])
    assert (first["id"], first["category"], first["prompt"]) == ("a.mp4", "waving", "from the captioner")


@pytest.mark.parametrize(("frames", "message"), [(2, "of a video of 2 frames"), (0, "not a readable video")])
def test_short_and_broken_videos_are_named(folder: Path, tmp_path: Path, frames: int, message: str) -> None:
    if frames:
        video(folder / "a.mp4", frames)
    else:
        (folder / "a.mp4").write_text("no video")
    with pytest.raises(ConfigError, match=rf"a\.mp4: no third frame: .*{message}"):
        from_videos(folder, tmp_path / "out", captioner=lambda frames: "x")


def test_hidden_files_are_no_videos_and_marks_no_captions(folder: Path, tmp_path: Path) -> None:
    for name in ("._a.mp4", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfa robot walks\r\n")
    (folder / "b.txt").write_bytes("a zombie \u00e9".encode("utf-16"))
    file = from_videos(folder, tmp_path / "out")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["a robot walks", "a zombie \u00e9"]


def test_captions_are_found_in_either_form_of_the_name(folder: Path, tmp_path: Path) -> None:
    video(folder / "e\u0301.mp4")
    captions = tmp_path / "captions.csv"
    captions.write_text("video;prompt\na.mp4;x\nb.mp4;y\n\u00e9.mp4;z\n", encoding="utf-8")
    rows = from_videos(folder, tmp_path / "out", captions).read_text("utf-8").splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["x", "y", "z"]


def test_bad_captions_are_all_named(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.jsonl"
    lines = ['{"video": "a.mp4", "prompt": ["x"]}', '{"video": "b.mp4"}', '{"video": "x/b.mp4"}', '{"prompt": "x"}']
    captions.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        from_videos(folder, tmp_path / "out", captions)
    assert [line.partition("jsonl:")[2] for line in str(caught.value).split("\n")[1:]] == [
        '1: prompt = ["x"] is a list; a text is expected',
        "3: video b.mp4 is there twice",
        "4: no 'video'",
    ]
    assert not (tmp_path / "out").exists()


def test_captions_of_no_video_and_unread_columns_are_told(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("video,prompt,caption\na.mp4,x,y\nzzz.mp4,z,\n")
    for name in ("b", "c"):
        (folder / f"{name}.txt").write_text("it walks")
    told: list[str] = []
    from_videos(folder, tmp_path / "out", captions, tell=told.append)
    assert told == [
        f"{captions}: nothing reads the columns caption",
        f"{captions}: 1 of 2 rows are of no video in the folder; first line 3: zzz.mp4",
        f"{folder}: 1 .txt files describe no video: c.txt",
    ]


def test_one_caption_for_two_videos_is_refused(folder: Path, tmp_path: Path) -> None:
    video(folder / "a.mov")
    for name in "ab":
        (folder / f"{name}.txt").write_text("it walks")
    with pytest.raises(ConfigError, match=r"a\.txt: would be the caption of a\.mov, a\.mp4"):
        from_videos(folder, tmp_path / "out")
