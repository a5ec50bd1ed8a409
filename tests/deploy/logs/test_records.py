"""Records as text: what is kept, what is cut, and that a message cannot forge a record."""

from __future__ import annotations

import logging
import sys

import pytest

from common.config import load_config
from common.messages import LogEntry
from deploy.logs.records import LONGEST, as_text, entry_of, parsed, record_of, written_at
from deploy.logs.redaction import Redactor, secrets_of

NOON = 1_700_000_000.4179


def test_a_record_is_a_line_and_is_read_back() -> None:
    line = as_text("sampler-3", LogEntry(NOON, logging.WARNING, "actors.loop", "group 17 given back"))
    assert line == "2023-11-14T22:13:20.417Z WARNING sampler-3 actors.loop: group 17 given back"
    found = parsed(line)
    assert found is not None
    assert (found.time, found.level, found.process) == ("2023-11-14T22:13:20.417Z", "WARNING", "sampler-3")
    assert parsed("    a further line") is None


def test_a_traceback_is_a_part_of_its_record() -> None:
    try:
        raise KeyError("missing")
    except KeyError:
        record = logging.LogRecord("deploy", logging.ERROR, __file__, 1, "failed: %s", ("why",), sys.exc_info())
    head, *rest = as_text("hub", entry_of(record)).split("\n")
    assert head.endswith("ERROR hub deploy: failed: why")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    KeyError: 'missing'"
    assert all(parsed(line) is None for line in rest)


@pytest.mark.parametrize(
    "message", ["a\n2023-11-14T22:13:20.417Z ERROR hub x: b", "a\x1b[31m\r\x0b\u2028b", "x" * 99999]
)
def test_a_message_cannot_forge_a_record_or_control_the_terminal(message: str) -> None:
    text = as_text("hub", LogEntry(NOON, logging.INFO, "a b\n\x1b", message))
    assert [parsed(line) is not None for line in text.splitlines()] == [True] + [False] * (len(text.splitlines()) - 1)
    assert not any(letter in text for letter in "\x1b\r\x0b\u2028")
    assert len(text) < LONGEST + 100


@pytest.mark.parametrize(
    ("level", "name"), [(0, "DEBUG"), (10, "DEBUG"), (25, "INFO"), (30, "WARNING"), (10**9, "CRITICAL")]
)
def test_custom_levels_become_the_next_lower_standard_level(level: int, name: str) -> None:
    assert f"Z {name} hub x: " in as_text("hub", LogEntry(NOON, level, "x", "y"))
    assert record_of(LogEntry(NOON, level, "x", "y")).levelname == name


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e300, -1e300])
def test_an_invalid_time_is_not_a_record(seconds: float) -> None:
    with pytest.raises(ValueError, match="not a time"):
        written_at(seconds)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Authorization: Bearer abc.DEF-123", "Authorization: Bearer ***"),
        ("http://me:hunter22@10.0.0.5/score failed", "http://me:***@10.0.0.5/score failed"),
        ("douga watch --token 0123456789abcdef", "douga watch --token ***"),
        ("{'api_key': 'abc', 'steps': 3}", "{'api_key': '***', 'steps': 3}"),
        ("DOUGA_TOKEN=abcdefgh", "DOUGA_TOKEN=***"),
        ("the tokenizer: unknown key: did you mean token_file?", None),
        ("--key runs/toon/keys/worker.key", None),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, hidden: str | None) -> None:
    assert Redactor()(text) == (hidden or text)


def test_known_secrets_are_hidden_wherever_they_are(tmp_path) -> None:
    (tmp_path / "token").write_text("of-the-judge-server\n")
    flags = {"reward.judges.vs.kind": "remote", "reward.judges.vs.token_file": str(tmp_path / "token")}
    flags |= {"reward.judges.vs.url": "http://10.0.0.5:1", "guardrails.judges.x.kind": "remote"}
    flags |= {"guardrails.judges.x.url": "http://10.0.0.5:1", "guardrails.judges.x.token_file": str(tmp_path / "none")}
    environment = {"WANDB_API_KEY": "0123456789", "HF_TOKEN": "short", "PATH": "/usr/bin:/bin"}
    redact = Redactor(secrets_of(load_config(None, flags), environment))
    assert redact("0123456789 short /usr/bin:/bin of-the-judge-server") == "*** short /usr/bin:/bin ***"
