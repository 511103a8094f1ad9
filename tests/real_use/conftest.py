"""A fixture that makes a case of a model's source."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from real_use_case import PRELUDE, Case, MakeCase


@pytest.fixture
def case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief_evaluation: None
) -> Iterator[MakeCase]:
    """Return a function from a module's source (and how to save its weights) to a case."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(source: str, save: Callable[[nn.Module], Any] | None = None) -> Case:
        # A name of its own for each: Python keeps modules by name.
        name = f"{tmp_path.parent.name}_{tmp_path.name}_{len(made)}".replace("-", "_")
        folder = tmp_path / f"case-{len(made)}"
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
        (folder / f"{name}.py").write_text(PRELUDE + source)
        made.append(name)
        return Case(folder, importlib.import_module(name), save)

    yield make
    for name in made:
        sys.modules.pop(name, None)
