"""The files of a run folder, its lock, and the check that it belongs to a configuration.

```
RUN/config.toml      the resolved configuration      RUN/metrics.jsonl  one record per optimizer step
RUN/ledger.sqlite    the exchange's state            RUN/events.jsonl   starts, evaluations, interruptions, ends
RUN/snapshots/       copies of it, per checkpoint    RUN/clips/         held-out clips, base and aligned
RUN/blobs/           latents and clips
RUN/checkpoints/     the learner's state             RUN/timeline.jsonl one record per unit of work (newest)
RUN/weights/         published versions              RUN/result.json    the held-out comparison in numbers
RUN/model.json       fingerprint of the base model   RUN/report.html    the report; report.png: an image of it
RUN/keys/            CURVE keys of a cluster run     RUN/guardrails.jsonl  one record per reading of the guardrails
RUN/prometheus/      scrape targets for Prometheus   RUN/tensorboard/   with metrics.tensorboard
RUN/logs/            one log file per process        RUN/wandb/         with metrics.wandb
RUN/candidates/      the set that `douga collect` makes   RUN/trained_on.json  with candidates: which ones
RUN/kept/            the set that a run keeps of its own training candidates (keep_candidates_bytes)
```
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.candidate_set.rows import folder_of, read_rows
from common.config import RunConfig, differences, load_config, may_change, may_change_text, to_toml
from common.digests import digest
from common.errors import ConfigError, CorruptDataError, NotFoundError, StorageError
from common.exchange.storage.run_lock import hold, lock_owner
from common.files import write_whole
from common.models.fingerprint import check_same_model, model_parts
from deploy.run_dir.start_over import has_work, start_over

TOON = Path(__file__).parents[1] / "launch" / "configs" / "toon.toml"  # the default configuration
CONFIG, MODEL, RESULT, REPORT, PICTURE = "config.toml", "model.json", "result.json", "report.html", "report.png"
LOGS, TRAINED_ON = "logs", "trained_on.json"
OF_SCORES = ("reward.", "algorithm.", "learner.")  # keys that do not matter to clips which exist


@contextmanager
def claim(config: RunConfig, notify: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """Creates or reopens the run folder and locks it. Yields the folder.

    A run that has made nothing yet (`deploy/run_dir/start_over.py`) starts over if configuration, base model or
    candidate set are others; `notify` is told. Raises `ConfigError` if the folder cannot be created, another process
    holds it, or it belongs to another run.
    """
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be created: {error.strerror}; choose another --root or --name") from None
    with lock(folder):
        records = _records(config)
        try:
            _check_same_run(folder, config, records)
        except ConfigError:
            if has_work(folder):
                raise
            notify(f"{folder}: nothing was trained or scored there; it starts over with the changed configuration")
            start_over(folder, (CONFIG, MODEL, TRAINED_ON))
        try:
            for name, record in records.items():
                write_whole(folder / name, json.dumps(record, indent=1) + "\n")
            write_whole(folder / CONFIG, to_toml(config))
        except StorageError as error:
            raise ConfigError(str(error)) from None
        yield folder


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks a run folder. Raises `ConfigError` naming the process that holds it already."""
    with hold(folder):
        yield


def check_unused(folder: Path) -> None:
    """Raises `ConfigError` if a process on this machine holds the folder. `claim` decides; this only tells earlier."""
    owner = lock_owner(folder)
    if owner is not None:
        raise ConfigError(f"{folder}: in use by process {owner}; wait for it or choose another --name")


def is_collected(config: RunConfig) -> bool:
    """Whether a collection is complete. Its rewards may be others than before: scores can be added to its set.

    Raises `ConfigError` if the folder belongs to another run.
    """
    result, folder = read_result(config.folder), config.folder
    if result is None or result.get("collected") != config.collect.prompts:
        return False
    changed = differences(load_config(folder / CONFIG), config)
    if any(not (may_change(key, config) or key.startswith(OF_SCORES)) for key in changed):
        check_belongs(folder, config)
    return True


def check_belongs(folder: Path, config: RunConfig) -> None:
    """Raises `ConfigError` if the run there has made something, with other values of keys that must not change."""
    try:
        _check_configuration(folder, config)
    except ConfigError:
        if has_work(folder):
            raise


def _check_same_run(folder: Path, config: RunConfig, records: Mapping[str, Any]) -> None:
    _check_configuration(folder, config)
    there = {name: _read_json(folder / name) for name in records if (folder / name).exists()}
    if MODEL in there:
        check_same_model(str(folder), there[MODEL], records[MODEL], config.model.path)
    if TRAINED_ON in there and (before := there[TRAINED_ON]) != (now := records[TRAINED_ON]):
        raise ConfigError(
            f"{config.candidates}: the set has changed since {folder} began ({before['candidates']} candidates then, "
            f"{now['candidates']} now); a run cannot be resumed with other candidates: start another with --name"
        )


def _check_configuration(folder: Path, config: RunConfig) -> None:
    if not (folder / CONFIG).exists():
        return
    changed = {
        key: values
        for key, values in differences(load_config(folder / CONFIG), config).items()
        if not may_change(key, config)
    }
    if changed:
        listed = ", ".join(f"{key} ({old!r} there, {new!r} now)" for key, (old, new) in sorted(changed.items()))
        raise ConfigError(
            f"{folder}: the run there has another configuration: {listed}; choose another --name or the same values "
            f"({may_change_text(config)} may change)"
        )


def _records(config: RunConfig) -> dict[str, Any]:
    """What a run must find again when it resumes, by file: its base model, and the candidates that it trains on, whose
    number decides which group comes when."""
    records: dict[str, Any] = {} if config.simulate else {MODEL: model_parts(config.model.path)}
    if config.candidates:
        names = list(read_rows(folder_of(Path(config.candidates))))
        records[TRAINED_ON] = {"candidates": len(names), "digest": digest("\n".join(names).encode())}
    return records


def check_steps(config: RunConfig, done: int) -> None:
    """Raises `ConfigError` if `done` exceeds `config.steps`."""
    if done > config.steps:
        raise ConfigError(f"{config.folder}: {done} steps are done, more than steps = {config.steps}")


def find_run(run: str, root: Path = Path("runs")) -> tuple[Path, RunConfig]:
    """Returns a run's folder and configuration, by path or by name under `root`. Raises `NotFoundError`."""
    for folder in (Path(run), root / run):
        if (folder / CONFIG).is_file():
            return folder, load_config(folder / CONFIG)
    raise NotFoundError(f"{run}: no run folder (no {Path(run) / CONFIG}, no {root / run / CONFIG})")


def resume_command(folder: Path) -> str:
    """The command that resumes the run, as a shell takes it."""
    return shlex.join(["douga", "run", str(folder / CONFIG)])


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Writes result.json atomically."""
    write_whole(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def finished_result(config: RunConfig) -> dict[str, Any] | None:
    """Returns the result of a finished run, else None. Raises `ConfigError` if the folder belongs to another run."""
    check_belongs(config.folder, config)
    result = read_result(config.folder)
    if config.collect.prompts:
        return result if result is not None and result.get("collected") == config.collect.prompts else None
    if config.simulate and result is not None and "throughput" in result:
        return result if result["step"] == config.steps else None
    asked = (config.steps, config.evaluation.prompts)
    if result is None or "asked" not in result:
        return None
    return result if (result["step"], result.get("asked")) == asked else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """Returns result.json, None without one. Raises `CorruptDataError` if it is not valid JSON."""
    path = folder / RESULT
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptDataError(
            f"{path}: not valid JSON: {error}; delete it, and the same command resumes the run"
        ) from None
