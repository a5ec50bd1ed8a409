"""The delta benchmark with a narrow layer: real optimizer steps, and all rows of its report."""

from __future__ import annotations

import pytest

from benchmarks.harness import as_json
from benchmarks.weights import delta
from benchmarks.weights.delta import Scale, coded


def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "WARM", 1)
    monkeypatch.setattr(delta, "STEPS", 2)
    narrow = {"num_attention_heads": 2, "text_embed_dim": 32, "time_embed_dim": 32}
    found = as_json(delta.measure([Scale("normal", 0.02)], narrow))
    assert [(row["case"].split(",")[1].split(":")[0], row["unit"]) for row in found["rows"]] == [
        (f" {steps}", unit) for steps in ("1 step", "2 steps") for unit in ("times", "GB/s a core", "GB/s a core")
    ]
    one, two = (found["rows"][place] for place in (0, 3))
    assert one["ours"] > two["ours"] > two["other"] > 1
    assert [aim["target"] for aim in found["aims"]] == [">= 10", "> 2", "> 2"]
    assert found["command"].startswith("python -m benchmarks.weights.delta")


def test_a_difference_that_does_not_come_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "decode_block", lambda block, before: before)
    with pytest.raises(RuntimeError, match="the block at 0 did not come back"):
        coded(memoryview(b"12345678"), memoryview(b"12345679"))
