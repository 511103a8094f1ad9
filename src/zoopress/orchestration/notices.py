"""Tell somebody that a run did not do all that it should: a command, in the words of the user.

In a file such as params.yaml, beside its matrix; an option of the command comes first:

    notify:
      on_failure: curl --fail --silent --data-binary @- https://hooks.example.com/zoo

The command gets what the run would print with --json on its standard input, and a line about it in
$ZOOPRESS_SUMMARY. Observers, which are plugins, hear of every cell; this needs none.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from zoopress.errors import InputError
from zoopress.yaml_source import read_yaml, validate

_PATIENCE_S = 60.0


class NotifySection(BaseModel):
    """The section `notify` of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on_failure: str | None = Field(
        default=None, min_length=1, description="command that is run if not all is done"
    )


class _ParamsFile(BaseModel):
    notify: NotifySection = NotifySection()


def read_on_failure(matrix: str | None, on_failure: str | None) -> str | None:
    """Return the command that tells of failures, None for none.

    Args:
        matrix: the file whose section `notify` holds where nothing else is said.
        on_failure: what was said instead; "" for none.

    Raises:
        InputError: if the section is malformed.
    """
    if on_failure is not None or matrix is None:
        return on_failure or None
    source = read_yaml(Path(matrix), InputError)
    return validate(_ParamsFile, source, InputError).notify.on_failure


def tell_of_failure(
    command: str, summary: str, data: Mapping[str, Any], warn: Callable[[str], None]
) -> None:
    """Run the command; that it fails is a warning, and changes nothing.

    Args:
        command: for the shell.
        summary: a line, in $ZOOPRESS_SUMMARY.
        data: plain data, as JSON on its standard input.
        warn: told of a command that fails.
    """
    try:
        done = subprocess.run(
            command,
            shell=True,
            input=json.dumps(data),
            env={**os.environ, "ZOOPRESS_SUMMARY": summary},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        warn(f"nobody was told of the failure: {type(error).__name__}: {error}")
        return
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        warn(
            f"nobody was told of the failure: {command!r} ended with exit status "
            f"{done.returncode}{f': {said}' if said else ''}"
        )
