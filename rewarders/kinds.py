"""Finds the class that a configuration's ``kind`` names: a built-in one, or a user's as ``package.module:Class``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from common.errors import ConfigError


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
        raise ConfigError(f"kind = {kind!r}: cannot be imported: {error}") from None
    if not isinstance(found, type):
        raise ConfigError(f"kind = {kind!r}: {module} has no class {attribute}")
    return found
