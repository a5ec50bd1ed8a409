"""Finds the class that a configuration's ``kind`` names: a built-in one, or a user's as ``package.module:Class``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.places import describe_error, place_of

OURS = ("actors", "benchmarks", "common", "deploy", "learner", "rewarders")  # top-level packages of douga


def class_of(kind: str, built_in: Mapping[str, str]) -> type:
    """Returns the class of `kind`; `built_in` maps names to ``package.module:Class``.

    Raises `ConfigError` for an unknown name, a module that cannot be imported, or a missing class.
    """
    module, colon, attribute = built_in.get(kind, kind).partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"kind = {kind!r}: must be {', '.join(built_in)} or a class as package.module:Class")
    try:
        found = getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"kind = {kind!r}: cannot be imported: {one_line(error)}; {_way_out(error.name or '')}"
        ) from None
    except SystemExit as error:
        ended = f"it called sys.exit({error.code!r}) ({place_of(error)})"
        raise ConfigError(f"kind = {kind!r}: cannot be imported: {ended}") from error
    except Exception as error:  # the module's own code, or its syntax
        raise ConfigError(f"kind = {kind!r}: cannot be imported: {describe_error(error)}") from error
    if not isinstance(found, type):
        raise ConfigError(f"kind = {kind!r}: {module} has no class {attribute}")
    return found


def _way_out(missing: str) -> str:
    """What a user can do about a module that Python did not find."""
    package = missing.partition(".")[0]
    if package not in OURS:
        return "Python looks in PYTHONPATH, not in this folder: PYTHONPATH=. douga ..."
    places = [str(Path(folder or ".").resolve() / package) for folder in sys.path]
    own = str(Path(sys.modules[package].__file__ or "").parent) if package in sys.modules else package
    other = next((place for place in places if place != own and Path(place).exists()), "")
    hidden = f", which hides {other}" if other else ""
    return (
        f"{package} is douga's own package, {own}{hidden}: rename yours, keep the reward in a file that does not "
        "import it, or serve the reward over HTTP (kind = 'remote')"
    )
