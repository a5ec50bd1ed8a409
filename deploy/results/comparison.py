"""Compares the base and the aligned model on held-out prompts with the same seeds, and derives the verdict.

There are two kinds of figures. The *learned* reward is what the run optimised, so the policy may have exploited it. The
*oracle* compares clips with the renderer's ground truth and is never trained on; it exists for toon prompts only. The
verdict is positive if the 95 % interval of the reward's change lies above 0 and the interval of each oracle change lies
above -`ORACLE_TOLERANCE`. So a policy that stops moving to please the reward fails, because the oracle's motion drops.

Clips of one prompt (caption and first frame) are not independent, so figures are means over a prompt's clips first, and
intervals resample distinct prompts (`common/intervals.py`). A clip without a score is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config import DIMENSIONS, RunConfig
from common.data.prompt_keys import prompt_key
from common.data.video import decode_clip
from common.errors import RunFailed
from common.exchange.api import ScoredCandidate
from common.intervals import LEAST_VALUES, Interval, mean_interval, paired_interval
from common.messages import Prompt
from common.reward_composition import mean_score
from deploy.guardrails.rules import REWARD

ORACLE_TOLERANCE = 1.0  # points of 100 by which an oracle interval may extend below 0
MOST_LEFT_OUT = 0.1  # share of the prompts: with more of them left out, those that remain are a biased choice
LEAST_COMPARED = 2  # distinct prompts with a score on both sides: one has no interval
NAMED = 5  # left-out prompts that the verdict names; result.json has all
SIDES = ("base", "aligned")
Pair = tuple[ScoredCandidate, ScoredCandidate]  # the clips of one prompt and seed: base, aligned


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the comparison is positive (None: people have to say), and the reason in one or two sentences."""

    passed: bool | None
    message: str


def measure(scored: ScoredCandidate, config: RunConfig) -> dict[str, dict[str, float]]:
    """Returns one clip's figures, 0..100: ``{"learned": {reward and dimensions}, "oracle": {...} or empty}``.

    Both are empty in a run without a reward.
    """
    if config.reward.empty:
        return {"learned": {}, "oracle": {}}
    ordered = {name: scored.values[name] for name in (*DIMENSIONS, *scored.values) if name in scored.values}
    learned = {REWARD: mean_score(config.reward, scored.values)} | ordered
    return {"learned": learned, "oracle": _oracle(scored.candidate.clip, scored.prompt, config)}


def _oracle(clip: bytes, prompt: Prompt, config: RunConfig) -> dict[str, float]:
    from common.toon.oracle import judge, oracle_applies  # noqa: PLC0415 - torch
    from common.toon.prompts import shot_of  # noqa: PLC0415

    return asdict(judge(decode_clip(clip), shot_of(prompt))) if oracle_applies(config) else {}


def pairs_of(base: Sequence[ScoredCandidate], aligned: Sequence[ScoredCandidate]) -> list[Pair]:
    """Returns the clips of the prompts that have one on both sides, by prompt.

    Raises `ValueError` if the two clips of a prompt differ in its id or in their seeds.
    """
    after = {one.prompt.ordinal: one for one in aligned}
    pairs = [(one, after[one.prompt.ordinal]) for one in base if one.prompt.ordinal in after]
    for one, other in pairs:
        if (one.prompt.id, one.candidate.seed) != (other.prompt.id, other.candidate.seed):
            raise ValueError(f"prompt {one.prompt.id}: base and aligned clips do not pair up")
    return pairs


def by_prompt(pairs: Sequence[Pair], config: RunConfig) -> list[dict[str, Any]]:
    """Returns a record per pair: ``{"id", "prompt", "text", "seed", "base": figures, "aligned": figures}``.

    Figures are those of `measure`. ``prompt`` is equal for equal captions and first frames.
    """
    return [
        {
            "id": before.prompt.id,
            "prompt": prompt_key(before.prompt),
            "text": before.prompt.text,
            "seed": before.candidate.seed,
            "base": measure(before, config),
            "aligned": measure(after, config),
        }
        for before, after in pairs
    ]


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Returns kind (learned, oracle) -> name -> ``base``, ``aligned``, ``change`` -> mean, low, high over prompts.

    A distinct prompt counts once, with the mean of its clips. ``low`` and ``high`` are 95 % intervals over
    distinct prompts, paired by prompt for ``change``.
    """
    prompts = list(dict.fromkeys(record["prompt"] for record in records))
    place = {prompt: number for number, prompt in enumerate(prompts)}
    owners = np.array([place[record["prompt"]] for record in records])
    clips = np.bincount(owners)

    def column(side: str, kind: str, name: str) -> np.ndarray:
        return np.bincount(owners, [record[side][kind][name] for record in records]) / clips

    summary: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for kind in ("learned", "oracle"):
        names = list(records[0]["base"][kind])
        summary[kind] = {name: _change(*(column(side, kind, name) for side in SIDES)) for name in names}
    return summary


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, dict[str, float]]:
    intervals = (mean_interval(before), mean_interval(after), paired_interval(before, after))
    return dict(zip((*SIDES, "change"), map(asdict, intervals), strict=True))


@dataclass(frozen=True, slots=True)
class Compared:
    """How much was compared."""

    asked: int  # clips of each side, `evaluation.prompts`
    clips: int  # clips of each side that both have scores
    prompts: int  # distinct prompts of those
    left_out: Sequence[Mapping[str, str]] = ()  # `HeldOutEvaluation.left_out`

    def __str__(self) -> str:
        return (
            f"{self.clips} held-out prompts"
            if self.clips == self.prompts
            else (f"{self.clips} clips of {self.prompts} held-out prompts")
        )

    @property
    def problems(self) -> list[str]:
        """Why no verdict can rest on it."""
        found = []
        if self.prompts < LEAST_VALUES:
            found.append(
                f"{self.prompts} distinct held-out prompts: an interval needs {LEAST_VALUES} or more; "
                + ("hold out more rows of the prompt file" if self.prompts < self.clips else "compare more of them")
            )
        if self.asked - self.clips > MOST_LEFT_OUT * self.asked:
            found.append(f"more than {100 * MOST_LEFT_OUT:g} % of the clips have no score")
        return found

    @property
    def named(self) -> str:
        """A sentence that names what was left out; empty if nothing was."""
        if not self.left_out:
            return ""
        named = [f"{one['id']} ({one['side']}: {one['reason']})" for one in self.left_out[:NAMED]]
        more = len(self.left_out) - len(named)
        return f" Left out, without a score: {', '.join(named)}{f' and {more} more' if more else ''}."


def decide(reward: Interval, oracle: Mapping[str, Interval], compared: Compared) -> Verdict:
    """Returns the verdict on the changes (aligned - base, points) of the mean reward and of each oracle figure."""
    gain = f"mean reward {reward.mean:+.2f} [{reward.low:+.2f}, {reward.high:+.2f}]"
    problems = compared.problems
    problems += [] if reward.low > 0 else [f"{gain}: the 95 % interval is not above 0"]
    problems += [
        f"oracle {name} {change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]: a fall by more "
        f"than {ORACLE_TOLERANCE:g} point cannot be ruled out"
        for name, change in oracle.items()
        if not change.low > -ORACLE_TOLERANCE
    ]
    if problems:
        return Verdict(False, f"Not verified. {'; '.join(problems)}.{compared.named}")
    held = f"the oracle's {', '.join(oracle)} held" if oracle else "no oracle judges these prompts"
    return Verdict(True, f"Aligned: {gain} on {compared}, and {held}.{compared.named}")


def conclude(
    records: Sequence[Mapping[str, Any]], asked: int, left_out: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """Returns the comparison of `asked` clips for result.json.

    ``asked``, ``clips``, ``prompts`` and ``left_out`` are those of `Compared`; the others are ``verdict``, ``learned``,
    ``oracle`` and ``by_prompt``. Raises `RunFailed` if both sides have scores for less than `LEAST_COMPARED` distinct
    prompts.
    """
    compared = Compared(asked, len(records), len({record["prompt"] for record in records}), list(left_out))
    if compared.prompts < LEAST_COMPARED:
        raise RunFailed(
            f"no verdict: {compared.clips} of {asked} held-out clips have a score on both sides, of {compared.prompts} "
            f"distinct prompts; {LEAST_COMPARED} are needed.{compared.named} The weights are kept: douga export"
        )
    summary = summarise(records)
    verdict = asdict(judge_summary(summary, compared))
    return {**asdict(compared), "verdict": verdict, **summary, "by_prompt": list(records)}


def leave_to_people(
    records: Sequence[Mapping[str, Any]], asked: int, left_out: Sequence[Mapping[str, str]], folder: Path
) -> dict[str, Any]:
    """Returns what `conclude` does, for a run without a reward: no figures, and who compares the clips instead."""
    compared = Compared(asked, len(records), len({record["prompt"] for record in records}), list(left_out))
    verdict = Verdict(
        None,
        f"No reward scores the clips. People can compare base and aligned model on {compared}: "
        f"douga annotate {folder}{compared.named}",
    )
    figures = {"learned": {}, "oracle": {}}
    return {**asdict(compared), "verdict": asdict(verdict), **figures, "by_prompt": list(records)}


def judge_summary(summary: Mapping[str, Any], compared: Compared) -> Verdict:
    """Applies `decide` to the output of `summarise`."""
    changes = {kind: {name: Interval(**row["change"]) for name, row in summary[kind].items()} for kind in summary}
    return decide(changes["learned"][REWARD], changes["oracle"], compared)


def compared_text(result: Mapping[str, Any]) -> str:
    """Returns how much the output of `conclude` compares: "120 held-out prompts", "96 clips of 10 held-out prompts"."""
    return str(Compared(result["asked"], result["clips"], result["prompts"]))


def table(result: Mapping[str, Any]) -> Any:
    """Returns the output of `conclude` as a `rich.table.Table`."""
    from rich.table import Table  # noqa: PLC0415 - keeps `--help` fast

    title = f"{compared_text(result)}, same seeds: means, and change with 95 % interval"
    grid = Table(title=title)
    for name, side in (("judge", "left"), ("", "left"), ("base", "right"), ("aligned", "right"), ("change", "right")):
        figures_column = side == "right"  # never cut; long names wrap
        grid.add_column(name, justify=side, no_wrap=figures_column, overflow="fold")  # type: ignore[arg-type]
    for kind, label in (("learned", "learned reward"), ("oracle", "oracle")):
        for name, row in result[kind].items():
            change = row["change"]
            colour = "green" if change["low"] > 0 else "red" if change["high"] < 0 else ""
            moved = f"{change['mean']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]".replace("[", r"\[")
            figures = [f"{row[side]['mean']:.2f}" for side in SIDES]
            grid.add_row(label, name, *figures, f"[{colour}]{moved}[/]" if colour else moved)
        grid.add_section()
    return grid
