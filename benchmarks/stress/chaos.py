"""Kill processes of a run and check that nothing is lost: ``python -m benchmarks.stress.chaos --kills 25 [--real]``.

```
   this program ── starts ──> driver (`douga run`) ── Ray ──> exchange, learner, samplers, rewarder
        └───────── SIGKILL ──────┴──────────────────────────────┴── one of them, at a random moment
```

After every kill the run must take another optimizer step. At the end it is stopped, resumed and finished. Then these
invariants must hold:

* every prompt ever admitted is in exactly one state, and none has failed (`LocalExchange.check`);
* every use of a pair changed the weights exactly once. Simulated weights count their uses (`learner/simulated.py`);
  real ones, at max_lag 0, must be bit-identical to those of an undisturbed run in one process;
* no pair was trained with a lag above max_lag.

It prints one line of statistics. The exit code is 1 if an invariant is violated.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import psutil

from actors.prompts.source import open_prompts
from common.config import RunConfig, load_config, to_toml
from common.exchange import retention
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.weights.store import WeightStore
from deploy.run_dir import layout
from deploy.run_dir.jsonl import METRICS, read_json_lines

ROLES = {"sampler": 4, "rewarder": 3, "learner": 3, "exchange": 1, "driver": 1}  # weights of the random choice
RECOVERY_SECONDS, END_SECONDS = 180.0, 300.0  # timeouts: from a kill to the next step; for the run to stop or finish
ORPHAN_SECONDS = 30.0  # timeout for workers to notice that their driver is dead
LONGEST_PAUSE = 2.0  # seconds before a kill, at most
PLACE = re.compile(r"^(?P<name>[\w-]+): node \w+ \(.*\), process (?P<process>\d+)", re.MULTILINE)
FINAL = (State.TRAINED, State.TIED, State.EXPIRED, State.FAILED, State.DONE)

SIMULATED = {
    "simulate": True,
    "sampler.candidates": 2,
    "exchange.max_lag": 2,
    "exchange.keep_groups": 20,  # so that groups are pruned between kills
    "cluster.sampler.count": 3,
    "simulation.sample_seconds": 0.05,
    "simulation.step_seconds": 0.1,
    "simulation.tail": 1.0,
}
REAL = {
    "sampler.candidates": 2,
    "sampler.steps": 2,
    "exchange.max_lag": 0,
    "algorithm.refresh_every": 3,
    "cluster.sampler.count": 1,
    "evaluation.prompts": 2,
}


class InvariantViolatedError(AssertionError):
    """The run broke one of its guarantees."""


def configuration(root: Path, kills: int, real: bool, steps: int) -> RunConfig:
    """Small steps, a checkpoint after every third one, and restart limits above the number of kills."""
    flags: dict[str, Any] = {
        "root": root,
        "name": "chaos",
        "mode": "cluster",
        "steps": steps,
        "learner.batch_size": 2,
        "learner.checkpoint_every": 3,
        "exchange.lease_seconds": 5,
        "exchange.max_attempts": kills + 2,
        "cluster.restarts": kills + 1,
        "cluster.restart_seconds": 0.05,
    }
    return load_config(layout.TOON, flags | (REAL if real else SIMULATED))


@dataclass
class Run:
    """A run in another process, started like by a user. Its output goes to `log`."""

    config: RunConfig
    log: Path
    environment: dict[str, str] = field(default_factory=dict)  # in addition to this process's own
    driver: subprocess.Popen[bytes] | None = None
    starts: list[int] = field(default_factory=list)  # offset in the log of each start

    def start(self) -> None:
        """Start or resume the run."""
        file = self.log.with_suffix(".toml")
        file.write_text(to_toml(self.config), "utf-8")
        with self.log.open("ab") as log:
            self.starts.append(log.tell())
            command = [sys.executable, "-m", "deploy.cli", "run", str(file)]
            self.driver = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ | self.environment
            )

    def process(self, role: str) -> psutil.Process | None:
        """A live process of a role, from the driver's output."""
        if self.driver is None:
            return None
        if role == "driver":
            return _alive(self.driver.pid)
        name = "hub" if role == "exchange" else role
        alive = [_alive(process) for worker, process in self.places().items() if worker.startswith(name)]
        return next((process for process in alive if process is not None), None)

    def places(self) -> dict[str, int]:
        """Worker name -> process id, from the driver's output since its last start. The latest one per name."""
        said = self.log.read_bytes()[self.starts[-1] :].decode(errors="replace")
        return {found["name"]: int(found["process"]) for found in PLACE.finditer(said)}

    def steps(self) -> int:
        """The number of recorded optimizer steps, including repeated ones."""
        return len(read_json_lines(self.config.folder / METRICS))

    def ended(self) -> int | None:
        """The driver's exit code; None while it runs."""
        return None if self.driver is None else self.driver.poll()

    def interrupt(self) -> int:
        """Stop the run like a user. Returns the exit code."""
        assert self.driver is not None
        self.driver.send_signal(signal.SIGINT)
        return self.driver.wait(END_SECONDS)

    def orphan(self) -> None:
        """Kill only the driver. Its workers must end by themselves; otherwise they would keep the folder locked."""
        assert self.driver is not None
        family = psutil.Process(self.driver.pid).children(recursive=True)
        workers = [process for process in family if process.name() == "ray::Process"]
        self.driver.kill()
        self.driver.wait(END_SECONDS)
        _, left = psutil.wait_procs(workers, ORPHAN_SECONDS)
        if left or not workers:
            raise InvariantViolatedError(
                f"{len(left)} of {len(workers)} workers still run {ORPHAN_SECONDS:g} s after their driver died"
            )
        _end(family)

    def end(self) -> None:
        """Kill the driver and all processes that it started."""
        if self.driver is not None and self.driver.poll() is None:
            family = psutil.Process(self.driver.pid).children(recursive=True)
            self.driver.kill()
            self.driver.wait(END_SECONDS)
            _end(family)


def _alive(number: int) -> psutil.Process | None:
    try:
        process = psutil.Process(number)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def _end(processes: Sequence[psutil.Process]) -> None:
    """Kill processes that are still running. Ray's own agents outlive their driver by a while."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, END_SECONDS)


def wait_for(what: str, holds: Callable[[], object], run: Run, seconds: float) -> float:
    """Wait until `holds` is true. Returns the seconds it took.

    Raises:
        InvariantViolatedError: it took more than `seconds`, or the run ended.
    """
    began, pause = time.monotonic(), Event()
    while not holds():
        code = run.ended()
        if code is not None:
            raise InvariantViolatedError(
                f"the run ended with {code} while waiting for {what}; last output: {tail(run.log)}"
            )
        if time.monotonic() - began > seconds:
            raise InvariantViolatedError(f"{what} did not happen within {seconds:g} s; last output: {tail(run.log)}")
        pause.wait(0.05)
    return time.monotonic() - began


def tail(log: Path) -> str:
    """The last lines of a run's output."""
    return " | ".join(log.read_text(errors="replace", encoding="utf-8").splitlines()[-6:])


@dataclass
class KillStats:
    """Kills by role, and the slowest recovery."""

    kills: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds from a kill to the next step
    slowest_role: str = ""

    def recovered(self, role: str, seconds: float) -> None:
        """Record that the next step came `seconds` after a kill."""
        self.kills[role] += 1
        if seconds > self.slowest:
            self.slowest, self.slowest_role = seconds, role


def kill_repeatedly(run: Run, kills: int, draw: random.Random, say: Callable[[str], None]) -> KillStats:
    """Kill, wait for the next step, kill again."""
    stats, pause = KillStats(), Event()
    for number in range(kills):
        role = draw.choices(list(ROLES), list(ROLES.values()))[0]
        wait_for(f"a {role}", lambda: run.process(role), run, RECOVERY_SECONDS)  # noqa: B023 - called at once
        pause.wait(draw.uniform(0.0, LONGEST_PAUSE))
        victim = run.process(role)
        if victim is None:  # it died of an earlier kill just now
            continue
        if role == "driver":
            run.orphan()
            before = run.steps()
            run.start()
        else:
            _end([victim])
            before = run.steps()
        seconds = wait_for(f"a step after killing the {role}", lambda: run.steps() > before, run, RECOVERY_SECONDS)  # noqa: B023
        stats.recovered(role, seconds)
        say(f"{number + 1}/{kills}: {role} (process {victim.pid}); the next step came after {seconds:.1f} s")
    return stats


def finish(run: Run, kills: int, real: bool) -> None:
    """Stop the run like a user, then resume it for a few more steps until it finishes."""
    code = run.interrupt()
    if code != 130:
        raise InvariantViolatedError(f"after an interrupt the run ended with {code}: {tail(run.log)}")
    last = max((record["step"] for record in read_json_lines(run.config.folder / METRICS)), default=0)
    run.config = configuration(run.config.root, kills, real, last + 3)
    run.start()
    assert run.driver is not None
    code = run.driver.wait(END_SECONDS)
    if code != 0:
        raise InvariantViolatedError(f"the run did not finish, exit code {code}: {tail(run.log)}")


def verify(run: Run, real: bool) -> dict[str, Any]:
    """Check all invariants. Returns statistics; raises `InvariantViolatedError`."""
    config = run.config
    records = read_json_lines(config.folder / METRICS)
    stalest = max(record["lag_max"] for record in records)
    if stalest > config.exchange.max_lag:
        raise InvariantViolatedError(f"a pair was trained with lag {stalest}; max_lag is {config.exchange.max_lag}")
    exchange = LocalExchange(config.folder, config, open_prompts(config.prompts, config.seed))
    try:
        exchange.check()
        counts = exchange.counts()
        if counts[State.FAILED]:
            raise InvariantViolatedError(f"prompts were lost: {exchange.failures()}")
        rows = exchange._ledger.all("SELECT ordinal, times_trained FROM groups")
        uses = {row["ordinal"]: row["times_trained"] for row in rows}
        gone = retention.count(exchange._ledger, retention.TIMES_TRAINED)  # uses of pruned groups
        wasted = sum(exchange.wasted().values())
    finally:
        exchange.close()
    used = sum(uses.values()) + gone
    if used != config.steps * config.learner.batch_size:
        raise InvariantViolatedError(f"{config.steps} steps used {used} pairs")
    (_check_undisturbed if real else _check_uses)(config, uses, gone)
    repeated = len(records) - len({record["step"] for record in records})
    return {
        "groups": sum(counts.values()), "repeated": repeated, "wasted": wasted, "lag": stalest,
        "uses": used, "steps": config.steps,
    }  # fmt: skip


def _check_uses(config: RunConfig, uses: dict[int, int], gone: int) -> None:
    """Compare the uses counted by the weights with the ledger's."""
    from learner.simulated import USES  # noqa: PLC0415

    result = layout.read_result(config.folder)
    assert result is not None
    counted = WeightStore(config.folder / "weights").load(result["version"])[1][USES].tolist()
    wrong = {o: (counted[o], used) for o, used in uses.items() if o < len(counted) and counted[o] != used}
    twice = [o for o, count in enumerate(counted) if count > config.exchange.max_times_trained]
    if wrong or twice or sum(counted) != sum(uses.values()) + gone:
        raise InvariantViolatedError(f"ordinal: (uses in the weights, in the ledger): {wrong}")


def _check_undisturbed(config: RunConfig, uses: dict[int, int], gone: int) -> None:
    """Check that an undisturbed run in one process ends in the same weights."""
    del uses, gone
    flags = ["--mode", "serial", "--name", "undisturbed"]
    file = config.folder / layout.CONFIG
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # like the workers: the thread count decides the order of sums
    subprocess.run(
        [sys.executable, "-m", "deploy.cli", "run", str(file), *flags],
        check=True, timeout=END_SECONDS, env=environment, capture_output=True,
    )  # fmt: skip
    results = [layout.read_result(config.root / name) for name in (config.name, "undisturbed")]
    digests = [result["weights_digest"] if result else None for result in results]
    if digests[0] is None or digests[0] != digests[1]:
        raise InvariantViolatedError(f"weights {digests[0]} after the kills, {digests[1]} undisturbed")


def run_chaos(root: Path, kills: int, real: bool, seed: int, say: Callable[[str], None]) -> str:
    """The whole test. Returns the line of statistics; raises `InvariantViolatedError`."""
    began = time.monotonic()
    run = Run(configuration(root, kills, real, 100_000), root / "chaos.log")
    run.start()
    try:
        stats = kill_repeatedly(run, kills, random.Random(seed), say)
        finish(run, kills, real)
    finally:
        run.end()
    found = verify(run, real)
    killed = ", ".join(f"{count} {role}" for role, count in sorted(stats.kills.items()))
    proof = "weights as undisturbed, bit for bit" if real else f"each of {found['uses']} uses acted once"
    return (
        f"{sum(stats.kills.values())} kills ({killed}) in {time.monotonic() - began:.0f} s: {found['steps']} steps, "
        f"{found['groups']} prompts, none lost; {proof}; lag at most {found['lag']} of {run.config.exchange.max_lag}; "
        f"{found['repeated']} steps repeated, {found['wasted']} candidates wasted; slowest recovery "
        f"{stats.slowest:.1f} s ({stats.slowest_role})"
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="processes to kill (default: 25)")
    parser.add_argument("--real", action="store_true", help="the embedded model instead of simulated work")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random kills (default: 0)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="douga-chaos-") as folder:
        try:
            print(run_chaos(Path(folder), given.kills, given.real, given.seed, lambda line: print(line, flush=True)))
        except InvariantViolatedError as error:
            print(f"chaos: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
