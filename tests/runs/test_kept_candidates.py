"""A run that keeps its candidates trains the same weights, and what it kept is a candidate set like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.candidate_set.folder import CandidateSet, SetWriter, read_set
from common.candidate_set.rows import POLICY
from common.config import RunConfig
from common.errors import ConfigError
from common.messages import Purpose
from common.models.fingerprint import model_parts
from common.reward_composition import clip_reward
from common.seeds import candidate_seed
from common.weights.store import WeightStore
from deploy.annotate.sources import find_clips
from deploy.cli.main import main
from deploy.inspect import snapshot
from deploy.inspect.status import lines, run_status
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime import serial
from tests.support import toy
from tests.support.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

LARGE = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model", perturb=0.3)


def config(root: Path, model: Path, **flags: Any) -> RunConfig:
    base = {"model.path": model, "sampler.candidates": 3, "keep_candidates_bytes": LARGE, "guardrails.prompts": 2}
    return toy.config(root, **base | flags)


def run(
    how: RunConfig, stop: Callable[[], bool] = lambda: False, said: toy.Said | None = None
) -> dict[str, Any] | None:
    return serial.run(how, toy.rewards(), stop=stop, progress=said).result


def content(candidates: CandidateSet) -> dict[str, tuple[Any, ...]]:
    """Everything of a set but the order of its rows, and the versions' numbers, which rise with every start."""
    return {
        name: (row.model_copy(update={"version": 0}), candidates.clip(row), candidates.latents(row))
        for name, row in candidates.rows.items()
    }


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    """An uninterrupted run of four steps of two pairs, and its result."""
    how = config(tmp_path_factory.mktemp("whole"), model)
    result = run(how)
    assert result is not None
    return how, result


def kept(how: RunConfig) -> CandidateSet:
    return read_set(how.folder / "kept")


def test_all_candidates_of_the_training_groups_are_kept_and_no_others(
    whole: tuple[RunConfig, dict[str, Any]],
) -> None:
    how, _ = whole
    found = kept(how)
    assert list(found.faults()) == []
    assert len(found.groups()) == 8
    store = WeightStore(how.folder / "weights")
    for ordinal in range(8):
        rows = [row for row in found.rows.values() if row.ordinal == ordinal]
        assert [row.seed for row in rows] == [
            candidate_seed(how.seed, Purpose.TRAIN, ordinal, index) for index in range(3)
        ]
        rewards = [clip_reward(how.reward, row.scores) for row in rows]
        assert rewards.index(max(rewards)) == [row.selected for row in rows].index(0)
        assert rewards.index(min(rewards)) == [row.selected for row in rows].index(1)
        base = model_parts(how.model.path)[POLICY]
        assert {row.weights for row in rows} == ({base} if ordinal < 2 else {rows[0].weights})
    newest = store.versions()[-2]  # of the last step's pairs
    last = [row for row in found.rows.values() if row.version == newest]
    assert {row.weights for row in last} == {store.manifest(newest).digest}
    assert len(last) == 6
    assert found.empty_prompt().shape[1] > 0


def test_keeping_changes_no_weight_and_no_result(
    whole: tuple[RunConfig, dict[str, Any]], model: Path, tmp_path: Path
) -> None:
    how, result = whole
    usual = config(tmp_path, model, keep_candidates_bytes=0)
    assert run(usual) == result
    assert not (usual.folder / "kept").exists()
    blobs = [sorted(path.name.partition("-")[0] for path in (one.folder / "blobs").iterdir()) for one in (how, usual)]
    assert blobs[0] == blobs[1]  # nothing is left in the exchange


@pytest.mark.parametrize("calls", [5, 13])
def test_a_run_that_is_stopped_again_and_again_keeps_the_same_set(
    whole: tuple[RunConfig, dict[str, Any]], model: Path, tmp_path: Path, calls: int
) -> None:
    how = config(tmp_path, model)
    starts = 0
    while (result := run(how, toy.after(calls, lambda: True))) is None:
        starts += 1
        assert starts < 100
    assert starts > 2
    assert result["weights_digest"] == whole[1]["weights_digest"]
    assert content(kept(how)) == content(kept(whole[0]))


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("write", [4, 8, 21, 47])
def test_a_run_killed_while_it_writes_the_set_keeps_the_same_one(
    whole: tuple[RunConfig, dict[str, Any]], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    how, real, writes = config(tmp_path, model), SetWriter._write, iter(range(1, 1000))

    def killed(writer: SetWriter, path: Path, data: bytes) -> None:
        if next(writes) == write:
            raise Killed
        real(writer, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(SetWriter, "_write", killed)
        with pytest.raises(Killed):
            run(how)
    result = run(how)
    assert result is not None
    assert result["weights_digest"] == whole[1]["weights_digest"]
    assert content(kept(how)) == content(kept(whole[0]))


def test_a_full_set_is_said_in_log_and_status_and_a_larger_bound_continues(
    whole: tuple[RunConfig, dict[str, Any]], model: Path, tmp_path: Path
) -> None:
    size = kept(whole[0]).bytes_on_disk()
    said = toy.Said()
    how = config(tmp_path, model, keep_candidates_bytes=size // 2)
    assert run(how, said=said) == whole[1]
    found = kept(how)
    groups = len({row.ordinal for row in found.rows.values()})
    assert 0 < groups < 8
    assert content(found).items() <= content(kept(whole[0])).items()
    line = f"the {3 * groups} candidates of the first {groups} groups; keep_candidates_bytes = {size // 2}"
    assert [one for one in said.lines if line in one] != []
    assert line in (how.folder / "logs" / "serial.log").read_text()
    text = lines(run_status(snapshot.RunReader(how.folder).read()))
    assert [one for one in text if one.startswith("last     candidates full after step") and line in one] != []
    assert [one["event"] for one in read_json_lines(how.folder / "events.jsonl")].count("candidates full") == 1
    longer = config(tmp_path, model, steps=5)
    assert run(longer) is not None
    assert {row.ordinal for row in kept(how).rows.values()} == {*range(groups), 8, 9}


def test_the_set_is_trained_on_scored_checked_merged_and_rated(
    whole: tuple[RunConfig, dict[str, Any]], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how, _ = whole
    folder = how.folder / "kept"
    flags = {"name": "again", "candidates": folder, "keep_candidates_bytes": 0, "evaluation.prompts": 0}
    offline = toy.config(tmp_path, **{"model.path": model, "sampler.candidates": 3} | flags)
    assert run(offline) is not None
    assert main(["candidates", "show", str(folder)]) == 0
    assert main(["candidates", "check", str(folder)]) == 0
    assert "24 candidates, 0 damaged" in capsys.readouterr().out
    assert main(["candidates", "merge", str(tmp_path / "all"), str(folder)]) == 0
    assert content(read_set(tmp_path / "all")) == content(kept(how))
    place, clips = find_clips(folder)
    assert (place, len(clips)) == (folder, 24)
    place, clips = find_clips(how.folder)  # the run itself still has its held-out clips
    assert (place, {clip.source for clip in clips} > {"base"}) == (how.folder, True)


@pytest.mark.parametrize("key", ["pairs", "candidates", "simulate"])
def test_a_run_that_samples_no_training_clips_keeps_none(model: Path, tmp_path: Path, key: str) -> None:
    value = "true" if key == "simulate" else "somewhere"
    with pytest.raises(ConfigError, match=f"keep_candidates_bytes = 5: with {key} the run samples no training"):
        config(tmp_path, model, **{"keep_candidates_bytes": 5, key: value})
