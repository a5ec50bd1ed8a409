"""The floors in docs/architecture.md are those that import-linter checks, and every room says what it is for."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def contract(package: str) -> list[str]:
    """The floors of a package in pyproject.toml, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = [one["layers"] for one in contracts if one.get("containers") == [package]]
    return found


def drawn(package: str) -> list[str]:
    """The floors of a package as the page draws them: the lines below ``PACKAGE/``, up to two spaces in a row."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = page.partition(f"\n{package}/\n")[2].partition("\n```")[0].partition("\n\n")[0]
    return [re.split(r" {2,}", line.strip())[0] for line in block.splitlines()]


@pytest.mark.parametrize("package", ["deploy", "common"])
def test_the_page_draws_the_floors_that_are_checked(package: str) -> None:
    assert drawn(package) == contract(package)


@pytest.mark.parametrize("package", ["deploy", "common"])
def test_every_room_says_what_it_is_for(package: str) -> None:
    rooms = sorted((ROOT / package).rglob("__init__.py"))
    assert len(rooms) > 10
    assert [str(room) for room in rooms if not ast.get_docstring(ast.parse(room.read_text()))] == []
