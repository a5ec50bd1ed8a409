"""Tables that users write: JSONL and CSV files of prompts, captions and clips.

A text is UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one; lines end as on any system. A CSV file
has commas, semicolons or tabs between its columns, as its first line shows. Names of columns are read without regard to
case. Empty lines are skipped, and so are empty cells behind the last column. A quoted text may go on over lines that do
not look like rows: a stray quotation mark would swallow those.

What is wrong with rows is collected in `BadRows`, so that a user sees all of it at once.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from common.errors import ConfigError, bad_input
from common.files import read_file

Columns = dict[str, Any]

# UTF-32's mark begins with UTF-16's
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DELIMITERS = ",;\t"
EXCEL_HINT = re.compile(r"sep=(.)\n", re.IGNORECASE)  # a first line that Excel writes and hides
MARK = "\ufeff"  # a byte order mark that is not at the start: joined files, or a text that was read with its mark
LARGEST = 1 << 20  # characters of a CSV field
KINDS: dict[type, str] = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
SHOWN = 60  # characters of a bad value that an error shows


class BadRows:
    """The faults of a file's rows, by line."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, fault: object) -> None:
        """Records what is wrong with a line."""
        self._found.append((line, printable(str(fault))))

    def check(self) -> None:
        """Raises `ConfigError` if there are faults, in the order of the file."""
        name = printable(str(self._file))
        if self._found:
            raise bad_input(f"{name}: bad rows", [f"{name}:{line}: {fault}" for line, fault in sorted(self._found)])


def printable(text: str) -> str:
    """A text with line breaks, lone surrogates and invisible characters escaped, so that it is one line anywhere."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def read_text(file: Path, what: str) -> str:
    """A file's text, without byte order marks and with ``\\n`` line ends.

    Raises `ConfigError`, which begins with `what` and the file, if it is missing or is no text.
    """
    where = f"{what} {printable(str(file))}".lstrip()
    try:
        data = read_file(file)
    except FileNotFoundError:
        here = "" if file.is_absolute() else f" in {printable(str(Path.cwd()))}"
        raise ConfigError(f"{where}: no such file{here}") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{where}: cannot be read: byte 0x{data[error.start]:02x} in line {line} is not {encoding[:6].upper()}; "
            "save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{where}: cannot be read: a zero byte in line {line}; save the file as UTF-8")
    return text.replace(MARK, "").replace("\r\n", "\n").replace("\r", "\n")


def stripped(text: str) -> str:
    """A text without byte order marks, and white space around it; empty if nothing of it can be seen, as of zero-width
    characters. JSON may write the mark as ``\\ufeff``, so `read_text` does not see it."""
    text = text.replace(MARK, "")
    return text.strip() if any(one.isprintable() and not one.isspace() for one in text) else ""


def caption_of(option: str, text: str) -> str:
    """The caption of a command line, which `option` gives. Raises `ConfigError`."""
    if fault := unwritable({option: text}):
        raise ConfigError(printable(fault))
    if not (caption := stripped(text)):
        raise ConfigError(f"{option}: the caption is empty")
    return caption


def read_table(file: Path, what: str, bad: BadRows | None = None) -> Iterator[tuple[int, Columns]]:
    """Yields (line number, columns) for each line of a ``.jsonl`` or ``.csv`` file.

    Lines that are no rows are added to `bad` and left out; without `bad` the first one raises `ConfigError`. It is
    raised at once for a file that is missing, no text, or of another kind; `what` names it there.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if file.suffix.lower() not in readers:
        raise ConfigError(f"{what} {printable(str(file))}: allowed are {' and '.join(readers)}")
    return _rows(readers[file.suffix.lower()](read_text(file, what)), file, bad)


def _rows(lines: Iterator[tuple[int, Columns | str]], file: Path, bad: BadRows | None) -> Iterator[tuple[int, Columns]]:
    for line, found in lines:
        fault = found if isinstance(found, str) else unwritable(found)
        if fault is None and isinstance(found, dict):
            yield line, found
            continue
        found_here = BadRows(file) if bad is None else bad
        found_here.add(line, fault)
        if bad is None:
            found_here.check()


def unwritable(columns: Columns) -> str | None:
    """What is wrong with a row that has half of a surrogate pair, which is in no encoding, or a zero character, which
    no file name can have and terminals drop."""
    for name, value in columns.items():
        if "\0" in name or (isinstance(value, str) and "\0" in value):
            return f"{name}: a zero character; write the text without it"
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return f"{name}: {error.object[error.start]!r} is half of a character; write the character itself"
    return None


def _read_jsonl(text: str) -> Iterator[tuple[int, Columns | str]]:
    faulty = False
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            data = parse_json(content, column_name)
        except (ValueError, RecursionError) as error:
            if not faulty and content.strip() != text.strip() and _is_document(text):
                yield line, "one JSON document over several lines; write one object per line"
                return
            faulty = True
            yield line, f"not valid JSON: {error}"
            continue
        yield line, data if isinstance(data, dict) else 'expected an object like {"image": ..., "prompt": ...}'


def _is_document(text: str) -> bool:
    """Whether a text as a whole is JSON: an array, or an object with line breaks."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(text: str, named: Callable[[str], str] = str) -> Any:
    """JSON of a row, with its names of columns as `named` reads them.

    Raises `ValueError`, also for what Python's parser takes: a name that is there twice, NaN and infinities.
    """

    def whole(pairs: list[tuple[str, Any]]) -> Columns:
        names = [named(name) for name, _ in pairs]
        if twice := _twice(names):
            raise ValueError(f"{twice!r} is there twice")
        return dict(zip(names, (value for _, value in pairs), strict=True))

    return json.loads(text, object_pairs_hook=whole, parse_constant=_no_number, parse_float=_finite)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _read_csv(text: str) -> Iterator[tuple[int, Columns | str]]:
    hint = EXCEL_HINT.match(text)
    text = text[hint.end() :] if hint else text
    offset = int(hint is not None)
    csv.field_size_limit(LARGEST)
    mark = hint[1] if hint else _delimiter(text)
    reader = csv.reader(io.StringIO(text), strict=True, delimiter=mark, skipinitialspace=True)
    lines, names, read = text.split("\n"), cast("list[str] | None", None), 0
    try:
        for row in reader:
            first, read = read + 1, reader.line_num
            line = first + offset
            if not any(field.strip() for field in row):
                continue
            if names is None:
                names = [column_name(name) for name in row]
                if twice := _twice(names):
                    yield line, f"two columns are called {twice!r}"
                    return
                continue
            whole = _without_empty_end(row, names)
            if len(whole) != len(names):
                yield line, _wrong_length(whole, names, mark)
            elif swallowed := _swallowed(lines[first:read], names, mark):
                yield line, f"a quotation mark opens a text that goes on to line {read + offset}: {swallowed}"
            else:
                yield line, {name: value for name, value in zip(names, whole, strict=True) if name or value}
    except csv.Error as error:
        yield read + 1 + offset, f"not valid CSV from here on: {error}; a quotation mark in a text is written twice"


def _without_empty_end(row: list[str], names: list[str]) -> list[str]:
    """The row without empty cells beyond the last column, which spreadsheets write."""
    return row[: len(names)] if not any(field.strip() for field in row[len(names) :]) else row


def _swallowed(lines: list[str], names: list[str], mark: str) -> str:
    """What is wrong with a text that goes on in `lines`; empty unless one of them looks like a row of its own."""
    row = next((line for line in lines if line.count(mark) >= len(names) - 1), None)
    if row is None:
        return ""
    return f"{row[:SHOWN]!r} looks like a row; write the text on one line, and a quotation mark in it twice"


def _delimiter(text: str) -> str:
    """The one that cuts the first line into most columns."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def _wrong_length(row: list[str], names: list[str], mark: str) -> str:
    hint = f"; put quotation marks around a text with {mark!r} in it" if len(row) > len(names) else ""
    return f"expected {len(names)} columns ({', '.join(names)}), found {len(row)}{hint}"


def unread_columns(file: Path, names: Iterable[str]) -> str:
    """A line that says which columns of a table are not read: their names may be misspelt."""
    return printable(f"{file}: nothing reads the columns {', '.join(sorted(name or '(no name)' for name in names))}")


def column_name(name: str) -> str:
    """A column's name in the form that columns are compared in."""
    return name.replace(MARK, "").strip().lower()


def _twice(names: list[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def text_of(columns: Mapping[str, Any], name: str, numbers: bool = True) -> str | None:
    """The text of a column, without white space around it; None if it is missing, null or empty.

    Raises `ValueError` for lists and objects, and unless `numbers`, for numbers: an id may be one, a caption may not.
    """
    value = columns.get(name)
    if value is None or isinstance(value, str):
        return stripped(value or "") or None
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(not_a_text(name, value))


def not_a_text(name: str, value: object) -> str:
    """What is wrong with a column that should be a text."""
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return f"{name} = {shown} is {KINDS.get(type(value), 'no text')}; a text is expected"
