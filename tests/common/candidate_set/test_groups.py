"""Groups for training: each once an epoch, its first N candidates, and clear errors for sets that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.candidate_set import groups as module
from common.candidate_set.folder import read_set, writing_to
from common.candidate_set.groups import StoredGroups, open_groups
from common.candidate_set.rows import SetSettings
from common.config import load_config
from common.errors import ConfigError
from common.messages import Prompt, Purpose, Score
from tests.support.candidates import MODEL, group, make_set, settings


@pytest.fixture(autouse=True)
def _same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up sets belong to the model of the run."""
    monkeypatch.setattr(module, "model_parts", lambda path: MODEL)
    monkeypatch.setattr(SetSettings, "of", classmethod(lambda cls, config, model: settings(sampler__steps=99)))


def config(**flags: Any) -> Any:
    base = {"sampler.candidates": 2, "reward.feedback": "appeal"}
    return load_config(None, {key: str(value) for key, value in (base | flags).items()})


def test_every_group_comes_once_an_epoch(tmp_path: Path) -> None:
    made = [group(number, [10.0, 20.0]) for number in range(5)]
    found = StoredGroups(read_set(make_set(tmp_path / "set", made)), config())
    assert len(found) == 5
    epochs = [[found(5 * epoch + place)[0].prompt_id for place in range(5)] for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [[f"prompt-{number}" for number in range(5)]] * 2
    assert epochs[0] != epochs[1]
    assert all(len(found(ordinal)) == 2 for ordinal in range(10))


def test_groups_with_too_few_candidates_are_left_out(tmp_path: Path) -> None:
    made = [group(0, [10.0]), group(1, [10.0, 20.0, 30.0])]
    folder, said = make_set(tmp_path / "set", made), []
    found = open_groups(config(candidates=folder), said.append)
    assert [row.scores["appeal"] for row in found(0)] == [10.0, 20.0]
    assert said == [f"{folder}: 1 groups have fewer than sampler.candidates = 2 candidates; left out"]
    with pytest.raises(ConfigError, match=r"no group of sampler.candidates = 4; the largest of its 2 groups has 3"):
        StoredGroups(read_set(folder), config(**{"sampler.candidates": 4}))


def test_a_missing_score_is_named_before_the_run(tmp_path: Path) -> None:
    made = [group(0, [10.0, 20.0]), group(1, [10.0, 20.0], name="motion")]
    with pytest.raises(ConfigError, match=r"reward.feedback = 'appeal': nothing scores it.*`douga score` adds scores"):
        StoredGroups(read_set(make_set(tmp_path / "set", made)), config())


def test_scores_of_two_reward_models_are_not_compared(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(0, [10.0, 20.0]), group(1, [10.0, 20.0])])
    last = list(read_set(folder).rows)[-1]
    with writing_to(folder) as writer:
        writer.add_scores({last: Score(last, "judge-2", {"vs": 5.0})})
    StoredGroups(read_set(folder), config())  # a score without a weight does not matter
    with writing_to(folder) as writer:
        writer.add_scores({last: Score(last, "judge-2", {"appeal": 99.0})})
    message = (
        "appeal: candidates of a group were scored by different reward models; `douga score --again` scores all alike"
    )
    with pytest.raises(ConfigError, match=message):
        StoredGroups(read_set(folder), config())


def test_a_set_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [group(0, [10.0, 20.0])], model__frames=49)
    with pytest.raises(ConfigError, match=r"model.frames \(49 there, 9 here\)"):
        StoredGroups(read_set(folder), config())


def test_held_out_prompts_must_not_be_in_the_set(tmp_path: Path) -> None:
    found = StoredGroups(read_set(make_set(tmp_path / "set", [group(0, [10.0, 20.0])])), config())
    same = Prompt(7, "another id", "a cat walks 0", b"png", Purpose.EVAL)
    found.check_apart([Prompt(0, "new", "a dog", b"png", Purpose.EVAL)])
    with pytest.raises(ConfigError, match="1 held-out prompts are in it, 'another id' the first"):
        found.check_apart([same])
