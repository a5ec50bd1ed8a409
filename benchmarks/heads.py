"""How well the reward heads rank clips: ``python -m benchmarks.heads [--json FILE]``.

It measures Spearman's rank correlation (SRCC). Ours is the head. Other is the best plain pixel signal
(`rewarders/training/pixel_baselines.py`) with the better sign, as a user without trained heads could choose it. Clips:

- rendered clips of characters that no head was trained on, against the renderer's ground truth;
- clips *sampled by the policy* for held-out prompts in 2, 4, 5 and 10 steps, like the several generators of a rating
  set. They have no ground truth, so the reference is the closest score of the oracle. It measures something slightly
  different, so this is a correlation, not an accuracy. In motion three of four clips get 99 points or more,
  so only the others are ranked;
- the same plus half as many clips of a policy *that ignores the prompt*: sampled under the caption of another action,
  and judged by the original prompt. Here clips differ in motion and text.

A policy's clip can also be rated like the heads' training clips: by its difference from the clean clip of the same shot
(`rewarders/toon_heads/training/degradation.py`), and in text by whether the policy got the right prompt. The limit is
the SRCC of this rating with the oracle: what a head reaches that has learned the rating perfectly (heads do not see the
clean clip). It is undefined if the rating is the same for all clips (text, if all prompts were right) or unknown for
some (motion, if some prompts were wrong).
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
from common.messages import Prompt
from common.models.cogvideox import open_model
from common.seeds import candidate_seed
from common.toon.oracle import judge
from common.toon.prompts import ToonPrompts, shot_of
from common.toon.world import ACTIONS, Shot, caption, render
from deploy.run_dir import layout
from rewarders.first_frame import reference_frame
from rewarders.head_files import load_heads
from rewarders.toon_heads.training.dataset import draw_samples
from rewarders.toon_heads.training.degradation import badness
from rewarders.toon_heads.training.evaluate import best_signal, evaluate_heads, evaluate_signals
from rewarders.training.pixel_baselines import measure_signals
from rewarders.training.ranking_metrics import srcc

RENDERED, SAMPLED = 1024, 256
STEPS = (2, 4, 5, 10)  # denoising steps, alternating from prompt to prompt
UNSEEN, POLICY, WRONG_CAPTION = "unseen characters", "policy samples", "policy samples, a third under another caption"
AIMS = {UNSEEN: 0.8, POLICY: 0.6, WRONG_CAPTION: 0.6}
# The oracle's closest score for each dimension: a warped or foreign figure matches no true sprite.
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
    """K sampled clips with their reference values and scores."""

    truths: Mapping[str, np.ndarray]  # dimension -> the oracle's closest score, [K]
    ratings: Mapping[str, np.ndarray]  # dimension -> rating by the rule for training clips, [K]; NaN: unknown
    scores: Mapping[str, np.ndarray]  # dimension -> the head's score, [K]
    plain: Sequence[Mapping[str, float]]  # plain signals of the K clips

    def found(self) -> tuple[Found, Found]:
        """SRCC with the truths: of the heads, and of the best plain signals."""
        heads = {name: srcc(self.scores[name], self.truths[name]) for name in DIMENSIONS}
        return heads, {name: best_signal(self.plain, self.truths[name]) for name in DIMENSIONS}

    def limits(self) -> dict[str, float | None]:
        """SRCC of the ratings with the truths; None if ratings are unknown or all equal."""
        varied = {name: bool(np.ptp(self.ratings[name]) > 0) for name in DIMENSIONS}  # False if any is NaN
        return {name: srcc(self.ratings[name], self.truths[name]) if varied[name] else None for name in DIMENSIONS}

    def __add__(self, other: Judged) -> Judged:
        """The clips of both."""
        pairs = ((self.truths, other.truths), (self.ratings, other.ratings), (self.scores, other.scores))
        truths, ratings, scores = (
            {name: np.concatenate([one[name], two[name]]) for name in DIMENSIONS} for one, two in pairs
        )
        return Judged(truths, ratings, scores, [*self.plain, *other.plain])


def sampled(count: int, wrong_caption: bool = False, seed: int = 1) -> Judged:
    """One clip of the base model per held-out prompt; with `wrong_caption`, under the caption of another action."""
    prompts = ToonPrompts(seed).heldout(count, seed + wrong_caption)
    clips = _sample(prompts, wrong_caption, seed)
    oracle_scores = [judge(clip, shot_of(prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    return Judged(
        {name: np.array([getattr(one, NEAREST[name]) for one in oracle_scores]) for name in DIMENSIONS},
        _rated(clips, [_captioned_shot(prompt, wrong_caption) for prompt in prompts], wrong_caption),
        {head.dimension: np.array(head.score(clips, prompts)) for head in load_heads("toon")},
        [measure_signals(clip, reference_frame(clip, prompt)) for clip, prompt in zip(clips, prompts, strict=True)],
    )


def _sample(prompts: Sequence[Prompt], wrong_caption: bool, seed: int) -> list[np.ndarray]:
    configs = [load_config(layout.TOON, {"sampler.steps": str(steps)}) for steps in STEPS]
    samplers = [Sampler(open_model(config.model.path), config) for config in configs]

    def clip_of(place: int, prompt: Prompt) -> np.ndarray:
        sampler = samplers[place % len(samplers)]
        given_prompt = replace(prompt, text=caption(_captioned_shot(prompt, wrong_caption)))
        seeds = [candidate_seed(seed, "heads", place, int(wrong_caption))]
        return decode_clip(sampler.sample(given_prompt, sampler.encode(given_prompt), seeds, [0])[0].clip)

    return [clip_of(place, prompt) for place, prompt in enumerate(prompts)]


def _captioned_shot(prompt: Prompt, wrong_caption: bool) -> Shot:
    """The shot in the policy's caption: the prompt's own, or, if `wrong_caption`, with the next action."""
    shot, actions = shot_of(prompt), list(ACTIONS)
    return replace(shot, action=actions[(actions.index(shot.action) + wrong_caption) % len(actions)])


def _rated(clips: Sequence[np.ndarray], shots: Sequence[Shot], wrong_caption: bool) -> dict[str, np.ndarray]:
    """Ratings 0 .. 100 of clips that should show `shots`, ``[K]`` per dimension, by the rule for training clips."""
    bad = badness(np.stack(clips), np.stack([render(shot) for shot in shots]), shots)
    rated = {name: 100 * (1 - value.mean(1)) for name, value in bad.items()}
    rated["text"] = np.full(len(clips), 0.0 if wrong_caption else 100.0)
    if wrong_caption:
        rated["motion"] = np.full(len(clips), np.nan)
    return rated


def measure(given: argparse.Namespace) -> Report:
    """All correlations by dimension. Each target is about the lowest one."""
    plain = sampled(given.sampled)
    both = plain + sampled(given.sampled // 2, wrong_caption=True)
    found = {UNSEEN: on_rendered(given.rendered), POLICY: plain.found(), WRONG_CAPTION: both.found()}
    limits = {UNSEEN: {}, POLICY: plain.limits(), WRONG_CAPTION: both.limits()}
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
