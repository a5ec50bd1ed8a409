"""Pictures of which the model sees less than half are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from actors.prompts.crops import report_crops
from actors.prompts.source import prompt_rows
from common.images import decode_image, upright_size

SIZE = (48, 72)  # 2 : 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("turn", [1, 6])
def test_the_size_is_that_of_the_upright_picture(tmp_path: Path, suffix: str, turn: int) -> None:
    exif, file = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[ExifTags.Base.Orientation] = turn
    Image.new("RGB", (30, 20)).save(file, exif=exif)
    assert upright_size(file) == decode_image(file.read_bytes()).size[::-1] == ((20, 30) if turn == 1 else (30, 20))


def test_crops_that_lose_more_than_half_are_told(tmp_path: Path) -> None:
    rows, told = [], []
    for name, size in {"fits": (30, 20), "square": (30, 30), "portrait": (20, 45), "wide": (2000, 10)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        rows.append({"image": f"{name}.png", "prompt": "a robot"})
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report_crops("p.jsonl", prompt_rows(file), SIZE, told.append)
    said = (
        "p.jsonl: 2 of 4 images lose more than half of their area in the crop to 48x72; first line 3, of which 29.6% is"
    )
    assert told == [f"{said} left"]
    report_crops("p.jsonl", prompt_rows(file)[:2], SIZE, told.append)
    report_crops("p.jsonl", prompt_rows(file, needs_image=False), SIZE, told.append)
    assert len(told) == 1
