"""The base of whatever a user configures in a recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every config: unknown keys are errors, values are never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
