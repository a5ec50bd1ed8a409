"""Resolves the weights that a command generates with: a run, a pipeline folder, or the embedded model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig, load_config
from common.errors import ConfigError, NotFoundError
from common.models.fingerprint import cached_snapshot, check_same_model, lora_hint, model_parts
from common.weights.store import WeightStore
from deploy.run_dir import layout


def generator_of(
    source: str, flags: Mapping[str, Any], version: int | None = None, file: Path | None = None
) -> tuple[RunConfig, WeightStore | None, int]:
    """Returns the configuration, the weights and the version to generate clips with.

    `source` is a run, a pipeline folder, or 'toon'. Only a run has published weights; for the others they are None and
    the version is 0. `file` is the configuration of a pipeline folder, by default its usual settings; the others have
    theirs. Raises `ConfigError` if `source` is neither, `NotFoundError` if the run lacks `version`.
    """
    config, weights = _open(source, flags, file)
    return config, weights, 0 if weights is None else chosen_version(weights, config, version)


def _open(source: str, flags: Mapping[str, Any], file: Path | None) -> tuple[RunConfig, WeightStore | None]:
    if is_pipeline(source):
        return config_of_pipeline(source, flags, file), None
    if file is not None:
        raise ConfigError(f"--config {file}: only for a pipeline folder; {source!r} has a configuration")
    if source == "toon":
        if (model := flags.get("model.path", source)) != source:
            raise ConfigError(f"--model.path {model}: 'toon' is the embedded model; name the folder instead of it")
        return load_config(layout.TOON, flags), None
    try:
        layout.find_run(source)
    except NotFoundError:
        raise ConfigError(
            f"{source}: neither a run nor a pipeline folder (no config.toml, no model_index.json), "
            f"nor a hub id in the local cache{lora_hint(source)}"
        ) from None
    folder, _ = find_run_with_model(source)
    return load_config(folder / layout.CONFIG, flags), WeightStore(folder / "weights")


def is_pipeline(source: str) -> bool:
    """Whether `source` is a pipeline folder, or a hub id in the local cache."""
    return ((cached_snapshot(source) or Path(source)) / "model_index.json").is_file()


def config_of_pipeline(source: str, flags: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """The configuration to sample a pipeline folder with: that of `file`, else its usual settings; `flags` override it.

    Raises `ConfigError` for bad input.
    """
    own = {"model.path": source} | dict(flags)
    if file is not None:
        return load_config(file, own)
    import torch  # noqa: PLC0415 - slow, as is what reads a folder; other sources do without

    from common.models.cogvideox import open_model  # noqa: PLC0415
    from common.models.usual import usual_settings  # noqa: PLC0415

    usual = usual_settings(open_model(source), "cuda:0" if torch.cuda.is_available() else "cpu")
    return load_config(None, usual.keys() | own)


def find_run_with_model(run: str) -> tuple[Path, RunConfig]:
    """`layout.find_run` for commands that need a model's clips or weights.

    Raises `ConfigError` for a run that is simulated, or that only collected candidates.
    """
    folder, config = layout.find_run(run)
    if config.collect.prompts:
        source = config.collect.run or config.model.path
        raise ConfigError(f"{folder}: collected candidates and trained nothing; its clips were made with {source}")
    if config.simulate:
        raise ConfigError(f"{folder}: a simulated run has no clips and no model's weights; only `douga run` prints it")
    return folder, config


def collect_keys(run: str | Path, version: int | None) -> tuple[Path, RunConfig, dict[str, str]]:
    """Returns a run's folder, its configuration, and the keys that make a collection sample with its weights.

    `version` None is the newest. Raises like `chosen_version` and `find_run_with_model`.
    """
    folder, config = find_run_with_model(str(run))
    chosen = chosen_version(WeightStore(folder / "weights"), config, version)
    return folder, config, {"collect.run": str(folder.resolve()), "collect.version": str(chosen)}


def chosen_version(store: WeightStore, config: RunConfig, version: int | None) -> int:
    """Returns `version`, or the newest one for None.

    Raises `NotFoundError` if the store does not have it, `ConfigError` if it was trained from another base model.
    """
    versions = store.versions()
    if not versions:
        raise ConfigError(f"{store.folder}: no weights published yet")
    chosen = versions[-1] if version is None else version
    what = f"{store.folder}: version {chosen}"
    check_same_model(what, store.manifest(chosen).model, model_parts(config.model.path), config.model.path)
    return chosen
