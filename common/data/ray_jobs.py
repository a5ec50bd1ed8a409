"""Ray jobs: `ray job submit --working-dir` copies a folder without the files that its .gitignore names."""

from __future__ import annotations

from pathlib import Path

from common.errors import ConfigError
from common.files import exists


def in_job() -> bool:
    """Whether this process runs in a copy of a working directory that Ray made, and will delete."""
    return "runtime_resources" in Path.cwd().parts


def unsent(path: Path | str) -> str:
    """What to say behind a missing file or folder of a table, in brackets; empty if it is there, or this is no job."""
    if not in_job() or exists(Path(path)):
        return ""
    return " (a Ray job lacks what .gitignore names, unless it is submitted with RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1)"


def check_sent(name: str, path: Path | str) -> None:
    """Raises `ConfigError` if this is a job and its copy lacks the file or folder `path`, which `name` asks for."""
    if unsent(path):
        raise ConfigError(
            f"{name}: {path}: not found; a job has a copy of --working-dir without the files that .gitignore names: "
            "use an absolute path, or submit with RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1"
        )
