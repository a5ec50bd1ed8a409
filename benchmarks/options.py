"""Options that the model benchmarks share (model, device, clip size), and what they open."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from actors.prompts.source import PromptSource, open_prompts
from benchmarks.device import check_device
from benchmarks.random_models import TOON, open_named
from common.config import RunConfig
from common.images import encode_png
from common.messages import Prompt, Purpose
from common.models.cogvideox import ModelFolder
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
    ("--frames", {"type": int, "help": "frames per clip (default: what the model was trained for)"}),
    ("--height", {"type": int, "help": "pixels (default: what the model was trained for)"}),
    ("--width", {"type": int, "help": "pixels (default: what the model was trained for)"}),
)

CHECKPOINTING: tuple[str, dict[str, Any]] = (
    "--checkpointing",
    {
        "metavar": "HOW",
        "help": "learner.gradient_checkpointing: off, selective, full (default: toon off, others selective)",
    },
)


def checkpointing_flag(given: argparse.Namespace) -> dict[str, Any]:
    """The setting of activation checkpointing, as a dotted key."""
    return {"learner.gradient_checkpointing": given.checkpointing or ("off" if given.model == TOON else "selective")}


def checkpointed(config: RunConfig) -> bool:
    """Whether activation checkpointing is on."""
    return config.learner.gradient_checkpointing != "off"


def open_given(given: argparse.Namespace) -> ModelFolder:
    """Open the model of ``--model``. Raises `ConfigError` for an unknown model or device."""
    check_device(given.device)
    return open_named(given.model)


def model_flags(given: argparse.Namespace) -> dict[str, Any]:
    """The section ``model`` as dotted keys: the sizes the model was trained for, overridden by the given options."""
    flags: dict[str, Any] = {"model.path": given.model, "model.device": given.device}
    if given.model != TOON:
        clip = family_config(given.model if given.model in families() else DEFAULT, "clip")
        flags |= {"model.dtype": "bfloat16"} | {f"model.{key}": value for key, value in clip.items()}
    asked = {f"model.{key}": getattr(given, key) for key in ("frames", "height", "width")}
    return flags | {key: value for key, value in asked.items() if value is not None}


def prompts_for(given: argparse.Namespace, model: ModelFolder) -> PromptSource:
    """Toon prompts for the toon model, otherwise prompts with random images: only sizes matter there."""
    return open_prompts(TOON, 0) if given.model == TOON else RandomImagePrompts(model.image_conditioned)


class RandomImagePrompts:
    """Prompts with the toon world's captions and first frames of a few random colours, which the sampler scales up."""

    def __init__(self, with_image: bool) -> None:
        self._with_image = with_image

    def __call__(self, ordinal: int) -> Prompt:
        """See `PromptSource`."""
        return self._draw("train", ordinal, Purpose.TRAIN)

    @property
    def training_prompts(self) -> None:
        """See `PromptSource`."""
        return None

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """See `PromptSource`."""
        del seed
        return [self._draw("heldout", ordinal, Purpose.EVAL) for ordinal in range(count)]

    def _draw(self, split: str, ordinal: int, purpose: Purpose) -> Prompt:
        rng = np.random.default_rng((split == "train", ordinal))
        text = caption(draw_shot(rng, split))
        image = encode_png(rng.integers(0, 256, (6, 8, 3), np.uint8)) if self._with_image else None
        return Prompt(ordinal, f"{split}-{ordinal}", text, image, purpose)
