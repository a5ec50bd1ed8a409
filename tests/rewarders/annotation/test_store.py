"""Answers survive a crash at any point."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from common.errors import ConfigError
from rewarders.annotation.store import STORE, Answer, Store

WRITER = """
import sys
from pathlib import Path
from rewarders.annotation.store import Store
store = Store(Path(sys.argv[1]))
number = 0
while True:
    store.answer("ann", "rate", f"clip {number}", {"text": 3})
    print(number, flush=True)
    number += 1
"""


def test_acknowledged_answers_survive_a_kill(tmp_path):
    path = tmp_path / STORE
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(20)]
        writer.kill()
        told += [int(line) for line in writer.stdout.read().splitlines() if line]
    kept = {answer.item for answer in Store(path).answers("rate")}
    assert kept >= {f"clip {number}" for number in told}


def test_an_undone_answer_is_kept_but_does_not_count(tmp_path):
    store = Store(tmp_path / STORE)
    store.answer("ann", "rate", "a", {"text": 1})
    store.answer("ann", "rate", "b", {"text": 2})
    assert store.undo("ann", "rate") == "b"
    assert store.answers("rate") == [Answer("ann", "a", {"text": 1})]
    assert store.latest_answer("ann", "rate", "b") == {"text": 2}
    rows = sqlite3.connect(tmp_path / STORE).execute("SELECT item, live FROM answers ORDER BY id").fetchall()
    assert rows == [("a", 1), ("b", 0)]


def test_a_failed_operation_leaves_nothing(tmp_path):
    store = Store(tmp_path / STORE)

    def fail() -> None:
        with store.transaction():
            store.answer("ann", "rate", "a", {"text": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.answers("rate") == []


def test_two_processes_share_one_file(tmp_path):
    one, other = Store(tmp_path / STORE), Store(tmp_path / STORE)
    one.answer("ann", "rate", "a", {"text": 1})
    other.answer("ben", "rate", "a", {"text": 2})
    assert one.answers("rate") == other.answers("rate")
    assert len(one.answers("rate")) == 2


def test_another_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / STORE
    path.write_bytes(b"these are no answers at all, but a text" * 40)
    with pytest.raises(ConfigError, match=r"annotations.sqlite: damaged, or not an annotation store"):
        Store(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 7")
    with pytest.raises(ConfigError, match="store of schema 7; this program reads 1"):
        Store(path)
