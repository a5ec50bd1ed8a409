"""The base class of all configuration sections, and the error for bad user input."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """Bad user input. The message is one line: what is wrong, where, and what is allowed. Exit code 2."""


class Section(BaseModel):
    """One section of the configuration. Unknown keys are errors; values are immutable after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
