"""Each key of the configuration with a value of any kind: what reads it refuses it in a line, or uses it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from common.config import keys
from deploy.cli.main import main
from tests.fuzz.values import TOML, WORDS

BASE = {
    "mode": '"serial"',
    "model.path": '"nowhere"',
    "model.frames": "9",
    "model.height": "48",
    "model.width": "64",
    "model.device": '"cuda:0"',
    "learner.train": '"lora"',
    "reward.path": '""',
    "reward.judges.j.kind": '"temporal_flicker"',
}
NAMES = ["j", "a", "é", "x y", "heads", "motion", ""]
NUMBERS = ["0", "1", "2", "3", "7", "1000", "2147483648", "99999999999999999999", "-3", "0.5", "1e-300", "1e300", "1.0"]


def setting(draw: random.Random, folder: Path, clip: bytes) -> tuple[str, Callable[[], int]]:
    """A good configuration but for one to three keys, and a command that reads it."""
    lines, flags = dict(BASE), []
    for key in draw.sample([key for key in keys() if key.name != "simulate"], draw.randrange(1, 4)):  # would start
        name = key.name.replace("NAME", draw.choice(NAMES[:2]) if draw.random() < 0.8 else draw.choice(NAMES))
        written = _value(draw, key.kind)
        if draw.random() < 0.3:
            flags += [f"--{name}", written.strip('"')]
        else:
            lines[name] = written
    text = "".join(f"{'.'.join(map(_part, name.split('.')))} = {written}\n" for name, written in lines.items())
    file = folder / "c.toml"
    file.write_text(text, "utf-8", errors="replace")
    (folder / "a.mp4").write_bytes(clip)
    commands = {
        "plan": [str(file), "--family", "2b", "--gpu", "A800-80GB"],
        "run": [str(file), "--root", str(folder)],
        "score": ["a.mp4", "--text", "a", "--config", str(file), "--model.device", "cpu", "--json"],
    }
    command = draw.choice(sorted(commands))
    words = [command, *commands[command], *flags]

    def act() -> int:
        with redirect_stdout(StringIO()) as out:
            code = main(words)
        if command == "score" and not code:
            ((_, *scores),) = (row.values() for row in json.loads(out.getvalue()))
            assert all(map(math.isfinite, scores))
        return code

    return f"douga {command} {flags!r:.200} {text!r:.600}", act


def _part(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").isalnum() else json.dumps(name, ensure_ascii=False)


def _value(draw: random.Random, kind: str) -> str:
    """In TOML: mostly of the key's kind, and often out of its range."""
    if draw.random() < 0.2:
        return draw.choice(TOML)
    if kind.startswith(("int", "float")):
        return draw.choice(NUMBERS)
    if "|" in kind:
        return json.dumps(draw.choice([*kind.split(" | "), "", "Serial"]))
    if kind == "bool":
        return draw.choice(["true", "false", "1", '"yes"'])
    word = json.dumps(draw.choice(WORDS))
    return draw.choice(["[]", f"[{word}]", "[48, 64]", "[0, -1]"]) if kind == "list" else word
