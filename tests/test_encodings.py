"""Text files are UTF-8, whatever the locale is: no file is opened as text without an encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("actors", "benchmarks", "common", "deploy", "docs", "learner", "requirements", "rewarders")
ENCODING_AT = {"read_text": 0, "write_text": 1}  # place of the encoding among the arguments
MODE = set("rwaxtb+")  # the letters of a file's mode


def unnamed(source: str) -> Iterator[int]:
    """The lines of calls that read or write text in the locale's encoding."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and not any(word.arg in ("encoding", None) for word in call.keywords):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            without = name in ENCODING_AT and len(call.args) <= ENCODING_AT[name]
            if without or name == "TextIOWrapper" or _opens_text(name, call) or _decodes(call):
                yield call.lineno


def _opens_text(name: str, call: ast.Call) -> bool:
    """Whether it is `open(path)`, `path.open()` or `os.fdopen(handle)` in text mode; other objects have an `open`."""
    words = [word.value for word in call.keywords if word.arg == "mode"]
    texts = [one.value for one in (*call.args, *words) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    modes = [text for text in texts if set(text) <= MODE]
    if name not in ("open", "fdopen") or ast.unparse(call.func) == "av.open":
        return False
    plain = isinstance(call.func, ast.Name) or name == "fdopen" or not call.args
    return (plain or bool(modes)) and not any("b" in mode for mode in modes)


def _decodes(call: ast.Call) -> bool:
    """Whether a process is started whose output is decoded."""
    return any(
        word.arg in ("text", "universal_newlines") and isinstance(word.value, ast.Constant) and word.value.value is True
        for word in call.keywords
    )


def test_no_text_is_read_or_written_in_the_locales_encoding() -> None:
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 200
    found = [f"{file.relative_to(ROOT)}:{line}" for file in files for line in unnamed(file.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", 1),
        ("path.read_text('utf-8')", 0),
        ("path.write_text(text)", 1),
        ("path.write_text(text, encoding='utf-8')", 0),
        ("open(path)", 1),
        ("open(path, 'rb')", 0),
        ("path.open()", 1),
        ("path.open('a')", 1),
        ("path.open(mode='wb')", 0),
        ("path.open('w', encoding='utf-8')", 0),
        ("path.open(**options)", 0),
        ("os.fdopen(handle, 'w')", 1),
        ("os.fdopen(handle, 'rb')", 0),
        ("av.open(file, 'w')", 0),
        ("Image.open(path)", 0),
        ("Image.open(io.BytesIO(data), formats=['PNG'])", 0),
        ("run(words, text=True)", 1),
        ("run(words, text=True, encoding='utf-8')", 0),
    ],
)
def test_the_search_finds_what_it_should(code: str, found: int) -> None:
    assert len(list(unnamed(code))) == found
