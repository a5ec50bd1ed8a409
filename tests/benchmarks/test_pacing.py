"""The pacing benchmark: its scenarios, a small fleet on the real exchange, and the plain script."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.pacing import fleet
from benchmarks.pacing.__main__ import SYNCHRONOUS, _least
from benchmarks.pacing.plain_loop import PlainLoop, settings
from benchmarks.pacing.scenarios import BALANCED, scenario, scenarios, ways
from deploy.planning.pacing import log_normal, simulate


def test_a_balanced_pipeline_spends_equal_time_on_both_stages() -> None:
    one = scenario(7, 8, 0.0, BALANCED).one
    assert one.step == pytest.approx(4 * 8 / 7)  # 32 candidates of a second on 7 samplers
    assert one.bound == pytest.approx(7 / 32)
    assert len({one.name for one in scenarios()}) == len(list(scenarios()))


def test_synchronous_takes_the_sum_of_both_stages() -> None:
    one = scenario(8, 8, 0.0, BALANCED).one
    found = simulate(replace(ways(one)[SYNCHRONOUS], steps=40, load=0.0, score=0.0), log_normal(0.0))
    assert found.rate == pytest.approx(1 / (2 * one.step), rel=1e-6)


def test_targets_depend_on_the_candidates_that_the_lag_allows() -> None:
    assert [_least(0.5, 4.0), _least(0.5, 3.0), _least(0.5, 2.9)] == [0.97, 0.90, None]
    assert [_least(0.0, 2.0), _least(0.0, 1.9)] == [0.98, None]


def test_a_fleet_outlives_a_sampler() -> None:
    one = replace(ways(scenario(3, 2, 0.0).one)["max_lag 2"], steps=6)
    found = fleet.run(one, 0.0, 0.02, warm_up=1, dies=True)
    assert (found.pace.steps, found.pace.expired) == (5, 0)
    assert 0 < found.pace.rate <= one.bound * 1.05
    assert found.wasted <= 3  # of its group, if nobody held the old weights any more


@pytest.mark.slow
def test_the_plain_script_learns() -> None:
    loop = PlainLoop(settings(2))
    before = loop.learner.policy.state_dict()["proj_out.weight"].clone()
    loop.step(0)
    assert not before.equal(loop.learner.policy.state_dict()["proj_out.weight"])
