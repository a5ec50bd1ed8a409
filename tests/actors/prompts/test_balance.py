"""Balancing prompts over actions: limits, what is said, and rows without a known action."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from actors.prompts.balance import balance
from actors.prompts.source import open_prompts
from actors.prompts.vocabulary import Vocabulary, open_vocabulary
from common.errors import ConfigError
from common.images import encode_png
from deploy.cli.main import main

COUNTS = {"walking": 12, "waving": 3, "crying": 5}


@pytest.fixture
def mine(tmp_path: Path) -> Vocabulary:
    (tmp_path / "mine.toml").write_text('a = ["walking", "waving"]\nb = ["crying", "kissing"]')
    return open_vocabulary(str(tmp_path / "mine.toml"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """`COUNTS` prompts of each action, in turns, with one picture in a folder of its own."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    labels = [action for k in range(max(COUNTS.values())) for action in COUNTS if k < COUNTS[action]]
    rows = [{"image": "a.png", "prompt": f"p {i}", "category": one.upper(), "more": i} for i, one in enumerate(labels)]
    file = tmp_path / "in" / "all.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_action_has_at_most_so_many_and_every_shortage_is_said(
    prompts: Path, mine: Vocabulary, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "balanced.jsonl"
    found = balance(prompts, out, mine, 4, 6)
    rows = read(out)
    assert Counter(row["category"] for row in rows) == {"walking": 6, "waving": 3, "crying": 5}
    assert found.lines() == [
        "14 of 20 prompts, of 3 of 4 actions; wanted are 4 to 6 of each",
        "too many, drawn (1): walking 12",
        "too few, all taken (1): waving 3",
        "none (1): kissing",
    ]
    assert [row["more"] for row in rows] == sorted(row["more"] for row in rows)
    # ids, splits and images are those of the old file, whatever the place of the new one
    assert {row["id"] for row in rows} <= {f"all-{i}" for i in range(1, 21)}
    assert [row["id"] for row in rows if row["split"] == "heldout"] == [
        id for id in ("all-10", "all-20") if id in {row["id"] for row in rows}
    ]
    assert open_prompts(str(out), 0)(0).image is not None


def test_the_choice_depends_on_seed_and_ids_alone(prompts: Path, mine: Vocabulary, tmp_path: Path) -> None:
    def chosen(seed: int) -> set[str]:
        balance(prompts, tmp_path / "out.jsonl", mine, 1, 6, seed)
        return {row["id"] for row in read(tmp_path / "out.jsonl") if row["category"] == "walking"}

    before = chosen(0)
    assert chosen(0) == before != chosen(1)
    with prompts.open("a") as file:
        file.write(json.dumps({"image": "a.png", "prompt": "one more", "category": "walking"}) + "\n")
    assert len(chosen(0) & before) >= 5


def test_rows_without_a_known_action_are_all_named(prompts: Path, mine: Vocabulary, tmp_path: Path) -> None:
    with prompts.open("a") as file:
        for label in ["walkin", *[""] * 30]:
            file.write(json.dumps({"image": "a.png", "prompt": "x", "category": label}) + "\n")
    with pytest.raises(ConfigError) as caught:
        balance(prompts, tmp_path / "out.jsonl", mine, 1, 6)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{prompts}: 31 prompts without a known action:"
    assert lines[1] == f"  {prompts}:21: category = 'walkin': unknown action; did you mean 'walking'?"
    assert lines[2] == f"  {prompts}:22: no category: the action is missing"
    assert (len(lines), lines[-1]) == (22, "  and 11 more")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command(prompts: Path, tmp_path: Path, mine: Vocabulary, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    command = ["prompts", "balance", str(prompts), "--out", str(out)]
    assert main([*command, "--actions", str(mine.file), "--least", "2", "--most", "4"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "too many, drawn (2): walking 12, crying 5" in said.err
    assert main(command) == 0  # the built-in vocabulary, 30 to 50
    assert "too few, all taken (3): crying 5, waving 3, walking 12" in capsys.readouterr().err
    for bad, fault in (
        (["--least", "5", "--most", "4"], "--least 5 --most 4: 1 <= least <= most is needed"),
        (["--out", str(prompts)], f"--out {prompts}: a new file that ends in .jsonl is needed"),
        (["--actions", "none.toml"], "vocabulary none.toml: neither anime nor a file"),
    ):
        assert main([*command, *bad]) == 2
        assert capsys.readouterr().err == f"douga: {fault}\n"
