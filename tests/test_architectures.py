"""Families of transformers, each as a tiny model, through the recipes of the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
_AUTO = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
FEW = ("bert", "gpt_neox", "gpt_oss", "dpt")
"""Heads side by side, heads rotated in part, gates that take turns, interpolation."""


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import architectures

    yield architectures.walk
    for name in ("architectures", "tiny_transformers", "results_files"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("family", FEW)
def test_neurons_go(walk: Any, family: str) -> None:
    (row,) = walk(family, ["neuron_pruning"], frozenset())
    assert row["end"] == "ok", row["text"]
    assert int(row["text"].partition(" ")[0]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(_AUTO))
def test_every_family_works_or_is_refused(walk: Any, family: str) -> None:
    recipes = ["neuron_pruning", "pruning_4bit_coding", "truncated_svd", "float16"]
    rows = walk(family, recipes, frozenset())
    if rows[0]["end"] == "unbuilt":
        pytest.skip(rows[0]["text"])
    assert [row for row in rows if row["end"] not in ("ok", "refused")] == []
