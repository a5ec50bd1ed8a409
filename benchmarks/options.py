"""Which model, on which device, at which size: the options that the benchmarks of models share, and what follows."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from actors.prompts.source import PromptSource, open_prompts
from benchmarks.device import check_device
from benchmarks.random_models import TOON, open_named
from common.config import RunConfig
from common.messages import Prompt, Purpose
from common.models.cogvideox import ModelFolder
from common.toon.prompts import encode_png
from common.toon.world import caption, draw_shot
from deploy.planning.model_sizes import DEFAULT, families, family_config

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--model",
        {
            "default": TOON,
            "metavar": "NAME",
            "help": f"{TOON}: the embedded model; {', '.join(families())}: a published family's shapes with random "
            f"weights, in bfloat16; or a CogVideoX pipeline folder (default: {TOON})",
        },
    ),
    ("--device", {"default": "cpu", "help": "cpu, cuda:0 (default: cpu)"}),
    ("--frames", {"type": int, "help": "of a clip (default: what the model was trained for)"}),
    ("--height", {"type": int, "help": "pixels; likewise"}),
    ("--width", {"type": int, "help": "pixels; likewise"}),
)

CHECKPOINTING: tuple[str, dict[str, Any]] = (
    "--checkpointing",
    {
        "metavar": "HOW",
        "help": "learner.gradient_checkpointing: off, selective, full (default: toon off, others selective)",
    },
)


def checkpointing_flag(given: argparse.Namespace) -> dict[str, Any]:
    """Which activations are recomputed, as a dotted key."""
    return {"learner.gradient_checkpointing": given.checkpointing or ("off" if given.model == TOON else "selective")}


def checkpointed(config: RunConfig) -> bool:
    """Whether any are."""
    return config.learner.gradient_checkpointing != "off"


def open_given(given: argparse.Namespace) -> ModelFolder:
    """The model of ``--model``, when there is such a device. `ConfigError` where not."""
    check_device(given.device)
    return open_named(given.model)


def model_flags(given: argparse.Namespace) -> dict[str, Any]:
    """The section ``model`` as dotted keys: what the model was trained for, and over it what was asked for."""
    flags: dict[str, Any] = {"model.path": given.model, "model.device": given.device}
    if given.model != TOON:
        clip = family_config(given.model if given.model in families() else DEFAULT, "clip")
        flags |= {"model.dtype": "bfloat16"} | {f"model.{key}": value for key, value in clip.items()}
    asked = {f"model.{key}": getattr(given, key) for key in ("frames", "height", "width")}
    return flags | {key: value for key, value in asked.items() if value is not None}


def prompts_for(given: argparse.Namespace, model: ModelFolder) -> PromptSource:
    """The toon world's for the toon model; for others pictures that need no sprites, since only sizes matter."""
    return open_prompts(TOON, 0) if given.model == TOON else Pictures(model.image_conditioned)


class Pictures:
    """Prompts in the toon world's words. Their first frames are a few random colours, which the sampler scales up."""

    def __init__(self, with_image: bool) -> None:
        self._with_image = with_image

    def __call__(self, ordinal: int) -> Prompt:
        """See `PromptSource`."""
        return self._draw("train", ordinal, Purpose.TRAIN)

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """See `PromptSource`; there is nothing to hold out from whom nobody trains."""
        del seed
        return [self._draw("heldout", ordinal, Purpose.EVAL) for ordinal in range(count)]

    def _draw(self, split: str, ordinal: int, purpose: Purpose) -> Prompt:
        rng = np.random.default_rng((split == "train", ordinal))
        text = caption(draw_shot(rng, split))
        image = encode_png(rng.integers(0, 256, (6, 8, 3), np.uint8)) if self._with_image else None
        return Prompt(ordinal, f"{split}-{ordinal}", text, image, purpose)
