"""Repository files: the licence, the metadata, the lock files, the CI workflow."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from itertools import chain, groupby
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from common.version import VERSION
from requirements.update_lock import NOT_LOCKED, combine, pythons

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
PYTHONS = pythons()
LOCKS = sorted((ROOT / "requirements").glob("lock-*.txt"))
LOCK = "requirements/lock-{}.{}.txt".format(*sys.version_info)  # of the Python that runs this
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


# The lock.


def pins(file: Path) -> dict[str, list[Requirement]]:
    """Package -> its pins: one, or one for each kind of machine."""
    found = [Requirement(line) for line in file.read_text().splitlines() if not line.startswith("#")]
    return {name: list(group) for name, group in groupby(found, key=lambda pin: canonicalize_name(pin.name))}


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    extras = chain.from_iterable(PROJECT["optional-dependencies"].values())
    return [Requirement(line) for line in (*PROJECT["dependencies"], *extras)]


def test_every_supported_python_has_a_lock() -> None:
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])] == PYTHONS
    assert {file.name for file in LOCKS} == {f"lock-{python}.txt" for python in PYTHONS}


@pytest.mark.parametrize("file", LOCKS, ids=[file.stem for file in LOCKS])
def test_the_lock_pins_what_is_asked_for(file: Path) -> None:
    locked = pins(file)
    for one in asked():
        if one.name != "torch":
            for pin in locked[canonicalize_name(one.name)]:
                (only,) = pin.specifier
                assert only.operator == "=="
                assert one.specifier.contains(only.version), f"{one} is locked as {pin}"


@pytest.mark.parametrize("file", LOCKS, ids=[file.stem for file in LOCKS])
def test_the_lock_leaves_torch_and_cuda_to_the_makefile(file: Path) -> None:
    assert "torch" not in pins(file)
    assert [line for line in file.read_text().splitlines() if NOT_LOCKED.match(line)] == []


def test_a_pin_that_differs_by_machine_names_its_machine() -> None:
    found = {"x86_64": ["b==1", "decord==0.6", "torch==2.13.0"], "aarch64": ["b==2", "a==1", "nvidia-nccl-cu13==2"]}
    one, other = "platform_machine == 'x86_64'", "platform_machine == 'aarch64'"
    assert combine(found) == [f"a==1 ; {other}", f"b==1 ; {one}", f"b==2 ; {other}", f"decord==0.6 ; {one}"]
    assert combine({"x86_64": ["a==1"], "aarch64": ["a==1"]}) == ["a==1"]


def make(*arguments: str) -> str:
    """What make says it would do, as if nothing had been installed yet."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("target", ["run", "test"])
def test_every_install_of_the_makefile_keeps_to_the_lock(target: str) -> None:
    installs = [line for line in make(target).splitlines() if "pip install" in line]
    assert len(installs) >= 2
    assert [line for line in installs if f"--constraint {LOCK} " not in line] == []


def test_a_lock_that_changed_installs_again() -> None:
    assert f"\n.venv/installed: pyproject.toml {LOCK}\n" in make("--print-data-base", "run")


# The forge and the hooks.


def test_the_hooks_before_a_commit_are_the_linters_of_the_makefile() -> None:
    lint = [line for line in make("lint").splitlines() if line.startswith(".venv/bin/") and "pip install" not in line]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == lint
    assert {(hook["language"], hook["pass_filenames"]) for hook in repository["hooks"]} == {("system", False)}


def test_the_workflow_runs_the_tests_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_the_forms_for_issues_are_complete(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    assert [field for field in form["body"] if field["type"] != "markdown" and "label" not in field["attributes"]] == []


# The guide and the changelog.


def test_the_guides_commands_exist() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    named = set(re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named >= {"test", "test-slow", "test-browser", "update-lock"}
    assert named <= set(targets[1].split())


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_links_to_files_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https:)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == VERSION


def test_no_folder_has_more_than_15_modules() -> None:
    packages = [name.removesuffix("*") for name in TOOLS["setuptools"]["packages"]["find"]["include"]]
    modules = [file for name in packages for file in (ROOT / name).rglob("*.py") if not file.stem.startswith("__")]
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in modules)
    assert {folder: count for folder, count in counts.items() if count > 15} == {}
