"""What every part of the configuration is, and the error that names bad input."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """Bad input from the user: one line that says what, where, and what is allowed. Exit code 2."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
