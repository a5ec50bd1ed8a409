"""Compares the base and the aligned model on held-out prompts with the same seeds, and derives the verdict.

There are two kinds of figures. The *learned* reward is what the run optimised, so the policy may have exploited it. The
*oracle* compares clips with the renderer's ground truth and is never trained on; it exists for toon prompts only. The
verdict is positive if the 95 % interval of the reward's change lies above 0 and the interval of each oracle change lies
above -`ORACLE_TOLERANCE`. So a policy that stops moving to please the reward fails, because the oracle's motion drops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.bootstrap import Interval, bootstrap_mean, paired_bootstrap
from common.config import DIMENSIONS, RunConfig
from common.data.video import decode_clip
from common.exchange.api import ScoredCandidate
from common.messages import Prompt
from common.reward_composition import mean_score
from deploy.guardrails.rules import REWARD

ORACLE_TOLERANCE = 1.0  # points of 100 by which an oracle interval may extend below 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the comparison is positive, and the reason in one or two sentences."""

    passed: bool
    message: str


def measure(scored: ScoredCandidate, config: RunConfig) -> dict[str, dict[str, float]]:
    """Returns one clip's figures, 0..100: ``{"learned": {reward and dimensions}, "oracle": {...} or empty}``."""
    ordered = {name: scored.values[name] for name in (*DIMENSIONS, *scored.values) if name in scored.values}
    learned = {REWARD: mean_score(config.reward, scored.values)} | ordered
    return {"learned": learned, "oracle": _oracle(scored.candidate.clip, scored.prompt, config)}


def _oracle(clip: bytes, prompt: Prompt, config: RunConfig) -> dict[str, float]:
    from common.toon.oracle import judge, oracle_applies  # noqa: PLC0415 - torch
    from common.toon.prompts import shot_of  # noqa: PLC0415

    return asdict(judge(decode_clip(clip), shot_of(prompt))) if oracle_applies(config) else {}


def by_prompt(
    base: Sequence[ScoredCandidate], aligned: Sequence[ScoredCandidate], config: RunConfig
) -> list[dict[str, Any]]:
    """Returns a record per held-out prompt: ``{"id", "text", "seed", "base": figures, "aligned": figures}``.

    Figures are those of `measure`. Raises `ValueError` if `base` and `aligned` differ in prompts or seeds.
    """
    records = []
    for before, after in zip(base, aligned, strict=True):
        if (before.prompt.id, before.candidate.seed) != (after.prompt.id, after.candidate.seed):
            raise ValueError(f"prompt {before.prompt.id}: base and aligned clips do not pair up")
        records.append(
            {
                "id": before.prompt.id,
                "text": before.prompt.text,
                "seed": before.candidate.seed,
                "base": measure(before, config),
                "aligned": measure(after, config),
            }
        )
    return records


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Returns kind (learned, oracle) -> name -> ``base``, ``aligned``, ``change`` -> mean, low, high over prompts.

    ``low`` and ``high`` are 95 % bootstrap intervals, paired by prompt for ``change``.
    """
    summary: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for kind in ("learned", "oracle"):
        names = list(records[0]["base"][kind])
        summary[kind] = {name: _change(*(_column(records, side, kind, name) for side in SIDES)) for name in names}
    return summary


SIDES = ("base", "aligned")


def _column(records: Sequence[Mapping[str, Any]], side: str, kind: str, name: str) -> list[float]:
    return [record[side][kind][name] for record in records]


def _change(before: list[float], after: list[float]) -> dict[str, dict[str, float]]:
    intervals = (bootstrap_mean(before), bootstrap_mean(after), paired_bootstrap(before, after))
    return dict(zip((*SIDES, "change"), map(asdict, intervals), strict=True))


def decide(reward: Interval, oracle: Mapping[str, Interval]) -> Verdict:
    """Returns the verdict on the changes (aligned - base, points) of the mean reward and of each oracle figure."""
    gain = f"mean AnimeReward {reward.mean:+.2f} [{reward.low:+.2f}, {reward.high:+.2f}]"
    problems = [] if reward.low > 0 else [f"{gain}: the 95 % interval is not above 0"]
    problems += [
        f"oracle {name} {change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]: a fall by more "
        f"than {ORACLE_TOLERANCE:g} point cannot be ruled out"
        for name, change in oracle.items()
        if not change.low > -ORACLE_TOLERANCE
    ]
    if problems:
        return Verdict(False, f"Not verified. {'; '.join(problems)}.")
    held = f"the oracle's {', '.join(oracle)} held" if oracle else "no oracle judges these prompts"
    return Verdict(True, f"Aligned: {gain}, and {held}.")


def conclude(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the comparison for result.json: ``prompts``, ``verdict``, ``learned``, ``oracle``, ``by_prompt``."""
    summary = summarise(records)
    verdict = asdict(judge_summary(summary))
    return {"prompts": len(records), "verdict": verdict, **summary, "by_prompt": list(records)}


def judge_summary(summary: Mapping[str, Any]) -> Verdict:
    """Applies `decide` to the output of `summarise`."""
    changes = {kind: {name: Interval(**row["change"]) for name, row in summary[kind].items()} for kind in summary}
    return decide(changes["learned"][REWARD], changes["oracle"])


def table(summary: Mapping[str, Any], prompts: int) -> Any:
    """Returns the comparison of `prompts` prompts as a `rich.table.Table`."""
    from rich.table import Table  # noqa: PLC0415 - keeps `--help` fast

    grid = Table(title=f"{prompts} held-out prompts, same seeds: mean, change with 95 % paired bootstrap interval")
    for name, side in (("judge", "left"), ("", "left"), ("base", "right"), ("aligned", "right"), ("change", "right")):
        grid.add_column(name, justify=side)  # type: ignore[arg-type]
    for kind, label in (("learned", "learned reward"), ("oracle", "oracle")):
        for name, row in summary[kind].items():
            change = row["change"]
            colour = "green" if change["low"] > 0 else "red" if change["high"] < 0 else ""
            moved = f"{change['mean']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]".replace("[", r"\[")
            figures = [f"{row[side]['mean']:.2f}" for side in SIDES]
            grid.add_row(label, name, *figures, f"[{colour}]{moved}[/]" if colour else moved)
        grid.add_section()
    return grid
