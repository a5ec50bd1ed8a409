"""Writes ``lock-3.X.txt``, pip's constraints for every supported Python; `make update-lock` runs it.

uv resolves pyproject.toml with all extras for each machine in `MACHINES`, from the metadata that PyPI serves; it
installs nothing. A pin that holds for both machines has no marker. torch and the packages of its CUDA build are left
out: which build is installed depends on the machine, and TORCH in the Makefile decides it. TORCH is this script's
argument, so that the other packages fit that torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINES = ("x86_64", "aarch64")
NOT_LOCKED = re.compile(r"(torch|triton|cuda-.*|nvidia-.*)==")
HEADER = "# Constraints for pip, for Python {python} on Linux. Made by `make update-lock`; do not edit.\n"


def pythons() -> list[str]:
    """The supported Pythons, as pyproject.toml classifies them: 3.11, ..."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    kind = "Programming Language :: Python :: "
    return [one.removeprefix(kind) for one in classifiers if one.startswith(kind)]


def resolve(python: str, machine: str, torch: str) -> list[str]:
    """What uv would install: ``name==version`` lines, in order of their names."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras", "--constraint", "-"]
    command += ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_28"]
    command += ["--no-annotate", "--no-header", "--no-python-downloads", "--quiet"]
    return subprocess.run(
        command, cwd=ROOT, input=torch, stdout=subprocess.PIPE, encoding="utf-8", check=True
    ).stdout.splitlines()


def combine(pins: Mapping[str, list[str]]) -> list[str]:
    """The lines of a lock from the pins of each machine."""
    lines = []
    distinct = {pin for found in pins.values() for pin in found if not NOT_LOCKED.match(pin)}
    for pin in sorted(distinct, key=lambda pin: pin.split("==")):
        machines = [machine for machine, found in pins.items() if pin in found]
        marker = " or ".join(f"platform_machine == '{machine}'" for machine in machines)
        lines.append(pin if len(machines) == len(pins) else f"{pin} ; {marker}")
    return lines


def main(torch: str) -> None:
    """Write every lock."""
    for python in pythons():
        lines = combine({machine: resolve(python, machine, torch) for machine in MACHINES})
        file = ROOT / "requirements" / f"lock-{python}.txt"
        file.write_text(HEADER.format(python=python) + "".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main(sys.argv[1])
