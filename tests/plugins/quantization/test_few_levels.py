"""Recipes of a few lines that leave weights few levels: run, coded, reloaded, and weighed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoopress
from zoopress.errors import PlanError
from zoopress.models.packing import PackedWeight, packed_weights
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store
from zoopress.testing import reload_artifact, tiny_card
from zoopress.testing.models import cnn, lstm, transformer

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()
FACTORIES = {"cnn": cnn, "lstm": lstm, "transformer": transformer}


def compressed(stages: str, name: str, folder: Path, labelled: bool = False, **change: Any) -> Any:
    """Run a recipe of some lines on a tiny model, and code what it makes."""
    card = tiny_card(name, folder / "card", labelled=labelled, **change)
    text = f"name: few-levels\nstages:\n{stages.strip()}\n- technique: entropy_coding\n"
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    recipe = load_recipe(str(file), PLUGINS)
    result = compress(card, recipe, folder / "out", Store(folder / "store"), PLUGINS)
    return result, reload_artifact(result.artifact, card, PLUGINS)


def checked(result: Any, model: Any, bits: float) -> list[PackedWeight]:
    """Check that what came back is packed, and takes so many bits a weight besides its scales."""
    assert result.report.last.reload_difference == 0
    packed = packed_weights(model.module)
    assert packed
    numbers = sum(weight.shape.numel() for weight in packed.values())
    codes = sum(
        8 * buffer.nbytes
        for weight in packed.values()
        for name, buffer in weight.named_buffers()
        if name in weight.code_layouts()
    )
    # Rows end within a byte, and the tiny models' are short.
    assert bits * numbers <= codes <= bits * numbers * 1.35 + 1
    for weight in packed.values():
        held = sum(buffer.nbytes for buffer in weight.buffers())
        assert held < weight.shape.numel() * weight.dtype.itemsize
    return list(packed.values())


LEVELS = [
    ("{technique: level_quantization, grid: nf4, group_size: 64}", 4.0),
    ("{technique: level_quantization, grid: fp4, group_size: 32, scales: power_of_two}", 4.0),
    ("{technique: level_quantization, grid: fp8_e4m3}", 8.0),
    ("{technique: level_quantization, grid: fp8_e5m2, clipping: none}", 8.0),
    ("{technique: level_quantization, grid: power_of_two, bits: 3, weighting: inputs}", 3.0),
    ("{technique: level_quantization, grid: piecewise_linear, bits: 4}", 4.0),
    ("{technique: binarization}", 1.0),
    ("{technique: binarization, bases: 3, group_size: 32}", 3.0),
    ("{technique: binarization, weighting: curvature}", 1.0),
    ("{technique: ternarization}", 1.6),
    ("{technique: ternarization, threshold: mean, scale: tensor, two_scales: true}", 1.6),
    ("{technique: vector_quantization, length: 4, bits: 4, kinds: [linear, conv]}", 1.0),
    ("{technique: vector_quantization, bits: 6, weighting: inputs, correction: true}", 3.0),
    ("{technique: focused_quantization, bits: 4}", 4.0),
]


@pytest.mark.parametrize(
    ("name", "stage", "bits"),
    [(name, *each) for name, each in zip(itertools.cycle(FACTORIES), LEVELS)],
)
def test_levels_survive_saving_coding_and_loading(
    name: str, stage: str, bits: float, tmp_path: Path
) -> None:
    result, model = compressed(f"- {stage}", name, tmp_path)
    checked(result, model, bits)
    assert all(claim.reached >= 0.75 * claim.requested for claim in _claims(result))


@pytest.mark.parametrize(("stage", "bits"), [LEVELS[0], LEVELS[5], LEVELS[9], LEVELS[10]])
def test_pruned_weights_stay_zero(stage: str, bits: float, tmp_path: Path) -> None:
    stages = f"- {{technique: magnitude_pruning, sparsity: 0.7}}\n- {stage}"
    result, model = compressed(stages, "cnn", tmp_path)
    packed = packed_weights(model.module)
    masks = {name: mask for name, mask in model.masks.items() if name.endswith("codes")}
    assert masks
    for name, mask in masks.items():
        weight = packed[name.removesuffix(".codes")]
        zeros = weight.dense_rows(slice(len(mask))) == 0
        assert bool(zeros[~mask.view(zeros.shape)].all())
    assert result.report.last.reload_difference == 0


def test_two_humps_of_a_pruned_layer_are_told_and_stay_pruned(tmp_path: Path) -> None:
    stages = """
- {technique: magnitude_pruning, sparsity: 0.8}
- {technique: focused_quantization, bits: 5}
"""
    result, model = compressed(stages, "cnn", tmp_path)
    packed = packed_weights(model.module)
    notes = result.report.stages[1].notes["separation_of_humps"]
    assert set(notes) == set(packed)
    assert max(notes.values()) > 2
    for name, weight in packed.items():
        assert float((weight.dense() == 0).float().mean()) > 0.5, name


def test_fixed_point_factors_are_a_recipe(tmp_path: Path) -> None:
    stages = """
- {technique: truncated_svd, parameters: 0.6, kinds: [linear]}
- {technique: weight_quantization, bits: 4, kinds: [linear], group_size: 8}
"""
    result, model = compressed(stages, "transformer", tmp_path)
    assert result.report.last.reload_difference == 0
    assert any("factor" in type(m).__name__.lower() for m in model.module.modules())
    assert packed_weights(model.module)


def test_signs_are_refused_after_pruning_in_words(tmp_path: Path) -> None:
    stages = "- {technique: magnitude_pruning, sparsity: 0.7}\n- {technique: binarization}"
    with pytest.raises(PlanError, match="mask"):
        compressed(stages, "cnn", tmp_path)


def test_loaded_it_takes_the_packed_size_and_computes_the_same(tmp_path: Path) -> None:
    result, model = compressed(f"- {LEVELS[0][0]}", "transformer", tmp_path)
    loaded = zoopress.load(result.artifact, factory=transformer, unpacking="none")
    dense = zoopress.load(result.artifact, factory=transformer, unpacking="all")
    assert set(packed_weights(loaded)) == set(packed_weights(model.module))
    held, whole = _bytes(loaded), _bytes(dense)
    packed = sum(b.nbytes for w in packed_weights(model.module).values() for b in w.buffers())
    rest = held - packed
    assert packed < 0.16 * (whole - rest)
    tokens = torch.randint(0, 30, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(_first(loaded(tokens)), _first(dense(tokens)))


def _claims(result: Any) -> list[Any]:
    return [claim for stage in result.report.stages for claim in stage.claims]


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(iter(output))
