"""Rewrites the captions of a prompt file into detailed ones, which CogVideoX was trained on and asks for.

```
FILE ── a row without a rewritten caption ──> writer ── answer ── check ──> appended to NEW.jsonl
                                                                    └─────> failed: the row is left out
```

NEW.jsonl has all columns of FILE, and `original`, the caption in FILE.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actors.prompts.source import Row, complete_rows, portable_row
from common.errors import ConfigError
from common.errors.disk import writing
from common.files import write_whole
from common.models.cogvideox import open_model

MAX_TOKENS = 226  # of T5, with its end token: CogVideoX drops what is longer
MAX_CHARACTERS = 4 * MAX_TOKENS  # without a tokenizer: an estimate for English, of 4 characters per token

Writer = Callable[[str], str]
"""Caption -> detailed caption. Raises `RewriteError` if this caption cannot be rewritten."""

Check = Callable[[str], None]
"""Raises `RewriteError` if a detailed caption is too long."""

Record = dict[str, Any]  # a line of NEW.jsonl


class RewriteError(Exception):
    """One caption could not be rewritten. Its text says why."""


def rewrite(file: Path, out: Path, writer: Writer, check: Check, tell: Callable[[str], None]) -> dict[str, str]:
    """Write `out`, the rows of `file` with rewritten captions. Returns id -> what is wrong for those that failed.

    Resumes: rows of `out` whose id and original caption are in `file` keep their rewritten caption; other rows of `out`
    are removed. Each new row is on disk before the next is asked for. At the end the rows have the order of `file`.
    `tell` gets one line per new or failed row.

    Raises:
        ConfigError: `file` is bad, or `out` is not a file that this function wrote.
        StorageError: the disk fails.
    """
    rows = [_record(row, data, out.parent) for row, data in complete_rows(file)]
    done, failed = _finished(file, out, check), {}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, rows, done)
    todo = [row for row in rows if _key(row) not in done]
    for place, row in enumerate(todo, start=1):
        try:
            text = _checked(writer(row["original"]), check)
        except RewriteError as error:
            failed[row["id"]] = str(error)
            tell(f"{place}/{len(todo)} {row['id']}: failed: {error}")
            continue
        done[_key(row)] = text
        _append(out, row | {"prompt": text})
        tell(f"{place}/{len(todo)} {row['id']}")
    _write(out, rows, done)
    return failed


def length_check(pipeline: Path | None) -> Check:
    """A check of the length: in tokens of a CogVideoX folder's tokenizer, else in characters, an estimate.

    Raises `ConfigError` if `pipeline` is not such a folder.
    """
    if pipeline is None:
        return _check_characters
    model = open_model(pipeline)
    tokenizer, allowed = model.load_tokenizer(), model.max_text_length

    def check_tokens(text: str) -> None:
        count = len(tokenizer(text).input_ids)
        if count > allowed:
            raise RewriteError(f"the answer has {count} T5 tokens; at most {allowed} are allowed")

    return check_tokens


def _check_characters(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise RewriteError(
            f"the answer has {len(text)} characters; at most {MAX_CHARACTERS} are allowed, about {MAX_TOKENS} T5 tokens"
        )


def _checked(answer: str, check: Check) -> str:
    """The answer as one line, without quotation marks around it."""
    text = " ".join(answer.split())
    if len(text) > 1 and text[0] + text[-1] in ('""', "“”"):
        text = text[1:-1].strip()
    if not text:
        raise RewriteError("the answer is empty")
    check(text)
    return text


def _record(row: Row, data: Mapping[str, Any], folder: Path) -> Record:
    """A line of the new file in `folder`, still with the old caption."""
    return portable_row(row, data, folder) | {"prompt": row.text, "original": row.text}


def _key(row: Record) -> tuple[str, str]:
    return row["id"], row["original"]


def _finished(file: Path, out: Path, check: Check) -> dict[tuple[str, str], str]:
    """(id, original) -> rewritten caption of `out`'s rows, without a torn last one and captions over the limit."""
    if out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: must end in .jsonl")
    if not out.exists():
        return {}
    if out.samefile(file):
        raise ConfigError(f"--out {out}: is the file to be rewritten; name a new one")
    done = {}
    lines = out.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key, text = (str(row["id"]), str(row["original"])), str(row["prompt"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"--out {out}:{number}: not a row that this command wrote; name another file, or remove this one"
            ) from None
        try:
            done[key] = _checked(text, check)
        except RewriteError:
            continue  # the limit was another one: ask again
    return done


def _write(out: Path, rows: list[Record], done: Mapping[tuple[str, str], str]) -> None:
    """Replace `out` by the finished rows, in the order of `rows`."""
    write_whole(out, "".join(_line(row | {"prompt": done[_key(row)]}) for row in rows if _key(row) in done))


def _append(out: Path, row: Record) -> None:
    with writing(out), out.open("a", encoding="utf-8") as lines:
        lines.write(_line(row))


def _line(row: Record) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
