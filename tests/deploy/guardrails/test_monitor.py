"""The guardrails in a run: readings do not change the run, survive crashes, and raise alarms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common.config import DIMENSIONS, RunConfig, load_config
from common.errors import ConfigError
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.messages import Purpose
from deploy.guardrails.monitor import PausedError
from deploy.guardrails.rules import Reading, mean_change, read_readings
from deploy.results import report
from deploy.run_dir import layout
from deploy.run_dir.jsonl import latest_by_step, read_json_lines
from deploy.runtime import serial
from rewarders.interface import JudgeFailedError
from tests.deploy.runtime.test_serial import Death, die, fresh, model, what_counts
from tests.support import toy

__all__ = ["model"]  # the fixture

WATCHED = {"guardrails.prompts": 2, "guardrails.every_pushes": 1, "guardrails.patience": 1}
BRIGHTNESS = {"guardrails.judges.light.kind": "tests.deploy.guardrails.test_monitor:Brightness"}


class Brightness:
    """A custom judge, named by its dotted path: 0..100."""

    dimension, digest = "brightness", "brightness-1"

    def __init__(self, judge, device):
        pass

    def score(self, clips, prompts):
        return [float(clip.mean()) / 2.55 for clip in clips]


class DriftingReward(toy.HashReward):
    """Adds 5 points after every batch, so that the scores of the same base clips rise."""

    def __init__(self, dimension: str) -> None:
        super().__init__(dimension)
        self.batches = 0

    def score(self, clips, prompts):
        self.batches += 1
        return [value / 4 + 5 * self.batches for value in super().score(clips, prompts)]


def watched(root: Path, **flags) -> RunConfig:
    return toy.config(root, **(WATCHED | flags))


def taken(config: RunConfig) -> list[Reading]:
    return read_readings(config.folder)


def events(config: RunConfig, name: str) -> list[dict]:
    return [record for record in read_json_lines(config.folder / "events.jsonl") if record["event"] == name]


@pytest.fixture(scope="module")
def unwatched(model, tmp_path_factory) -> dict:
    config = toy.config(fresh(tmp_path_factory.mktemp("unwatched"), model))
    result = serial.run(config, toy.rewards()).result
    assert result is not None
    return result


@pytest.fixture(scope="module")
def quiet(model, tmp_path_factory) -> tuple[RunConfig, dict]:
    """A run with guardrails that only warn."""
    config = watched(fresh(tmp_path_factory.mktemp("quiet"), model))
    result = serial.run(config, toy.rewards()).result
    assert result is not None
    return config, result


def test_guardrails_do_not_change_the_result(quiet, unwatched):
    assert what_counts(quiet[1]) == what_counts(unwatched)


def test_every_push_has_a_reading_on_the_same_prompts_and_seeds(quiet):
    config, _ = quiet
    found = taken(config)
    assert [(one.step, one.pushes) for one in found] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    assert all(sorted(one.policy) == [0, 1] for one in found)
    assert found[0].policy == found[0].base
    assert all(one.base == found[0].base for one in found)  # same clips, same scorer
    assert all(one.policy != found[0].policy for one in found[1:])
    first = found[0].policy[0]
    assert set(first.judged) == {"identity", "motion", "smoothness"}
    assert {"reward", "smoothness", "character"} <= set(first.trained)
    assert first.motion > 0


def test_the_report_has_the_guardrail_charts(quiet):
    page = report.write(quiet[0].folder).read_text()
    for title in ("Guardrails", "Judge: identity", "Judge: motion", "Judge: smoothness", "<h3>Motion</h3>", "push 4"):
        assert title in page


def test_the_ledger_keeps_only_the_base_clips(quiet):
    config, _ = quiet
    exchange = LocalExchange(config.folder, config, serial.open_roles(config, toy.rewards()).prompts)
    try:
        exchange.check()
        counts = exchange.counts(Purpose.PROBE)
        assert (counts[State.DONE], sum(counts.values())) == (10, 10)  # 2 prompts x (base and four versions)
        assert len(exchange.results(Purpose.PROBE, 0)) == 2
    finally:
        exchange.close()


def test_readings_are_taken_every_n_pushes(model, tmp_path):
    config = watched(fresh(tmp_path, model), **{"guardrails.every_pushes": 2, **BRIGHTNESS})
    serial.run(config, toy.rewards())
    assert [one.step for one in taken(config)] == [0, 2, 4]


@pytest.mark.parametrize("calls", [4, 26])
def test_a_crashed_run_with_guardrails_takes_the_same_readings(quiet, model, tmp_path, calls):
    config = watched(fresh(tmp_path, model))
    with pytest.raises(Death):
        serial.run(config, toy.rewards(), stop=toy.after(calls, die))
    resumed = serial.run(config, toy.rewards()).result
    assert resumed is not None
    assert what_counts(resumed) == what_counts(quiet[1])
    assert [(one.step, one.policy) for one in taken(config)] == [(one.step, one.policy) for one in taken(quiet[0])]


def test_a_drifting_scorer_raises_an_alarm(model, tmp_path, capsys):
    config = watched(fresh(tmp_path, model), steps=2, **{"guardrails.patience": 2, **BRIGHTNESS})
    result = serial.run(config, toy.rewards(DriftingReward)).result
    assert result is not None
    assert ["scorer" in one.shown for one in taken(config)] == [False, True, True]
    assert [one["rule"] for one in events(config, "alarm")] == ["scorer"]
    assert events(config, "alarm")[0]["step"] == 2
    assert "the scorer changed (2 readings in a row)" in events(config, "alarm")[0]["words"]


def test_an_alarm_pauses_the_run_and_it_resumes(quiet, model, tmp_path):
    config = watched(fresh(tmp_path, model), steps=2, **{"guardrails.action": "pause", **BRIGHTNESS})
    message = (
        r"^paused by guardrails\.action after step 1: scorer: the same base clips .*; resume with: douga run .*toml"
    )
    drifting = toy.rewards(DriftingReward)
    with pytest.raises(PausedError, match=message):
        serial.run(config, drifting)
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step-000001"]
    assert serial.run(config, drifting).finished  # an alarm after the last step does not pause
    assert [one.step for one in taken(config)] == [0, 1, 2]
    assert [(one["step"], one["action"]) for one in events(config, "alarm")] == [(1, "pause"), (2, "warn")]


REFRESHED = {"guardrails.action": "refresh", **BRIGHTNESS, "algorithm.refresh_every": 0}


@contextmanager
def frozen() -> Iterator[None]:
    """Within the block every policy but the base model counts as frozen; other tests use the real rule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.guardrails.rules._frozen", lambda now, floor: "frozen" if now.step else "")
        yield


@pytest.fixture(scope="module")
def refreshed(model, tmp_path_factory) -> tuple[RunConfig, dict]:
    """A run whose policy counts as frozen after every step, so that each reading raises an alarm."""
    config = watched(fresh(tmp_path_factory.mktemp("refreshed"), model), **REFRESHED)
    with frozen():
        result = serial.run(config, toy.rewards()).result
    assert result is not None
    return config, result


def test_an_alarm_makes_the_policy_the_reference(refreshed):
    config, _ = refreshed
    alarms = [one["step"] for one in events(config, "alarm") if one["action"] == "refresh"]
    assert alarms == [1, 2, 3]  # not after the last of 4 steps: the reference is no longer used
    assert {one["rule"] for one in events(config, "alarm")} == {"motion"}
    steps = latest_by_step(read_json_lines(config.folder / "metrics.jsonl"))
    at_rest = [one["step"] for one in steps if one["metrics"]["dpo_logits"] == 0.0]  # policy and reference are the same
    assert at_rest == [1, *(step + 1 for step in alarms)]


@pytest.mark.parametrize("count", [3, 4])
def test_a_run_that_crashes_after_a_refresh_ends_with_the_same_weights(refreshed, model, tmp_path, count):
    """The crash is after the alarm of step 2 (its checkpoint is older than the refresh), or one step later."""
    config = watched(fresh(tmp_path, model), **REFRESHED)

    def read() -> bool:
        return len(read_json_lines(config.folder / "guardrails.jsonl")) == count and die()

    with frozen():
        with pytest.raises(Death):
            serial.run(config, toy.rewards(), stop=read)
        resumed = serial.run(config, toy.rewards()).result
    assert resumed is not None
    assert what_counts(resumed) == what_counts(refreshed[1])


def test_a_custom_judge(model, tmp_path):
    config = watched(fresh(tmp_path, model), steps=1, **{**BRIGHTNESS})
    serial.run(config, toy.rewards())
    assert all(set(clip.judged) == {"light"} for one in taken(config) for clip in one.policy.values())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("brightness", "must be remote, .* or a class as package.module:Class"),
        ("tests.deploy.none:Brightness", "cannot be imported: No module named 'tests.deploy.none'"),
        (
            "tests.deploy.guardrails.test_monitor:Nothing",
            "tests.deploy.guardrails.test_monitor has no class Nothing",
        ),
    ],
)
def test_an_invalid_judge_is_reported_before_a_folder_is_created(model, tmp_path, kind, message):
    config = watched(fresh(tmp_path, model), **{"guardrails.judges.light.kind": kind})
    with pytest.raises(ConfigError, match=rf"^guardrails\.judges\.light: kind = '{kind}': {message}"):
        serial.run(config, toy.rewards())
    assert not config.folder.exists()


class Lost(Brightness):
    """Scores the clips of the base model, then fails."""

    calls = 0

    def score(self, clips, prompts):
        Lost.calls += prompts[0].id != "rehearsal"
        if Lost.calls > WATCHED["guardrails.prompts"]:
            raise JudgeFailedError("http://judge: 401")
        return super().score(clips, prompts)


def test_a_run_continues_without_its_judge_and_records_the_reason(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Lost, "calls", 0)
    kind = {"guardrails.judges.light.kind": "tests.deploy.guardrails.test_monitor:Lost"}
    config = watched(fresh(tmp_path, model), steps=2, **kind)
    assert serial.run(config, toy.rewards()).finished
    assert [one.step for one in taken(config)] == [0]
    assert [one["reason"] for one in events(config, "not probed")] == ["http://judge: 401"] * 2
    assert {one["reason"] for one in events(config, "not judged")} == {"http://judge: 401"}


# The toon world, with a reward for frozen clips and with the six heads.

SMALL = {"mode": "serial", "steps": 6, "sampler.steps": 5, "exchange.max_lag": 0, "learner.batch_size": 4,
         "algorithm.refresh_every": 0, "learner.checkpoint_every": 2, "evaluation.prompts": 2, "evaluation.clips": 2,
         "guardrails.prompts": 6, "guardrails.every_pushes": 1}  # fmt: skip
ALONE = {f"reward.weights.{name}": 0 for name in DIMENSIONS if name != "smoothness"}


class FrozenReward:
    """A naive reward for clips that do not change: the policy learns to blur and to freeze."""

    dimension, digest = "smoothness", "stillness-1"

    def score(self, clips, prompts):
        return [float(100 * np.exp(-np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() / 8)) for clip in clips]


def toon(root: Path, **flags) -> RunConfig:
    values = SMALL | {"root": root} | flags
    return load_config(layout.TOON, {name: str(value) for name, value in values.items()})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_hacks_its_reward_is_paused(tmp_path):
    """Measured: after 4 steps the trained reward is up by 3.8 points, the oracle's identity down by 5.3."""
    config = toon(tmp_path, steps=10, **ALONE, **{"learner.lr": 3e-4, "guardrails.action": "pause"})
    message = (
        r"^paused by guardrails.action after step \d: .*judge identity: held-out identity -.* points since step 0, "
    )
    with pytest.raises(PausedError, match=message):
        serial.run(config, [FrozenReward()])
    last = taken(config)[-1]
    assert mean_change(last) > 0
    assert mean_change(last, "identity") < -5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_honest_run_raises_no_alarm(tmp_path):
    config = toon(tmp_path)
    assert serial.run(config).finished
    assert [one.step for one in taken(config)] == [0, 1, 2, 3, 4, 5, 6]
    assert events(config, "alarm") == []
