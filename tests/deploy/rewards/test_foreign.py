"""Clips of other generators: the manifest is checked as a whole, its clips join the set, and people see them blind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient

from actors.prompts.vocabulary import Vocabulary
from common.config import load_config
from common.data.ratings import REAL, read_ratings
from common.data.video import clip_length, decode_clip, encode_for_browsers
from common.errors import ConfigError
from common.images import encode_png, first_frame
from deploy.annotate.sources import find_clips
from deploy.cli.main import main
from deploy.rewards.foreign import LEAST_FRAMES, Manifest
from deploy.rewards.rating_set import Generator, Inputs, build_from_videos
from rewarders.annotation.app import make_app
from rewarders.annotation.items import make_pairs
from rewarders.annotation.playback import PlaybackCheck
from rewarders.annotation.rubric import open_rubric
from rewarders.annotation.store import STORE, Store
from rewarders.annotation.survey import Survey
from tests.support.rewarders.rated_clips import picture
from tests.support.tiny import tiny_pipeline

SECRET = "SecretGen"  # a generator's name that must not be seen
VOCABULARY = Vocabulary(Path("mine.toml"), {"all": ("waving", "walking")})


def video(number: int, frames: int = 12) -> bytes:
    clip = np.broadcast_to(picture(number, 96, 160), (frames, 96, 160, 3)).copy()
    clip[1:, :8] = np.arange(1, frames, dtype=np.uint8)[:, None, None, None] * 9
    return encode_for_browsers(clip, 24)


def tagged(data: bytes, path: Path) -> None:
    """Writes a video with sound, and tags that name the generator."""
    with av.open(str(path), "w") as file:
        file.metadata["comment"] = file.metadata["title"] = f"made by {SECRET}"
        sound = file.add_stream("aac", rate=44100)
        pictures = file.add_stream("libx264", rate=24)
        clip = decode_clip(data)
        pictures.height, pictures.width, pictures.pix_fmt = *clip.shape[1:3], "yuv420p"
        pictures.metadata["handler_name"] = SECRET
        for one in clip:
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        file.mux(pictures.encode(None))
        tone = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        tone.sample_rate = 44100
        file.mux(sound.encode(tone))
        file.mux(sound.encode(None))


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven videos, a picture, and files that are none."""
    made = tmp_path / "foreign"
    made.mkdir()
    for number in range(7):
        (made / f"{number}.mp4").write_bytes(video(number))
    (made / "first.png").write_bytes(encode_png(picture(0, 96, 160)))
    (made / "short.mp4").write_bytes(video(7, LEAST_FRAMES - 1))
    (made / "copy.mp4").write_bytes(video(0))
    (made / "broken.mp4").write_text("no video")
    return made


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"video": f"{number}.mp4", "prompt": f"A girl waves, {number}.", "generator": SECRET, **more}


def silent(line: str) -> None:
    del line


def test_every_bad_row_is_a_line_with_its_number(folder: Path) -> None:
    rows = [
        row(0, seed=0, category="Waving"),
        row(1, video="gone.mp4"),
        row(1, video="broken.mp4"),
        row(1, video="short.mp4"),
        row(1, video="../foreign/0.mp4"),
        row(1, video="copy.mp4"),
        row(2, prompt=" "),
        row(2, generator="tiny"),
        row(2, first_frame="broken.mp4"),
        row(3, first_frame="gone.png"),
        row(4, seed="x"),
        row(5, seed=0, prompt="A girl waves, 0."),
        row(6, category="wavin"),
        row(7) | {"author": "me"},
        {"video": "7.mp4"},
    ]
    for one in rows[1:13]:
        one.setdefault("category", "walking")
    file = write(folder / "bad.jsonl", rows)
    with pytest.raises(ConfigError) as caught:
        Manifest(file, (REAL, "tiny"), VOCABULARY).clips(silent)
    columns = "columns are video, prompt, generator, and optionally category, character, first_frame, seed"
    expected = [
        f"video {folder}/gone.mp4: No such file or directory",
        f"video {folder}/broken.mp4: 8 bytes that are not a readable video: ",
        f"video {folder}/short.mp4: 7 frames; at least 8 are needed",
        "video: already in line 1",
        "copy.mp4: the same file content: already in line 1",
        "no prompt",
        "generator = 'tiny': the set has clips under this name; choose another",
        f"first_frame {folder}/broken.mp4: broken image: ",
        f"first_frame {folder}/gone.png: No such file or directory",
        "seed = 'x': an integer of at least 0 is needed",
        "generator, prompt, first_frame and seed: already in line 1",
        "category = 'wavin': unknown action; did you mean 'waving'?",
        f"unknown: author; {columns}",
        f"no column prompt, generator; {columns}",
    ]
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"{file}: bad rows (14):"
    assert len(lines) == len(expected)
    for number, (line, fault) in enumerate(zip(lines, expected, strict=True), start=2):
        assert line.startswith(f"{file}:{number}: {fault}"), line


def test_the_number_of_lines_is_limited(folder: Path) -> None:
    file = write(folder / "bad.csv", [row(0, video=f"gone{i}.mp4") for i in range(30)])
    with pytest.raises(ConfigError) as caught:
        Manifest(file, ()).clips(silent)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[1].startswith(f"  {file}:2: video ")  # line 1 has the names of the columns
    assert lines[-1] == "  and 10 more"


def test_columns_of_a_csv_file_are_wrong_once(folder: Path) -> None:
    file = write(folder / "bad.csv", [{"video": "0.mp4", "text": "x"}, {"video": "1.mp4", "text": "y"}])
    with pytest.raises(ConfigError, match=r"bad\.csv:2: no column prompt, generator; unknown: text; columns") as caught:
        Manifest(file, ()).clips(silent)
    assert len(str(caught.value).splitlines()) == 1
    (folder / "empty.csv").write_text("video,prompt,generator\n")
    with pytest.raises(ConfigError, match=r"empty\.csv: no clips in it"):
        Manifest(folder / "empty.csv", ()).clips(silent)
    with pytest.raises(ConfigError, match=r"manifest none\.csv: no such file"):
        Manifest(Path("none.csv"), ()).clips(silent)


# In a rating set.


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tiny_pipeline(tmp_path_factory.mktemp("model"))
    return Generator("tiny", load_config(None, {"model.path": str(folder), "sampler.steps": "2"}))


@pytest.fixture
def inputs(folder: Path) -> Inputs:
    """Two prompts, one of them with its video; and a manifest with clips of the first prompt and of another one."""
    videos = folder / "videos"
    videos.mkdir()
    (videos / "0.mp4").write_bytes(video(0, 40))
    prompts = [
        {"id": f"{i}.mp4", "image": "first.png", "prompt": row(i)["prompt"], "category": "Waving"} for i in (0, 1)
    ]
    write(folder / "prompts.jsonl", prompts)
    tagged(video(1), folder / "1.mp4")
    first = {"first_frame": "first.png", "category": "waving"}
    foreign = [row(1, seed=0, **first) | {"prompt": "A girl waves, 0."}, row(2, **first), row(3, category="walking")]
    write(folder / "clips.csv", [{"first_frame": "", "seed": ""} | one for one in foreign])
    return Inputs(videos, folder / "prompts.jsonl", foreign=folder / "clips.csv", vocabulary=VOCABULARY)


def test_foreign_clips_join_the_others(generator: Generator, inputs: Inputs, folder: Path) -> None:
    lines: list[str] = []
    file = build_from_videos(inputs, folder / "out", [generator], 1, 0, lines.append)
    table = read_ratings(file)
    assert table.bad == ()
    assert sorted(one.source for one in table.rows) == [SECRET] * 3 + [REAL] + ["tiny"] * 2
    assert {one.category for one in table.rows} == {"waving", "walking"}
    named = {one.prompt: one for one in table.rows if one.source == SECRET}
    waves = named["A girl waves, 0."]
    assert waves.seed == 0
    assert table.place(waves.first_frame or "").read_bytes() == (folder / "first.png").read_bytes()
    assert waves.first_frame == next(one.first_frame for one in table.rows if one.source == "tiny")
    walks = named["A girl waves, 3."]  # without a first frame: its frame 0
    frame = first_frame(table.place(walks.first_frame or "").read_bytes(), 96, 160)
    assert np.array_equal(frame, decode_clip(table.place(walks.clip).read_bytes())[0])
    assert f"{SECRET}: 3 clips, of 1 of 2 captions; 2 of other captions" in lines
    assert f"{inputs.videos}/1.mp4: no source clip: No such file or directory" in lines
    # the pictures are those of the file, without its sound and tags
    data = table.place(waves.clip).read_bytes()
    assert np.array_equal(decode_clip(data), decode_clip((folder / "1.mp4").read_bytes()))
    with av.open(str(table.place(waves.clip))) as clip:
        assert [stream.type for stream in clip.streams] == ["video"]


def test_clips_can_be_added_later(generator: Generator, inputs: Inputs, folder: Path) -> None:
    out = folder / "out"
    alone = Inputs(inputs.videos, inputs.prompts)
    before = read_ratings(build_from_videos(alone, out, [generator], 1, 0, silent))
    made = {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    after = read_ratings(build_from_videos(inputs, out, [generator], 1, 0, silent))
    assert {one.clip for one in before.rows} < {one.clip for one in after.rows}
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    again: list[str] = []
    build_from_videos(inputs, out, [generator], 1, 0, again.append)
    assert again == []
    with pytest.raises(ConfigError, match="made from other inputs"):
        build_from_videos(Inputs(inputs.videos), out, [generator], 1, 0, silent)


def test_prompts_without_a_known_action_are_refused(generator: Generator, inputs: Inputs, folder: Path) -> None:
    assert inputs.prompts is not None
    inputs.prompts.write_text(inputs.prompts.read_text().replace("Waving", "dreaming", 1))
    with pytest.raises(
        ConfigError, match=r"1 prompts without a known action:\n  0.mp4: category = 'dreaming': unknown"
    ):
        build_from_videos(inputs, folder / "out", [generator], 1, 0, silent)


def test_the_command_refuses_bad_input_before_it_makes_anything(
    inputs: Inputs, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*words: object) -> str:
        out = ("--out", folder / "out", "--generators", "toon")
        assert main([str(word) for word in ("reward", "build", inputs.videos, *out, *words)]) == 2
        assert not (folder / "out" / "clips").exists()
        return capsys.readouterr().err

    prompts = ("--prompts", inputs.prompts)
    assert "--prompts none.jsonl: no such file" in fault("--prompts", "none.jsonl")
    assert "--captions: not with --prompts, which has the captions" in fault(*prompts, "--captions", "c.csv")
    assert "vocabulary none.toml: neither anime nor a file" in fault(*prompts, "--actions", "none.toml")
    write(folder / "clips.csv", [row(1, video="gone.mp4")])
    assert f"{folder}/clips.csv:2: video {folder}/gone.mp4: No such" in fault(
        *prompts, "--foreign", folder / "clips.csv"
    )


# Before people.


def test_nothing_that_annotators_get_names_the_generator(generator: Generator, inputs: Inputs, folder: Path) -> None:
    place = folder / "out"
    build_from_videos(inputs, place, [generator], 1, 0, silent)
    _, clips = find_clips(place)
    assert sum(clip.source == SECRET for clip in clips) == 3
    store, playback = Store(place / STORE), PlaybackCheck()
    asked = Survey(clips, make_pairs(clips, 10, 0), open_rubric("anime"), store, annotators=6)
    client = TestClient(make_app(asked, playback), base_url="http://127.0.0.1")
    got, orders = [client.get(path) for path in ("/", "/annotate.js", "/api/survey")], set()
    for person in "abcdef":
        order, next_task = [], client.get("/api/next", params={"annotator": person, "kind": "rate"})
        while (task := next_task.json()["task"]) is not None:
            got += [next_task, client.get(f"/clips/{task['item']}"), client.get(f"/frames/{task['item']}")]
            order.append(task["item"])
            body = {"annotator": person, "item": task["item"], "ratings": dict.fromkeys(asked.rubric.names, 3)}
            next_task = client.post("/api/rate", json=body)
        orders.add(tuple(order))
    got += [client.get("/api/next", params={"annotator": "a", "kind": "compare"}), client.get("/api/results")]
    store.close()
    playback.close()
    assert len(orders) == 6  # each in an order of their own
    assert all(sorted(order) == sorted(clip.key for clip in clips) for order in orders)
    assert all(answer.status_code == 200 for answer in got)
    for answer in got:
        shown = f"{answer.url} {answer.headers}".encode() + answer.content
        assert SECRET.lower().encode() not in shown.lower(), answer.url
        assert b"tiny" not in shown.lower(), answer.url
    assert got[-1].json()["clips"] == {"all": 6, "rated": 6, "complete": 6, "by_ratings": [0] * 6 + [6]}
    assert clip_length(got[4].content)[0] >= LEAST_FRAMES
