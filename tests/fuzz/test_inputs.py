"""No input ends in a traceback: random command lines, configurations, prompt, rating and media files, model folders."""

from __future__ import annotations

import pytest

from tests.fuzz import inputs

BLOCK = 50


@pytest.mark.parametrize("first", range(0, 300, BLOCK))
def test_every_case_succeeds_or_says_why_in_a_line(first: int) -> None:
    assert [f"{case.what}: {case.fault}: {case.said[-300:]}" for case in inputs.run(BLOCK, first)] == []
