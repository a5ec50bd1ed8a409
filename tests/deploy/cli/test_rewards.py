"""``douga reward``: builds clips, trains heads, evaluates them; bad input is one line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from common.data.ratings import read_ratings
from deploy.cli.main import main
from deploy.rewards.actions import _left_out
from rewarders.conversion.kinds import KINDS
from rewarders.head_files import load_heads
from rewarders.toon_heads.heads import HEADS
from tests.support.rewarders.rated_clips import blue_clips, grey_clips
from tests.support.tiny_encoders import blind_to_blue, tiny_clip, tiny_siglip


@pytest.fixture(scope="module")
def toon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rated")
    assert main(["reward", "build", "toon", "--out", str(out), "--count", "8", "--candidates", "1"]) == 0
    return out / "ratings.jsonl"


def test_from_ratings_to_a_report(toon: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    heads = tmp_path / "heads"
    train = ["reward", "train", "--ratings", str(toon), "--out", str(heads), "--epochs", "1", "--batch", "4"]
    assert main(train) == 0
    said = capsys.readouterr().out
    assert said.count("step 3/3") == len(HEADS)  # 12 clips of mixed figures, one pass
    assert f"douga reward eval {heads}" in said
    assert main(train) == 0
    assert "step" not in capsys.readouterr().out
    evaluate = ["reward", "eval", str(heads), "--ratings", str(toon), "--resamples", "100"]
    assert main([*evaluate, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["dimensions"]) == [*HEADS, "overall"]
    assert 1 <= found["clips"] <= 3
    assert set(found["left_out"]["seen in training"].values()) == {16 - found["clips"]}
    assert main(evaluate) == 0
    table = capsys.readouterr().out
    assert "95 % from" in table
    assert "optical flow" in table
    assert f"left out: {16 - found['clips']} seen in training" in table
    assert max(map(len, table.splitlines())) <= 80


def test_embedded_heads_have_no_record_of_training_clips(toon: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["reward", "eval", "toon", "--ratings", str(toon), "--resamples", "100", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["clips"] == 16
    assert "toon: has no record of its training clips; all rated clips are used" in err


def test_bad_rows_are_reported_and_left_out(toon: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = toon.read_text().splitlines()
    worse = toon.with_name("worse.jsonl")
    worse.write_text("\n".join([*rows, rows[0], rows[1].replace("clips/", "gone/")]))
    assert main(["reward", "eval", "toon", "--ratings", str(worse), "--resamples", "100", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["left_out"]["bad rows"] == 2
    assert f"{worse}:18: gone/" in err
    assert len(read_ratings(worse).rows) == 16


def test_a_head_over_pretrained_models(toon: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    heads = tmp_path / "heads"
    siglip = tiny_siglip(heads / "siglip")
    train = ["reward", "train", "--ratings", str(toon), "--out", str(heads), "--head", "VideoSmoothness"]
    train += ["--model", f"vision={siglip}", "--option", "frames=4", "--epochs", "3", "--batch", "4"]
    assert main(train) == 0
    said = capsys.readouterr().out
    assert said.count("  validation ") == 3
    assert "split: 12 clips for training, 2 clips for validation, 2 clips for test" in said
    (head,) = load_heads(str(heads))
    assert (head.dimension, head.options) == ("smoothness", {"frames": 4})  # type: ignore[attr-defined]
    evaluate = ["reward", "eval", str(heads), "--ratings", str(toon), "--resamples", "100", "--json"]
    assert main(evaluate) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["dimensions"]) == ["smoothness"]
    assert found["left_out"]["seen in training"]["smoothness"] == 16 - found["clips"]
    assert found["left_out"]["not scored"] == {"smoothness": 0}


def test_dimensions_that_are_not_trained_keep_the_embedded_head(
    toon: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--out", str(tmp_path / "h"), "--epochs", "1", "--batch", "4", "--dimensions", "motion")
    assert main(["reward", "train", "--ratings", str(toon), *words]) == 0
    assert "smoothness, appeal, text, image, character were not trained" in capsys.readouterr().out
    made = {head.dimension: head.digest for head in load_heads(str(tmp_path / "h"))}
    embedded = {head.dimension: head.digest for head in load_heads("toon")}
    assert [name for name in HEADS if made[name] != embedded[name]] == ["motion"]


def bad(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(["reward", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_bad_input_is_one_line(toon: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = ("train", "--ratings", str(toon), "--out", str(tmp_path / "h"))
    grey = ("train", "--ratings", str(grey_clips(tmp_path / "grey", 3, 1)), "--out", str(tmp_path / "h"))
    assert "--dimensions taste: rated: smoothness" in bad(capsys, *train, "--dimensions", "taste")
    assert "--epochs 0: must be at least 1" in bad(capsys, *train, "--epochs", "0")
    assert "--lr -1: must be above 0" in bad(capsys, *train, "--lr", "-1")
    assert "none.jsonl: no such file" in bad(capsys, "train", "--ratings", "none.jsonl", "--out", str(tmp_path))
    assert "--head B: allowed are toon, VideoSmoothness" in bad(capsys, *train, "--head", "B")
    assert "--model x: NAME=VALUE is expected" in bad(capsys, *train, "--head", "VideoSmoothness", "--model", "x")
    assert "VideoSmoothness: needs the models vision" in bad(capsys, *train, "--head", "VideoSmoothness")
    assert "has no ratings of smoothness" in bad(capsys, *grey, "--head", "VideoSmoothness")
    assert "rates light, dark; toon heads exist for smoothness" in bad(capsys, *grey)
    assert "--resamples 1: must be at least 100" in bad(
        capsys, "eval", "toon", "--ratings", str(toon), "--resamples", "1"
    )
    build = ("build", str(tmp_path / "none"), "--out", str(tmp_path / "o"))
    assert "none: no such folder of videos" in bad(capsys, *build)
    assert "--clips 0: must be at least 1" in bad(capsys, *build, "--clips", "0")
    assert "nomodel: neither a run nor a pipeline folder" in bad(capsys, *build, "--generators", "nomodel")
    assert "'toon' takes no configuration keys" in bad(capsys, "build", "toon", "--out", "o", "--sampler.steps", "2")
    assert "--sampler.steps: unknown option" in bad(capsys, *train, "--sampler.steps", "2")


def test_a_record_without_first_frames_is_refused(toon: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    heads = tmp_path / "heads"
    train = ["reward", "train", "--ratings", str(toon), "--out", str(heads), "--dimensions", "motion", "--epochs", "1"]
    assert main(train) == 0
    capsys.readouterr()
    record = heads / "training" / "motion" / "seen.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps({name: value for name, value in before.items() if name != "seen_frames"}))
    assert main(["reward", "eval", str(heads), "--ratings", str(toon), "--resamples", "100"]) == 2
    assert f"{record}: written by an earlier version, without the first frames" in capsys.readouterr().err
    record.write_text(json.dumps(before | {"split": "another"}))
    assert main(train) == 2
    assert "was trained with other split; delete it" in capsys.readouterr().err


def test_left_out_clips_as_text() -> None:
    assert _left_out({"bad rows": 0, "seen in training": {"a": 3, "b": 3}, "not scored": {"a": 0, "b": 2}}) == (
        "3 seen in training, 0..2 not scored"
    )


def test_judges_are_evaluated_beside_heads_or_alone(toon: Path, capsys: pytest.CaptureFixture) -> None:
    evaluate = ["--ratings", str(toon), "--resamples", "100"]
    judge = ["--reward.judges.still.kind", "frame_mse"]
    assert main(["reward", "eval", "none", *evaluate, *judge, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["dimensions"]
    assert all("still" in section["judges"] and "reward" not in section["judges"] for section in alone.values())
    assert main(["reward", "eval", "toon", *evaluate, *judge]) == 0
    shown = capsys.readouterr().out
    assert "still" in shown
    assert shown.count("SRCC within the clips of one source") == len(HEADS) + 1
    assert main(["reward", "eval", "none", *evaluate]) == 2
    assert "none: nothing to evaluate; name a judge with --reward.judges.NAME.kind" in capsys.readouterr().err


def test_encoders_are_fine_tuned_and_compared_with_frozen_ones(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ratings, siglip = blue_clips(tmp_path, 10, "appeal"), blind_to_blue(tiny_siglip(tmp_path / "siglip"))
    words = [
        "reward",
        "train",
        "--ratings",
        str(ratings),
        "--encoders",
        "--epochs",
        "1",
        "--batch",
        "7",
        "--lr",
        "1e-3",
    ]
    model = ["--head", "KeyFrameAppeal", "--model", f"vision={siglip}", "--option", "key_frames=2"]
    tuned, again = tmp_path / "tuned", tmp_path / "again"
    assert main([*words, "--out", str(tuned), *model]) == 0
    said = capsys.readouterr().out
    assert said.index("the head first, on frozen encoders") < said.index("appeal: encoders and head together")
    assert f"{tuned / 'appeal-vision'}: 0.0 M parameters, 0.0 MiB" in said
    assert main([*words, "--out", str(tuned), *model]) == 0
    assert "step" not in capsys.readouterr().out
    assert main([*words, "--out", str(again), "--start", str(tuned / "frozen")]) == 0
    assert "head first" not in capsys.readouterr().out
    (one,), (other,) = load_heads(str(tuned)), load_heads(str(again))
    assert one.digest == other.digest
    evaluate = ["reward", "eval", str(tuned), "--ratings", str(ratings), "--resamples", "100", "--json"]
    assert main(evaluate) == 0
    found = json.loads(capsys.readouterr().out)["dimensions"]["appeal"]["judges"]
    assert list(found)[:2] == ["reward", "frozen encoders"]
    assert found["reward"]["SRCC"] != found["frozen encoders"]["SRCC"]
    (tuned / "frozen/appeal.safetensors").unlink()
    assert main(evaluate) == 0
    out, err = capsys.readouterr()
    assert "frozen encoders" not in out
    assert "not compared with frozen encoders" in err


def test_bad_input_to_fine_tuning_is_one_line(toon: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = ("train", "--ratings", str(toon), "--out", str(tmp_path / "h"))
    assert "--start: only with --encoders" in bad(capsys, *train, "--start", "toon")
    assert "--encoders: toon heads have none; name a class with --head" in bad(capsys, *train, "--encoders")
    assert "--start toon: rated, and with encoders in toon: none" in bad(
        capsys, *train, "--encoders", "--start", "toon"
    )
    both = ("--encoders", "--start", "toon", "--head", "KeyFrameAppeal")
    assert "leave out --head, --model, --option" in bad(capsys, *train, *both)
    same = ("--encoders", "--start", str(tmp_path / "h"))
    assert "must not be the folder of --out" in bad(capsys, *train, *same)
    assert "--frames 0: must be at least 1" in bad(capsys, *train, "--encoders", "--frames", "0")


def test_published_checkpoints_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    clip, layers = tiny_clip(tmp_path / "clip"), tmp_path / "layers.pth"
    torch.save({"weight": torch.ones(1, 16), "bias": torch.ones(1)}, layers)
    convert = ("convert", "aesthetic", str(layers), "--base", clip, "--out", str(tmp_path / "out"))
    assert main(["reward", *convert]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: a judge of kind aesthetic\n"
    assert (tmp_path / "out/aesthetic.safetensors").is_file()
    assert "exists; a new folder is needed" in bad(capsys, *convert)
    torch.save({"weight": torch.ones(1), "trainer": argparse.Namespace(lr=1)}, layers)
    gone = ("convert", "aesthetic", str(layers), "--base", clip, "--out", str(tmp_path / "no"))
    assert f"{layers}: has more than tensors (argparse.Namespace), which only running" in bad(capsys, *gone)
    with pytest.raises(SystemExit):
        main(["reward", "convert", "--help"])
    shown = capsys.readouterr().out
    assert all(f" {kind} " in shown for kind in KINDS)
