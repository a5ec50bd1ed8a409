"""A file that `ray job submit` did not copy is missing with the reason, and nothing is said elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.prompts.source import prompt_rows
from common.data.ratings import read_ratings
from common.data.ray_jobs import check_sent
from common.errors import ConfigError
from deploy.cli.main import main
from deploy.runtime import driver
from tests.runs.test_simulate import config


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a job."""
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_file_that_was_copied_is_found(copy: Path) -> None:
    (copy / "mine.toml").touch()
    check_sent("CONFIG.toml", "mine.toml")


def test_a_missing_file_outside_of_jobs_is_left_to_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_sent("CONFIG.toml", "mine.toml")


def test_a_configuration_that_was_not_copied(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "mine.toml", "--root", "/tmp"]) == 2
    assert capsys.readouterr().err == (
        "douga: CONFIG.toml: mine.toml: not found; a job has a copy of --working-dir without the files that .gitignore "
        "names: use an absolute path, or submit with RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1\n"
    )


@pytest.mark.parametrize("key", ["prompts", "pairs", "candidates"])
def test_data_that_was_not_copied(key: str, copy: Path, tmp_path: Path) -> None:
    made = config(tmp_path, **{key: "my data/é.jsonl", "simulate": key == "prompts"})
    with pytest.raises(ConfigError, match=rf"^{key}: my data/é\.jsonl: not found; a job has a copy"):
        driver.run(made)


def test_a_picture_and_a_clip_of_a_table_that_were_not_copied(copy: Path) -> None:
    (copy / "p.jsonl").write_text('{"prompt": "a", "image": "a.png"}')
    (copy / "r.jsonl").write_text('{"clip": "a.mp4", "prompt": "a", "source": "real"}')
    for read in (lambda: prompt_rows(copy / "p.jsonl"), lambda: read_ratings(copy / "r.jsonl")):
        with pytest.raises(ConfigError, match=r"jsonl:1: .* \(a Ray job lacks what \.gitignore names, unless"):
            read()
