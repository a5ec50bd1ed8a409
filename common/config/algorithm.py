"""The ``[algorithm]`` section: its ``name`` picks a class, and the class says which other keys there are.

An algorithm is a class (`learner/algorithms/base.py`): one of `BUILT_IN`, or any class named ``package.module:Class``.
Its ``Config``, an `AlgorithmConfig`, is the section. Importing a built-in one does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import Field

from common.config.section import Section

BUILT_IN = {
    "gapo": "learner.algorithms.gapo:Gapo",
    "dpo": "learner.algorithms.dpo:Dpo",
    "sft": "learner.algorithms.sft:Sft",
    "human_pairs": "learner.algorithms.human_pairs:HumanPairs",
    "refl": "learner.algorithms.refl:Refl",
    "instruct_video": "learner.algorithms.instruct_video:InstructVideo",
    "vader": "learner.algorithms.vader:Vader",
}
DEFAULT = "gapo"


class AlgorithmConfig(Section):
    """The keys of every algorithm. Each algorithm adds its own keys in a subclass."""

    name: str = Field(
        default=DEFAULT, description=f"{', '.join(BUILT_IN)}, or a class of your own as package.module:Class"
    )


@cache
def algorithm_class(name: str) -> Any:
    """The `Algorithm` class called `name`. Raises `ValueError` when there is none."""
    module, colon, attribute = BUILT_IN.get(name, name).partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"name = {name!r}: allowed are {', '.join(BUILT_IN)}, or a class as package.module:Class")
    try:
        found = getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(f"name = {name!r}: cannot be imported: {error}") from None
    if not all(hasattr(found, part) for part in ("Config", "select", "loss", "min_candidates", "needs_rollouts")):
        raise ValueError(f"name = {name!r}: {module} has no Algorithm called {attribute} (learner/algorithms/base.py)")
    return found


def section_of(data: Mapping[str, Any]) -> AlgorithmConfig:
    """The section as its algorithm reads it. Raises `ValueError` for an unknown name, or wrong keys and values."""
    return algorithm_class(str(data.get("name", DEFAULT))).Config(**data)


def open_algorithm(config: AlgorithmConfig) -> Any:
    """The algorithm that a validated section describes."""
    return algorithm_class(config.name)(config)
