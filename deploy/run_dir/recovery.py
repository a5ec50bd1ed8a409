"""Restores a damaged ledger of a run folder from the newest snapshot that belongs to a checkpoint (`douga recover`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.errors.disk import writing
from common.exchange import recovery
from common.exchange.recovery import Recovered
from common.weights.store import WeightStore
from deploy.run_dir import layout
from deploy.run_dir.jsonl import EVENTS, METRICS, JsonLines, read_json_lines
from learner import checkpoint


def recover(folder: Path, config: RunConfig, prompts: PromptSource, notify: Callable[[str], None]) -> Recovered:
    """Restores the ledger, and reports checkpoints that cannot be resumed from through `notify`.

    Raises `ConfigError` if the ledger is healthy, no snapshot belongs to a checkpoint, or a process holds the folder.
    """
    checkpoints = folder / "checkpoints"
    with layout.lock(folder):
        done = recovery.recover(
            folder,
            config,
            prompts,
            checkpoints=checkpoint.steps(checkpoints),
            newest_version=max(WeightStore(folder / "weights").versions(), default=-1),
            before=lambda step: _set_newer_aside(checkpoints, step, notify),
        )
        with JsonLines(folder / EVENTS) as events:
            events.write(event="recovered", step=done.step, damage=done.damage)
    return done


def lines(folder: Path, done: Recovered) -> list[str]:
    """Returns what was restored and what is lost, as lines of text."""
    last = max((record["step"] for record in read_json_lines(folder / METRICS)), default=done.step)
    repeated = f"steps {done.step + 1} to {last} are repeated, and " if last > done.step else ""
    aside = [] if done.aside is None else [f"the damaged ledger is kept as {done.aside}"]
    return [
        done.damage,
        f"{folder}: restored the ledger's snapshot of step {done.step}; the run resumes from there",
        *aside,
        f"lost: {repeated}everything sampled and scored since is made again",
        f"lost: {done.resampled} unfinished groups ({done.discarded} of their clips) are sampled again, "
        f"{done.given_up} pairs or evaluations whose blobs are gone are given up",
        f"resume with: {layout.resume_command(folder)}",
    ]


def _set_newer_aside(checkpoints: Path, step: int, notify: Callable[[str], None]) -> None:
    """Renames checkpoints newer than `step`: they have no snapshot, so a run cannot resume from them."""
    for newer in checkpoint.steps(checkpoints):
        if newer > step:
            place = checkpoint.place(checkpoints, newer)
            with writing(place):
                place.rename(place.with_name(f"unused-{place.name}"))
            notify(f"no sound snapshot belongs to the checkpoint of step {newer}: it is kept as unused-{place.name}")
