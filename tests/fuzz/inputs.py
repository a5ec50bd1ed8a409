"""Random input of a user: command lines, configurations, prompt and rating files, pictures, videos, model and run
folders, most of them wrong.

Each case is a function of its seed. ``python -m tests.fuzz.inputs --cases 10000`` runs many and prints those that end
in anything else than exit code 0 with a checked result, or one line and exit code 2 or 3.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from actors.prompts.source import open_prompts
from common.config import RunConfig, keys, load_config, to_toml
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.errors.endings import UNEXPECTED
from deploy.cli.main import build_parser, exit_code, main
from rewarders.rewarder import read_clip
from tests.fuzz import settings, tables
from tests.fuzz.values import NUMBERS, TOML, WORDS, value
from tests.support.tiny import tiny_pipeline

SERVING = {"worker", "watch", "annotate", "monitor", "toon", "reward serve"}  # until they are stopped, or for minutes
FOLLOWING = {"--follow", "--help", "--version"}  # options that go on for ever, or end at once
STARTING = ("run", "collect", "finetune")  # commands that would train
OTHER_KEYS = ["a", "a.b", '"é"', "model", "reward.judges.x.kind"]
BROKEN = ["[model]\n[model]", "[reward]\npath = 1\n[reward.judges]", "[[learner]]", "[", "\x00"]


@dataclass(frozen=True)
class Case:
    """What a case did: its input in words, the exit code, stderr."""

    what: str
    code: int
    said: str

    @property
    def fault(self) -> str:
        """What is wrong with the outcome; empty if nothing is."""
        if self.code not in (0, 2, 3):
            return f"exit code {self.code}"
        if UNEXPECTED in self.said or "Traceback" in self.said:
            return "an unexpected error"
        lines = [line for line in self.said.splitlines() if line.strip()]
        if self.code and not lines:
            return "no line on stderr"
        return ""


def run_case(seed: int) -> Case:
    """Runs the case of a seed."""
    draw = random.Random(seed)
    makers = {_command_line: 3, _server: 1, _config: 2, _setting: 3, _table: 4, _picture: 2, _video: 2, _model: 1}
    makers |= {_run_folder: 1}
    make = draw.choices(list(makers), list(makers.values()))[0]
    with tempfile.TemporaryDirectory(prefix="douga-fuzz-") as folder:
        what, act = make(draw, Path(folder))
        err = io.StringIO()
        with chdir(folder), redirect_stderr(err), redirect_stdout(io.StringIO()):  # what a command writes goes there
            try:
                code = act()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
    return Case(f"seed {seed}: {what}", code, err.getvalue())


Act = Callable[[], int]


@cache
def _commands() -> dict[str, list[str]]:
    """Every command that ends by itself, with its own options."""
    found: dict[str, list[str]] = {}
    left: list[tuple[str, argparse.ArgumentParser]] = [("", build_parser())]
    while left:
        name, parser = left.pop()
        groups = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        for group in groups:
            left += [(f"{name} {word}".strip(), one) for word, one in group.choices.items()]
        if not groups and name not in SERVING and name.split()[0] not in SERVING:
            found[name] = [flag for one in parser._actions for flag in one.option_strings if flag not in FOLLOWING]
    return found


def _command_line(draw: random.Random, folder: Path) -> tuple[str, Act]:
    command = draw.choice(sorted(_commands()))
    names = [f"--{key.name}" for key in keys()]
    (folder / "a.mp4").write_bytes(_clip())
    (folder / "p.jsonl").write_text('{"prompt": "a robot walks"}\n')
    (folder / "empty").mkdir()
    values = [*WORDS, *NUMBERS, "a.mp4", "p.jsonl", "empty", "nowhere"]
    words = command.split()
    for _ in range(draw.randrange(5)):
        flag = draw.choice(draw.choice([names, _commands()[command] or names, WORDS, ["a.mp4", "p.jsonl", "empty"]]))
        flag = flag.replace("_", "-") if draw.random() < 0.3 else flag
        words += [flag, str(draw.choice(values))] if draw.random() < 0.8 else [flag]
    if command == "sample":  # not the embedded model, for minutes
        words.insert(1, "nowhere")
    if command in STARTING:  # nothing that could start
        words += [f"--root={folder}", "--mode=serial", "--model.path", str(folder / "nowhere")]
    return f"douga {words!r:.300}", lambda: main(words)


def _server(draw: random.Random, folder: Path) -> tuple[str, Act]:
    """A command that serves or joins until it is stopped, with nothing that it could serve or join."""
    (folder / "empty").mkdir()
    (folder / "c.toml").write_text(draw.choice(["[", 'reward.path = ""', 'reward.judges.j.kind = "nope:X"']))
    (folder / "token").write_text(draw.choice(["", "a b", "x" * 9999]))
    (folder / "token").chmod(draw.choice([0o600, 0o644]))
    places = ["nowhere", "empty", "c.toml", *WORDS[:8]]
    address = draw.choice(["tcp://127.0.0.1:9", "tcp://[::1]:9", "tcp://127.0.0.1", "tcp://:9", "http://a:9", *WORDS])
    given: dict[str, list[str]] = {one: [draw.choice(places)] for one in ("watch", "annotate", "monitor")}
    given["reward serve"] = [draw.choice(places[:3])]
    given["worker"] = [draw.choice(["sampler", "rewarder"]), "--patience", "0", "--connect", address]
    command = draw.choice(sorted(given))
    words = [*command.split(), *given[command]]
    options = ["--port", "--host", "--token-file", "--key", "--rubric", "--annotators", "--most-mb", "--export"]
    for _ in range(draw.randrange(3)):
        words += [draw.choice(options), str(draw.choice([*WORDS, *NUMBERS, "token", "empty", "0.0.0.0", "65536"]))]
    return f"douga {words!r:.300}", lambda: main(words)


def _checked(check: Callable[[], None]) -> Act:
    def act() -> int:
        check()
        return 0

    return lambda: exit_code(act)


def _config(draw: random.Random, folder: Path) -> tuple[str, Act]:
    every, lines = list(keys()), []
    for _ in range(draw.randrange(1, 6)):
        name = draw.choice(every).name if draw.random() < 0.8 else draw.choice(OTHER_KEYS)
        lines.append(f"{name} = {draw.choice(TOML)}")
    if draw.random() < 0.2:
        lines.append(draw.choice(BROKEN))
    text = "\n".join(lines)
    file = folder / "c.toml"
    file.write_bytes(text.encode("utf-16" if draw.random() < 0.05 else "utf-8", "surrogatepass"))

    def check() -> None:
        config = load_config(file)
        kept = folder / "kept.toml"
        kept.write_text(to_toml(config), "utf-8")
        assert isinstance(config, RunConfig)
        assert to_toml(load_config(kept)) == to_toml(config)

    return f"config {text!r:.300}", _checked(check)


def _table(draw: random.Random, folder: Path) -> tuple[str, Act]:
    what, check = tables.prompts(draw, folder) if draw.random() < 0.5 else tables.ratings(draw, folder, _clip())
    return what, _checked(check)


def _setting(draw: random.Random, folder: Path) -> tuple[str, Act]:
    return settings.setting(draw, folder, _clip())


def _damaged(draw: random.Random, whole: bytes) -> bytes:
    """The file with other bytes, mostly in its header, or cut, or with a part twice."""
    data = bytearray(whole)
    for _ in range(draw.randrange(1, 6)):
        place = draw.randrange(min(len(data), draw.choice([16, 64, 256, len(data)])))
        what = draw.randrange(5)
        if what == 0:
            del data[max(1, place) :]
        elif what == 1:
            data[place:place] = draw.randbytes(draw.randrange(1, 9))
        elif what == 2:
            data[place:place] = data[place : place + draw.randrange(1, 64)]
        else:
            data[place] = draw.randrange(256)
    return bytes(data)


@cache
def _pictures() -> list[bytes]:
    made = []
    for form, mode in (("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB")):
        file = io.BytesIO()
        Image.new("RGB", (64, 48), "red").convert(mode).save(file, form)
        made.append(file.getvalue())
    return made


@cache
def _clip() -> bytes:
    frames = np.random.default_rng(0).integers(0, 256, (9, 48, 64, 3), np.uint8)
    return encode_mp4(frames, 8)


def _picture(draw: random.Random, folder: Path) -> tuple[str, Act]:
    data = _damaged(draw, draw.choice(_pictures()))
    (folder / "a.png").write_bytes(data)
    (folder / "p.jsonl").write_text('{"image": "a.png", "prompt": "a robot walks"}')

    def check() -> None:
        prompt = open_prompts(str(folder / "p.jsonl"), 0, True, (48, 64))(0)
        assert prompt.image is not None
        assert Image.open(io.BytesIO(prompt.image)).size == (64, 48)

    return f"picture {data[:80]!r}", _checked(check)


def _video(draw: random.Random, folder: Path) -> tuple[str, Act]:
    data = _damaged(draw, _clip())

    def check() -> None:
        try:
            clip = read_clip(data)
        except ValueError as error:  # why a clip has no score
            raise ConfigError(str(error)) from None
        assert clip.frames.dtype == np.uint8
        assert clip.frames.ndim == 4
        assert clip.fps > 0

    return f"video {data[:80]!r}", _checked(check)


@cache
def _whole_model() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="douga-fuzz-model-")
    tiny_pipeline(Path(folder.name) / "model")
    return folder


def _model(draw: random.Random, folder: Path) -> tuple[str, Act]:
    place, whole = folder / "model", Path(_whole_model().name) / "model"
    shutil.copytree(whole, place)
    for _ in range(draw.randrange(1, 3)):
        file = draw.choice(sorted(one for one in place.rglob("*") if one.is_file()))
        if file.suffix == ".json" and draw.random() < 0.8 and (found := _json(file)) is not None:
            if isinstance(found, dict) and found:
                key = draw.choice([*found, "x"])
                found[key] = value(draw)
                if draw.random() < 0.3:
                    del found[key]
            file.write_bytes(json.dumps(found).encode())
        elif file.suffix == ".safetensors" and draw.random() < 0.6:
            file.write_bytes(_other_header(draw, file.read_bytes()))
        elif draw.random() < 0.5:
            file.unlink()
        else:
            file.write_bytes(_damaged(draw, file.read_bytes() or b" "))
    changed = [one for one in whole.rglob("*") if one.is_file() and not _same(one, place / one.relative_to(whole))]

    def act() -> int:
        code = main(["init", str(folder / "made"), "--model", str(place)])
        if not code:
            assert load_config(folder / "made" / "run.toml").model.frames > 0
        return code

    return f"model, changed {[str(one.relative_to(whole)) for one in changed]}", act


def _other_header(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file with another value in its header, which names each tensor's dtype, shape and place."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        tensor = header[draw.choice(sorted(header))]
        name = draw.choice(sorted(tensor))
    except (ValueError, LookupError, TypeError):  # damaged before
        return data[: len(data) // 2]
    if isinstance(tensor[name], list) and tensor[name] and draw.random() < 0.5:
        tensor[name][0] = draw.choice(NUMBERS)
    else:
        tensor[name] = draw.choice(["I8", "F8_E4M3", "F16", [], [0], [-1, 2], None, value(draw)])
    made = json.dumps(header).encode()
    return len(made).to_bytes(8, "little") + made + data[8 + size :]


@cache
def _whole_run() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="douga-fuzz-run-")
    few = ["--steps=1", "--learner.batch_size=2", "--sampler.candidates=2", "--evaluation.prompts=0"]
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        assert main(["run", "--root", folder.name, "--name=a", "--mode=serial", "--simulate", *few]) == 0
    return folder


def _run_folder(draw: random.Random, folder: Path) -> tuple[str, Act]:
    """A finished run of which files are missing, cut or changed, and a command that reads it."""
    place, whole = folder / "runs" / "a", Path(_whole_run().name) / "a"
    shutil.copytree(whole, place)
    files, done = sorted(one for one in place.rglob("*") if one.is_file()), []
    for _ in range(draw.randrange(1, 3)):
        file = draw.choice(
            [one for one in draw.choice([files, [o for o in files if o.parent == place]]) if one.exists()]
        )
        done.append(str(file.relative_to(place)))
        if draw.random() < 0.4:
            file.unlink()
        else:
            file.write_bytes(_damaged(draw, file.read_bytes() or b" "))
    out, root = ["--out", str(folder / "out")], ["--root", str(folder / "runs")]
    reading: dict[str, list[str]] = {one: [] for one in ("status", "logs", "trace", "report", "recover", "score")}
    reading |= {"export": out, "sample": out, "run": root, "candidates show": []}
    command = draw.choice(sorted(reading))
    of = place / "config.toml" if command == "run" else place
    return f"{command} of a run, changed {done}", lambda: main([*command.split(), str(of), *reading[command]])


def _json(file: Path) -> Any:
    """The content of a JSON file; None once it is damaged."""
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def run(cases: int, first: int = 0) -> list[Case]:
    """Runs cases and returns those with a fault."""
    return [case for seed in range(first, first + cases) if (case := run_case(seed)).fault]


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run random input, and print the cases that end badly.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    options = parser.parse_args(argv)
    bad = run(options.cases, options.first)
    for case in bad:
        print(f"{case.what}\n  {case.fault}: {case.said[-300:]}")
    print(f"{options.cases} cases, {len(bad)} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(_main())
