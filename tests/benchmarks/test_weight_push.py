"""The weight-push benchmark with a few kilobytes: its measurements and all rows of its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import weight_push
from benchmarks.harness import as_json
from benchmarks.weight_push import Case, Samplers, Transfer, ours
from common.errors import CorruptDataError
from common.rpc.server import serving
from common.weights.source import weight_service
from common.weights.store import WeightStore


def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_push, "ADAPTER", Case("20 kB", 20_000, 2))
    found = as_json(weight_push.measure([Case("40 kB", 40_000, 2)], counts=[2], with_ray=False))
    assert [row["case"].split(";")[0] for row in found["rows"]] == [
        "40 kB to 2 samplers",
        "40 kB: pause of a sampler",
        "20 kB adapter: from published to staged",
    ]
    assert all(row["ours"] > 0 for row in found["rows"])
    assert [aim["target"] for aim in found["aims"]] == ["< 0.05", "< 0.1 s"]


def test_discarding_samplers_compare_every_digest(tmp_path: Path) -> None:
    store, case = WeightStore(tmp_path), Case("40 kB", 40_000, 1)
    weight_push._publish(store, weight_push.weights(case), 1)
    whole = bytearray(store.file(1).read_bytes())
    whole[-1] ^= 1
    store.file(1).write_bytes(whole)
    with Samplers(1) as samplers, serving(weight_service(store)) as service:
        with pytest.raises(CorruptDataError, match="differs from its digest"):
            weight_push.pull_and_discard(service.address, 1)
        with pytest.raises(EOFError):
            ours(samplers, service.address, 1)


def test_a_row_is_per_gigabyte_and_its_ratios_go_pair_by_pair() -> None:
    half = Transfer(Case("500 MB", 5 * 10**8, 3), 4, ours=[1.0, 2.0, 3.0], limit=[0.5, 2.0, 2.0], ray=[2.0, 2.0, 9.0])
    row, aim = half.row(), half.aim()
    assert (row.ours, row.other, row.limit) == (4.0, 4.0, 4.0)
    assert row.ratio is not None
    assert (row.ratio.median, row.ratio.min, row.ratio.max) == (2.0, 1.0, 3.0)
    assert (aim.value, aim.met) == (1.5, True)
