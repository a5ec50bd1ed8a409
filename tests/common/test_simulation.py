"""Simulated work: the distribution that is promised, and the same draws again."""

from __future__ import annotations

import math
from statistics import mean, quantiles

import pytest

from common.config import load_config
from common.errors import ConfigError
from common.simulation import Simulation, data

DRAWS = 20_000


def simulation(**flags: object) -> Simulation:
    return Simulation(load_config(flags={f"simulation.{name}": value for name, value in flags.items()}))


@pytest.mark.parametrize("tail", [0.0, 0.5, 1.0])
def test_pauses_have_the_mean_and_the_tail_that_are_asked_for(tail: float) -> None:
    drawn = simulation(tail=tail)
    seconds = [drawn.seconds(2.0, "sample", unit) for unit in range(DRAWS)]
    assert mean(seconds) == pytest.approx(2.0, rel=0.03)
    # The 99th percentile of the normal distribution lies at 2.3263 standard deviations.
    assert quantiles(seconds, n=100)[98] == pytest.approx(2.0 * math.exp(2.3263 * tail - tail**2 / 2), rel=0.08)


def test_failures_come_at_the_rate_that_is_asked_for() -> None:
    drawn = simulation(failure_rate=0.2)
    assert sum(drawn.fails("group", unit) for unit in range(DRAWS)) / DRAWS == pytest.approx(0.2, abs=0.01)
    assert not any(simulation().fails("group", unit) for unit in range(100))


def test_draws_are_functions_of_seed_and_unit() -> None:
    one, same, other = simulation(), simulation(), Simulation(load_config(flags={"seed": 1}))
    assert one.value("motion", "7-0-v1") == same.value("motion", "7-0-v1") != other.value("motion", "7-0-v1")
    assert one.value("motion", "7-0-v1") != one.value("text", "7-0-v1")
    assert 0 <= one.value("motion", "7-0-v1") <= 100
    assert one.seconds(1.0, "step", 3) == same.seconds(1.0, "step", 3) != one.seconds(1.0, "step", 4)


def test_data_has_its_size_and_differs() -> None:
    assert data(100_003, "clip", 1) == data(100_003, "clip", 1) != data(100_003, "clip", 2)
    assert data(100_003, "clip", 1).shape == (100_003,)


def test_there_is_nothing_to_verify_in_a_simulation() -> None:
    with pytest.raises(ConfigError, match="verify compares clips; with simulate there are none"):
        load_config(flags={"simulate": True, "verify": True})
