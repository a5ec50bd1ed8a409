"""A study in small: every kind of data, one evaluation, what it took, and a second call that only reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.methods import STAGE_1, methods
from benchmarks.training.data import few_of_each_action
from benchmarks.training.figures import grid_of
from benchmarks.training.runs import Study, Trained, Variant, train_all
from common.candidate_set.folder import read_set
from common.config import load_config
from common.data.ratings import read_ratings
from common.data.video import decode_clip
from common.errors import ConfigError
from common.models.fingerprint import model_parts
from common.toon.oracle import judge
from common.toon.prompts import shot_of
from deploy.run_dir.layout import CONFIG

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(600)]
ROWS = {variant.label: variant for variant in methods(1)}
SMALL = {"steps": "1", "learner.batch_size": "2", "sampler.candidates": "2", "sampler.steps": "1"}
LABELS = ("offline-dpo", "online-sft", "huvidpo-1", "huvidpo-2")
FOUR = [ROWS[label] for label in LABELS]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), SMALL, prompts=2)


@pytest.fixture(scope="module")
def runs(study: Study) -> dict[str, list[Trained]]:
    return train_all(study, FOUR, [0])


def test_each_run_has_its_data_and_its_keys(study: Study, runs: dict[str, list[Trained]]) -> None:
    config = {label: load_config(found[0].folder / CONFIG) for label, found in runs.items()}
    seed = study.folder(0)
    assert [Path(one.candidates or one.pairs).name for one in config.values()] == ["set", "", "real", "ratings.jsonl"]
    assert [one.algorithm.name for one in config.values()] == ["dpo", "sft", "sft", "human_pairs"]
    assert {one.steps for one in config.values()} == {1}
    assert config["huvidpo-2"].model.path == str(seed / "huvidpo-1-model")
    assert model_parts(config["huvidpo-2"].model.path) != model_parts("toon")  # it starts from stage 1


def test_what_a_method_takes(runs: dict[str, list[Trained]]) -> None:
    """Two groups of two clips: of a set, of the policy, none, and those that are rated."""
    assert [runs[label][0].cost.clips for label in LABELS] == [4, 4, 0, 4]
    assert all(found[0].cost.seconds > 0 for found in runs.values())
    assert runs["huvidpo-2"][0].cost.seconds > runs["huvidpo-1"][0].cost.seconds


def test_the_oracle_rates_the_clips_of_stage_1(study: Study, runs: dict[str, list[Trained]]) -> None:
    rated = read_set(study.folder(0) / "rated" / "candidates")
    ratings = read_ratings(rated.folder / "ratings.jsonl")
    assert not ratings.bad
    (row, *others), (candidate, *_) = ratings.rows, rated.rows.values()
    assert len(others) == 3
    truth = judge(decode_clip(rated.clip(candidate)), shot_of(rated.prompt(candidate)))
    assert row.ratings["oracle"]["identity"] == pytest.approx(1 + truth.identity / 25)
    assert row.category == shot_of(rated.prompt(candidate)).action


def test_all_models_are_in_one_table_and_nothing_is_done_twice(study: Study, runs: dict[str, list[Trained]]) -> None:
    grid = grid_of(study.evaluate(runs), FOUR, runs)
    assert list(grid.columns) == [
        "reward",
        "oracle: identity",
        "oracle: motion",
        "oracle: smoothness",
        "clips",
        "minutes",
    ]
    assert list(grid.rows) == ["base model, mean", *(variant.title for variant in FOUR)]
    for cells in list(grid.rows.values())[1:]:
        assert all(cell is not None and cell.low is not None for cell in cells[:4])
    made = {file: file.stat().st_mtime_ns for file in study.root.rglob("*.mp4")}
    assert len(made) > 10
    again = train_all(study, FOUR, [0])
    assert grid_of(study.evaluate(again), FOUR, again) == grid
    assert {file: file.stat().st_mtime_ns for file in study.root.rglob("*.mp4")} == made


def test_real_clips_are_few_of_each_action() -> None:
    found = list(few_of_each_action(seed=3, per_action=2))
    assert set(Counter(shot_of(prompt).action for prompt in found).values()) == {2}
    assert len(found) == 12
    assert [prompt.ordinal for prompt in found] == sorted(prompt.ordinal for prompt in found)


@pytest.mark.parametrize("label", ["huvidpo-1", "base"])
def test_labels_have_to_differ(tmp_path: Path, label: str) -> None:
    with pytest.raises(ConfigError, match="each has to differ from the others, and from 'base'"):
        train_all(Study(tmp_path), [STAGE_1, Variant(label, "another", {})], [0])


def test_a_command_that_fails_ends_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train_all(Study(tmp_path), [Variant("wrong", "wrong", {"algorithm.name": "none"})], [0])
    assert ended.value.code == 2
    assert "$ douga run" in capsys.readouterr().err
