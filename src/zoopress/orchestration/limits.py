"""How long a cell of a zoo run may take, and how often it is tried again.

In a file such as params.yaml, beside its matrix; options of the command come first:

    limits:
      cell_timeout: 2h
      retries: 1
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from zoopress.errors import InputError
from zoopress.units import parse_duration
from zoopress.yaml_source import read_yaml, validate

_LEAST_S = 0.1


@dataclass(frozen=True)
class Limits:
    """Limits of each cell.

    Attributes:
        cell_timeout_s: all that its jobs may take, waiting for memory left out; None for no limit.
        retries: see `Job.retries`.
    """

    cell_timeout_s: float | None = None
    retries: int | None = None

    def left(self, spent_s: float) -> float | None:
        """Return how long the next job of a cell may take."""
        if self.cell_timeout_s is None:
            return None
        return max(_LEAST_S, self.cell_timeout_s - spent_s)


class LimitsSection(BaseModel):
    """The section `limits` of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell_timeout: str | None = Field(
        default=None, description="how long a cell may compute, as 90s, 45m or 2h"
    )
    retries: int | None = Field(
        default=None,
        ge=0,
        description="how often is tried again what may pass: a worker that died or took too long, "
        "a network or a disk that failed; by default once, if a worker died",
    )

    @field_validator("cell_timeout")
    @classmethod
    def _check_duration(cls, text: str | None) -> str | None:
        if text is not None:
            check_timeout(text)
        return text


class _ParamsFile(BaseModel):
    limits: LimitsSection = LimitsSection()


def check_timeout(text: str) -> float:
    """Return the seconds of a time limit.

    Raises:
        InputError: if it is no duration, or none at all.
    """
    seconds = parse_duration(text)
    if seconds <= 0:
        raise InputError(f"A cell can do nothing in {text!r}; write for example 45m or 2h.")
    return seconds


def read_limits(matrix: str | None, cell_timeout: str | None, retries: int | None) -> Limits:
    """Return the limits of a run.

    Args:
        matrix: the file whose section `limits` holds where nothing else is said.
        cell_timeout: what was said instead.
        retries: likewise.

    Raises:
        InputError: if one of them is malformed.
    """
    section = LimitsSection()
    if matrix is not None:
        section = validate(_ParamsFile, read_yaml(Path(matrix), InputError), InputError).limits
    timeout = cell_timeout or section.cell_timeout
    if retries is not None and retries < 0:
        raise InputError(f"{retries} retries cannot be made; give 0 or more.")
    return Limits(
        check_timeout(timeout) if timeout else None,
        section.retries if retries is None else retries,
    )
