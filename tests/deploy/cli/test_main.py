"""The command line: fast help, one line and exit code 2 for bad input, and every subcommand."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.config import keys
from common.data.video import encode_mp4
from common.version import VERSION
from deploy.cli import flags as cli_flags
from deploy.cli import main as cli
from deploy.cli import run
from deploy.cli.main import main
from deploy.run_dir import layout
from deploy.run_dir.jsonl import read_json_lines
from deploy.run_dir.layout import TOON
from deploy.run_dir.signals import stop_on_signals
from deploy.runtime import serial
from deploy.runtime.evaluation import StuckError
from rewarders.head_files import save_heads
from rewarders.toon_heads.heads import HEADS, ToonHead
from tests.support.chat_server import chat_server, said
from tests.support.tiny import tiny_pipeline
from tests.support.tiny_text_to_image import tiny_text_to_image

SMALL = {
    "mode": "serial",
    "steps": 1,
    "sampler.candidates": 2,
    "sampler.steps": 2,
    "learner.batch-size": 2,
    "algorithm.name": "dpo",
    "exchange.max-lag": 0,
    "evaluation.prompts": 2,
    "evaluation.clips": 2,
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with a tiny model and six random reward heads."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_pipeline(folder / "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_heads([ToonHead(name) for name in HEADS], folder / "heads")
    return folder


def words(root: Path, parts: Path, **flags) -> list[str]:
    values = SMALL | {"root": root, "name": "r", "model.path": parts / "model", "reward.path": parts / "heads"} | flags
    return ["run", str(TOON), *(word for name, value in values.items() for word in (f"--{name}", str(value)))]


def douga(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "deploy.cli", *arguments], capture_output=True, text=True, check=False)


# Without torch.


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["config"], ["sample", "--help"], ["export", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom deploy.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'rich', 'numpy', 'av')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_driver_of_a_cluster_run_imports_no_torch():
    code = (
        "import sys, deploy.cli.main, deploy.results.comparison, deploy.runtime.driver\n"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_one_line(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"douga {VERSION}\n"


def test_help_shows_examples_and_every_key(capsys):
    with pytest.raises(SystemExit) as left:
        main(["run", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "douga run --verify" in text
    for key in keys():
        assert f"--{key.name.replace('_', '-')}  (" in text
        assert key.description in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "--algorithm.alhpa", "2"], "--algorithm.alhpa: unknown key; did you mean algorithm.alpha?"),
        (
            ["run", "--sampler.candidates", "1"],
            "douga: sampler.candidates = 1: algorithm gapo needs 2 or more",
        ),
        (["run", "--algorithm.alpha=0.5"], "--algorithm.alpha = '0.5': Input should be greater than 1"),
        (["run", "--exchange.max-lag", "-1"], "--exchange.max-lag = '-1': Input should be greater than or equal to 0"),
        (["run", "none.toml"], "none.toml: no such configuration file"),
        (["run", "--steps"], "--steps: a value is missing"),
        (["run", "a.toml", "b.toml"], "unrecognized arguments: b.toml; see: douga --help"),
        (["walk"], "invalid choice: 'walk'"),
        ([], "required: COMMAND"),
        (["report", "x", "--depth", "3"], "--depth: unknown option; see: douga report --help"),
        (["sample", "--count", "many"], "argument --count: invalid int value: 'many'; see: douga sample --help"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, line):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("douga: ")
    assert captured.err.count("\n") == 1
    assert line in captured.err


def test_bad_input_ends_the_process_with_2_and_no_traceback():
    done = douga("run", "--exchange.max-lag", "-1")
    assert done.returncode == 2
    assert done.stderr == "douga: --exchange.max-lag = '-1': Input should be greater than or equal to 0\n"


@pytest.mark.parametrize(
    ("given", "flags", "rest"),
    [
        (["--verify", "a.toml"], {"verify": "true"}, ["a.toml"]),
        (["--verify", "false", "a.toml"], {"verify": "false"}, ["a.toml"]),
        (["--learner.lr=1e-5", "x", "--steps", "3"], {"learner.lr": "1e-5", "steps": "3"}, ["x"]),
        (["--exchange.max-lag", "-1"], {"exchange.max-lag": "-1"}, []),
        (["--out", "folder", "--seed", "3"], {"seed": "3"}, ["--out", "folder"]),
        (["--help"], {}, ["--help"]),
    ],
)
def test_configuration_keys_are_separated_from_options(given, flags, rest):
    assert cli_flags.split_flags(given, frozenset({"out", "help"})) == (flags, rest)


@pytest.mark.parametrize(
    ("words", "own", "others"),
    [
        (["run", "my.toml"], set(), {"steps", "out"}),
        (["sample", "runs/toon"], {"out", "count", "version", "invert"}, {"prompts"}),
        (["reward", "serve"], {"most-mb", "host", "port", "token", "token-file"}, {"epochs", "out"}),
        (["reward", "train"], {"epochs", "lr", "seed"}, {"most-mb"}),
        (["watch", "toon"], {"host", "port"}, {"json"}),
        ([], set(), {"out"}),
    ],
)
def test_a_command_knows_its_own_options(words, own, others):
    found = cli.build_parser().own_options(words)
    assert found >= own | {"help"}
    assert not found & others


# With a tiny model.


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"model.path": "nowhere"}, "model.path = 'nowhere': no folder nowhere"),
        ({"model.frames": 10}, "model.frames = 10"),
        ({"reward.path": "nowhere"}, "nowhere"),
        ({"prompts": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"prompts": "empty.jsonl"}, "no prompts in it"),
        ({"prompts": "broken.jsonl"}, "broken.jsonl:1: not valid JSON"),
    ],
)
def test_unreadable_input_is_one_line_and_creates_no_run_folder(capsys, tmp_path, parts, flags, line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text("{nonsense\n")
    assert main(words(tmp_path / "runs", parts, **flags)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("douga: ")
    assert line in error
    assert not (tmp_path / "runs").exists()


def test_a_broken_model_folder_is_named(capsys, tmp_path, parts):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    assert main(words(tmp_path, parts, **{"model.path": tmp_path / "model"})) == 2
    assert "model_index.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, parts) -> Path:
    """A run that the command has finished."""
    root = tmp_path_factory.mktemp("runs")
    assert main(words(root, parts)) == 0
    return root / "r"


def test_a_run_ends_with_0_and_with_verify_by_its_verdict(capsys, parts, finished):
    assert (finished / "report.html").stat().st_size > 10_000
    passed = json.loads((finished / "result.json").read_text())["verdict"]["passed"]
    capsys.readouterr()
    assert main([*words(finished.parent, parts), "--verify"]) == (0 if passed else 1)
    shown = capsys.readouterr().out
    assert "already finished" in shown
    assert "learned reward" in shown
    assert str(finished / "report.html") in shown.replace("\n", "")


def test_a_run_folder_of_another_configuration_is_refused_by_key(capsys, parts, finished):
    assert main(words(finished.parent, parts, seed=5)) == 2
    assert "seed (0 there, 5 now)" in capsys.readouterr().err


def test_evaluate_repeats_the_figures_of_the_run(capsys, tmp_path, finished):
    out = tmp_path / "again"
    assert main(["evaluate", str(finished), "--out", str(out), "--format", "json"]) == 0
    again, kept = json.loads(capsys.readouterr().out), json.loads((finished / "result.json").read_text())
    assert again == json.loads((out / "evaluation.json").read_text())
    for kind, prefix in (("learned", ""), ("oracle", "oracle.")):
        for name, row in kept[kind].items():
            base, aligned = again["figures"][f"{prefix}{name}"].values()
            assert base["mean"] == row["base"]["mean"]
            assert aligned["mean"] == row["aligned"]["mean"]
            assert aligned["change"] == row["change"]


def test_samples_are_written_and_scored(capsys, tmp_path, parts, finished):
    out = tmp_path / "samples"
    flags = ["--prompts", "toon", "--sampler.steps", "2"]
    assert main(["sample", str(finished), "--count", "2", "--out", str(out)]) == 0
    assert main(["sample", str(parts / "model"), "--count", "2", "--out", str(tmp_path / "base"), *flags]) == 0
    assert (out / "sheet.png").is_file()
    aligned, base = (json.loads((folder / "samples.json").read_text()) for folder in (out, tmp_path / "base"))
    assert [record["id"] for record in aligned] == [record["id"] for record in base]
    assert [record["seed"] for record in aligned] == [record["seed"] for record in base]
    assert aligned[0]["version"] > base[0]["version"] == 0
    capsys.readouterr()
    assert main(["score", str(out), "--reward.path", str(parts / "heads"), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["clip"] == str(out / "0000-0.mp4")
    assert first["reward"] == pytest.approx(sum(first[name] for name in HEADS) / 6)
    arguments = ["score", str(out / "0001-0.mp4"), "--text", base[1]["text"], "--reward.path", str(parts / "heads")]
    assert main([*arguments, "--image", str(out / "0001.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["reward"] == pytest.approx(second["reward"])
    assert main(arguments) == 0
    assert "scores, 0..100" in capsys.readouterr().out


class Picky:
    """A custom judge that scores only bright clips."""

    outputs, digest = ("light", "dark"), "picky-1"

    def __init__(self, judge, device):
        pass

    def judge(self, clips, prompts):
        lights = [float(clip.frames.mean()) for clip in clips]
        return [{"light": light, "dark": 100 - light} if light > 50 else "too dark" for light in lights]


def test_score_uses_the_configured_judges_and_leaves_out_clips_they_refuse(tmp_path, capsys):
    for name, grey in (("dark", 20), ("light", 80)):
        (tmp_path / f"{name}.mp4").write_bytes(encode_mp4(np.full((3, 48, 64, 3), grey, np.uint8), 8))
    (tmp_path / "mine.toml").write_text(
        '[reward]\npath = ""\n[reward.judges.my]\nkind = "tests.deploy.cli.test_main:Picky"\n'
    )
    clips = [str(tmp_path / f"{name}.mp4") for name in ("dark", "light")]
    mine = ["score", *clips, "--text", "a robot", "--config", str(tmp_path / "mine.toml"), "--json"]
    assert main([*mine, "--reward.judges.my.outputs.light", "3", "--reward.judges.my.outputs.dark", "1"]) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert row["clip"] == clips[1]
    assert (row["my.light"], row["my.dark"]) == (pytest.approx(80, abs=2), pytest.approx(20, abs=2))
    assert row["reward"] == pytest.approx((3 * row["my.light"] + row["my.dark"]) / 4)
    assert f"{clips[0]}: my.light: too dark; left out" in said.err
    assert main(["score", clips[0], *mine[3:]]) == 2
    assert "none of 1 clips could be scored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["score", "x.mp4"], "x.mp4: cannot be read: No such file"),
        (["finetune", "nowhere", "x.toml"], "nowhere: no such folder of clips"),
        (["sample", "nowhere"], "nowhere: neither a run nor a pipeline folder"),
        (["sample", "--count", "0"], "--count 0: must be at least 1"),
        (["sample", "--model.path", "m"], "--model.path m: 'toon' is the embedded model; name the folder"),
        (["collect", "--model.path", "m", "--count", "1"], "--model.path m: needs a CONFIG.toml"),
        (["evaluate", "nowhere"], "nowhere: neither a run, nor a pipeline folder, nor a candidate set"),
        (["report", "nowhere"], "nowhere: no run folder"),
        (["prompts", "from-videos", "nowhere", "--out", "o"], "nowhere: no such folder of videos"),
        (["toon", "build", "--work", "/dev/null"], "/dev/null: cannot be made a folder: File exists"),
        (["reward", "serve", "--most-mb", "0"], "--most-mb 0: must be at least 1"),
        (["prompts", "first-frames", "x.csv", "--model", "m", "--out", "o"], "m: not a pipeline folder"),
        (["prompts", "rewrite", "p.jsonl", "--out", "o.jsonl"], "one of the arguments --model --url is required"),
        (
            ["prompts", "rewrite", "p", "--out", "o", "--model", "m", "--token-file", "t"],
            "--token-file: only with --url",
        ),
    ],
)
def test_bad_input_of_the_other_commands_is_one_line(capsys, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert line in capsys.readouterr().err


def test_an_unreadable_video_is_named(capsys, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert main(["score", str(tmp_path / "a.mp4"), "--text", "a robot"]) == 2
    assert "a.mp4: not a readable video" in capsys.readouterr().err


def test_prompts_from_videos(capsys, tmp_path, finished):
    (tmp_path / "clip.mp4").write_bytes((finished / "clips" / "heldout-0000-base.mp4").read_bytes())
    (tmp_path / "clip.txt").write_text("a robot walks right")
    assert main(["prompts", "from-videos", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (record,) = read_json_lines(tmp_path / "out" / "prompts.jsonl")
    assert (record["prompt"], record["image"]) == ("a robot walks right", "clip.mp4.png")


def test_prompts_first_frames(capsys, tmp_path):
    tiny_text_to_image(tmp_path / "model")
    (tmp_path / "captions.csv").write_text("prompt\na woman smiles\n")
    places = [str(tmp_path / "captions.csv"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    sizes = ["--height", "16", "--width", "24", "--steps", "1", "--guidance", "2.5", "--seed", "3"]
    assert main(["prompts", "first-frames", *places, *sizes, "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'out' / 'prompts.jsonl'}\n"
    assert "douga: 1/1 first frames\n" in shown.err
    (record,) = read_json_lines(tmp_path / "out" / "prompts.jsonl")
    with Image.open(tmp_path / "out" / record["image"]) as image:
        assert image.size == (24, 16)


def test_prompts_rewrite_names_the_failed_rows_and_resumes(capsys, tmp_path):
    file, out = tmp_path / "p.csv", tmp_path / "long.jsonl"
    file.write_text("id,prompt\na,walks\nb,runs\n")
    answers = {"walks": "a robot walks", "runs": ""}
    with chat_server(lambda caption: said(answers[caption])) as server:
        command = ["prompts", "rewrite", str(file), "--out", str(out), "--url", server.url]
        assert main(command) == 1
        stderr = capsys.readouterr().err
        assert "2/2 b: failed: the answer is empty\n" in stderr
        assert stderr.endswith("douga: 1 caption(s) not rewritten: b\n")
        answers["runs"] = "a robot runs over a wide and snowy meadow"
        assert main([*command, "--pipeline", str(tiny_pipeline(tmp_path / "model"))]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert [row["prompt"] for row in read_json_lines(out)] == [answers["walks"], answers["runs"]]
    assert len(server.asked) == 3


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_requests_a_stop_and_the_second_one_interrupts(number, capsys):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert "press Ctrl-C again to stop now" in capsys.readouterr().err


def test_a_stopped_run_exits_with_130_and_names_the_resume_command(capsys, tmp_path, parts, monkeypatch):
    @contextmanager
    def at_once():
        yield lambda: True

    monkeypatch.setattr(run, "stop_on_signals", at_once)
    assert main(words(tmp_path, parts)) == 130
    assert f"douga run {tmp_path / 'r' / 'config.toml'}" in capsys.readouterr().err


def test_a_failed_run_exits_with_3_and_one_line(capsys, tmp_path, parts, monkeypatch):
    def stuck(*_, **__):
        raise StuckError("nobody can work")

    monkeypatch.setattr(serial, "run", stuck)
    assert main(words(tmp_path, parts)) == 3
    assert capsys.readouterr().err == "douga: nobody can work\n"


def test_ctrl_c_outside_a_run_exits_with_130(capsys, monkeypatch):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert main(["config"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_argument_that_is_no_text_is_refused(capsys):
    assert main(["score", "\ud83e"]) == 2
    assert capsys.readouterr().err == "douga: '\\ud83e': cannot be encoded as utf-8\n"


def test_a_reader_that_leaves_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "deploy.cli", "config"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_unexpected_errors_keep_their_traceback_in_a_file(monkeypatch, capsys):
    def wrong(*_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_dispatch", wrong)
    assert main(["config"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    place = re.fullmatch(r"douga: unexpected error: RuntimeError: a bug \(test_main\.py:\d+\); traceback: (.+)", line)
    assert place is not None
    file = Path(place[1])
    assert "in wrong" in file.read_text()
    file.unlink()


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_the_locale_does_not_matter(tmp_path: Path, locale: dict[str, str]) -> None:
    (tmp_path / "mine.toml").write_text('a = ["größer"]', encoding="utf-8-sig")
    row = '{"prompt": "日本 é", "category": "Größer"}\n'
    (tmp_path / "p.jsonl").write_text(row, encoding="utf-8-sig")
    words = ["prompts", "balance", "p.jsonl", "--out", "é.jsonl", "--actions", "mine.toml", "--least", "1"]
    place = {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-m", "deploy.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | locale | place, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert '"prompt": "日本 é"' in (tmp_path / "é.jsonl").read_text("utf-8")


@pytest.mark.parametrize("words", [["run", "--steps", "1"], ["status", "mine"], ["config"]])
def test_a_deleted_current_directory_is_one_line(words: list[str], tmp_path: Path, capfd) -> None:
    script = "import os, sys; os.rmdir(os.getcwd()); from deploy.cli.main import main; sys.exit(main(sys.argv[1:]))"
    gone, here = tmp_path / "gone", Path.cwd()
    gone.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", script, *words],
        check=False,
        cwd=gone,
        env=os.environ | {"PYTHONPATH": str(here)},
        timeout=60,
    )
    assert ended.returncode == 2
    line = "douga: the current directory cannot be used: No such file or directory; cd to another one\n"
    assert capfd.readouterr() == ("", line)


@pytest.mark.parametrize("mode", ["serial", "cluster"])
def test_a_second_run_of_the_same_name_is_refused_before_anything_starts(mode: str, tmp_path: Path, capsys) -> None:
    began = time.monotonic()
    with layout.lock(tmp_path / "mine"):
        assert main(["run", "--simulate", "--mode", mode, "--root", str(tmp_path), "--name", "mine"]) == 2
    line = f"douga: {tmp_path}/mine: in use by process {os.getpid()}; wait for it or choose another --name\n"
    assert capsys.readouterr() == ("", line)
    assert time.monotonic() - began < 5  # no Ray was started


@pytest.mark.timeout(120)
def test_names_that_the_locale_cannot_encode(tmp_path: Path) -> None:
    """Python then names files in ASCII, and tokenizers cannot open them; douga starts again in UTF-8 mode."""
    place = tmp_path / "modèle 日本"
    model = tiny_pipeline(place / "été")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "deploy.cli", "init", str(place / "projet é"), "--model", str(model)]
    ended = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr.decode()
    assert str(place / "projet é" / "run.toml") in ended.stdout.decode("utf-8")
    assert "modèle 日本" in (place / "projet é" / "run.toml").read_text("utf-8")
