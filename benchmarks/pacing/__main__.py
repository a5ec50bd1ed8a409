"""Sampling against learning: ``python -m benchmarks.pacing``.

Every row is the rate of optimizer steps as a share of min(sampling, learning): what the slower stage alone allows.
`ours` runs with exchange.max_lag as named; `other` is strictly synchronous (OnlineVPO's Algorithm 1) on the same
workers. The first part is the event model (`deploy/planning/pacing.py`), which equals the exchange in tests and has no
noise but its own draws. The second is the real exchange with threads as workers in compressed time; `limit` is the
share of the event model there. The last one is the toon model for real against a plain script.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness import Aim, Report, Row, main, ratio
from benchmarks.pacing import fleet, plain_loop
from benchmarks.pacing.scenarios import BALANCED, FAST, Scenario, scenario, scenarios, ways
from deploy.planning.pacing import Pace, log_normal, simulate

PARTS = ("model", "fleet", "toon")
SEEDS = (0, 1, 2)
MODEL_STEPS, MODEL_WARM_UP = 400, 40
FLEETS = ((7, 2, 0.3, 40), (28, 16, 1.0, 16), (56, 32, 2.0, 12))  # samplers, pairs, seconds of a candidate, steps
FLEET_WARM_UP = 4
SYNCHRONOUS = "synchronous"
LAGS = (1, 2, 4, 8)


def modelled(one: Scenario) -> dict[str, list[Pace]]:
    """The event model of every way to run a scenario, once per seed."""
    found: dict[str, list[Pace]] = {}
    for name, way in ways(replace(one.one, steps=MODEL_STEPS)).items():
        found[name] = [simulate(way, log_normal(one.tail, seed), MODEL_WARM_UP) for seed in SEEDS]
    return found


def model_rows() -> tuple[list[Row], list[Aim]]:
    """A row per scenario and way."""
    rows, aims = list[Row](), list[Aim]()
    for one in scenarios():
        paces = modelled(one)
        shares = {name: [pace.rate / one.one.bound for pace in found] for name, found in paces.items()}
        for name in [name for name in shares if name != SYNCHRONOUS]:
            rows.append(_row(f"{one.name}: {name}", paces[name], shares[name], shares[SYNCHRONOUS]))
        aims += _aims(one, paces, shares)
    return rows, aims


def _row(case: str, paces: list[Pace], shares: list[float], other: list[float]) -> Row:
    first = paces[0]
    idle = ", ".join(f"{role} idle {1 - share:.0%}" for role, share in first.busy.items())
    lost = f"lag {first.lag:.1f}, {first.expired} of {first.groups} groups expired"
    return Row(f"{case} ({idle}, {lost})", "share", _middle(shares), _middle(other), 1.0, ratio(shares, other))


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _aims(one: Scenario, paces: dict[str, list[Pace]], shares: dict[str, list[float]]) -> Iterator[Aim]:
    """The targets that apply to a scenario: shares of the bound for a fast learner, a gain at balance."""
    if one.balance == BALANCED:
        best = max(_middle(shares[name]) for name in shares)
        gain = best / _middle(shares[SYNCHRONOUS])
        yield Aim(f"{one.name}: against synchronous", gain, ">= 1.9", gain >= 1.9)
    for lag in LAGS if one.balance == FAST else ():
        name, allowed = f"max_lag {lag}", (lag + 1) * one.one.batch_size * one.one.steps_per_push * one.one.candidates
        least = _least(one.tail, allowed / one.one.samplers)
        share, expired = _middle(shares[name]), max(pace.expired / pace.groups for pace in paces[name])
        if least is not None:
            yield Aim(f"{one.name}, {name}: share of the bound", share, f">= {least:g}", share >= least)
            yield Aim(f"{one.name}, {name}: groups expired", expired, "<= 0.01", expired <= 0.01)


def _least(tail: float, allowed: float) -> float | None:
    """The target share where max_lag allows a sampler so many candidates; None if there is no target."""
    if tail == 0:
        return 0.98 if allowed >= 2 else None
    return 0.97 if allowed >= 4 else 0.90 if allowed >= 3 else None


# The real exchange.


def fleet_rows(given: argparse.Namespace) -> list[Row]:
    """The real exchange against the event model."""
    rows = []
    for samplers, pairs, seconds, steps in FLEETS:
        if samplers > given.samplers:
            continue
        one = scenario(samplers, pairs, 0.5)
        chosen = {name: replace(way, steps=steps) for name, way in ways(one.one).items()}
        expected = {name: _middle([pace.rate for pace in found]) for name, found in modelled(one).items()}
        synchronous = fleet.run(chosen[SYNCHRONOUS], one.tail, seconds, FLEET_WARM_UP).pace.rate
        for name in ("one step off", "max_lag 1", "max_lag 2"):
            rows.append(
                _fleet_row(one, name, fleet.run(chosen[name], one.tail, seconds, FLEET_WARM_UP), expected, synchronous)
            )
        lost = fleet.run(chosen["max_lag 2"], one.tail, seconds, FLEET_WARM_UP, dies=True)
        rows.append(_fleet_row(one, "max_lag 2", lost, expected, synchronous, ", one sampler dies midway"))
    return rows


def _fleet_row(
    one: Scenario, name: str, found: fleet.Measured, expected: dict[str, float], synchronous: float, also: str = ""
) -> Row:
    bound, pace = one.one.bound, found.pace
    idle = ", ".join(f"{role} idle {1 - share:.0%}" for role, share in pace.busy.items())
    case = (
        f"real exchange, {one.name}: {name}{also} ({idle}, lag {pace.lag:.1f}, {pace.expired} of {pace.groups} groups "
        f"expired, {found.wasted} clips wasted)"
    )
    share, other = pace.rate / bound, synchronous / bound
    return Row(case, "share", share, other, expected[name] / bound, ratio([share], [other]))


def measure(given: argparse.Namespace) -> Report:
    """All parts that were asked for."""
    rows, aims = list[Row](), list[Aim]()
    if "model" in given.parts:
        rows, aims = model_rows()
    if "fleet" in given.parts:
        rows += fleet_rows(given)
    if "toon" in given.parts:
        more, targets = plain_loop.measure(given)
        rows, aims = rows + more, aims + targets
    return Report("pacing", rows, aims, ("torch", "diffusers", "pyzmq"))


OPTIONS = (
    ("--parts", {"nargs": "+", "choices": PARTS, "default": PARTS, "help": f"{', '.join(PARTS)} (default: all)"}),
    ("--samplers", {"type": int, "default": 56, "help": "the largest fleet (default: 56)"}),
    ("--toon-steps", {"type": int, "default": 4, "help": "optimizer steps of the toon model (default: 4)"}),
    ("--rounds", {"type": int, "default": 3, "help": "rounds of the toon model (default: 3)"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
