"""A set keeps candidates bit for bit, survives a torn row and a killed writer, and notices every damaged file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from common.candidate_set.folder import read_set, writing_to
from common.candidate_set.rows import ROWS, SETTINGS, candidate_name, is_set
from common.data.prompt_keys import prompt_key
from common.errors import ConfigError, CorruptDataError, NotFoundError
from common.messages import Score
from tests.support.candidates import WEIGHTS, group, make_set, settings


def test_a_group_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    one = group(1, [10.0, 90.0])
    found = read_set(make_set(tmp_path / "set", [one]))
    rows = list(found.rows.values())
    assert [row.scores for row in rows] == [{"appeal": 10.0}, {"appeal": 90.0}]
    assert [row.scored_by for row in rows] == [{"appeal": "judge-1"}] * 2
    assert [(row.seed, row.index, row.version, row.weights) for row in rows] == [
        (10, 0, 3, WEIGHTS),
        (11, 1, 3, WEIGHTS),
    ]
    for row, candidate in zip(rows, one.candidates, strict=True):
        assert found.clip(row) == candidate.clip
        assert found.latents(row) == candidate.latents
        assert found.conditioning(row) == one.conditioning
    prompt = found.prompt(rows[0])
    assert (prompt.id, prompt.text, prompt.image, prompt.category) == ("prompt-1", "a cat walks 1", b"png", "walk")
    assert list(found.faults()) == []


def test_other_tools_can_read_the_files(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0])])
    row = json.loads((folder / ROWS).read_text())
    assert (folder / row["clip"]).read_bytes() == b"mp4"
    assert safetensors.torch.load_file(folder / row["latents"])["latents"].flatten().tolist() == [1, 0]
    assert json.loads((folder / SETTINGS).read_text())["settings"] == {"model.frames": 9, "sampler.steps": 4}
    assert is_set(folder)
    assert not is_set(tmp_path)


def test_names_depend_on_content_alone() -> None:
    prompt = group(1, [1.0]).prompt
    other = group(2, [1.0]).prompt
    assert prompt_key(prompt) != prompt_key(other)
    assert candidate_name("ab12", WEIGHTS, 7) == "ab12-abababab-7"


def test_a_candidate_is_stored_once(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0])])
    with writing_to(folder) as writer:
        assert writer.append(group(1, [10.0, 20.0]), WEIGHTS) == 1
        assert writer.append(group(1, [10.0]), "cd" * 16) == 1  # of another policy
    assert len(read_set(folder).rows) == 3
    assert [len(rows) for rows in read_set(folder).groups().values()] == [2, 1]


def test_a_torn_row_is_ignored_and_then_written_again(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0]), group(2, [20.0])])
    rows = (folder / ROWS).read_bytes()
    (folder / ROWS).write_bytes(rows[:-20])
    assert [row.prompt_id for row in read_set(folder).rows.values()] == ["prompt-1"]
    with writing_to(folder) as writer:
        assert writer.append(group(2, [20.0]), WEIGHTS) == 1
    assert (folder / ROWS).read_bytes() == rows


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0]), group(2, [20.0])])
    lines = (folder / ROWS).read_text().splitlines()
    broken = json.loads(lines[1]) | {"index": -1}
    (folder / ROWS).write_text(f"{lines[0]}\n{json.dumps(broken)}\n")
    with pytest.raises(CorruptDataError, match=r"candidates.jsonl:2: index: .*greater than or equal to 0"):
        read_set(folder)


@pytest.mark.parametrize("kind", ["clip", "latents", "condition", "first_frame"])
def test_every_damaged_file_is_found(tmp_path: Path, kind: str) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0]), group(2, [20.0])])
    row = next(iter(read_set(folder).rows.values()))
    file = folder / getattr(row, kind)
    if kind == "first_frame":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    (fault,) = read_set(folder).faults()
    assert str(file) in fault


def test_new_scores_keep_the_old_ones(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0, 20.0])])
    first, second = read_set(folder).rows
    with writing_to(folder) as writer:
        writer.add_scores({second: Score(second, "judge-2", {"vs": 55.0})})
        with pytest.raises(ValueError, match="finite"):
            writer.add_scores({first: Score(first, "judge-2", {"vs": float("nan")})})
    rows = read_set(folder).rows
    assert rows[first].scores == {"appeal": 10.0}
    assert rows[second].scores == {"appeal": 20.0, "vs": 55.0}
    assert rows[second].scored_by == {"appeal": "judge-1", "vs": "judge-2"}


def test_only_one_process_writes(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0])])
    with (
        writing_to(folder),
        pytest.raises(ConfigError, match=r"in use by process \d+; wait for it"),
        writing_to(folder),
    ):
        pass


def test_other_settings_are_refused(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0])])
    expected = r"made with other settings: sampler.steps \(4 there, 8 here\)"
    with pytest.raises(ConfigError, match=expected), writing_to(folder, settings(sampler__steps=8)):
        pass


def test_a_folder_without_a_set_is_named_and_not_created(tmp_path: Path) -> None:
    for opens in (read_set, lambda folder: writing_to(folder).__enter__()):
        with pytest.raises(NotFoundError, match=r"no candidate set \(no set.json\)"):
            opens(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0])])
    text = (folder / SETTINGS).read_text()
    (folder / SETTINGS).write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ConfigError, match="format 2; this version of douga reads format 1"):
        read_set(folder)
    (folder / SETTINGS).write_text("{}")
    with pytest.raises(CorruptDataError, match="not the settings of a candidate set"):
        read_set(folder)


def test_a_run_stands_for_its_set(tmp_path: Path) -> None:
    make_set(tmp_path / "run" / "candidates", [group(1, [10.0])])
    assert len(read_set(tmp_path / "run").rows) == 1
    assert is_set(tmp_path / "run")


def test_latents_of_a_candidate_are_checked_when_they_are_read(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(1, [10.0])])
    found = read_set(folder)
    row = next(iter(found.rows.values()))
    safetensors.torch.save_file({"latents": torch.zeros(2)}, folder / row.latents)
    with pytest.raises(CorruptDataError, match="differs from its digest"):
        found.latents(row)
