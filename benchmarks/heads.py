"""How well the reward heads rank clips: ``python -m benchmarks.heads [--json FILE]``.

Spearman's rank correlation (SRCC), twice; ours is the head, other the best of the plain signals of the pixels
(`rewarders/training/signals.py`), each with the better sign, as a user without trained heads would take them:

- on rendered clips of characters that no head was trained on, against the renderer's own truth;
- on clips *sampled by the policy* for held-out prompts. Nobody rendered those, so the truth here is the oracle's
  nearest answer, which judges something a little different: a correlation, not an accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

from actors.sampler import Sampler
from benchmarks.report import Aim, Report, Row, main
from common.clips import decode_clip
from common.config import DIMENSIONS, load_config
from common.exchange import rules
from common.messages import Prompt
from common.models import open_model
from common.toon.oracle import judge
from common.toon.prompts import ToonPrompts, shot_of
from deploy import run_folder
from rewarders.anime import load_heads
from rewarders.anime.head import first_frame
from rewarders.training.agreement import srcc
from rewarders.training.data import draw_samples
from rewarders.training.evaluate import best_signal, evaluate_heads, evaluate_signals
from rewarders.training.signals import measure as signals_of

RENDERED, SAMPLED = 1024, 256
AIMS = {"unseen characters": 0.8, "policy samples": 0.6}
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


def on_sampled(count: int, seed: int = 1) -> tuple[Found, Found]:
    """SRCC of heads and of plain signals with the oracle's nearest answer on `count` clips of the base model."""
    prompts, clips = sampled(count, seed)
    verdicts = [judge(clip, shot_of(prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    plain = [signals_of(clip, first_frame(clip, prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    truths = {name: np.array([getattr(verdict, NEAREST[name]) for verdict in verdicts]) for name in DIMENSIONS}
    scores = {head.dimension: np.array(head.score(clips, prompts)) for head in load_heads("toon")}
    heads = {name: srcc(scores[name], truths[name]) for name in DIMENSIONS}
    return heads, {name: best_signal(plain, truths[name]) for name in DIMENSIONS}


def sampled(count: int, seed: int) -> tuple[list[Prompt], list[np.ndarray]]:
    """One clip of the base model for each of `count` held-out prompts."""
    config = load_config(run_folder.TOON)
    sampler = Sampler(open_model(config.model.path), config)
    prompts = ToonPrompts(seed).heldout(count, seed)
    clips = [
        decode_clip(sampler.sample(one, sampler.encode(one), [rules.seed(seed, "heads", one.ordinal, 0)], [0])[0].clip)
        for one in prompts
    ]
    return prompts, clips


def measure(given: argparse.Namespace) -> Report:
    """Both correlations of every dimension; an aim is about the least of them."""
    found = {"unseen characters": on_rendered(given.rendered), "policy samples": on_sampled(given.sampled)}
    rows, aims = [], []
    for where, (heads, signals) in found.items():
        for name in DIMENSIONS:
            against = "the renderer's truth" if where == "unseen characters" else f"the oracle's {NEAREST[name]}"
            rows.append(Row(f"{where}: {name}, against {against}", "SRCC", heads[name], signals[name]))
        least = min(heads[name] for name in DIMENSIONS)
        aims.append(Aim(f"every head on {where}", least, f">= {AIMS[where]}", least >= AIMS[where]))
    return Report("heads", rows, aims, ("torch", "diffusers", "opencv-python-headless"))


OPTIONS = (
    ("--rendered", {"type": int, "default": RENDERED, "help": f"rendered clips (default: {RENDERED})"}),
    ("--sampled", {"type": int, "default": SAMPLED, "help": f"sampled clips (default: {SAMPLED})"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
