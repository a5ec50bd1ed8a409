"""What `douga evaluate` compares: runs, versions of runs, pipeline folders, and candidate sets.

```
RUN | RUN@VERSION | FOLDER | toon ──> a configuration of a collection in OUT/LABEL ──> candidate set
SET ────────────────────────────────────────────────────────────────────────────────> candidate set
```

All models are sampled with one configuration: that of --config, else of the first run. Only the model's own keys
(`model.path`, `learner.*`) come from each run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.candidate_set.rows import is_set
from common.config import RunConfig, leaves, load_config, parse_config, to_toml
from common.errors import ConfigError, NotFoundError
from common.models.fingerprint import lora_hint
from deploy.run_dir import layout
from deploy.run_dir.source import collect_keys, config_of_pipeline, find_run_with_model, is_pipeline

BASE = "base"  # label of a run's base model
EMBEDDED = "toon"  # the embedded model
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FREE = {"pairs": "", "candidates": "", "verify": "false", "simulate": "false"}  # keys of training that do not apply


@dataclass(frozen=True)
class EvaluatedModel:
    """One column of the table. `config` is that of the collection that makes its clips; None: `folder` has them."""

    label: str
    folder: Path
    config: RunConfig | None


@dataclass(frozen=True)
class Request:
    """What is asked: the models, and how they are sampled."""

    models: Sequence[str]  # [LABEL=]PLACE
    out: Path
    file: Path | None = None  # --config
    flags: Mapping[str, Any] | None = None
    count: int | None = None  # prompts
    split: str = "heldout"
    clips: int = 1  # per prompt


def models_of(request: Request) -> list[EvaluatedModel]:
    """The models in the order of the table. A run alone is compared with its base model, which comes first.

    Raises `ConfigError` for an unknown kind of model, two models with one label, or a pipeline folder without a
    configuration; `NotFoundError` for a version that a run does not have.
    """
    places = [_labelled(name) for name in request.models]
    if len(places) == 1 and _run_of(places[0][1]) and not is_set(Path(places[0][1])):
        label, place = places[0]
        run, _ = _split_version(place)
        places = [(BASE, f"{run}@0"), (label, place)]
    labels = [label for label, _ in places]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"two models are called {twice!r}; name them: LABEL={places[labels.index(twice)][1]}")
    template = _template(request, [place for _, place in places])
    return [_model(label, place, template, request) for label, place in places]


def _labelled(name: str) -> tuple[str, str]:
    label, equals, place = name.partition("=")
    if not equals or "/" in label:
        label, place = Path(name).name.replace("@", "-v"), name
    if not LABEL.fullmatch(label):
        raise ConfigError(f"{label!r}: a label has letters, digits, '.', '_' and '-' only; name it: LABEL={place}")
    return label, place


def _split_version(place: str) -> tuple[str, int | None]:
    run, at, version = place.rpartition("@")
    return (run, int(version)) if at and version.isdigit() else (place, None)


def _run_of(place: str) -> Path | None:
    """The folder of a run; None if `place` is not one. The embedded model comes before a run of its name."""
    if place == EMBEDDED or is_pipeline(place):
        return None
    try:
        return layout.find_run(_split_version(place)[0])[0]
    except NotFoundError:
        return None


def _template(request: Request, places: Sequence[str]) -> RunConfig | None:
    """The configuration that all models are sampled with; None if all of them are sets."""
    flags = dict(request.flags or {})
    sampled = [place for place in places if not is_set(Path(place))]
    if request.file is not None:
        return load_config(request.file, flags)
    if not sampled:
        return None
    run = next((folder for place in sampled if (folder := _run_of(place))), None)
    if run is not None:
        return load_config(find_run_with_model(str(run))[0] / layout.CONFIG, flags)
    if sampled[0] == EMBEDDED:
        return load_config(layout.TOON, flags)
    if not is_pipeline(sampled[0]):
        raise _unknown(sampled[0])
    if "prompts" not in flags:
        raise ConfigError(
            f"{sampled[0]}: a pipeline folder has no prompts and no rewards; give --config CONFIG.toml, or --prompts "
            "FILE and what scores the clips"
        )
    return config_of_pipeline(sampled[0], flags)


def _unknown(place: str) -> ConfigError:
    return ConfigError(f"{place}: neither a run, nor a pipeline folder, nor a candidate set{lora_hint(place)}")


def _model(label: str, place: str, template: RunConfig | None, request: Request) -> EvaluatedModel:
    if is_set(Path(place)):
        return EvaluatedModel(label, Path(place), None)
    assert template is not None
    count = request.count or template.evaluation.prompts
    if not count:
        raise ConfigError("evaluation.prompts = 0: give the number of prompts with --count")
    run, own = _run_of(place), {}
    if run is not None:
        own = _keys_of_run(run, _split_version(place)[1])
    elif place != EMBEDDED and not is_pipeline(place):
        raise _unknown(place)
    else:
        own = {"model.path": place}
    how = {
        "root": str(request.out),
        "name": label,
        "sampler.candidates": str(request.clips),
        "collect.prompts": str(count),
        "collect.split": request.split,
    }
    config = parse_config(to_toml(template), label, FREE | own | how)
    return EvaluatedModel(label, config.folder, config)


def _keys_of_run(folder: Path, version: int | None) -> dict[str, str]:
    """The keys of a run that say what its weights are."""
    _, config, weights = collect_keys(folder, version)
    lora = leaves({"learner": {"lora": config.learner.lora.model_dump(mode="json")}})
    keys = {key: ",".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in lora.items()}
    keys |= {"model.path": config.model.path, "model.attention": config.model.attention}
    keys |= {"learner.train": config.learner.train, "learner.trainable": "*"}
    return keys | weights
