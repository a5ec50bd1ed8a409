"""Pages of `docs/` that follow from code and measured results, and the site's first page, which is the README.

```
docs/configuration.md   every key, from the pydantic models
docs/metrics.md         every metric, from the table of `deploy/observability/definitions.py`
docs/results.md         benchmarks/results/*.json
```

``python -m docs.generate`` writes them anew, a test compares them. `make docs` makes the site, in build/site.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from common.config import Key, RunConfig, keys, leaves, load_config
from common.roles import PROCESSES
from deploy.observability.definitions import HISTOGRAM, OF_PROCESS, TABLE, TARGET_LABELS, Metric
from deploy.run_dir.layout import TOON, is_free

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
MADE = "<!-- Written by `python -m docs.generate`; change what it is written from. -->\n"

CONFIG = """\
# Configuration

Every key of a run. Defaults, then a TOML file, then flags, the last one counts: `[learner]` and `beta = 2500` in a
file is `--learner.beta 2500` on the command line; in flags `-` and `_` are alike, and a list is `a,b,c`. A key or value
that is wrong is named with where it stands and what is allowed (exit code 2). The resolved configuration is kept in
`RUN/config.toml`. NAME stands for a name of yours. *toon* is what `deploy/launch/configs/toon.toml`, the run without a
configuration file, says instead of the default; *resume* marks what may change when a run is resumed.
"""


def config_page() -> str:
    """Every key with its kind, default and meaning, section by section."""
    toon, default = leaves(load_config(TOON).model_dump()), RunConfig()
    parts = [MADE, CONFIG]
    for section, found in groupby(keys(), key=_section):
        model = RunConfig.model_fields[section].annotation if section else None
        words = " ".join((model.__doc__ or "").split()) if model else "What the run is, and where it lies."
        rows = [_key_row(key, toon, default) for key in found]
        parts.append(f"\n## {f'[{section}]' if section else 'The run'}\n\n{words}\n\n")
        parts.append(_table(("key", "kind", "default", "toon", "resume", "meaning"), rows))
    return "".join(parts)


def _section(key: Key) -> str:
    return key.name.partition(".")[0] if "." in key.name else ""


def _key_row(key: Key, toon: Mapping[str, Any], default: RunConfig) -> tuple[str, ...]:
    value = toon.get(key.name, key.default)
    other = "" if value == key.default else _value(value)
    free = "yes" if is_free(key.name, default) else ""
    return f"`{key.name}`", key.kind, _value(key.default), other, free, key.description


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{shown}`" if shown else "empty"


METRICS = """\
# Metrics

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
(`pip install 'douga[tensorboard]'`), and `metrics.wandb = "PROJECT"` to Weights & Biases (`pip install
'douga[wandb]'`). All four may change when a run is resumed. Who can reach a port can read it:
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


def metrics_page() -> str:
    """Every metric with its labels, who exports it, and what it tells."""
    rows = _table(("metric", "kind", "labels", "exported by", "what it tells"), map(_metric_row, TABLE.values()))
    return MADE + METRICS.format(
        targets=_listed("label", TARGET_LABELS), of_process=_listed("metric", OF_PROCESS), rows=rows
    )


def _listed(what: str, entries: Mapping[str, str]) -> str:
    return _table((what, "what it is"), ((f"`{name}`", words) for name, words in entries.items()))


def _metric_row(metric: Metric) -> tuple[str, ...]:
    labels = (f"`{name}`: {v if isinstance(v, str) else ', '.join(v)}" for name, v in metric.labels.items())
    by = "all" if metric.by == PROCESSES else ", ".join(metric.by)
    buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.kind == HISTOGRAM else ""
    return f"`{metric.name}`", metric.kind, "; ".join(labels), by, metric.help + buckets


RESULTS_HEAD = """\
# Measured results

What `python -m benchmarks.NAME` measured, from `benchmarks/results/`; [Benchmarks](benchmarks.md) says how, and what
stands beside ours. *Ratio* is ours to the other way, pair by pair: median, and least to greatest; where the unit is a
time, the other way to ours, so that above 1 is better. *Limit* is what the machine could do at most. Aims that were
missed are kept as they are.
"""


def results_page(folder: Path = RESULTS) -> str:
    """All kept results: rows, and aims met or missed."""
    return "".join([MADE, RESULTS_HEAD, *map(_result, sorted(folder.glob("*.json")))])


def _result(file: Path) -> str:
    found = json.loads(file.read_text("utf-8"))
    title = f"{found['name']}, {file.stem.removeprefix(found['name'] + '-')}"
    rows = _table(("case", "unit", "ours", "other", "limit", "ratio"), map(_result_row, found["rows"]))
    judged = [(one["aim"], f"{one['value']:.3g}", one["target"], _met(one)) for one in found["aims"]]
    aims = "\n" + _table(("aim", "measured", "wanted", ""), judged) if judged else ""
    return f"\n## {title}\n\n{_measured_on(found)}\n\n{rows}{aims}"


def _met(aim: Mapping[str, Any]) -> str:
    return "met" if aim["met"] else "missed"


def _measured_on(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    parts = [machine["processor"], f"{machine['cores']} cores", f"{machine['memory_bytes'] / 1e9:.0f} GB"]
    parts += [machine["gpu"]] if "gpu" in machine else []
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"`{found['command']}` on {', '.join(parts)}; {versions}."


def _result_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [_number(row[name]) for name in ("ours", "other", "limit")]
    spread = row["ratio"]
    ratio = "" if spread is None else f"{spread['median']:.2f} ({spread['min']:.2f} .. {spread['max']:.2f})"
    return row["case"], row["unit"], *numbers, ratio


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"{line}\n" for line in _lines(head, rows))


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


# The site.


def on_files(files: Any, config: Any) -> Any:
    """A hook of MkDocs: the README is the first page, its links as seen from `docs/`."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - needed where a site is built

    text = (ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": config_page,
    "metrics.md": metrics_page,
    "results.md": results_page,
}


def main(argv: Sequence[str] | None = None, folder: Path = DOCS) -> int:
    """Write every page."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
