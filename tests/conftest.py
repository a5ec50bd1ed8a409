"""What all tests share: the order of their files."""

from __future__ import annotations

import pytest

FIRST = "tests/test_chaos.py"  # minutes, mostly spent waiting: begun first, the other files run beside it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file before all others; these keep their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
