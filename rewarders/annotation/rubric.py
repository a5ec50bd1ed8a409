"""A rubric: the questions that a clip is rated on, 1 to 5 each. Two are built in, others are TOML files.

```
name = "mine"                       # answers to different rubrics are kept apart

[[dimensions]]
name = "smoothness"                 # a key of the ratings file
question = "Is the motion smooth?"
low = "flickers"                    # what 1 means; `middle` and `high`: 3 and 5; all three are optional
high = "flows"
```
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import ConfigError

RUBRICS = Path(__file__).parent / "rubrics"
BUILT_IN = ("anime", "huvidpo")
LOWEST, HIGHEST = 1, 5


class Dimension(BaseModel):
    """One question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    question: str = Field(min_length=1, max_length=200)
    low: str = Field(default="", max_length=200)
    middle: str = Field(default="", max_length=200)
    high: str = Field(default="", max_length=200)


class Rubric(BaseModel):
    """All questions of a survey, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    dimensions: tuple[Dimension, ...] = Field(min_length=1, max_length=12)

    @model_validator(mode="after")
    def _distinct(self) -> Rubric:
        names = self.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the dimension {twice!r} occurs twice")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return tuple(one.name for one in self.dimensions)

    def check(self, ratings: dict[str, int]) -> None:
        """Raises `ValueError` unless `ratings` has a value from 1 to 5 for every dimension, and no other keys."""
        if set(ratings) != set(self.names):
            raise ValueError(f"ratings of {', '.join(sorted(ratings)) or 'nothing'}; expected {', '.join(self.names)}")
        for name, value in ratings.items():
            if not LOWEST <= value <= HIGHEST:
                raise ValueError(f"{name} = {value}: a rating is {LOWEST} to {HIGHEST}")


def open_rubric(rubric: str) -> Rubric:
    """Opens ``"anime"``, ``"huvidpo"`` or a TOML file. Raises `ConfigError` with file and key."""
    path = RUBRICS / f"{rubric}.toml" if rubric in BUILT_IN else Path(rubric)
    try:
        return Rubric.model_validate(tomllib.loads(path.read_text("utf-8-sig")))
    except FileNotFoundError:
        raise ConfigError(f"rubric {rubric!r}: no such file; allowed: {', '.join(BUILT_IN)} or a TOML file") from None
    except OSError as error:
        raise ConfigError(f"rubric {path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "dimensions"
        raise ConfigError(f"rubric {path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:  # TOML, UTF-8
        raise ConfigError(f"rubric {path}: not valid TOML: {error}") from None
