"""Keeps secrets out of log files: known values, and text that looks like a token or a password."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from common.config import RunConfig

HIDDEN = "***"
SHORTEST = 8  # characters; shorter values are not replaced, as they could be ordinary words
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_?KEY", re.IGNORECASE)  # of an environment variable
PATTERN = re.compile(
    r"(\bbearer\s+)[\w.~+/=-]+"
    r"|(://[^/\s:@]*:)[^/\s@]+(?=@)"  # user:password@host
    r"|(--token[= ])\S+"
    r"|((?:token|secret|passw(?:or)?d|(?:api|access|secret|private)[_-]?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+",
    re.IGNORECASE,
)


class Redactor:
    """Replaces secrets in text. Thread-safe."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        for secret in secrets:
            self.hide(secret)

    def hide(self, secret: str) -> None:
        """Redacts this value from now on. Values shorter than `SHORTEST` are ignored."""
        if len(secret) >= SHORTEST and secret not in self._secrets:
            self._secrets = (*self._secrets, secret)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return PATTERN.sub(lambda found: next(filter(None, found.groups())) + HIDDEN, text)


def secrets_of(config: RunConfig, environment: Mapping[str, str]) -> list[str]:
    """Returns the secrets that this process may hold, from `environment` and the judges' token files."""
    found = [value for name, value in environment.items() if SECRET_NAME.search(name)]
    for judge in (*config.reward.judges.values(), *config.guardrails.judges.values()):
        with suppress(OSError, UnicodeDecodeError):  # the code that uses the file reports that it is unreadable
            found += [Path(judge.token_file).read_text("utf-8").strip()] if judge.token_file else []
    return found
