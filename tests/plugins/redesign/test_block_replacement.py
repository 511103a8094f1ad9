"""Blocks start as close to a module as can be, and go through chains like any other layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoopress.errors import RecipeError, StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress.recipes import parse_recipe
from zoopress.techniques import MASKS, Outcome, float_weights
from zoopress.testing import (
    check_block,
    context_for,
    reload_artifact,
    run_chain,
    seeded,
    tiny_card,
)
from zoopress.testing.models import cnn
from zoopress.yaml_source import parse_yaml
from zoopress_plugins.redesign.block_replacement import BlockReplacement, BlockReplacementConfig
from zoopress_plugins.redesign.blocks.depthwise_separable import (
    DepthwiseSeparable,
    DepthwiseSeparableConfig,
    separate,
)

pytestmark = pytest.mark.usefixtures("brief_evaluation")


@pytest.mark.parametrize("multiplier", [1, 2])
def test_it_conforms(multiplier: int, plugins: Plugins) -> None:
    check_block(DepthwiseSeparable(DepthwiseSeparableConfig(multiplier=multiplier)), plugins)


def test_with_as_many_kernels_as_numbers_it_is_the_convolution(plugins: Plugins) -> None:
    conv = nn.Conv2d(3, 12, 3, stride=2, padding=1, dilation=2, padding_mode="reflect")
    block = DepthwiseSeparable(DepthwiseSeparableConfig(multiplier=9))
    x = torch.randn(2, 3, 11, 13)
    expected = conv(x)
    model = Model(nn.Sequential(conv), plugins.layers)
    weight = conv.weight.detach().clone()
    model.replace("0", block.layer, block.arguments(conv), block.tensors(conv))
    torch.testing.assert_close(model.module(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.module[0].weight, weight, rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_kernels_that_are_separable_are_found_exactly_and_others_as_closely_as_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    mix, filters = torch.randn(8, 4, generator=generator), torch.randn(4, 9, generator=generator)
    weight = torch.einsum("oi,ik->oik", mix, filters).view(8, 4, 3, 3)
    depthwise, pointwise = separate(weight, 1)
    rebuilt = torch.einsum("oi,ihw->oihw", pointwise[:, :, 0, 0], depthwise[:, 0])
    torch.testing.assert_close(rebuilt, weight, rtol=1e-4, atol=1e-5)

    weight = torch.randn(8, 4, 3, 3, generator=generator)
    left = []
    for multiplier in (1, 2, 5, 8):
        depthwise, pointwise = separate(weight, multiplier)
        kernels, mixes = depthwise.view(4, multiplier, 3, 3), pointwise.view(8, 4, multiplier)
        left.append(float((torch.einsum("oim,imhw->oihw", mixes, kernels) - weight).norm()))
    assert left == sorted(left, reverse=True)
    assert left[-1] < 1e-4
    # Eckart and Young: what is left is the norm of the singular values left out.
    values = torch.linalg.svdvals(weight.movedim(1, 0).reshape(4, 8, 9))
    assert left[0] == pytest.approx(float(values[:, 1:].norm()), rel=1e-4)


def replaced(folder: Path, plugins: Plugins, model: Model, **given: Any) -> Outcome:
    config = BlockReplacementConfig.model_validate({"block": "depthwise_separable", **given})
    context = context_for(tiny_card("cnn", folder), folder / "checkpoint", plugins)
    return BlockReplacement(config).apply(model, context)


def test_patterns_choose_and_the_notes_tell_costs_and_reasons(
    tmp_path: Path, plugins: Plugins
) -> None:
    model = Model(seeded(cnn), plugins.layers)
    before = model.parameter_count()
    outcome = replaced(tmp_path, plugins, model, include=["3.*", "11"], exclude=["*conv2"])
    assert outcome.touched == ["3.conv1"]
    costs = outcome.notes["replaced"]["3.conv1"]
    assert costs["parameters_before"] - costs["parameters_after"] == before - (
        model.parameter_count()
    )
    assert costs["macs_before"] == 24 * 24 * 9
    assert costs["macs_after"] == 24 * 9 + 24 * 24
    assert outcome.notes["refused"]["Linear is not a plain nn.Conv2d"] == ["11"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"include": ["4.weight"]}, "Paths are those of modules"),
        ({"include": ["9", "11"]}, r"none of the 2 selected modules \(9: Linear is not"),
        (
            {"block": {"name": "depthwise_separable", "multiplier": 9}, "include": ["4"]},
            r"it has 6944 parameters, and the block would have 8888",
        ),
        (
            {"block": {"name": "depthwise_separable", "multiplier": 10}, "include": ["4"]},
            r"a multiplier of 9 is all of it, 10 has no more",
        ),
    ],
)
def test_what_no_block_fits_is_refused_with_reasons(
    given: dict[str, Any], said: str, tmp_path: Path, plugins: Plugins
) -> None:
    with pytest.raises(StageError, match=said):
        replaced(tmp_path, plugins, Model(seeded(cnn), plugins.layers), **given)


def test_tied_convolutions_are_left_alone(tmp_path: Path, plugins: Plugins) -> None:
    module = seeded(cnn)
    module[3].conv2.weight = module[3].conv1.weight  # type: ignore[index]
    model = Model(module, plugins.layers)
    outcome = replaced(tmp_path, plugins, model)
    assert outcome.touched == ["0", "4"]
    tied = "its weight is tied to another module's"
    assert outcome.notes["refused"][tied] == ["3.conv1", "3.conv2"]


def test_a_recipe_names_it_and_mistakes_are_told(plugins: Plugins) -> None:
    text = "stages:\n  - technique: block_replacement\n    block: {name: depthwise_seperable}\n"
    with pytest.raises(RecipeError, match=r"r.yaml:3: block: There is no block .*separable'\?"):
        parse_recipe(parse_yaml(text, Path("r.yaml"), RecipeError), plugins, "r")


def test_a_block_is_pruned_quantized_coded_and_reloaded(tmp_path: Path, plugins: Plugins) -> None:
    def technique(name: str, **options: Any) -> Any:
        kind = plugins.technique(name)
        return kind(kind.config_type.model_validate(options))

    card = tiny_card("cnn", tmp_path)
    chain = [
        technique("block_replacement", block="depthwise_separable", include=["3.*", "4"]),
        technique("magnitude_pruning", sparsity=0.3),
        technique("weight_quantization", bits=8),
        technique("entropy_coding"),
    ]
    result = run_chain(chain, card, tmp_path / "run", plugins)
    assert result.report.stages[-1].reload_difference < 1e-5
    module = reload_artifact(result.artifact, card, plugins).module
    kinds = [type(m).__name__ for m in module.modules()]
    assert kinds.count("DepthwiseSeparableConv2d") == 3
    sizes = [stage.weight_bytes for stage in result.report.stages]
    assert sizes[0] < 0.6 * result.report.original_weight_bytes
    assert sizes == sorted(sizes, reverse=True)


def test_what_a_block_leaves_none_of_is_known_to_the_plan(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"block": "depthwise_separable"}
    kind = plugins.technique("block_replacement")
    assert kind(kind.config_type(**chosen)).effects().destroys == {MASKS}
    block = plugins.resolve("blocks", "depthwise_separable")
    monkeypatch.setattr(block, "destroys", frozenset({float_weights("conv")}))
    assert float_weights("conv") in kind(kind.config_type(**chosen)).effects().destroys
