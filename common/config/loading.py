"""Loads a `RunConfig` from TOML and flags, writes it back as TOML, lists all keys and compares configurations."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from common.config.algorithm import BUILT_IN, DEFAULT, AlgorithmConfig, algorithm_class
from common.config.run import RunConfig
from common.errors import ConfigError

ALGORITHM = "algorithm"  # the section whose keys depend on the algorithm that it names
RENAMED = {  # a key or a section -> its name today; the old name is refused with the new one
    "learner.loss": "algorithm.name",
    "learner.alpha": "algorithm.alpha",
    "learner.beta": "algorithm.beta",
    "learner.pairs_per_step": "learner.batch_size",
    "learner.refresh_every": "algorithm.refresh_every",
    "learner.normalise_gap": "algorithm.normalise_gap",
    "exchange.min_gap": "algorithm.min_gap",
    "guard.every": "guardrails.every_pushes",
    "guard.fall": "guardrails.max_judge_drop",
    "guard.drift": "guardrails.max_score_drift",
    "guard": "guardrails",
    "cluster.samplers": "cluster.sampler.count",
    "cluster.rewarders": "cluster.rewarder.count",
    "cluster.learners": "cluster.learner.count",
    "cluster.sampler_gpus": "cluster.sampler.gpus",
    "cluster.rewarder_gpus": "cluster.rewarder.gpus",
    "cluster.learner_gpus": "cluster.learner.gpus",
    "cluster.sampler_node": "cluster.sampler.node",
    "cluster.rewarder_node": "cluster.rewarder.node",
    "cluster.learner_node": "cluster.learner.node",
}


def load_config(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """Defaults, overridden by the TOML `file`, overridden by `flags` (dotted names, ``_`` or ``-``).

    Raises `ConfigError`.
    """
    if file is None:
        return parse_config("", "the defaults", flags)
    try:
        return parse_config(file.read_text("utf-8-sig"), str(file), flags)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def parse_config(text: str, source: str, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """Like `load_config`, for TOML `text`; error messages call it `source`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    _switch_algorithm(data, flags or {})
    if "reward.preset" in (flags or {}) and isinstance(data.get("reward"), dict):
        data["reward"] = _without(data["reward"], "weights")  # a run's file has them all, from the preset before
    where = {name: source for name in leaves(data)}
    for name, value in (flags or {}).items():
        dotted = name.replace("-", "_")
        _put(data, dotted, _typed(dotted, value))
        where[dotted] = f"--{name}"
    for name, place in where.items():
        _check_renamed(name, place)
    if data.get("pairs") and where.get("pairs") == "--pairs" and where.get("sampler.candidates") == source:
        data["sampler"] = _without(data["sampler"], "candidates")  # it is about the prompts that --pairs replaces
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_one_line(error, where, _chosen(data))) from None


def _switch_algorithm(data: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Where a flag names another algorithm than the file, drop the file's keys that the other one does not have."""
    section, name = data.get(ALGORITHM), flags.get(f"{ALGORITHM}.name")
    if name is None or not isinstance(section, dict) or name == section.get("name", DEFAULT):
        return
    with suppress(ValueError):  # an unknown name is reported when it is validated
        known = algorithm_class(str(name)).Config.model_fields
        data[ALGORITHM] = {key: value for key, value in section.items() if key in known}


def _chosen(data: Mapping[str, Any]) -> str:
    """The algorithm that the data names; the default one where that name is none."""
    section = data.get(ALGORITHM)
    name = str(section.get("name", DEFAULT)) if isinstance(section, dict) else DEFAULT
    try:
        algorithm_class(name)
    except ValueError:
        return DEFAULT
    return name


def _check_renamed(name: str, place: str) -> None:
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            raise ConfigError(f"{place}: {name} was renamed to {new}{name.removeprefix(old)}")


def leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: dotted name -> value."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--{dotted}: '{parent}' is a value, not a section")
    data[leaf] = value


def _without(section: Any, key: str) -> Any:
    return {name: value for name, value in section.items() if name != key} if isinstance(section, dict) else section


def _typed(dotted: str, value: Any) -> Any:
    """Split a flag's text at commas if the key holds a list; read it as a TOML value if the key holds anything."""
    found = next((key for key in keys() if key.covers(dotted)), None)
    if isinstance(value, str) and found is not None and found.kind == ANY:
        return _toml_value(value)
    if isinstance(value, str) and found is not None and isinstance(found.default, tuple):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _toml_value(text: str) -> Any:
    """The TOML value that `text` is (0.3, true, [1, 2], "0.3"), or else `text` itself."""
    try:
        value = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return value["value"] if len(value) == 1 and isinstance(value["value"], str | int | float | list) else text


def _one_line(error: ValidationError, where: Mapping[str, str], algorithm: str) -> str:
    """The first problem of a validation error in one line: where, the bad value, what is allowed."""
    first = min(error.errors(), key=lambda one: one["type"] == "missing")  # a misspelt key is also reported as missing
    parts = [str(part) for part in first["loc"] if part != "[key]"]
    name = ".".join(parts)
    inside = (place for leaf, place in where.items() if leaf.startswith(f"{name}."))
    place = where.get(name) or next(inside, None)
    label = name if place is None else place if place.startswith("--") else f"{name} in {place}"
    if first["type"] == "extra_forbidden":
        return f"{label}: unknown key; {_hint(parts, algorithm)}"
    if first["type"] in ("model_type", "model_attributes_type"):
        allowed = ", ".join(f"{name}.{key}" for key in _allowed(parts, algorithm))
        return f"{label}: a section, not a value; set one of {allowed}"
    what = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{label}{what}: {message}" if name else message  # the message names the keys if it is about several


def _hint(parts: list[str], algorithm: str) -> str:
    """The key that an unknown key probably meant, or else every key allowed in its section."""
    allowed = _allowed(parts[:-1], algorithm)
    close = get_close_matches(parts[-1], allowed, n=1)
    if close:
        return f"did you mean {'.'.join([*parts[:-1], close[0]])}?"
    elsewhere = [] if parts[0] == ALGORITHM else [key.name for key in keys() if key.name.split(".")[-1] == parts[-1]]
    return f"did you mean {elsewhere[0]}?" if elsewhere else f"allowed here: {', '.join(allowed)}"


def _allowed(section: list[str], algorithm: str) -> list[str]:
    if section == [ALGORITHM]:
        return sorted(algorithm_class(algorithm).Config.model_fields)
    model: Any = RunConfig
    for part in section:
        if _entry(model) is not None:
            model = _entry(model)
            continue
        if not _is_section(model) or part not in model.model_fields:
            return []
        model = model.model_fields[part].annotation
    return sorted(model.model_fields) if _is_section(model) else []


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _entry(annotation: Any) -> Any:
    """Type of the entries of a table with user-chosen names, such as `reward.judges`; None for other fields."""
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


# The list of keys; writing and comparing resolved configurations.

NAME = "NAME"  # in a key: stands for a user-chosen name
ANY = "text, number, true, false or list"  # kind of a key that a user's own class reads


@dataclass(frozen=True)
class Key:
    """One configuration key. `kind` is its type and range, e.g. ``float >= 0``."""

    name: str
    default: Any
    kind: str
    description: str

    def covers(self, dotted: str) -> bool:
        """Whether `dotted` is this key; `NAME` matches any name."""
        mine, asked = self.name.split("."), dotted.split(".")
        return len(mine) == len(asked) and all(own in (NAME, part) for own, part in zip(mine, asked, strict=True))


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every key, in the order in which the models declare them."""
    for name, field in model.model_fields.items():
        entry = _entry(field.annotation)
        if field.annotation is AlgorithmConfig:
            yield from _algorithm_keys()
        elif _is_section(field.annotation):
            yield from keys(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif _is_section(entry):
            yield from keys(entry, f"{prefix}{name}.{NAME}.")
        elif entry is Any:
            yield Key(f"{prefix}{name}.{NAME}", "", ANY, field.description or "")
        elif entry is not None:
            yield Key(f"{prefix}{name}.{NAME}", 1.0, "float >= 0", field.description or "")
        else:
            default = "" if field.is_required() else field.default
            yield Key(prefix + name, default, _kind(field), field.description or "")


def _algorithm_keys() -> Iterator[Key]:
    """The keys of the built-in algorithms, each once; its description says whose it is when not all have it."""
    sections = {name: algorithm_class(name).Config for name in BUILT_IN}
    fields = {key: field for section in sections.values() for key, field in section.model_fields.items()}
    for key, field in fields.items():
        having = [name for name, section in sections.items() if key in section.model_fields]
        whose = "" if len(having) == len(sections) else f"{', '.join(having)}: "
        yield Key(f"{ALGORITHM}.{key}", field.default, _kind(field), f"{whose}{field.description}")


def _kind(field: Any) -> str:
    signs = {"Ge": (">=", "ge"), "Gt": (">", "gt"), "Le": ("<=", "le"), "Lt": ("<", "lt")}
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str | int) for choice in choices):
        return " | ".join(str(choice) for choice in choices)
    base = "list" if choices else getattr(field.annotation, "__name__", str(field.annotation)).lower()
    bounds = [
        f"{signs[type(m).__name__][0]} {getattr(m, signs[type(m).__name__][1])}"
        for m in field.metadata
        if type(m).__name__ in signs
    ]
    return " ".join([{"str": "text"}.get(base, base), " and ".join(bounds)]).strip()


def to_toml(config: RunConfig) -> str:
    """The whole configuration as TOML; `load_config` reads it back unchanged."""
    return "\n".join(_toml(config.model_dump(mode="json"))) + "\n"


def _toml(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    # JSON strings, numbers, booleans and lists of them are also valid TOML.
    yield from (
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in data.items() if not isinstance(value, dict)
    )
    for key, value in data.items():
        if isinstance(value, dict):
            yield f"\n[{prefix}{key}]"
            yield from _toml(value, f"{prefix}{key}.")


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ: dotted name -> (old value, new value)."""
    before, after = leaves(old.model_dump(mode="json")), leaves(new.model_dump(mode="json"))
    names = dict.fromkeys([*before, *after])
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}
