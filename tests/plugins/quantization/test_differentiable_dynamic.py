"""Differentiable dynamic quantization: layers learn levels and bits; the mean keeps to a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from digits_reader import digits_card, press, reader
from zoopress.artifacts.artifact import load_artifact
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import Plugins
from zoopress.tasks import Batch
from zoopress_plugins.quantization.quantization_aware_training import (
    QuantizationAwareTrainingConfig,
)
from zoopress_plugins.quantization.trained.weights.differentiable_dynamic import (
    BitBudget,
    BitPenalty,
    DifferentiableDynamic,
    mean_bits,
    merged,
)

pytestmark = pytest.mark.usefixtures("brief_evaluation")


def quantizer(bits: int = 4, rows: int = 16, columns: int = 32) -> DifferentiableDynamic:
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(columns, rows)))
    (weight,) = model.weights()
    return DifferentiableDynamic(weight, bits)


def test_closed_gates_merge_neighbours_as_the_matrix_of_the_paper_does() -> None:
    """The Kronecker product of 2 × 2 blocks: the identity, or ones that are normalized."""
    levels = torch.randn(256, dtype=torch.float64).sort().values
    for gates in ([1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0.9, 0.7, 0.4, 0.2, 0.1, 0.0]):
        matrix = torch.eye(4, dtype=torch.float64)
        for gate in gates:
            block = gate * torch.eye(2) + (1 - gate) * torch.ones(2, 2) / 2
            matrix = torch.kron(matrix, block.double())
        got = merged(levels, torch.tensor(gates, dtype=torch.float64))
        assert torch.allclose(got, matrix @ levels)
        if 1 in gates:
            assert len(got.unique()) == 256 // 2 ** gates.count(0)


def test_weights_take_the_nearest_of_as_many_levels_as_gates_leave() -> None:
    each = quantizer()
    with torch.no_grad():
        each.levels.add_(0.02 * torch.randn(256))
    for closed in range(7):
        with torch.no_grad():
            bits, rounded = int(each.code_bits()), each()
            levels = each._values().unique()
            distance = (each.matrix()[..., None] - levels).abs().amin(-1)
        assert bits == 8 - closed
        assert len(levels) <= 2**bits
        assert bool((levels == 0).any())
        assert torch.allclose((each.matrix() - rounded).abs(), distance, atol=1e-6)
        assert each.form().bits == bits
        if closed < 6:
            each.close_one()
    assert each.least_open() == float("inf")


def test_a_gate_learns_to_open_where_levels_are_missing() -> None:
    """The error of rounding alone opens the gate; the penalty alone closes it."""
    each = quantizer()
    with torch.no_grad():
        each.gates.copy_(torch.tensor([1, 1, -1, -1, -1, -1]) / 10)
    (each() - each.matrix().detach()).square().sum().backward()
    assert each.gates.grad is not None
    assert float(each.gates.grad[2:].min()) < 0
    assert each.levels.grad is not None
    assert float(each.levels.grad.abs().sum()) > 0
    each.gates.grad = None
    penalty = BitPenalty(1.0, 3, [each])(Batch(None), torch.zeros(1))
    assert float(penalty.detach()) == pytest.approx(4 / 3 - 1)
    penalty.backward()
    assert bool((each.gates.grad > 0).all())
    assert float(BitPenalty(1.0, 4, [each])(Batch(None), torch.zeros(1)).detach()) == 0


def test_the_budget_closes_the_least_open_gates_in_the_second_half() -> None:
    small, large = quantizer(rows=4), quantizer(rows=28)
    with torch.no_grad():
        large.gates.mul_(0.5)  # its gates matter less
    budget = BitBudget([small, large], 5, 10, None)
    for step in range(1, 11):
        budget.after_step()
        assert budget.reached() == (step > 5)
    assert int(small.code_bits().detach()) > int(large.code_bits().detach())
    assert float(mean_bits([small, large]).detach()) <= 5 + 1e-4
    assert int(budget.tensors()["bit_budget.done"]) == 10


def train(folder: Path, plugins: Plugins, options: str) -> Any:
    stages = f"""[{{technique: quantization_aware_training, {options}, training: {{
        epochs: 8, batch_size: 64, learning_rate: 3.0e-3, evaluations: 4}}}}]"""
    return press(digits_card(folder, 2), stages, folder / "run", plugins)


def test_layers_end_at_bits_of_their_own_within_the_target(
    tmp_path: Path, plugins: Plugins
) -> None:
    made = train(tmp_path, plugins, "weights: differentiable_dynamic, bits: 3")
    packed = packed_weights(load_artifact(made.artifact, plugins, reader)[0].module)
    bits = {name: int(weight.bits) for name, weight in packed.items()}  # type: ignore[arg-type]
    sizes = {name: weight.dense().numel() for name, weight in packed.items()}
    assert len(set(bits.values())) > 1
    assert sum(bits[n] * sizes[n] for n in bits) <= 3.001 * sum(sizes.values())
    for name, weight in packed.items():
        assert len(weight.dense().unique()) <= 2 ** bits[name]
    assert made.report.last.metric_drop < 0.06


def test_a_penalty_without_learned_bits_is_refused() -> None:
    with pytest.raises(ValidationError, match="'bit_penalty' has no meaning for 'weights: dorefa'"):
        QuantizationAwareTrainingConfig.model_validate(
            {"weights": "dorefa", "bit_penalty": 1, "training": {"steps": 1}}
        )
