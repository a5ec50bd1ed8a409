"""What all tests share: the order of their files, and how many threads torch has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

FIRST = (
    "tests/benchmarks/stress/test_chaos.py"  # minutes, mostly spent waiting: begun first, the other files run beside it
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file before all others; these keep their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Their number decides the order of sums, and so the last bits; on small tensors they only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; for tests that are marked with `tests.support.chromium.MARKS`."""
    from tests.support.chromium import launched  # noqa: PLC0415 - playwright

    with launched() as started:
        yield started
