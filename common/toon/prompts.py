"""Toon prompts: a shot's clean first frame and caption; and the reverse, the shot of a prompt's id.

The id encodes the shot, e.g. ``toon-zombie-cave-jump-x12-p3``, so that the oracle knows from the prompt alone what a
clip should show.
"""

from __future__ import annotations

import re

import numpy as np

from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt, Purpose
from common.toon.world import ACTIONS, AS_DRAWN, CHARACTERS, SCENES, Shot, caption, combinations, draw_shot, render

_ID = re.compile(
    r"toon-(?P<character>[a-z_+]+)-(?P<scene>[a-z_]+)-(?P<action>[a-z_]+)-x(?P<x>-?\d+)-p(?P<phase>\d+)(-c(?P<look>\d+\.\d+\.\d+))?"
)
_TRAIN, _HELDOUT = 1, 2  # random streams


def prompt_of(shot: Shot, ordinal: int, purpose: Purpose = Purpose.TRAIN) -> Prompt:
    """The prompt for `shot`: its clean first frame as PNG, and its caption."""
    return Prompt(
        ordinal=ordinal,
        id=shot_id(shot),
        text=caption(shot),
        image=encode_png(render(shot)[0]),
        purpose=purpose,
        character=shot.character,
        category=shot.action,
    )


def shot_id(shot: Shot) -> str:
    """``toon-CHARACTER-SCENE-ACTION-xX-pPHASE``, plus ``-cLOOK`` if the shot is recoloured."""
    recoloured = "" if shot.look == AS_DRAWN else "-c{}.{}.{}".format(*shot.look)
    return f"toon-{shot.character}-{shot.scene}-{shot.action}-x{shot.x}-p{shot.phase}{recoloured}"


def shot_of(prompt: Prompt) -> Shot:
    """The shot that a toon prompt asks for. Raises `ConfigError` for any other prompt."""
    found = _ID.fullmatch(prompt.id)
    known = found and (
        set(parts := found["character"].split("+")) <= set(CHARACTERS)
        and len(parts) in (1, 3)
        and found["scene"] in SCENES
        and found["action"] in ACTIONS
    )
    if not found or not known:
        raise ConfigError(f"prompt {prompt.id!r}: not a prompt of the toon world, so the oracle cannot judge it")
    head, shirt, legs = map(int, (found["look"] or "0.0.0").split("."))
    return Shot(
        found["character"],
        found["scene"],
        found["action"],
        int(found["x"]),
        int(found["phase"]),
        (head, shirt, legs),
    )


class ToonPrompts:
    """Endless training prompts: `source(ordinal)` is a pure function of (seed, ordinal)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, ordinal: int) -> Prompt:
        rng = np.random.default_rng((self._seed, _TRAIN, ordinal))
        return prompt_of(draw_shot(rng, "train"), ordinal)

    @property
    def training_prompts(self) -> None:
        """None: there is no end of them."""
        return None

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """`count` prompts of held-out combinations. No combination repeats before all have been used."""
        order = np.random.default_rng((seed, _HELDOUT)).permutation(len(combinations("heldout")))
        prompts = []
        for i in range(count):
            rng = np.random.default_rng((seed, _HELDOUT, i))
            shot = draw_shot(rng, "heldout", index=int(order[i % len(order)]))
            prompts.append(prompt_of(shot, i, Purpose.EVAL))
        return prompts
