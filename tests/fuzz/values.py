"""The values that random input is made of, most of them wrong somewhere."""

from __future__ import annotations

import random
from typing import Any

WORDS = (
    "", " ", "a", "robot walks", "日本語", "🤖", "é", "\ufeff", "\x00", "\n", "..", "/", "-", "--", "'", '"', "[x]",
    "%s", "{}", "nan", "inf", "-1", "0", "1e999", "9" * 400, "true", "x" * 5000, "\ud83e", "\u202eabc", "~", "$HOME",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2**63, -(2**63), 10**400, 0.0, -0.0, 1e308, float("nan"), float("inf"), -float("inf"), True, None,
)  # fmt: skip
TOML = (
    "1", "-1", "nan", "inf", "true", '"x"', '""', "[]", "{}", "[1, 2]", "{a = 1}", "1979-05-27", "9" * 30, "1e400",
    "0x10", '"\\u0000"', '"日本"', "[[1]]", "+", "'", "1_0",
)  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    """A value of JSON, and some that JSON has not."""
    if depth < 2 and draw.random() < 0.2:
        some = [value(draw, depth + 1) for _ in range(draw.randrange(3))]
        return some if draw.random() < 0.5 else {draw.choice(WORDS): one for one in some}
    return draw.choice([*WORDS, *NUMBERS])
