"""Random input of a user: command lines, configurations, prompt and rating files, pictures, videos and model folders,
most of them wrong.

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
from common.data.ratings import read_pairs, read_ratings
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.errors.endings import UNEXPECTED
from deploy.cli.main import exit_code, main
from rewarders.rewarder import read_clip
from tests.support.tiny import tiny_pipeline

WORDS = [
    "",
    " ",
    "a",
    "robot walks",
    "日本語",
    "🤖",
    "é",
    "\ufeff",
    "\x00",
    "\n",
    "..",
    "/",
    "-",
    "--",
    "'",
    '"',
    "[x]",
]
WORDS += ["%s", "{}", "nan", "inf", "-1", "0", "1e999", "9" * 400, "true", "x" * 5000, "\ud83e"]
NUMBERS = [0, -1, 1, 2**63, -(2**63), 10**400, 0.0, -0.0, 1e308, float("nan"), float("inf"), -float("inf"), True, None]
# Without those that serve until they are stopped.
COMMANDS = [
    "run",
    "plan",
    "status",
    "trace",
    "logs",
    "report",
    "export",
    "evaluate",
    "sample",
    "score",
    "collect",
    "candidates",
    "prompts",
    "reward",
    "config",
]
COMMANDS += ["recover", "finetune", "init", "candidates show", "candidates check", "candidates merge"]
COMMANDS += [f"prompts {kind}" for kind in ("from-videos", "balance", "rewrite", "first-frames")]
COMMANDS += [f"reward {kind}" for kind in ("build", "train", "eval", "convert")]
OPTIONS = ["model", "out", "count", "ratings", "prompts", "json", "gpu", "family", "url", "head", "start", "version"]
OPTIONS += ["actions", "generators", "foreign", "captions", "since", "level", "worker", "seed", "format", "device"]
TOML = ["1", "-1", "nan", "inf", "true", '"x"', '""', "[]", "{}", "[1, 2]", "{a = 1}", "1979-05-27", "9" * 30, "1e400"]
TOML += ["0x10", '"\\u0000"', '"日本"', "[[1]]", "+", "'", "1_0"]
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
    make = draw.choices([_command_line, _config, _prompts, _ratings, _picture, _video, _model], [3, 3, 2, 2, 2, 2, 1])[
        0
    ]
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


def _command_line(draw: random.Random, folder: Path) -> tuple[str, Act]:
    command = draw.choice(COMMANDS)
    names = [key.name for key in keys()]
    words = command.split()
    for _ in range(draw.randrange(5)):
        name = draw.choice([*names, *OPTIONS])
        flag = draw.choice([f"--{name}", f"--{name.replace('_', '-')}", draw.choice(WORDS)])
        words += [flag, str(draw.choice([*WORDS, *NUMBERS]))] if draw.random() < 0.8 else [flag]
    if command in ("run", "collect", "finetune"):  # nothing that could start
        words += [f"--root={folder}", "--mode=serial", "--model.path", str(folder / "nowhere")]
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


def _value(draw: random.Random, depth: int = 0) -> Any:
    if depth < 2 and draw.random() < 0.2:
        some = [_value(draw, depth + 1) for _ in range(draw.randrange(3))]
        return some if draw.random() < 0.5 else {draw.choice(WORDS): one for one in some}
    return draw.choice([*WORDS, *NUMBERS])


def _rows(draw: random.Random, good: dict[str, Any]) -> bytes:
    rows = []
    for number in range(draw.randrange(1, 5)):
        row = dict(good) | ({"id": f"p{number}"} if "image" in good else {})
        for _ in range(draw.randrange(3)):
            row[draw.choice([*row, *WORDS[:8]])] = _value(draw)
        if row and draw.random() < 0.2:
            row.pop(draw.choice(list(row)))
        rows.append(json.dumps(row, ensure_ascii=draw.random() < 0.5) if draw.random() < 0.9 else draw.choice(WORDS))
    data = "\n".join(rows).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        data = draw.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00"]) + data
    return data[: draw.randrange(len(data) + 1)] if draw.random() < 0.1 else data


def _prompts(draw: random.Random, folder: Path) -> tuple[str, Act]:
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    data = _rows(draw, {"image": "a.png", "prompt": "a robot walks"})
    file = folder / draw.choice(["p.jsonl", "p.jsonl", "p.csv", "p.txt"])
    file.write_bytes(data)

    def check() -> None:
        source = open_prompts(str(file), 0, True, (48, 64))
        prompt = source(0)
        assert isinstance(prompt.text, str)
        assert prompt.text.strip()

    return f"{file.name} {data!r:.300}", _checked(check)


def _ratings(draw: random.Random, folder: Path) -> tuple[str, Act]:
    kind = draw.choice(["ratings", "pairs"])
    row: dict[str, Any] = {"clip": "a.mp4", "prompt": "a", "source": "real", "ratings": {"ann": {"text": 3}}}
    if kind == "pairs":
        row = {"prompt": "a", "chosen": "a.mp4", "rejected": "b.mp4"}
    data, file = _rows(draw, row), folder / f"{kind}.jsonl"
    file.write_bytes(data)

    def check() -> None:
        assert (read_ratings if kind == "ratings" else read_pairs)(file).rows

    return f"{file.name} {data!r:.300}", _checked(check)


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
        if file.suffix == ".json" and draw.random() < 0.8:
            found = json.loads(file.read_text("utf-8"))
            if isinstance(found, dict) and found:
                key = draw.choice([*found, "x"])
                found[key] = _value(draw)
                if draw.random() < 0.3:
                    del found[key]
            file.write_bytes(json.dumps(found).encode())
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
