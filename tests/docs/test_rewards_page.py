"""The commands of docs/rewards.md that make a rated data set and a head, run as they are shown, with tiny models."""

from __future__ import annotations

import csv
import json
import re
import shlex
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from common.data.ratings import REAL, read_ratings
from common.data.video import encode_for_browsers
from common.images import fit
from deploy.annotate.serve import opened
from deploy.cli.main import build_parser, main
from rewarders.annotation.app import make_app
from rewarders.annotation.playback import PlaybackCheck
from rewarders.training.dataset import RatedDataset
from rewarders.training.split import split_rated
from tests.support.rewarders.rated_clips import picture
from tests.support.tiny import tiny_pipeline
from tests.support.tiny_captioner import tiny_qwen
from tests.support.tiny_encoders import tiny_siglip
from tests.support.tiny_writer import END, tiny_writer

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
VIDEOS = 8
SHORT = ["fox", "owl", "hen", "cow", "pig", "dog", "cat", "ape"]  # captions and rewritten ones, three times each
LONG = ["runs", "sits", "eats", "naps", "digs", "hops", "hums", "rests"]
PEOPLE = ("ann", "ben", "cleo", "dan", "eve", "fay")


def read(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def thrice(word: str) -> str:
    return f"{word} {word} {word}"


def write_videos(models: Path) -> None:
    """Real videos of one picture each, that gets darker, and their labels. People captioned all but the last."""
    del models
    Path("videos").mkdir()
    light = np.linspace(1, 0.5, 30)[:, None, None, None]
    for number in range(VIDEOS):
        clip = (picture(number, 96, 160) * light).astype(np.uint8)
        Path(f"videos/{number}.mp4").write_bytes(encode_for_browsers(clip, 16))
    texts = [*map(thrice, SHORT[:-1]), ""]
    labels = [f"{i}.mp4,{('waving', 'Walking')[i % 2]},{text}" for i, text in enumerate(texts)]
    Path("labels.csv").write_text("\n".join(["video,category,prompt", *labels]) + "\n")


def write_writer(models: Path) -> None:
    """A language model that knows the captions. The captioner is untrained, so a person corrects its caption."""
    rows = read("balanced.jsonl")
    assert rows[-1]["prompt"]
    rows[-1]["prompt"] = thrice(SHORT[-1])
    Path("balanced.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {thrice(short): f"{thrice(long)} {END}" for short, long in zip(SHORT, LONG, strict=True)}
    tiny_writer(models / "Qwen2.5-7B-Instruct", answers)


def write_manifest(models: Path) -> None:
    """Clips of two generators for every prompt; those of one come without first frames, and its captions with dots."""
    del models
    rows = []
    for number, row in enumerate(read("long.jsonl")):
        for generator in ("hailuo", "vidu"):
            Path(generator).mkdir(exist_ok=True)
            clip = np.stack([fit(Image.open(row["image"]), 90, 160)] * 20)  # from 96 x 160: it crops
            clip[1:, :, : 8 * number + 8] = 255 * (generator == "vidu")
            Path(f"{generator}/{row['id']}").write_bytes(encode_for_browsers(clip, 24))
            known = {"video": f"{generator}/{row['id']}", "generator": generator, "category": row["category"]}
            first = row["image"] if generator == "hailuo" else ""
            rows.append(known | {"prompt": row["prompt"].upper() + "..", "first_frame": first, "seed": number})
    with Path("clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


BEFORE: dict[str, Callable[[Path], None]] = {  # what the page says one has, or makes elsewhere
    "prompts from-videos": write_videos,
    "prompts rewrite": write_writer,
    "reward build": write_manifest,
}


def rate_everything(options: Namespace) -> None:
    """Six people answer over HTTP until nothing is left. They like what is bright."""
    playback = PlaybackCheck()
    with opened(options) as survey:
        client = TestClient(make_app(survey, playback), base_url="http://127.0.0.1")
        for person in PEOPLE:
            task = client.get("/api/next", params={"annotator": person, "kind": "rate"}).json()["task"]
            while task is not None:
                rating = 1 + int(task["item"], 16) % 5
                body = {"annotator": person, "item": task["item"]}
                answer = client.post("/api/rate", json=body | {"ratings": dict.fromkeys(survey.rubric.names, rating)})
                task = answer.json()["task"]
    playback.close()


def execute(line: str) -> None:
    """One command. `douga annotate` serves until it is stopped, so its application is asked in this process."""
    words = shlex.split(line)[1:]
    options = build_parser().parse_args(words)
    if options.command == "annotate" and not options.results and options.export is None:
        rate_everything(options)
    else:
        assert main(words) == 0, line


def test_the_commands_make_a_rated_data_set_and_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    tiny_qwen(models / "Qwen2-VL-7B-Instruct")
    tiny_pipeline(models / "CogVideoX-5b-I2V")
    tiny_siglip(models / "siglip")
    block = re.search(r"## Train heads on ratings\n.*?```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    said = {}
    for line in block[1].splitlines():
        for command, act in BEFORE.items():
            if line.startswith(f"douga {command}"):
                act(models)
        execute(line.replace("/models/", f"{models}/"))
        said[line] = "".join(capsys.readouterr())
    assert len(said) == 9
    outputs = list(said.values())
    assert "too few, all taken (2): waving 4, walking 4" in outputs[1]
    assert f"hailuo: {VIDEOS} clips, of {VIDEOS} of {VIDEOS} captions" in outputs[3]
    assert re.search(rf"coverage.*\n(.*\n){{3}}\W+6\W+{4 * VIDEOS}\W", outputs[5])
    assert f"{4 * VIDEOS} rated clips" in outputs[6]
    assert "fewer than" not in outputs[6]
    rows = read_ratings(Path("rated/ratings.jsonl")).rows
    assert {row.source for row in rows} == {REAL, "CogVideoX-5b-I2V", "hailuo", "vidu"}
    assert all(set(row.ratings) == set(PEOPLE) for row in rows)
    # All clips of a picture are on one side, those without a first frame too.
    rated = RatedDataset(read_ratings(Path("rated/ratings.jsonl")))
    parts = split_rated(rated, 0)
    for part in (parts.train, parts.validation, parts.test):
        assert len(part) == 4 * len({rated.prompt(i).text.lower().rstrip(".") for i in part}) > 0
    assert "SRCC within the clips of one source" in outputs[8]
