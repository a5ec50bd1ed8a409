"""How well the reward heads rank clips: ``python -m benchmarks.heads [--out FILE]``.

Spearman's rank correlation (SRCC), twice:

- on rendered clips of characters that no head was trained on, against the renderer's own truth; beside it a
  plain signal of the pixels with the better sign, as a user without trained heads would take it;
- on clips *sampled by the policy* for held-out prompts. Nobody rendered those, so the truth here is the oracle's
  nearest answer, which judges something a little different: a correlation, not an accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from actors.sampler import Sampler
from benchmarks.machine import describe
from common.clips import decode_clip
from common.config import DIMENSIONS, load_config
from common.exchange import rules
from common.models import open_model
from common.toon.oracle import judge
from common.toon.prompts import ToonPrompts, shot_of
from deploy import run_folder
from rewarders.anime import load_heads
from rewarders.training.agreement import srcc
from rewarders.training.data import draw_samples
from rewarders.training.evaluate import evaluate_heads, evaluate_signals

RENDERED, SAMPLED = 1024, 256
# What the oracle can say about a dimension: a warped or foreign figure fits no true sprite.
NEAREST = {
    "smoothness": "smoothness",
    "motion": "motion",
    "appeal": "identity",
    "text": "motion",
    "image": "identity",
    "character": "identity",
}


def on_rendered(seed: int = 1) -> tuple[dict[str, float], dict[str, float]]:
    """SRCC of heads and of plain signals on `RENDERED` clips of unseen characters."""
    samples = draw_samples(RENDERED, seed, "test", degraded=0.0)
    return evaluate_heads(load_heads("toon"), samples), evaluate_signals(samples)


def on_sampled(seed: int = 1) -> dict[str, float]:
    """SRCC of heads against the oracle's nearest answer on `SAMPLED` clips of the base model."""
    config = load_config(run_folder.TOON)
    sampler = Sampler(open_model(config.model.path), config)
    prompts = ToonPrompts(seed).heldout(SAMPLED, seed)
    clips = [
        decode_clip(sampler.sample(one, sampler.encode(one), [rules.seed(seed, "heads", one.ordinal, 0)], [0])[0].clip)
        for one in prompts
    ]
    verdicts = [judge(clip, shot_of(prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    return {
        head.dimension: srcc(
            np.array(head.score(clips, prompts)), np.array([getattr(v, NEAREST[head.dimension]) for v in verdicts])
        )
        for head in load_heads("toon")
    }


def table() -> str:
    """The results as Markdown."""
    heads, signals = on_rendered()
    policy = on_sampled()
    lines = [
        "# Reward heads: rank correlation (SRCC)",
        "",
        f"{describe()}  ",
        "Command: `python -m benchmarks.heads --out benchmarks/results/heads.md`",
        "",
        f"Left: {RENDERED} rendered clips of characters no head has seen, against the renderer's truth. "
        f"Right: {SAMPLED} clips sampled by the base model, against the oracle's nearest answer.",
        "",
        "| dimension | head | plain signal | head on policy samples | against the oracle's |",
        "|---|---|---|---|---|",
    ]
    rows = [
        f"| {name} | {heads[name]:.2f} | {signals[name]:.2f} | {policy[name]:.2f} | {NEAREST[name]} |"
        for name in DIMENSIONS
    ]
    return "\n".join([*lines, *rows]) + "\n"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="Markdown file to write (default: print)")
    out = parser.parse_args().out
    text = table()
    if out is None:
        print(text)
    else:
        out.write_text(text)


if __name__ == "__main__":
    main()
