"""Vocabularies of actions: the labels that a data set is balanced over, as TOML files.

```
affection = ["kissing", "hugging"]      # a kind of actions: it only groups them
force = ["pushing", "pulling"]
```

The label of a prompt or clip is its `category`. Case and white space do not matter in it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.errors import ConfigError

ANIME = "anime"  # name of the vocabulary that comes with douga
BUILT_IN = {ANIME: Path(__file__).with_name("actions.toml")}


@dataclass(frozen=True)
class Vocabulary:
    """Actions, in the order of their file."""

    file: Path
    kinds: dict[str, tuple[str, ...]]

    @property
    def actions(self) -> list[str]:
        """All actions."""
        return [action for kind in self.kinds.values() for action in kind]

    def action(self, label: object) -> str:
        """Returns the action that a label names. Raises `ValueError` if it names none."""
        asked = _plain(str(label or ""))
        if not asked:
            raise ValueError("no category: the action is missing")
        if asked not in self.actions:
            near = get_close_matches(asked, self.actions, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"{self.file.name} lists those that are known"
            raise ValueError(f"category = {str(label).strip()!r}: unknown action; {hint}")
        return asked


def open_vocabulary(name: str) -> Vocabulary:
    """Opens a built-in vocabulary or a TOML file.

    Raises `ConfigError` if the file is missing, not of this form, empty, or names an action twice.
    """
    file = BUILT_IN.get(name, Path(name))
    try:
        data = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"vocabulary {name}: neither {', '.join(BUILT_IN)} nor a file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"vocabulary {file}: cannot be read: {error}") from None
    kinds = {kind: tuple(_actions(file, kind, given)) for kind, given in data.items()}
    if not kinds:
        raise ConfigError(f"vocabulary {file}: no actions in it")
    _check_unique(file, kinds)
    return Vocabulary(file, kinds)


def _actions(file: Path, kind: str, given: Any) -> Iterable[str]:
    if not isinstance(given, list) or not given:
        raise ConfigError(f"vocabulary {file}: {kind}: a list of actions is expected, and at least one")
    for action in given:
        if not isinstance(action, str) or not action.strip():
            raise ConfigError(f"vocabulary {file}: {kind}: {action!r} is not an action; a name is expected")
        yield _plain(action)


def _check_unique(file: Path, kinds: dict[str, tuple[str, ...]]) -> None:
    found: dict[str, str] = {}
    for kind, actions in kinds.items():
        for action in actions:
            if action in found:
                raise ConfigError(f"vocabulary {file}: {action!r} is in {found[action]} and again in {kind}")
            found[action] = kind


def _plain(label: str) -> str:
    return " ".join(label.casefold().split())
