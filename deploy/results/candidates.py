"""Scores, checks and describes candidate sets (`douga score SET`, `douga candidates`)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.table import Table

from common.candidate_set.folder import CandidateSet, SetWriter, writing_to
from common.candidate_set.rows import CandidateRow
from common.config import RunConfig
from common.messages import Score, ScoreTask
from rewarders.interface import Judge, Reward
from rewarders.judges import open_rewards
from rewarders.rewarder import Rewarder

SAVE_SECONDS = 30.0  # between two writes of the scores so far


def score_set(config: RunConfig, folder: Path, again: bool, notify: Callable[[str], None]) -> tuple[int, int]:
    """Adds the scores of the configured heads and judges to a set. Returns how many clips were scored, and how many
    could not be.

    A dimension that a candidate has already is scored only with `again`. Scores are saved every `SAVE_SECONDS`, so an
    interrupted command resumes. Raises `ConfigError` if another process writes to the set.
    """
    with writing_to(folder) as writer:
        rewards = open_rewards(config.reward, config.model.device)
        todo = [(reward, rows) for reward in rewards if (rows := _without(writer.set, reward, again))]
        for line in () if again else _of_other_versions(writer.set, rewards):
            notify(line)
        scored = failed = 0
        for reward, rows in todo:
            rewarder = Rewarder([reward], config.reward)
            notify(f"{', '.join(rewarder.dimensions)}: {len(rows)} of {len(writer.set.rows)} candidates to score")
            done, refused = _score(writer, rewarder, rows, config.reward.batch, notify)
            scored, failed = scored + done, failed + refused
        return scored, failed


def _without(candidates: CandidateSet, reward: Reward | Judge, again: bool) -> list[CandidateRow]:
    """The candidates to score: all, or those that lack a dimension of `reward`."""
    rows = list(candidates.rows.values())
    if again:
        return rows
    dimensions = Rewarder([reward], RunConfig().reward).dimensions
    return [row for row in rows if any(name not in row.scores for name in dimensions)]


def _of_other_versions(candidates: CandidateSet, rewards: Sequence[Reward | Judge]) -> Iterator[str]:
    """A line for each dimension that has scores of other weights or code.

    `scored_by` is the version of one reward, or of all that scored a candidate together.
    """
    together = Rewarder(rewards, RunConfig().reward).reward_version
    for reward in rewards:
        alone = Rewarder([reward], RunConfig().reward)
        for name in alone.dimensions:
            versions = [row.scored_by[name] for row in candidates.rows.values() if name in row.scored_by]
            other = sum(version not in (together, alone.reward_version) for version in versions)
            if other:
                yield (
                    f"{name}: {other} of {len(versions)} scores are from other weights or code, or were given together "
                    "with other rewards; they stay, --again replaces them"
                )


def _score(
    writer: SetWriter, rewarder: Rewarder, rows: Sequence[CandidateRow], batch: int, notify: Callable[[str], None]
) -> tuple[int, int]:
    pending: dict[str, Score] = {}
    began = saved = time.monotonic()
    failed = 0
    try:
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            tasks = [ScoreTask(row.name, writer.set.prompt(row), writer.set.clip(row)) for row in part]
            for score in rewarder.score(tasks):
                broken = [name for name, value in score.values.items() if not math.isfinite(value)]
                if broken:
                    failed += 1
                    why = score.problems.get(broken[0], "no finite score")
                    notify(f"{score.candidate_id}: {broken[0]}: {why}; left out")
                else:
                    pending[score.candidate_id] = score
            if time.monotonic() - saved > SAVE_SECONDS:
                writer.add_scores(pending)
                pending, saved = {}, time.monotonic()
                done = first + len(part)
                left = (saved - began) / done * (len(rows) - done)
                notify(f"{done}/{len(rows)} scored, {left / 60:.0f} min left")
    finally:
        if pending:
            writer.add_scores(pending)
    return len(rows) - failed, failed


def summary(candidates: CandidateSet) -> Table:
    """Counts, and for each dimension how many candidates have a score, its mean, and its spread within a group."""
    groups = list(candidates.groups().values())
    sizes = sorted({len(rows) for rows in groups})
    prompts = len({row.prompt_key for row in candidates.rows.values()})
    policies = len({row.weights for row in candidates.rows.values()})
    grid = Table(
        title=f"{candidates.folder}: {len(candidates.rows)} candidates of {prompts} prompts, {policies} policies, "
        f"groups of {' or '.join(map(str, sizes)) or 0}"
    )
    for name in ("dimension", "scored", "mean", "spread in a group"):
        text = name == "dimension"
        grid.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for name in sorted({name for row in candidates.rows.values() for name in row.scores}):
        scored = [[row.scores[name] for row in rows if name in row.scores] for rows in groups]
        values = [value for rows in scored for value in rows]
        spreads = [statistics.stdev(rows) for rows in scored if len(rows) > 1]
        spread = f"{statistics.fmean(spreads):.2f}" if spreads else "-"
        grid.add_row(name, str(len(values)), f"{statistics.fmean(values):.2f}", spread)
    return grid
