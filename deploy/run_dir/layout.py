"""A run is a folder. This file knows what lies in it, who may write to it, and whether it belongs to a configuration.

```
RUN/config.toml      the resolved configuration      RUN/metrics.jsonl  one record per optimizer step
RUN/ledger.sqlite    the exchange's state            RUN/events.jsonl   starts, evaluations, interruptions, ends
RUN/snapshots/       its copies, by checkpoint       RUN/clips/         held-out clips, base and aligned
RUN/blobs/           latents and clips
RUN/checkpoints/     the learner's state             RUN/timeline.jsonl one record per unit of work, the newest
RUN/weights/         published versions              RUN/result.json    the held-out comparison in numbers
RUN/model.json       which base model it stands on      RUN/guard.jsonl    one record per reading of the guardrails
RUN/keys/            who is let in, in a cluster     RUN/report.html    the report, and a picture of it: report.png
RUN/prometheus/      whom Prometheus is to scrape    RUN/tensorboard/   with metrics.tensorboard
RUN/logs/            one log file per process        RUN/wandb/         with metrics.wandb
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config import RunConfig, differences, load_config, to_toml
from common.errors import ConfigError, CorruptDataError, NotFoundError, StorageError
from common.errors.disk import write_whole
from common.exchange.storage.run_lock import hold
from common.models.fingerprint import check_same_model, model_parts

TOON = Path(__file__).parents[1] / "launch" / "configs" / "toon.toml"  # the default configuration
CONFIG, MODEL, RESULT, REPORT, PICTURE = "config.toml", "model.json", "result.json", "report.html", "report.png"
LOGS = "logs"
# What may change when a run is resumed; where run and model lie is no part of what is computed (`_check_model`).
FREE = (
    "steps", "verify", "evaluation.", "guard.", "name", "root", "mode", "cluster.", "metrics.", "logs.", "model.path",
    "reward.batch_seconds", "exchange.keep_groups", "timeline_bytes",
)  # fmt: skip
SERVERS = ("url", "token_file", "timeout", "retries")  # of reward.judges.NAME: where it answers, not what
# How much is worked on at once: it changes the order of sums, so last bits, and makes a run fit that ran out of memory.
MEMORY = (
    "sampler.micro_batch",
    "sampler.offload",
    "reward.batch",
    "learner.micro_batch",
    "learner.gradient_checkpointing",
    "learner.reference",
)


def is_free(key: str, config: RunConfig) -> bool:
    """Whether a key may differ between a run folder and the configuration that resumes it."""
    if key == "sampler.micro_batch" and config.sampler.cache_threshold > 0:
        return False  # which blocks are skipped is decided for a micro-batch: another one gives other clips
    if key.startswith("reward.judges.") and key.count(".") == 3 and key.rpartition(".")[2] in SERVERS:
        return True  # of another digest it scores groups that are under way anew
    return any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE + MEMORY)


@contextmanager
def claim(config: RunConfig) -> Iterator[Path]:
    """Make or reopen the run's folder and hold it alone; yields the folder.

    Raises `ConfigError` when another process holds it, or when it belongs to another configuration or base model.
    """
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {error.strerror}; choose another --root or --name") from None
    with lock(folder):
        check_belongs(folder, config)
        try:
            _check_model(folder, config)
            write_whole(folder / CONFIG, to_toml(config))
        except StorageError as error:
            raise ConfigError(str(error)) from None
        yield folder


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a run folder; `ConfigError` names the process that holds it already."""
    with hold(folder):
        yield


def check_belongs(folder: Path, config: RunConfig) -> None:
    """`ConfigError` when the folder was made with other values of keys that must not change on the way."""
    if not (folder / CONFIG).exists():
        return
    changed = {
        key: values
        for key, values in differences(load_config(folder / CONFIG), config).items()
        if not is_free(key, config)
    }
    if changed:
        said = ", ".join(f"{key} ({old!r} there, {new!r} now)" for key, (old, new) in sorted(changed.items()))
        raise ConfigError(
            f"{folder}: the run there has another configuration: {said}; choose another --name or the same values "
            "(steps, verify, evaluation.*, guard.*, cluster.*, metrics.*, logs.*, exchange.keep_groups, "
            f"timeline_bytes, the place of the model and {', '.join(MEMORY)} may change)"
        )


def _check_model(folder: Path, config: RunConfig) -> None:
    """`ConfigError` when the run there was started with another base model. Nobody has begun to work with it yet."""
    if config.simulate:
        return
    here, kept = model_parts(config.model.path), folder / MODEL
    if kept.exists():
        check_same_model(str(folder), _read_json(kept), here, config.model.path)
    write_whole(kept, json.dumps(here, indent=1) + "\n")


def check_steps(config: RunConfig, done: int) -> None:
    """`ConfigError` when more steps are done than are asked for."""
    if done > config.steps:
        raise ConfigError(f"{config.folder}: {done} steps are done; steps = {config.steps} is less")


def find_run(run: str, root: Path = Path("runs")) -> tuple[Path, RunConfig]:
    """A run's folder and configuration, by path or by name under `root`. `NotFoundError` when there is none."""
    for folder in (Path(run), root / run):
        if (folder / CONFIG).is_file():
            return folder, load_config(folder / CONFIG)
    raise NotFoundError(f"{run}: no run folder (no {Path(run) / CONFIG}, no {root / run / CONFIG})")


def resume_command(folder: Path) -> str:
    """What continues the run."""
    return f"douga run {folder / CONFIG}"


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Keep the run's result."""
    write_whole(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def finished_result(config: RunConfig) -> dict[str, Any] | None:
    """The result of a run that is already at its end, else None. `ConfigError` for another run's folder."""
    check_belongs(config.folder, config)
    result = read_result(config.folder)
    if config.simulate and result is not None and "pace" in result:
        return result if result["step"] == config.steps else None
    if result is None or "verdict" not in result:
        return None
    asked = (config.steps, config.evaluation.prompts)
    return result if (result["step"], result["prompts"]) == asked else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The run's result, None when it has none yet. `CorruptDataError` when it is broken."""
    path = folder / RESULT
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptDataError(f"{path}: broken: {error}; delete it and run again") from None
