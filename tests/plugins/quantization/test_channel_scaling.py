"""AWQ: functions stay, outputs err less, and where nothing can be scaled that is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.techniques import Matrix, Outcome
from zoopress.testing import context_for, run_chain, seeded, tiny_card
from zoopress_plugins.quantization.channel_scaling import Reader, searched_scale
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
)

PLUGINS = load_plugins()


def loud(samples: int, seed: int) -> Tensor:
    """Inputs of which a few channels are much stronger than the others."""
    drawn = torch.randn(samples, 64, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.where(torch.arange(64) % 16 == 3, 12.0, 0.5)


class Block(nn.Module):
    """A normalization with loud channels, and two layers that read it; then two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.one = nn.Linear(64, 32)
        self.two = nn.Linear(64, 32, bias=False)
        self.up = nn.Conv1d(1, 8, 5, padding=2)
        self.down = nn.Conv1d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        mixed = torch.tanh(self.one(normal)) + self.two(normal)
        out: Tensor = self.down(torch.relu(self.up(mixed[:, None])))
        return out


def block() -> nn.Module:
    module = seeded(Block)
    with torch.no_grad():
        module.norm.weight.copy_(loud(1, 0).abs().squeeze() + 0.1)
        module.up.weight[::4] *= 20
        module.down.weight[:, ::4] *= 0.2
    return module


def quantized(module: nn.Module, folder: Path, **config: Any) -> tuple[Model, Outcome]:
    context = replace(
        context_for(tiny_card("cnn", folder), folder / "context", PLUGINS),
        batches=lambda: [loud(64, 1)],
        call=lambda m, batch: m(batch).detach(),
    )
    model = Model(module, PLUGINS.layers)
    technique = WeightQuantization(WeightQuantizationConfig(**config))
    return model, technique.apply(model, context)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_outputs_never_seen_err_less(rounding: str, tmp_path: Path) -> None:
    unseen, errors = loud(64, 2), {}
    with torch.no_grad():
        wanted = block()(unseen)
    for scaling in ("none", "awq"):
        config = {"bits": 3, "group_size": 16, "rounding": rounding, "scaling": scaling}
        model, outcome = quantized(block(), tmp_path / scaling, **config)
        with torch.no_grad():
            errors[scaling] = float((model.module(unseen) - wanted).square().mean())
    assert outcome.notes["scaled"]["norm"] == ["one", "two"]
    assert outcome.notes["scaled"]["up"] == ["down"]
    assert {"norm.weight", "norm.bias"} < set(outcome.touched)
    assert errors["awq"] < (0.7 if rounding == "nearest" else 0.9) * errors["none"]


def test_in_eight_bits_the_function_stays(tmp_path: Path) -> None:
    """What is divided before is multiplied after, along the right axes."""
    unseen = loud(64, 2)
    with torch.no_grad():
        wanted = block()(unseen)
        model, outcome = quantized(block(), tmp_path, bits=8, group_size=16, scaling="awq")
        found = model.module(unseen)
    assert "norm" in outcome.notes["scaled"]
    assert not torch.allclose(model.module.get_parameter("norm.weight"), block().norm.weight)  # type: ignore[union-attr,arg-type]
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_a_search_never_takes_what_errs_more_and_loud_channels_get_larger() -> None:
    values = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    seen = loud(512, 1)
    matrix = Matrix("", values, 3, 16, False, False, inputs=seen.T @ seen / len(seen))
    reader = Reader(matrix, torch.arange(64))
    scale = searched_scale([reader], 64)
    assert reader.cost(scale) < 0.8 * reader.cost(torch.ones(64))
    strong = torch.arange(64) % 16 == 3
    assert scale[strong].min() > scale[~strong].max()
    even = Reader(replace(matrix, inputs=torch.eye(64)), torch.arange(64))
    assert torch.equal(searched_scale([even], 64), torch.ones(64))


def test_only_selected_weights_count(tmp_path: Path) -> None:
    """A reader that stays in floating point is scaled along, so that the function stays."""
    before = block()
    model, outcome = quantized(
        block(), tmp_path, bits=8, group_size=16, scaling="awq", include=["one.*"]
    )
    assert outcome.notes["scaled"] == {"norm": ["one", "two"]}
    assert set(packed_weights(model.module)) == {"one.weight"}
    assert {"two.weight", "norm.weight"} < set(outcome.touched)
    unseen = loud(16, 2)
    with torch.no_grad():
        wanted, found = before(unseen), model.module(unseen)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_where_nothing_can_be_scaled_it_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16))
    with pytest.raises(StageError, match=r"can be scaled.*Leave 'scaling' out"):
        quantized(module, tmp_path, bits=4, scaling="awq")


@pytest.mark.usefixtures("brief_latency")
def test_it_survives_save_and_reload_after_pruning(tmp_path: Path) -> None:
    pruning, coding = PLUGINS.technique("magnitude_pruning"), PLUGINS.technique("entropy_coding")
    config = {"bits": 4, "group_size": 16, "scaling": "awq"}
    stages = [
        pruning(pruning.config_type.model_validate({"sparsity": 0.5})),
        WeightQuantization(WeightQuantizationConfig.model_validate(config)),
        coding(coding.config_type()),
    ]
    result = run_chain(stages, tiny_card("transformer", tmp_path), tmp_path / "out", PLUGINS)
    pruned, last = result.report.stages[0].pruned, result.report.last.pruned
    assert last >= pruned > 0


def test_it_needs_calibration() -> None:
    technique = WeightQuantization(WeightQuantizationConfig(scaling="awq"))
    assert technique.needs == {"calibration"}
    assert not technique.weight_by_weight
