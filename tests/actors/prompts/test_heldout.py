"""Held-out prompts: distinct by caption and first frame, and the probes apart from the comparison's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.prompts.heldout import HeldOutPrompts, heldout_prompts
from actors.prompts.source import open_prompts
from common.config import load_config
from common.data.prompt_keys import prompt_key
from common.errors import ConfigError
from common.messages import Prompt


def drawn(folder: Path, rows: list[tuple[str, int]], comparison: int = 96, probes: int = 8) -> HeldOutPrompts:
    """The held-out prompts of a file with these (caption, grey value of the first frame), all held out but one."""
    for value in {value for _, value in rows}:
        Image.fromarray(np.full((48, 64, 3), value, np.uint8)).save(folder / f"{value}.png")
    table = [{"prompt": text, "image": f"{value}.png", "split": "heldout"} for text, value in rows]
    table.append(table[0] | {"prompt": "for training", "split": "train"})
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, table)))
    values = {"prompts": str(file), "evaluation.prompts": comparison, "guardrails.prompts": probes}
    return heldout_prompts(open_prompts(str(file), 0, size=(48, 64)), load_config(None, values))


def keys(prompts: list[Prompt]) -> set[str]:
    return {prompt_key(prompt) for prompt in prompts}


def test_probes_are_other_prompts_than_the_comparisons(tmp_path: Path) -> None:
    found = drawn(tmp_path, [(f"text {i}", 9) for i in range(18)])
    assert len(found.comparison) == 96
    assert len(keys(found.comparison)) == 10
    assert len(found.probes) == len(keys(found.probes)) == 8
    assert keys(found.comparison).isdisjoint(keys(found.probes))
    assert [prompt.ordinal for prompt in found.comparison] == list(range(96))
    assert [prompt.ordinal for prompt in found.probes] == list(range(8))


def test_with_more_prompts_the_comparison_stays_apart_from_the_probes(tmp_path: Path) -> None:
    rows = [(f"text {i}", 9) for i in range(60)]
    few, many = drawn(tmp_path, rows, comparison=20), drawn(tmp_path, rows, comparison=40)
    assert few.probes == many.probes
    assert many.comparison[:20] == few.comparison
    assert len(keys(many.comparison)) == 40
    assert keys(many.comparison).isdisjoint(keys(many.probes))


def test_with_few_prompts_the_comparison_has_them_all(tmp_path: Path) -> None:
    found = drawn(tmp_path, [(f"text {i}", 9) for i in range(17)])
    assert len(keys(found.comparison)) == 17
    assert keys(found.probes) <= keys(found.comparison)


def test_a_prompt_is_caption_and_first_frame(tmp_path: Path) -> None:
    found = drawn(tmp_path, [("walk", 1), ("walk", 2), ("jump", 1), ("walk", 1), ("walk", 2)], comparison=6, probes=0)
    assert len(keys(found.comparison)) == 3
    assert [prompt_key(prompt) for prompt in found.comparison[:3]] == [prompt_key(p) for p in found.comparison[3:]]
    assert found.probes == []


def test_one_prompt_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 distinct held-out prompt .*; the comparison needs 2 or more"):
        drawn(tmp_path, [("walk", 1), ("walk", 1)])


def test_the_toon_world_has_enough() -> None:
    config = load_config(None, {"evaluation.prompts": 120})
    found = heldout_prompts(open_prompts("toon", 0), config)
    assert len(keys(found.comparison)) == 120  # drawn at random, some come twice
    assert keys(found.comparison).isdisjoint(keys(found.probes))
    assert len(found.probes) == 8
