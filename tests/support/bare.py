"""Runs douga as if some packages were not installed: ``python -m tests.support.bare ray,zmq,deepspeed COMMAND...``"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any


class Without:
    """A module finder that pretends the packages `missing` are not installed."""

    def __init__(self, finder: Any, missing: Collection[str]) -> None:
        self._finder, self._missing = finder, missing

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        return None if name.partition(".")[0] in self._missing else self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def hide(missing: Collection[str]) -> None:
    """Hide the packages `missing` from this process. They must not be imported yet."""
    found = sorted(set(missing) & {name.partition(".")[0] for name in sys.modules})
    if found:
        sys.exit(f"imported already: {', '.join(found)}")
    sys.meta_path[:] = [Without(finder, missing) for finder in sys.meta_path]  # type: ignore[list-item]


if __name__ == "__main__":
    from deploy.cli.main import main  # what `douga` imports at once is there on every machine

    hide(sys.argv[1].split(","))
    sys.exit(main(sys.argv[2:]))
