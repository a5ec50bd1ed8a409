"""The table of metrics follows Prometheus' naming conventions and our rules for labels."""

from __future__ import annotations

import re
import subprocess
import sys

from common.config import DIMENSIONS
from common.exchange.api import State
from common.messages import Purpose
from common.roles import PROCESSES
from deploy.observability.definitions import COUNTER, GAUGE, HISTOGRAM, OF_PROCESS, TABLE, TARGET_LABELS


def test_names_follow_prometheus_conventions() -> None:
    for metric in TABLE.values():
        assert re.fullmatch(r"douga_[a-z]+(_[a-z]+)*", metric.name)
        assert (metric.kind == COUNTER) == metric.name.endswith("_total")
        if metric.kind == HISTOGRAM:
            assert metric.name.endswith(("_seconds", "_bytes", "_clips", "_score"))
        for unit in ("milliseconds", "ms", "minutes", "hours", "mb", "gb", "percent"):
            assert unit not in metric.name.split("_")
        assert not metric.name.endswith(("_count", "_sum", "_bucket", "_created", "_info"))


def test_every_row_is_complete() -> None:
    for metric in TABLE.values():
        assert metric.kind in (COUNTER, GAUGE, HISTOGRAM)
        assert metric.by
        assert set(metric.by) <= set(PROCESSES)
        assert metric.help.endswith(".")
        assert "\n" not in metric.help
        assert bool(metric.buckets) == (metric.kind == HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert all(metric.labels.values())


def test_labels_are_of_low_cardinality_and_leave_the_targets_alone() -> None:
    for metric in TABLE.values():
        allowed = {"role", "state", "dimension", "model", "reason", "phase", "purpose", "rule", "service", "device"}
        assert set(metric.labels) <= allowed
        assert not set(metric.labels) & set(TARGET_LABELS)  # else Prometheus renames the metric's own label


def test_label_values_equal_their_enums() -> None:
    assert TABLE["douga_queue_items"].labels["state"] == tuple(State)
    assert TABLE["douga_candidates_total"].labels["purpose"] == tuple(Purpose)
    assert str(TABLE["douga_reward_score"].labels["dimension"]).startswith(", ".join(DIMENSIONS))


def test_names_used_by_rules_and_dashboards_exist() -> None:
    """Names that alert rules and dashboards use."""
    kinds = {name: (TABLE[name].kind, *TABLE[name].labels) for name in TABLE}
    assert kinds["douga_policy_version"] == ("gauge", "role")
    assert kinds["douga_queue_items"] == ("gauge", "state")
    assert kinds["douga_queue_dropped_total"] == ("counter", "reason")
    assert kinds["douga_weight_push_seconds"] == ("histogram", "phase")
    assert kinds["douga_weight_push_bytes_total"] == ("counter", "phase")
    assert kinds["douga_idle_seconds_total"] == kinds["douga_worker_crashes_total"] == ("counter", "role")
    assert kinds["douga_probe_reward"] == kinds["douga_probe_reward_stddev"] == ("gauge", "dimension", "model")
    assert not set(TABLE) & set(OF_PROCESS)


def test_the_table_imports_nothing_heavy() -> None:
    code = (
        "import sys, deploy.observability.definitions\n"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
