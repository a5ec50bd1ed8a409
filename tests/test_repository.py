"""What a visitor of the repository looks for first: the licence, the metadata, the lock, the workflow of the forge."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from packaging.version import Version

from common.version import VERSION

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
PYTHONS = [
    kind.removeprefix("Programming Language :: Python :: ") for kind in PROJECT["classifiers"] if ":: Python ::" in kind
]
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # of the standard text


# The licence.


def test_the_licence_is_apaches_text_with_our_name() -> None:
    text = (ROOT / "LICENSE").read_text()
    standard = text.replace("Copyright 2026 douga contributors", "Copyright [yyyy] [name of copyright owner]")
    assert text != standard
    assert hashlib.sha256(standard.encode()).hexdigest() == APACHE


def test_the_metadata_names_the_licence_and_its_files() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert [name for name in PROJECT["license-files"] if not (ROOT / name).is_file()] == []
    assert PROJECT["authors"] == [{"name": "douga contributors"}]


def test_the_version_stands_in_one_place() -> None:
    """The build reads `common/version.py`, as text: nothing is imported."""
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert TOOLS["setuptools"]["dynamic"] == {"version": {"attr": "common.version.VERSION"}}
    assert Version(VERSION).release >= (0, 1)
