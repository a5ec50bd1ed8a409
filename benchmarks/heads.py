"""How well the reward heads rank clips: ``python -m benchmarks.heads [--json FILE]``.

Spearman's rank correlation (SRCC); ours is the head, other the best of the plain signals of the pixels
(`rewarders/training/pixel_baselines.py`), each with the better sign, as a user without trained heads would take them:

- on rendered clips of characters that no head was trained on, against the renderer's own truth;
- on clips *sampled by the policy* for held-out prompts, in 2, 4, 5 and 10 steps, as a rating set has clips of several
  generators. Nobody rendered those, so the truth here is the oracle's nearest answer, which judges something a little
  different: a correlation, not an accuracy. In motion it gives three of four 99 points or more, and ranks the others;
- on the same together with clips of a policy *that does not listen*: half as many again, sampled under the caption of
  another action, and judged by the one that was asked for. Here motion and text tell clips apart.

A policy's clip can also be rated as the heads' training clips are: by how it differs from the clean one of the same
shot (`rewarders/toon_heads/training/degradation.py`), and in text by whether the policy heard the prompt. No head sees
that clip, so the SRCC of this rating with the oracle, the limit, is what a head reaches that learned it perfectly.
There is none where the rating is the same for all clips (text, where all heard), or unknown for some (motion, where
some did not).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.sampler import Sampler
from benchmarks.harness import Aim, Report, Row, main
from common.config import DIMENSIONS, load_config
from common.data.video import decode_clip
from common.exchange import rules
from common.messages import Prompt
from common.models.cogvideox import open_model
from common.toon.oracle import judge
from common.toon.prompts import ToonPrompts, shot_of
from common.toon.world import ACTIONS, Shot, caption, render
from deploy.run_dir import layout
from rewarders.checkpoints import load_heads
from rewarders.toon_heads.heads import first_frame
from rewarders.toon_heads.training.dataset import draw_samples
from rewarders.toon_heads.training.degradation import badness
from rewarders.toon_heads.training.evaluate import best_signal, evaluate_heads, evaluate_signals
from rewarders.training.pixel_baselines import measure_signals
from rewarders.training.ranking_metrics import srcc

RENDERED, SAMPLED = 1024, 256
STEPS = (2, 4, 5, 10)  # of the sampler, prompt by prompt in turn
UNSEEN, POLICY, DEAF = "unseen characters", "policy samples", "policy samples, a third under another caption"
AIMS = {UNSEEN: 0.8, POLICY: 0.6, DEAF: 0.6}
# What the oracle can say about a dimension: a warped or foreign figure fits no true sprite.
NEAREST = {
    "smoothness": "smoothness",
    "motion": "motion",
    "appeal": "identity",
    "text": "motion",
    "image": "identity",
    "character": "identity",
}
Found = Mapping[str, float]


def on_rendered(count: int, seed: int = 1) -> tuple[Found, Found]:
    """SRCC of heads and of plain signals on `count` clips of unseen characters."""
    samples = draw_samples(count, seed, "test", degraded=0.0)
    return evaluate_heads(load_heads("toon"), samples), evaluate_signals(samples)


@dataclass(frozen=True)
class Judged:
    """K clips of one sampler, and what is said of them."""

    truths: Mapping[str, np.ndarray]  # dimension -> the oracle's nearest answer, [K]
    ratings: Mapping[str, np.ndarray]  # dimension -> how a training clip like it would be rated, [K]; NaN: unknown
    scores: Mapping[str, np.ndarray]  # dimension -> the head's, [K]
    plain: Sequence[Mapping[str, float]]  # K clips' signals

    def found(self) -> tuple[Found, Found]:
        """SRCC with the truths of heads and of the best plain signals."""
        heads = {name: srcc(self.scores[name], self.truths[name]) for name in DIMENSIONS}
        return heads, {name: best_signal(self.plain, self.truths[name]) for name in DIMENSIONS}

    def limits(self) -> dict[str, float | None]:
        """SRCC with the truths of the training clips' rating, where it is known and not the same for all."""
        varied = {name: bool(np.ptp(self.ratings[name]) > 0) for name in DIMENSIONS}  # not so where one is NaN
        return {name: srcc(self.ratings[name], self.truths[name]) if varied[name] else None for name in DIMENSIONS}

    def __add__(self, other: Judged) -> Judged:
        """The clips of both."""
        pairs = ((self.truths, other.truths), (self.ratings, other.ratings), (self.scores, other.scores))
        truths, ratings, scores = (
            {name: np.concatenate([one[name], two[name]]) for name in DIMENSIONS} for one, two in pairs
        )
        return Judged(truths, ratings, scores, [*self.plain, *other.plain])


def sampled(count: int, deaf: bool = False, seed: int = 1) -> Judged:
    """One clip of the base model for each of `count` held-out prompts; `deaf`: under another action's caption."""
    prompts = ToonPrompts(seed).heldout(count, seed + deaf)
    clips = _sample(prompts, deaf, seed)
    verdicts = [judge(clip, shot_of(prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    return Judged(
        {name: np.array([getattr(verdict, NEAREST[name]) for verdict in verdicts]) for name in DIMENSIONS},
        _rated(clips, [_drawn(prompt, deaf) for prompt in prompts], deaf),
        {head.dimension: np.array(head.score(clips, prompts)) for head in load_heads("toon")},
        [measure_signals(clip, first_frame(clip, prompt)) for clip, prompt in zip(clips, prompts, strict=True)],
    )


def _sample(prompts: Sequence[Prompt], deaf: bool, seed: int) -> list[np.ndarray]:
    configs = [load_config(layout.TOON, {"sampler.steps": str(steps)}) for steps in STEPS]
    samplers = [Sampler(open_model(config.model.path), config) for config in configs]

    def clip_of(place: int, prompt: Prompt) -> np.ndarray:
        sampler = samplers[place % len(samplers)]
        heard = replace(prompt, text=caption(_drawn(prompt, deaf)))
        seeds = [rules.seed(seed, "heads", place, int(deaf))]
        return decode_clip(sampler.sample(heard, sampler.encode(heard), seeds, [0])[0].clip)

    return [clip_of(place, prompt) for place, prompt in enumerate(prompts)]


def _drawn(prompt: Prompt, deaf: bool) -> Shot:
    """What the policy is told to draw: what was asked for, or the next action in its place."""
    shot, actions = shot_of(prompt), list(ACTIONS)
    return replace(shot, action=actions[(actions.index(shot.action) + deaf) % len(actions)])


def _rated(clips: Sequence[np.ndarray], shots: Sequence[Shot], deaf: bool) -> dict[str, np.ndarray]:
    """The rating of clips that were to show `shots`, 0 .. 100, ``[K]`` by dimension, as the heads' training has it."""
    bad = badness(np.stack(clips), np.stack([render(shot) for shot in shots]), shots)
    rated = {name: 100 * (1 - value.mean(1)) for name, value in bad.items()}
    rated["text"] = np.full(len(clips), 0.0 if deaf else 100.0)
    if deaf:
        rated["motion"] = np.full(len(clips), np.nan)
    return rated


def measure(given: argparse.Namespace) -> Report:
    """All correlations of every dimension; an aim is about the least of them."""
    plain = sampled(given.sampled)
    both = plain + sampled(given.sampled // 2, deaf=True)
    found = {UNSEEN: on_rendered(given.rendered), POLICY: plain.found(), DEAF: both.found()}
    limits = {UNSEEN: {}, POLICY: plain.limits(), DEAF: both.limits()}
    rows, aims = [], []
    for where, (heads, signals) in found.items():
        for name in DIMENSIONS:
            against = "the renderer's truth" if where == UNSEEN else f"the oracle's {NEAREST[name]}"
            case = f"{where}: {name}, against {against}"
            rows.append(Row(case, "SRCC", heads[name], signals[name], limits[where].get(name)))
        least = min(heads[name] for name in DIMENSIONS)
        aims.append(Aim(f"every head on {where}", least, f">= {AIMS[where]}", least >= AIMS[where]))
    return Report("heads", rows, aims, ("torch", "diffusers", "opencv-python-headless"))


OPTIONS = (
    ("--rendered", {"type": int, "default": RENDERED, "help": f"rendered clips (default: {RENDERED})"}),
    (
        "--sampled",
        {
            "type": int,
            "default": SAMPLED,
            "help": f"sampled clips, and half as many again under another caption (default: {SAMPLED})",
        },
    ),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
