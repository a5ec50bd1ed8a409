"""The entry point of the command `douga`: finds douga's own packages, whatever the user's folder holds.

A project that is on `PYTHONPATH` for its reward may have a folder ``common/`` or ``deploy/`` of its own. Those would
hide douga's packages of these names, so douga's folder is put before it, here and in all processes started from here.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("actors", "benchmarks", "common", "deploy", "learner", "rewarders")


def main() -> int:
    """Runs the command line. Returns the exit code."""
    put_own_packages_first(Path(__file__).resolve().parent)
    from deploy.cli.main import main as run  # noqa: PLC0415 - can be found only now

    return run()


def put_own_packages_first(place: Path) -> None:
    """Puts `place` first on the path if another folder hides one of the packages in it."""
    if all(_is_in(place, name) for name in PACKAGES):
        return
    sys.path.insert(0, str(place))
    rest = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place), *([rest] if rest else [])])


def _is_in(place: Path, name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent == place / name


if __name__ == "__main__":
    sys.exit(main())
