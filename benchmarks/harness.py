"""The common format and command line of benchmarks: rows that compare ours to another way, and targets met or missed.

```
{"name", "command", "machine": {...}, "versions": {...},
 "rows": [{"case", "unit", "ours", "other", "limit", "ratio"}],
 "grid": {"columns": [...], "rows": {case: [{"value", "low", "high", "signed"} or null, ...]}} or null,
 "aims": [{"aim", "value", "target", "met"}]}
```

Measurements alternate (ours, other, ours, other ...), so that a slower machine slows both; `ratio` is the median,
minimum and maximum of the pairs' ratios. `limit` is the best possible value (for speed: on this machine; for reward
heads: with perfect training), measured in the same run. `python -m benchmarks.NAME --json
benchmarks/results/NAME-DEVICE.json` saves a result.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import processor
from common.errors import BAD_INPUT, ConfigError


@dataclass(frozen=True)
class Ratio:
    """Median, minimum and maximum of the ratios of paired measurements."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Row:
    """One case: medians of ours, of the other way (None if there is none) and of the limit, in `unit`."""

    case: str
    unit: str
    ours: float
    other: float | None = None
    limit: float | None = None
    ratio: Ratio | None = None  # ours to other, or other to ours if `unit` is a time: above 1 is better


@dataclass(frozen=True)
class Cell:
    """A value, with its 95 % interval if it has one. `signed`: a change, which is shown with its sign."""

    value: float
    low: float | None = None
    high: float | None = None
    signed: bool = False


@dataclass(frozen=True)
class Grid:
    """Cases that are not pairs of ours and another: one row of cells each, None for an empty one."""

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell | None]]


@dataclass(frozen=True)
class Aim:
    """A performance target: `value` is measured; `target` is the condition in words."""

    aim: str
    value: float
    target: str
    met: bool


@dataclass(frozen=True)
class Report:
    """The result of one run of a benchmark."""

    name: str
    rows: Sequence[Row]
    aims: Sequence[Aim]
    packages: Sequence[str]  # installed packages whose versions are recorded
    device: str = "cpu"  # a GPU's name is recorded too
    package: str = "benchmarks"  # Python package of the benchmark's module
    grid: Grid | None = None


def ratio(ours: Sequence[float], other: Sequence[float]) -> Ratio:
    """The ratio of `ours` to `other`, pair by pair."""
    each = [mine / theirs for mine, theirs in zip(ours, other, strict=True)]
    return Ratio(median(each), min(each), max(each))


def as_json(report: Report) -> dict[str, Any]:
    """The JSON format of saved results."""
    return {
        "name": report.name,
        "command": shlex.join(["python", "-m", f"{report.package}.{report.name}", *sys.argv[1:]]),
        "machine": _machine(report.device),
        "versions": {"python": platform.python_version()} | _versions(report.packages),
        "rows": [asdict(row) for row in report.rows],
        "grid": None if report.grid is None else asdict(report.grid),
        "aims": [asdict(aim) for aim in report.aims],
    }


def _machine(device: str) -> dict[str, Any]:
    memory = psutil.virtual_memory().total
    machine = {"processor": processor(), "cores": psutil.cpu_count(), "memory_bytes": memory}
    if device == "cpu":
        return machine
    gpu = torch.cuda.get_device_properties(device)
    return machine | {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory}


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def show(report: Report) -> None:
    """Print the rows, the grid and the targets."""
    console = Console(soft_wrap=True)
    if report.rows:
        console.print(_pairs(report.rows))
    if report.grid is not None:
        console.print(_grid(report.grid))
    for aim in report.aims:
        console.print(
            f"{'met   ' if aim.met else 'MISSED'} {aim.aim}: {aim.value:.3g}, wanted {aim.target}", markup=False
        )


def _pairs(rows: Sequence[Row]) -> Table:
    table = Table("case", "unit", "ours", "other", "limit", "ratio (min .. max)")
    for row in rows:
        numbers = [_number(row.ours), _number(row.other), _number(row.limit)]
        spread = "" if row.ratio is None else f"{row.ratio.median:.2f} ({row.ratio.min:.2f} .. {row.ratio.max:.2f})"
        table.add_row(row.case, row.unit, *numbers, spread)
    return table


def _grid(grid: Grid) -> Table:
    table = Table("case", *grid.columns)
    for case, cells in grid.rows.items():
        table.add_row(case, *("" if cell is None else cell_text(**asdict(cell)).replace("[", r"\[") for cell in cells))
    return table


def cell_text(value: float, low: float | None, high: float | None, signed: bool) -> str:
    """The text of a cell: ``+1.23 [+0.98, +1.50]``; whole numbers have no decimals."""
    form = "+.2f" if signed else ".0f" if value == round(value) else ".2f"
    return f"{value:{form}}" if low is None or high is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def main(
    doc: str | None, measure: Callable[[argparse.Namespace], Report], *options: tuple[str, dict[str, Any]]
) -> Report:
    """The command line of a benchmark: measure, print, and save the result if ``--json`` is given.

    Bad input exits with one line and code 2.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, how in options:
        parser.add_argument(name, **how)
    parser.add_argument("--json", type=Path, metavar="OUT", help="file to save the result in")
    given = parser.parse_args()
    try:
        _check_place(given.json)
        report = measure(given)
    except BAD_INPUT as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    show(report)
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    return report


def _check_place(file: Path | None) -> None:
    """Check that the result can be saved before anything is measured."""
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"--json {file}: no folder {file.parent}")
