"""Tables at 80 columns: figures whole, columns that do not fit stacked below."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from common.stacked_table import StackedTable
from deploy.results import comparison


def printed(table: object, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_figure_is_cut_and_no_line_is_longer_than_the_terminal(width):
    columns = ["judge", "SRCC", "PLCC", "pairwise accuracy", "MRR", "R@1", "R@2", "R@4", "ECE"]
    rows = [
        (name, *(f"-{number}.25" for number in range(8))) for name in ("reward", "a.very_long_name_of_a_judge_it_is")
    ]
    text = printed(StackedTable("four clips", columns, rows), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for number in range(8):
        assert text.count(f"-{number}.25") == 2
    assert all(column in text for column in columns)
    assert text.count("four clips") == 1
    tables = text.count("judge") - text.count("_judge")
    assert (tables > 1) == (width < 100)


def test_cells_of_several_lines_stay_whole():
    cell = "51.25\n[green]+1.25 \\[+1.00, +1.50][/]\n50%/25%/25%"
    text = printed(StackedTable("", ["", "one", "two", "three", "four"], [("reward", *[cell] * 4)]))
    assert text.count("+1.25 [+1.00, +1.50]") == 4
    assert max(map(len, text.splitlines())) <= 80


def test_the_comparison_is_whole_at_80_columns():
    row = {"base": {"mean": 50.0}, "aligned": {"mean": 51.0}, "change": {"mean": 1.0, "low": -10.25, "high": 100.5}}
    names = {"reward": row, "vs.a_very_long_output_of_a_judge": row}
    text = printed(comparison.table({"asked": 4, "clips": 4, "prompts": 4, "learned": names, "oracle": {}}))
    assert "…" not in text
    assert text.count("+1.00 [-10.25, +100.50]") == 2
