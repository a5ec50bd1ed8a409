"""`douga sample`: the rows of a prompt file as they are, the seeds, and what happens after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.data.video import decode_clip
from common.seeds import candidate_seed
from deploy.cli.main import main
from tests.support.tiny import LEARNED, TEXT_TO_VIDEO, V1_5, tiny_pipeline

ROWS = 23  # a run would hold out rows 10 and 20
SAMPLED = ["--sampler.steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(folder)
    return folder


def prompt_file(folder: Path, rows: int = ROWS, **last: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for value in range(3):
        Image.fromarray(np.full((48, 64, 3), 80 * value, np.uint8)).save(folder / f"{value}.png")
    table = [{"image": f"{row % 3}.png", "prompt": f"walks {row}", "id": f"p{row}"} for row in range(rows)]
    table[-1] |= last
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, table)))
    return file


def command(model: Path, file: Path, out: Path, *more: str) -> list[str]:
    return ["sample", str(model), "--prompts", str(file), "--out", str(out), *SAMPLED, *more]


def records(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "samples.json").read_text())


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir()}


def test_every_row_of_a_file_is_sampled_once_in_its_order(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(model, prompt_file(tmp_path), out)) == 0
    made = records(out)
    assert [one["id"] for one in made] == [f"p{row}" for row in range(ROWS)]
    assert [one["text"] for one in made] == [f"walks {row}" for row in range(ROWS)]
    assert [(one["prompt_index"], one["clip_index"]) for one in made] == [(row, 0) for row in range(ROWS)]
    assert all((out / one[kind]).is_file() for one in made for kind in ("clip", "image"))


def test_clips_of_a_prompt_have_reproducible_seeds_of_their_own(model: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", prompt_file(tmp_path, 3)
    assert main(command(model, file, out, "--clips-per-prompt", "3", "--seed", "7")) == 0
    made = records(out)
    assert [(one["prompt_index"], one["clip_index"]) for one in made] == [
        (row, clip) for row in range(3) for clip in range(3)
    ]
    assert [one["seed"] for one in made] == [
        candidate_seed(7, "sample", row, clip) for row in range(3) for clip in range(3)
    ]
    assert len({(out / one["clip"]).read_bytes() for one in made}) == len(made)
    again = tmp_path / "again"
    assert main(command(model, file, again, "--clips-per-prompt", "3", "--seed", "7")) == 0
    assert contents(again) == contents(out)


def test_a_split_keeps_the_numbers_of_its_rows(model: Path, tmp_path: Path) -> None:
    file = prompt_file(tmp_path)
    for split, rows in (("heldout", [9, 19]), ("train", [row for row in range(ROWS) if row not in (9, 19)])):
        assert main(command(model, file, tmp_path / split, "--split", split)) == 0
        assert [one["prompt_index"] for one in records(tmp_path / split)] == rows
    assert main(command(model, file, tmp_path / "few", "--count", "4")) == 0
    assert [one["prompt_index"] for one in records(tmp_path / "few")] == [0, 1, 2, 3]


def test_a_killed_command_goes_on_where_it_stopped(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed, file = tmp_path / "whole", tmp_path / "killed", prompt_file(tmp_path)
    more = ("--clips-per-prompt", "4", "--sampler.steps", "20")
    words = [sys.executable, "-m", "deploy.cli", *command(model, file, killed, *more)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (killed / "samples.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = records(killed)
    assert 0 < len(before) < 4 * ROWS
    for one in before:  # a clip that is there is not sampled again
        os.utime(killed / one["clip"], (0, 0))
    assert main(command(model, file, killed, *more)) == 0
    assert all((killed / one["clip"]).stat().st_mtime == 0 for one in before)
    assert main(command(model, file, whole, *more)) == 0
    assert contents(killed) == contents(whole)
    capsys.readouterr()
    assert main(command(model, file, whole, *more)) == 0
    assert capsys.readouterr().out == ""  # nothing is left to do


def test_more_prompts_and_clips_are_added(model: Path, tmp_path: Path) -> None:
    file = prompt_file(tmp_path, 4)
    for more in (("--count", "2"), ("--clips-per-prompt", "2")):
        assert main(command(model, file, tmp_path / "out", "--sampler.micro-batch", "1", *more)) == 0
    assert main(command(model, file, tmp_path / "whole", "--sampler.micro-batch", "1", "--clips-per-prompt", "2")) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--sampler.steps", "4"], "made with sampler.steps = 2, not 4"),
        (["--seed", "1"], "made with seed = 0, not 1"),
        (["--model.fps", "9"], "made with model.fps = 8, not 9"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    file = prompt_file(tmp_path, 2)
    assert main(command(model, file, tmp_path / "out")) == 0
    before = contents(tmp_path / "out")
    assert main(command(model, file, tmp_path / "out", *change)) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    assert main(command(model, file, tmp_path / "out", "--sampler.micro-batch", "1")) == 0  # memory may change


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"prompt": "jumps"}, "prompt 1 was 'walks 1', and is 'jumps' now"),
        ({"image": "2.png"}, "prompt 1 has another first frame"),
    ],
)
def test_a_folder_of_other_prompts_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], last: dict[str, str], message: str
) -> None:
    assert main(command(model, prompt_file(tmp_path, 2), tmp_path / "out")) == 0
    assert main(command(model, prompt_file(tmp_path, 2, **last), tmp_path / "out")) == 2
    assert message in capsys.readouterr().err


def test_samples_without_settings_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "out", prompt_file(tmp_path, 1)
    assert main(command(model, file, out)) == 0
    (out / "settings.json").unlink()
    assert main(command(model, file, out)) == 2
    assert "settings.json: cannot be read" in capsys.readouterr().err


def test_a_pipeline_folder_is_sampled_with_a_configuration(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    file.write_text("seed = 5\n[model]\nfps = 9\n[sampler]\nsteps = 2\n")
    assert main(["sample", str(model), "--config", str(file), "--count", "1", "--out", str(out)]) == 0
    assert records(out)[0]["seed"] == candidate_seed(5, "sample", 0, 0)
    assert json.loads((out / "settings.json").read_text())["model.fps"] == 9
    assert main(["sample", "--config", str(file), "--out", str(out)]) == 2
    assert "only for a pipeline folder; 'toon' has a configuration" in capsys.readouterr().err


SIZES: dict[
    str, tuple[dict[str, Any], list[int]]
] = {  # family, changes of its transformer -> frames, height, width, fps of the usual clip
    "learned": (LEARNED | {"sample_height": 8, "sample_width": 12}, [9, 32, 48, 8]),
    "newer": (V1_5 | {"sample_height": 20, "sample_width": 20, "sample_frames": 20}, [17, 80, 80, 16]),
    "text to video": (TEXT_TO_VIDEO | {"sample_height": 12, "sample_width": 20, "sample_frames": 1}, [1, 48, 80, 8]),
}


@pytest.mark.parametrize("family", SIZES)
def test_a_pipeline_folder_alone_is_sampled_at_its_usual_size(family: str, tmp_path: Path) -> None:
    overrides, size = SIZES[family]
    folder, out = tiny_pipeline(tmp_path / "model", **overrides), tmp_path / "out"
    Image.new("RGBA", (90, 60), (255, 0, 0, 128)).save(tmp_path / "first.png")
    image = [] if family == "text to video" else ["--image", str(tmp_path / "first.png")]
    one = ["--text", " a robot walks ", *image, "--out", str(out), "--sampler.steps", "2"]
    assert main(["sample", str(folder), *one]) == 0
    (made,) = records(out)
    assert [made[key] for key in ("frames", "height", "width", "fps")] == size
    assert (made["text"], made["steps"], made["guidance"], made["dtype"]) == ("a robot walks", 2, 6.0, "float32")
    assert decode_clip((out / made["clip"]).read_bytes()).shape == (*size[:3], 3)
    if image:
        with Image.open(out / made["image"]) as shown:
            assert shown.size == (size[2], size[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which prompts? give --prompts FILE, or --text and --image"),
        (["--text", "a robot"], "--text: the model needs a first frame as well; give --image"),
        (["--text", "  ", "--image", "0.png"], "--text: the caption is empty"),
        (["--text", "a \udcff", "--image", "0.png"], r"--text: '\udcff' is half of a character"),
        (["--text", "a robot", "--image", "gone.png"], "--image gone.png: no such file"),
        (["--text", "a robot", "--image", "prompts.jsonl"], "prompts.jsonl: "),
        (["--text", "zzz", "--image", "0.png"], "--text: the policy's text encoder knows no word"),
        (["--text", "a robot", "--image", "0.png", "--prompts", "prompts.jsonl"], "--prompts: not with --text"),
        (["--text", "a robot", "--image", "0.png", "--split", "train"], "--split: not with --text"),
        (["--image", "0.png"], "--image 0.png: give its caption with --text"),
    ],
)
def test_a_prompt_on_the_command_line_is_checked(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    prompt_file(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(model), *SAMPLED, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_a_model_without_images_refuses_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_pipeline(tmp_path / "model", **TEXT_TO_VIDEO)
    assert main(["sample", str(folder), "--text", "a robot", "--image", "x.png"]) == 2
    assert "--image x.png: the model takes no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips-per-prompt", "0"], "--clips-per-prompt 0: must be at least 1"),
        (["--clips-per-prompt", "2", "--invert", "walk.mp4"], "all clips of a prompt would be the same"),
        (["--invert", "gone.mp4"], "gone.mp4: cannot be read"),
        (["--split", "train"], "--split train: only a prompt file has splits"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["sample", "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
