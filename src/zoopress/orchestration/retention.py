"""How long a repository's store keeps what nothing refers to, as params.yaml says:

    retention:
      max_age: 30d
      max_size: 200GB

What any commit, branch or tag of the repository refers to stays, whatever its age, and so does what
a living run uses.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from zoopress.errors import InputError
from zoopress.store import Store
from zoopress.store.collect import Collected, Policy
from zoopress.store.reachable import reachable_keys
from zoopress.store.upkeep import collect
from zoopress.units import parse_bytes, parse_duration
from zoopress.yaml_source import read_yaml, validate


class RetentionSection(BaseModel):
    """The section `retention` of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_age: str | None = Field(
        default=None, description="results that were not used for so long go, as 30d"
    )
    max_size: str | None = Field(
        default=None, description="then the longest unused go until the rest fits, as 200GB"
    )
    keep: list[str] = Field(
        default=[], description="other repositories that use the same store: what they refer to"
    )

    @field_validator("max_age")
    @classmethod
    def _check_age(cls, text: str | None) -> str | None:
        if text is not None:
            parse_duration(text)
        return text

    @field_validator("max_size")
    @classmethod
    def _check_size(cls, text: str | None) -> str | None:
        if text is not None:
            parse_bytes(text)
        return text


class _ParamsFile(BaseModel):
    retention: RetentionSection | None = None


def read_retention(params: Path) -> RetentionSection | None:
    """Return what params.yaml says of retention, None if nothing.

    Raises:
        InputError: naming file, line and key.
    """
    return validate(_ParamsFile, read_yaml(params, InputError), InputError).retention


def prune(store: str | None, section: RetentionSection, root: Path) -> Collected:
    """Remove from a store what a repository no longer needs.

    Args:
        store: where it is; None for the user's own.
        section: what to remove.
        root: of the repository.

    Raises:
        InputError: if what must stay cannot be told; then nothing is removed.
        StoreError: if the store does not answer.
    """
    folders = [root, *(root / folder for folder in section.keep)]
    policy = Policy(
        max_age_s=None if section.max_age is None else parse_duration(section.max_age),
        max_size_bytes=None if section.max_size is None else parse_bytes(section.max_size),
        keep=frozenset().union(*map(reachable_keys, folders)),
    )
    return collect(Store(store), policy)
