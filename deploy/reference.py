"""Pages of `docs/` that follow from code and measured results, and the site's first page, which is the README.

```
python -m deploy.reference config  > docs/configuration.md      every key, from the pydantic models
python -m deploy.reference results > docs/results.md            benchmarks/results/*.json
make docs                                                       the site, in build/site
```

A test compares the pages with what these commands print.
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
from deploy.run_folder import TOON, is_free

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MADE = "<!-- Made by `python -m deploy.reference {}`; change what it is made from. -->\n"

CONFIG = """\
# Configuration

Every key of a run. Defaults, then a TOML file, then flags, the last one counts: `[learner]` and `beta = 2500` in a
file is `--learner.beta 2500` on the command line; in flags `-` and `_` are alike, and a list is `a,b,c`. A key or value
that is wrong is named with where it stands and what is allowed (exit code 2). The resolved configuration is kept in
`RUN/config.toml`. NAME stands for a name of yours. *toon* is what `deploy/configs/toon.toml`, the run without a
configuration file, says instead of the default; *resume* marks what may change when a run is resumed.
"""


def config_page() -> str:
    """Every key with its kind, default and meaning, section by section."""
    toon, default = leaves(load_config(TOON).model_dump()), RunConfig()
    parts = [MADE.format("config"), CONFIG]
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


RESULTS_HEAD = """\
# Measured results

What `python -m benchmarks.NAME` measured, from `benchmarks/results/`; [Benchmarks](benchmarks.md) says how, and what
stands beside ours. *Ratio* is ours to the other way, pair by pair: median, and least to greatest; where the unit is a
time, the other way to ours, so that above 1 is better. *Limit* is what the machine could do at most. Aims that were
missed are kept as they are.
"""


def results_page(folder: Path = RESULTS) -> str:
    """All kept results: rows, and aims met or missed."""
    return "".join([MADE.format("results"), RESULTS_HEAD, *map(_result, sorted(folder.glob("*.json")))])


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


PAGES: dict[str, Callable[[], str]] = {"config": config_page, "results": results_page}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one page."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", choices=sorted(PAGES))
    sys.stdout.write(PAGES[parser.parse_args(argv).page]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
