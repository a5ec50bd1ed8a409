"""All pictures of a prompt file are decoded at its start, and remembered."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from actors.prompts import pictures
from actors.prompts.pictures import REMEMBERED_FROM, broken_pictures
from common.images import encode_png

WHOLE = encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [tmp_path / f"{number}.png" for number in range(REMEMBERED_FROM)]
    for path in paths:
        path.write_bytes(WHOLE)
    return paths


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of pictures that are decoded from now on."""
    real, seen = pictures.decode_image, []
    monkeypatch.setattr(pictures, "decode_image", lambda data: (seen.append(len(data)), real(data))[1])
    return seen


def test_a_picture_that_ends_too_early_is_found(tmp_path: Path) -> None:
    for name, data in {"a.png": WHOLE, "b.png": WHOLE[: len(WHOLE) // 2], "c.png": b"no picture"}.items():
        (tmp_path / name).write_bytes(data)
    found = broken_pictures(tmp_path / "p.jsonl", [tmp_path / f"{name}.png" for name in "abcd"])
    assert {path.name: fault.split(":")[0] for path, fault in found.items()} == {
        "b.png": "broken image",
        "c.png": "broken image",
        "d.png": "cannot be read",
    }


def test_whole_pictures_are_decoded_once(many: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "p.jsonl"
    many[7].write_bytes(WHOLE[:-40])
    assert list(broken_pictures(table, many)) == [many[7]]
    seen = decoded(monkeypatch)
    assert list(broken_pictures(table, many)) == [many[7]]
    assert seen == [len(WHOLE) - 40]
    seen.clear()
    many[7].write_bytes(WHOLE)
    os.utime(many[9], ns=(1, 1))
    assert broken_pictures(table, many) == {}
    assert len(seen) == 2
    seen.clear()
    assert broken_pictures(table, many) == {}
    assert seen == []


def test_an_interrupted_check_remembers_what_it_has_seen(
    many: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        broken_pictures(tmp_path / "p.jsonl", many, interrupt)
    seen = decoded(monkeypatch)
    lines: list[str] = []
    assert broken_pictures(tmp_path / "p.jsonl", many, lines.append) == {}
    assert len(seen) == len(many) - 1
    assert lines[-1] == f"{tmp_path / 'p.jsonl'}: {len(many)} of {len(many)} pictures checked"


@pytest.mark.parametrize("cache", ["", "p.jsonl"])
def test_without_a_cache_all_pictures_are_decoded(
    many: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    (tmp_path / "p.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache) if cache else "relative")
    seen = decoded(monkeypatch)
    for _ in range(2):
        assert broken_pictures(tmp_path / "p.jsonl", many) == {}
    assert len(seen) == 2 * len(many)
    assert not Path("relative").exists()
