"""What `douga evaluate` is given becomes collections of one configuration; the whole command on a tiny model."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from common.candidate_set.folder import read_set
from common.config import RunConfig
from common.errors import ConfigError, NotFoundError
from common.exchange.storage.run_lock import hold
from deploy.cli.main import main
from deploy.evaluation.models import EvaluatedModel, Request, models_of
from deploy.runtime import serial
from tests.support import toy
from tests.support.candidates import group, make_set
from tests.support.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and a run of two steps with the toon heads."""
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_pipeline(folder / "model", perturb=0.3)
    serial.run(toy.config(folder, steps=2), toy.rewards())
    return folder


def asked(root: Path, *models: str, **more: Any) -> list[EvaluatedModel]:
    return models_of(Request([str(one) for one in models], root / "out", **more))


def config(model: EvaluatedModel) -> RunConfig:
    assert model.config is not None
    return model.config


def test_a_run_alone_is_compared_with_its_base_model(root: Path) -> None:
    base, newest = asked(root, str(root / "runs" / "toy"), count=7, clips=3)
    assert (base.label, newest.label) == ("base", "toy")
    assert (config(base).collect.version, config(newest).collect.version) == (0, 2)
    for model in (base, newest):
        made = config(model)
        assert (made.collect.prompts, made.collect.split, made.sampler.candidates) == (7, "heldout", 3)
        assert made.collect.run == str((root / "runs" / "toy").resolve())
        assert made.folder == root / "out" / model.label


def test_versions_labels_and_folders(root: Path) -> None:
    run, folder = root / "runs" / "toy", root / "model"
    found = asked(root, f"first={run}@0", f"{run}@1", str(folder))
    assert [model.label for model in found] == ["first", "toy-v1", "model"]
    assert [config(model).collect.version for model in found] == [0, 1, 0]
    assert config(found[2]).collect.run == ""
    assert config(found[2]).model.path == str(folder)
    assert config(found[2]).sampler == config(found[0]).sampler


def test_toon_is_the_embedded_model_even_if_a_run_is_called_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make run` leaves a run of this name."""
    shutil.copytree(root / "runs" / "toy", tmp_path / "runs" / "toon")
    monkeypatch.chdir(tmp_path)
    base, aligned = asked(tmp_path, "base=toon", "aligned=runs/toon", count=2)
    assert (config(base).collect.run, config(base).model.path) == ("", "toon")
    assert config(aligned).collect.run == str(tmp_path / "runs" / "toon")


def test_a_set_is_taken_as_it_is(root: Path, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(0, [1.0])])
    (found,) = asked(root, f"ours={folder}")
    assert found == EvaluatedModel("ours", folder, None)


@pytest.mark.parametrize(
    ("models", "error", "said"),
    [
        (["nowhere"], ConfigError, "nowhere: neither a run, nor a pipeline folder, nor a candidate set$"),
        (["{lora}"], ConfigError, "nor a candidate set; a LoRA is no whole model: name the run"),
        (["{model}"], ConfigError, "a pipeline folder has no prompts and no rewards; give --config"),
        (["{run}@9"], NotFoundError, "no weight version 9"),
        (["{run}@1", "toy-v1={run}"], ConfigError, "two models are called 'toy-v1'; name them: LABEL="),
        (["a b={run}"], ConfigError, "'a b': a label has letters, digits"),
    ],
)
def test_bad_input(root: Path, models: list[str], error: type[Exception], said: str) -> None:
    (root / "lora").mkdir(exist_ok=True)
    (root / "lora" / "pytorch_lora_weights.safetensors").touch()
    named = [one.format(model=root / "model", run=root / "runs" / "toy", lora=root / "lora") for one in models]
    with pytest.raises(error, match=said):
        asked(root, *named)


def test_a_test_file_without_training_rows_is_sampled_in_order(root: Path, tmp_path: Path) -> None:
    image = next((root / "runs" / "toy").glob("**/*.png"), None)
    assert image is not None
    rows = [{"image": str(image), "prompt": f"walks {number}", "split": "heldout"} for number in range(3)]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"prompts": str(file)}
    for model in asked(tmp_path, str(root / "runs" / "toy"), count=3, split="all", flags=flags):
        serial.run(config(model), toy.rewards())
        found = read_set(model.folder)
        assert [row.prompt for row in found.rows.values()] == ["walks 0", "walks 1", "walks 2"]
    too_many = asked(
        tmp_path, str(root / "model"), count=4, split="all", flags=flags, file=root / "runs/toy/config.toml"
    )
    with pytest.raises(ConfigError, match=r"collect.prompts = 4: .* has 3 with split = all"):
        serial.run(config(too_many[0]), toy.rewards())


def test_the_command_writes_table_json_page_and_clips(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "out", str(root / "runs" / "toy")
    words = [
        "evaluate",
        run,
        "--count",
        "3",
        "--clips",
        "2",
        "--out",
        str(out),
        "--export-vbench",
        str(tmp_path / "vb"),
    ]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "6 clips of 3 prompts" in " ".join(shown.out.split())
    assert "Not verified. 3 distinct held-out prompts" in " ".join(shown.out.split())
    assert (out / "evaluation.html").is_file()
    found = json.loads((out / "evaluation.json").read_text())
    assert found["labels"] == ["base", "toy"]
    assert len(list((tmp_path / "vb" / "toy").iterdir())) == 6
    again, before = read_set(out / "toy").digest, read_set(out / "toy").rows
    assert main([*words, "--format", "latex"]) == 0
    assert r"\midrule" in capsys.readouterr().out
    assert read_set(out / "toy").digest == again  # nothing was sampled again
    assert main([*words, "--reward.judges.mse.kind", "frame_mse", "--format", "markdown"]) == 0
    shown = capsys.readouterr()
    assert "| mse | " in shown.out  # a judge that was added later
    assert read_set(out / "toy").rows.keys() == before.keys()
    assert main([*words, "--sampler.steps", "4"]) == 2
    told = capsys.readouterr().err
    assert "the run there has another configuration: sampler.steps (2 there, 4 now); choose another --out" in told
    assert main([*words, "--against", "nobody"]) == 2
    assert "--against nobody: allowed are base, toy" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["a file", "in use", "damaged"])
def test_a_folder_that_cannot_be_used_asks_for_another_out(
    root: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no --name: the labels name the folders below --out."""
    out = tmp_path / "out"
    base = out / "base"
    with ExitStack() as stack:
        if fault == "a file":
            out.touch()
        elif fault == "in use":
            stack.callback(hold(base).close)
        else:
            base.mkdir(parents=True)
            (base / "ledger.sqlite").write_bytes(b"no database" * 100)
        assert main(["evaluate", str(root / "runs" / "toy"), "--count", "2", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "choose another --out" in told
    assert "--name" not in told


def test_results_of_vbench_for_the_exported_clips_join_the_table(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export, a results file as VBench writes it, read back: base has 0.5, 0.6, 0.7, and toy 0.1 more each."""
    out, exported, run = tmp_path / "out", tmp_path / "vb", str(root / "runs" / "toy")
    words = ["evaluate", run, "--count", "3", "--out", str(out), "--controls", "0", "--format", "markdown"]
    assert main([*words, "--export-vbench", str(exported)]) == 0
    capsys.readouterr()
    files = []
    for label, start in (("base", 0.5), ("toy", 0.6)):
        clips = sorted((exported / label).iterdir())
        rows = [{"video_path": str(clip), "video_results": start + place / 10} for place, clip in enumerate(clips)]
        files.append(tmp_path / f"{label}_eval_results.json")
        files[-1].write_text(json.dumps({"motion_smoothness": [start + 0.1, rows]}))
    assert main([*words, "--vbench-results", *map(str, files)]) == 0
    shown = capsys.readouterr()
    assert "| vbench.motion_smoothness | 60.00 | 70.00 (+10.00 [+10.00, +10.00]) |" in shown.out
    row = json.loads((out / "evaluation.json").read_text())["figures"]["vbench.motion_smoothness"]
    assert (row["toy"]["win"], row["toy"]["lose"]) == (1, 0)
    assert "vbench.motion_smoothness" in (out / "evaluation.html").read_text()
    assert main([*words, "--vbench-results", str(exported / "base.json")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "base.json" in line]
    assert "must be a mean and the list of the clips' results" in line
