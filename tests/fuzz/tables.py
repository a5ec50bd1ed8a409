"""Random prompt, rating and pair files: rows of any shape, dialects of CSV, encodings, files that were cut."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from actors.prompts.source import open_prompts
from common.data.ratings import read_pairs, read_ratings
from tests.fuzz.values import WORDS, value

Made = tuple[str, Any]  # what a case is, and its check
PROMPT = {"image": "a.png", "prompt": "a robot walks"}
RATED = {"clip": "a.mp4", "prompt": "a", "source": "real", "ratings": {"ann": {"text": 3}}}
PAIR = {"prompt": "a", "chosen": "a.mp4", "rejected": "4.mp4"}
ENCODINGS = ["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]


def prompts(draw: random.Random, folder: Path) -> Made:
    """A prompt file, and a check that its prompts are captions with pictures."""
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    rows = _rows(draw, PROMPT | {"id": "p"}, "id")
    name = draw.choice(["p.jsonl", "p.jsonl", "p.csv", "p.txt"])
    as_csv = draw.random() < (0.8 if name == "p.csv" else 0.05)
    data, file = _bytes(draw, _csv(draw, rows) if as_csv else _json(draw, rows)), folder / name
    file.write_bytes(data)

    def check() -> None:
        source = open_prompts(str(file), 0, True, (48, 64))
        for ordinal in range(source.training_prompts or 0):
            prompt = source(ordinal)
            assert prompt.text == prompt.text.strip()
            assert prompt.text.encode()
            assert not {"\ufeff", "\0"} & set(prompt.text)
            assert prompt.image is not None
            assert Image.open(io.BytesIO(prompt.image)).size == (64, 48)

    return f"{file.name} {data!r:.300}", check


def ratings(draw: random.Random, folder: Path, clip: bytes) -> Made:
    """A ratings or a pairs file, and a check that no clip counts twice."""
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(clip + bytes(number))
    pairs = draw.random() < 0.5
    rows = _rows(draw, PAIR if pairs else RATED, "chosen" if pairs else "clip", "{}.mp4")
    data, file = _bytes(draw, _json(draw, rows)), folder / ("pairs.jsonl" if pairs else "ratings.jsonl")
    file.write_bytes(data)

    def check() -> None:
        table = read_pairs(file) if pairs else read_ratings(file)
        named = [tuple(sorted(row.files()[0])) for row in table.rows]
        assert named
        assert len(named) == len(set(named))

    return f"{file.name} {data!r:.300}", check


def _rows(draw: random.Random, good: dict[str, Any], key: str, name: str = "p{}") -> list[dict[str, Any]]:
    rows = []
    for number in range(draw.randrange(1, 5)):
        row = good | {key: name.format(number)}
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            row[draw.choice([*row, *WORDS[:8]])] = value(draw)
        if draw.random() < 0.1:
            row.pop(draw.choice(list(row)))
        rows.append(row)
    return rows


def _json(draw: random.Random, rows: Sequence[dict[str, Any]]) -> str:
    ascii_only = draw.random() < 0.5
    shape = draw.random()
    if shape < 0.05:
        return json.dumps(rows, ensure_ascii=ascii_only, indent=draw.choice([None, 1]))
    lines = [json.dumps(row, ensure_ascii=ascii_only, indent=1 if shape > 0.97 else None) for row in rows]
    lines += [draw.choice(WORDS)] * (draw.random() < 0.1)
    return draw.choice(["\n", "\n", "\r\n", "\r", "\n\n", "\n\ufeff"]).join(lines)


def _csv(draw: random.Random, rows: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    mark, dialect = draw.choice(",,,;\t|"), draw.choice(["excel", "unix"])  # unix: all cells are quoted
    writer = csv.writer(file, dialect, delimiter=mark, lineterminator=draw.choice(["\n", "\r\n", "\r"]))
    writer.writerow(names if draw.random() < 0.9 else names[::-1])
    for row in rows:
        cells = [row.get(name, "") for name in names]
        writer.writerow(cells + [""] * draw.choice([0, 0, 0, 1]) if draw.random() < 0.9 else cells[:-1])
    text = file.getvalue()
    return text if draw.random() < 0.8 else text.replace('"', draw.choice(["", "'", '""']), draw.randrange(1, 3))


def _bytes(draw: random.Random, text: str) -> bytes:
    encoding = draw.choice(ENCODINGS)
    data = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return data[: draw.randrange(len(data) + 1)] if draw.random() < 0.1 else data
