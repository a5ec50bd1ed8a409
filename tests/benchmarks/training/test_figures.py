"""The table in numbers that can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Cell, cell_text
from benchmarks.training.figures import grid_of
from benchmarks.training.runs import Cost, Trained, Variant

DPO = Variant("dpo", "DPO", {})
KEYS = [f"p{number}" for number in range(4)]


def found(*seeds: list[float]) -> dict[str, Any]:
    """An evaluation whose rewards change by `seeds`, and whose oracle's do not."""
    changes = {
        f"dpo-{seed}": {
            key: {"reward": change, "oracle.motion": 0.0, "appeal": 9.0}
            for key, change in zip(KEYS, values, strict=True)
        }
        for seed, values in enumerate(seeds)
    }
    means = {"reward": 60.0, "appeal": 1.0, "oracle.motion": 90.5}
    return {
        "prompts": KEYS,
        "figures": {name: {"base": {"mean": mean}} for name, mean in means.items()},
        "changes": changes,
    }


def took(*costs: Cost) -> dict[str, list[Trained]]:
    return {"dpo": [Trained(Path("run"), cost) for cost in costs]}


def test_one_seed() -> None:
    grid = grid_of(found([1.0, 1.0, 1.0, 1.0]), [DPO], took(Cost(32, 90.0)))
    assert list(grid.columns) == ["reward", "oracle: motion", "clips", "minutes"]
    assert grid.rows["base model, mean"] == [Cell(60.0), Cell(90.5), None, None]
    assert grid.rows["DPO"] == [
        Cell(1.0, 1.0, 1.0, signed=True),
        Cell(0.0, 0.0, 0.0, signed=True),
        Cell(32.0),
        Cell(1.5),
    ]


def test_seeds_are_averaged_by_prompt() -> None:
    """The runs of a prompt are not independent: here their mean is 2 for all four prompts, so the interval is empty."""
    grid = grid_of(found([1.0, 1.0, 0.0, 0.0], [3.0, 3.0, 4.0, 4.0]), [DPO], took(Cost(30, 60.0), Cost(34, 120.0)))
    assert list(grid.columns)[2:4] == ["reward, lowest seed", "reward, highest seed"]
    change, _, lowest, highest, clips, minutes = grid.rows["DPO"]
    assert change == Cell(2.0, 2.0, 2.0, signed=True)
    assert (lowest, highest) == (Cell(0.5, signed=True), Cell(3.5, signed=True))
    assert (clips, minutes) == (Cell(32.0), Cell(1.5))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell(640.0), "640"),
        (Cell(59.512), "59.51"),
        (Cell(4.917, 4.551, 5.308, signed=True), "+4.92 [+4.55, +5.31]"),
        (Cell(-1.0, signed=True), "-1.00"),
    ],
)
def test_cells_as_text(cell: Cell, text: str) -> None:
    assert cell_text(cell.value, cell.low, cell.high, cell.signed) == text
