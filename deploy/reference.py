"""The reference pages under `docs/`, written from what the code itself goes by: ``python -m deploy.docs``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from common.telemetry import HISTOGRAM, OF_PROCESS, PROCESSES, TABLE, TARGET_LABELS, Metric

DOCS = Path(__file__).resolve().parent.parent / "docs"

METRICS = """\
# Metrics

<!-- Written by `python -m deploy.docs`; a test compares it with the code. -->

Every process of a run serves its metrics at `http://ADDRESS:PORT/metrics`, and `RUN/prometheus/targets.json` lists who
is there (Prometheus' file_sd, replaced whole). In a serial run that is one process at 127.0.0.1. In a cluster it is the
hub and every worker, each at the address under which it reaches the hub: at 127.0.0.1 where the hub is. A worker that
dies, leaves or is done is taken off the list, as is a guest that was not heard of for 20 s, and after the run the list
is empty. Where all of it was killed at once the list stays until the run is started again, and Prometheus shows its
targets as down.

```yaml
scrape_configs:
  - job_name: douga
    file_sd_configs:
      - files: [/data/runs/mine/prometheus/targets.json]   # the run's own processes
        refresh_interval: 10s
  - job_name: ray
    file_sd_configs:
      - files: [/data/runs/mine/prometheus/ray.json]       # Ray's own exporters, one a node
        refresh_interval: 10s
```

List every run that is to be watched: Prometheus takes a `*` in a file's name alone, in no folder's.

`metrics.enabled = false` switches the exporters off, `metrics.port` is the first port that a process tries, and
`metrics.tensorboard = true` writes steps and readings of the guardrails to `RUN/tensorboard/` too, by the same names
(`pip install 'douga[tensorboard]'`). All three may change when a run is resumed. Who can reach a port can read it:
`docs/security.md`. Ray also lists its exporters itself, at `/api/prometheus/sd` of its dashboard and, with
`ray start --head`, in `/tmp/ray/prom_metrics_service_discovery.json` on the head node.

Counters begin at 0 with every start of their process. Gauges are read when Prometheus asks, from ledger and folder; one
that is not known yet (no step taken, no reading, no GPU) has no series. No label names a prompt, a clip or a version.
Who exports a series is told by the labels of its target:

{targets}

Every process also exports these of the client library:

{of_process}

## The table

A serial run's process exports what hub, samplers, rewarders and learner do.

{rows}
"""


def pages() -> dict[str, Callable[[], str]]:
    """File under `docs/` -> what makes its text."""
    return {"metrics.md": metrics}


def metrics() -> str:
    """`docs/metrics.md`."""
    rows = table(("metric", "kind", "labels", "exported by", "what it tells"), map(_row, TABLE.values()))
    return METRICS.format(targets=_listed("label", TARGET_LABELS), of_process=_listed("metric", OF_PROCESS), rows=rows)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _listed(what: str, entries: Mapping[str, str]) -> str:
    return table((what, "what it is"), ((f"`{name}`", words) for name, words in entries.items()))


def _row(metric: Metric) -> tuple[str, ...]:
    labels = (f"`{name}`: {v if isinstance(v, str) else ', '.join(v)}" for name, v in metric.labels.items())
    by = "all" if metric.by == PROCESSES else ", ".join(metric.by)
    buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.kind == HISTOGRAM else ""
    return f"`{metric.name}`", metric.kind, "; ".join(labels), by, metric.help + buckets
