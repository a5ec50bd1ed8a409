"""Every method of the papers on the toon world, in one table: ``python -m benchmarks.methods [--json FILE]``.

Each method is the toon run (`deploy/launch/configs/toon.toml`) with a few keys changed, in one process and without lag.
All take equally many steps and use each group once. Those that compare candidates sample equally many clips (steps x
batch x candidates); offline methods share one candidate set of the base model. Those that follow a reward's gradient
sample one clip of each group, and the learner denoises another one, which counts as time and not as a clip. All are
evaluated together on the same held-out prompts with the same seeds.

The table has the base model's means, and each method's change with its 95 % interval over prompts. With several seeds
a change is the mean over the seeds, and the lowest and the highest mean change of the reward of a seed are shown too.
Clips and minutes include the data of a method: a shared set counts in full in every row, and stage 2 includes stage 1.

The same command resumes, and reuses the runs of methods that it has trained. Other `--steps` need another `--root`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Report, main
from benchmarks.training.data import Candidates, RatedClips, RealClips
from benchmarks.training.figures import grid_of
from benchmarks.training.runs import Study, Variant, train_all
from common.errors import ConfigError

STEPS, PROMPTS = 12, 240
OFFLINE = Candidates()
REFRESHES = 5  # of OnlineVPO in a run, as in deploy/launch/configs/onlinevpo.toml

SFT = {"algorithm.name": "sft"}
DPO = {"algorithm.name": "dpo", "algorithm.refresh_every": "0"}
GAPO = {"algorithm.name": "gapo", "algorithm.refresh_every": "0", "algorithm.normalise_gap": "false"}
GRADIENT = {"sampler.candidates": "1"}  # the learner denoises clips itself, one of each group
# HuViDPO's settings (docs/papers.md) with ten times its learning rates, as the toon run has ten times GAPO's: the model
# is small and a run short.
STAGE_1 = Variant(
    "huvidpo-1",
    "HuViDPO, stage 1: SFT of the attention on real clips",
    SFT | {"learner.trainable": "*.attn1.*", "learner.lr": "3e-4", "learner.weight_decay": "1e-2"},
    RealClips(),
)


def methods(steps: int) -> tuple[Variant, ...]:
    """The rows. A method of yours is one entry: a label, a title, keys, and data if it is not online."""
    vpo = DPO | {"algorithm.refresh_every": str(max(1, steps // REFRESHES))}
    stage_2 = {"algorithm.name": "human_pairs", "algorithm.beta": "50", "learner.train": "lora", "learner.lr": "1e-3",
               "learner.lora.alpha": "32", "learner.weight_decay": "1e-4"}  # fmt: skip
    return (
        Variant("offline-sft", "SFT on the best of N, offline", SFT, OFFLINE),
        Variant("offline-dpo", "DPO, offline", DPO, OFFLINE),
        Variant("offline-gapo", "GAPO, offline (as its paper)", GAPO, OFFLINE),
        Variant("online-sft", "SFT on the best of N, online", SFT),
        Variant("online-dpo", "DPO, online, frozen reference", DPO),
        Variant("onlinevpo", f"OnlineVPO: DPO, online, K = {vpo['algorithm.refresh_every']}", vpo),
        Variant("online-gapo", "GAPO, online, frozen reference", GAPO),
        Variant("refl", "ReFL: gradient of the reward", GRADIENT | {"algorithm.name": "refl"}),
        Variant(
            "instruct-video",
            "InstructVideo: the same, of a few frames",
            GRADIENT | {"algorithm.name": "instruct_video"},
        ),
        Variant(
            "vader",
            "VADER: the same, through the last step",
            GRADIENT | {"algorithm.name": "vader", "algorithm.frames": "0"},
        ),
        STAGE_1,
        Variant("huvidpo-2", "HuViDPO, stage 2: LoRA on pairs of rated clips", stage_2, RatedClips(STAGE_1)),
    )


def chosen(variants: Sequence[Variant], labels: str) -> list[Variant]:
    """The variants with these labels, separated by commas; all if it is empty. Raises `ConfigError` for others."""
    asked = [label for label in labels.split(",") if label]
    known = [variant.label for variant in variants]
    wrong = next((label for label in asked if label not in known), None)
    if wrong is not None:
        raise ConfigError(f"--only {wrong}: allowed are {', '.join(known)}")
    return [variant for variant in variants if not asked or variant.label in asked]


def measure(given: argparse.Namespace) -> Report:
    """Trains what is missing, evaluates all models, and returns the table."""
    if given.seeds < 1 or given.steps < 1 or given.prompts < 2:
        raise ConfigError("--seeds and --steps must be at least 1, --prompts at least 2")
    study = Study(given.root, {"steps": str(given.steps)}, given.prompts)
    variants, seeds = chosen(methods(given.steps), given.only), range(given.seeds)
    runs = train_all(study, variants, seeds)
    return Report("methods", [], [], ("torch", "diffusers", "peft"), grid=grid_of(study.evaluate(runs), variants, runs))


OPTIONS = (
    (
        "--root",
        {
            "type": Path,
            "default": Path("runs/methods"),
            "metavar": "DIR",
            "help": "folder of all runs (default: runs/methods)",
        },
    ),
    ("--only", {"default": "", "metavar": "LABEL,...", "help": "only these methods (default: all)"}),
    ("--seeds", {"type": int, "default": 1, "help": "runs per method, with the run seeds 0, 1, ... (default: 1)"}),
    ("--steps", {"type": int, "default": STEPS, "help": f"optimizer steps of a run (default: {STEPS})"}),
    ("--prompts", {"type": int, "default": PROMPTS, "help": f"held-out prompts (default: {PROMPTS})"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
