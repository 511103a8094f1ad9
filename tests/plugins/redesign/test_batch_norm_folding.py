"""Batch-norm folding: the same outputs, from fewer numbers, wherever it can be proved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.dependencies.readers import ELSEWHERE, find_readers
from zoopress.errors import StageError
from zoopress.evaluation.fidelity import relative_difference
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress.techniques import Context
from zoopress.testing import seeded
from zoopress_plugins.redesign.batch_norm_folding import (
    BatchNormFolding,
    BatchNormFoldingConfig,
    affine,
    folded,
)
from zoopress_plugins.redesign.layers.folded import FoldedNorm
from zoopress_zoo.factory import Factory

IMAGES = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0))
BASE = Base(name="tiny", source="path:x", revision="local", size_bytes=9, task="fidelity")


def fold(model: Model, inputs: Tensor, **config: Any) -> dict[str, Any]:
    """Apply the technique; return its notes."""
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [inputs],
        call=output_of,
        progress=lambda *given: None,
        checkpoint=Path(),
    )
    return BatchNormFolding(BatchNormFoldingConfig(**config)).apply(model, context).notes


def output_of(module: nn.Module, inputs: Any) -> Tensor:
    """Run a module; return its output, or the first of them."""
    with torch.inference_mode():
        output = module(inputs)
    return output if isinstance(output, Tensor) else output[0]


def test_a_scale_and_a_shift_computed_by_hand() -> None:
    norm = nn.BatchNorm1d(2, eps=0.0).eval()
    norm.load_state_dict(
        {
            "weight": torch.tensor([3.0, 1.0]),
            "bias": torch.tensor([0.5, 0.0]),
            "running_mean": torch.tensor([2.0, -1.0]),
            "running_var": torch.tensor([4.0, 0.25]),
            "num_batches_tracked": torch.tensor(1),
        }
    )
    scale, shift = affine(norm)
    assert scale.tolist() == [1.5, 2.0]  # 3 / √4, 1 / √0.25
    assert shift.tolist() == [-2.5, 2.0]  # 0.5 − 1.5 · 2, 0 − 2 · (−1)
    weight, bias = folded(torch.tensor([[2.0, -4.0], [1.0, 0.0]]), torch.ones(2), scale, shift)
    assert weight.tolist() == [[3.0, -6.0], [2.0, 0.0]]
    assert bias.tolist() == [-1.0, 4.0]
    assert folded(torch.ones(2, 1), None, scale, shift)[1].tolist() == [-2.5, 2.0]


class BatchNormAct(nn.BatchNorm2d):
    """As timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(super().forward(x)))
        return result


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, 1, 0, 1))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride)


class StandardizedConv(nn.Conv2d):
    """Whatever scales its weight changes nothing: Qiao et al. 2019, arXiv:1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.layer_norm(self.weight, self.weight.shape[1:])
        return nn.functional.conv2d(x, weight, self.bias)


class BiasAhead(nn.Linear):
    """Adds its bias to the input, which has as many channels as the output."""

    def forward(self, x: Tensor) -> Tensor:
        bias = 0.0 if self.bias is None else self.bias
        return nn.functional.linear(x + bias, self.weight)


LAYERS: dict[str, tuple[Callable[[bool], nn.Module], Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda b: nn.Linear(6, 8, bias=b), lambda: nn.BatchNorm1d(8), torch.randn(3, 6)),
    "conv1d": (
        lambda b: nn.Conv1d(6, 8, 3, bias=b, padding_mode="circular", padding=1),
        lambda: nn.BatchNorm1d(8),
        torch.randn(2, 6, 9),
    ),
    "conv2d": (lambda b: nn.Conv2d(6, 8, 3, bias=b), lambda: nn.BatchNorm2d(8), IMAGES),
    "with activation": (lambda b: nn.Conv2d(6, 8, 3, bias=b), lambda: BatchNormAct(8), IMAGES),
    "padded by itself": (
        lambda b: SameConv(6, 8, 3, stride=2, bias=b),
        lambda: nn.BatchNorm2d(8),
        IMAGES,
    ),
    "grouped": (
        lambda b: nn.Conv2d(6, 9, 3, groups=3, bias=b),
        lambda: nn.BatchNorm2d(9, affine=False),
        IMAGES,
    ),
    "depthwise": (
        lambda b: nn.Conv2d(6, 6, 3, groups=6, bias=b),
        lambda: nn.SyncBatchNorm(6),
        IMAGES,
    ),
    "transposed": (
        lambda b: nn.ConvTranspose2d(6, 8, 3, stride=2, bias=b),
        lambda: nn.BatchNorm2d(8),
        IMAGES,
    ),
    "transposed groups": (
        lambda b: nn.ConvTranspose1d(6, 4, 2, groups=2, bias=b),
        lambda: nn.BatchNorm1d(4),
        torch.randn(2, 6, 5),
    ),
    "conv3d": (
        lambda b: nn.Conv3d(2, 3, 2, bias=b),
        lambda: nn.BatchNorm3d(3),
        torch.randn(2, 2, 4, 4, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@given(bias=st.booleans(), seed=st.integers(0, 5), pruned=st.booleans())
def test_a_layer_with_a_norm_computes_the_same_folded_saved_and_loaded(
    name: str,
    bias: bool,
    seed: int,
    pruned: bool,
    plugins: Plugins,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    layer, norm, inputs = LAYERS[name]

    def build() -> nn.Module:
        return nn.Sequential(layer(bias), norm())

    model = Model(seeded(build, seed).eval(), plugins.layers)
    weight = next(model.weights())
    if pruned:
        model.mask(weight, torch.rand(weight.parameter.shape) < 0.5)
    before, masks = weight.parameter.detach().clone(), dict(model.masks)
    expected = output_of(model.module, inputs)
    assert fold(model, inputs)["folded"] == 1
    actual = output_of(model.module, inputs)
    assert relative_difference(expected, actual) < 1e-5
    assert set(model.tensors()) - {"1.act.weight"} == {"0.weight", "0.bias"}
    assert not torch.equal(model.tensors()["0.weight"], before)
    assert model.masks.keys() == masks.keys()
    for key, mask in masks.items():
        assert torch.equal(model.masks[key], mask)
        assert torch.equal(model.tensors()[key] != 0, mask)
    folder = tmp_path_factory.mktemp("artifact")
    architecture = Factory(Path(), {"factory": "x:y", "arguments": {}})
    architecture.use_factory(build)
    save_artifact(folder, model, architecture, BASE, {})
    loaded, _, _ = load_artifact(folder, plugins, build)
    assert torch.equal(output_of(loaded.module, inputs), actual)
    assert loaded.masks.keys() == masks.keys()


class Net(nn.Module):
    """A convolution and a norm, put together in some way."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.other = nn.Conv2d(6, 6, 1)
        self.outside = nn.BatchNorm2d(6)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        # One that can be folded beside, so that it is not an error.
        return self._forward(self, self.outside(self.other(x)).relu())


def _kept_hidden(net: Any, x: Tensor) -> Any:
    hidden = net.conv(x)
    return net.norm(hidden), hidden


def _in_place(net: Any, x: Tensor) -> Tensor:
    hidden = net.conv(x)
    hidden.relu_()
    result: Tensor = net.norm(hidden)
    return result


def _weight_elsewhere(net: Any, x: Tensor) -> Tensor:
    result: Tensor = net.norm(net.conv(x)) * net.conv.weight.sum()
    return result


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.norm(net.conv(x)) + net.conv(x).mean(),
        lambda net, x: (lambda y: net.norm(y) + y)(net.conv(x)),
        lambda net, x: net.norm(net.conv(x).relu()),
        lambda net, x: net.norm(net.norm(net.conv(x))),
        lambda net, x: net.norm(net.conv(x)) + net.norm(x),
        lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x)),
        lambda net, x: net.norm(net.conv(x)[:, :6]),
        lambda net, x: net.norm(x),
        lambda net, x: x,
        _kept_hidden,
        _in_place,
        _weight_elsewhere,
    ],
)
def test_a_norm_whose_layer_is_read_elsewhere_is_left_alone(
    forward: Callable[[Any, Tensor], Any], plugins: Plugins
) -> None:
    model = Model(seeded(lambda: Net(forward)).eval(), plugins.layers)
    with torch.inference_mode():
        first = model.module(IMAGES)
    try:
        notes = fold(model, IMAGES)
    except StageError as error:
        assert "'norm'" in str(error) or "'outside'" in str(error)  # noqa: PT017
        return
    assert set(notes["kept"]) >= {"norm"}
    assert isinstance(model.module.norm, nn.BatchNorm2d)
    with torch.inference_mode():
        again = model.module(IMAGES)
    pairs = zip(first, again, strict=True) if isinstance(first, tuple) else [(first, again)]
    for one, other in pairs:
        assert relative_difference(one, other) < 1e-5


def test_a_layer_called_twice_is_folded_where_one_norm_reads_it_both_times(
    plugins: Plugins,
) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        result: Tensor = net.norm(net.conv(net.norm(net.conv(x)).relu()))
        return result

    model = Model(seeded(lambda: Net(forward)).eval(), plugins.layers)
    expected = output_of(model.module, IMAGES)
    notes = fold(model, IMAGES)
    assert (notes["folded"], notes["kept"]) == (2, {})
    assert relative_difference(expected, output_of(model.module, IMAGES)) < 1e-5


def test_channels_on_another_axis_are_not_folded(plugins: Plugins) -> None:
    """BatchNorm1d takes axis 1 of [batch, 8, 8] for channels, a linear layer the last."""
    module = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))).eval()
    with pytest.raises(StageError, match="No batch normalization of this model can be folded"):
        fold(Model(module, plugins.layers), torch.randn(2, 8, 5))


def test_a_layer_that_standardizes_its_weight_is_left_alone(plugins: Plugins) -> None:
    def build() -> nn.Module:
        first = nn.Sequential(StandardizedConv(6, 5, 3), nn.BatchNorm2d(5))
        return nn.Sequential(first, nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)).eval()

    model = Model(seeded(build), plugins.layers)
    expected = output_of(model.module, IMAGES)
    notes = fold(model, IMAGES)
    assert (notes["folded"], list(notes["kept"])) == (1, ["0.1"])
    assert relative_difference(expected, output_of(model.module, IMAGES)) < 1e-5


def test_a_layer_with_a_forward_of_its_own_may_be_called_by_keyword(plugins: Plugins) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = SameConv(6, 5, 3), nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm(self.conv(x=x))
            return result

    model = Model(seeded(Named).eval(), plugins.layers)
    expected = output_of(model.module, IMAGES)
    assert fold(model, IMAGES)["folded"] == 1
    assert relative_difference(expected, output_of(model.module, IMAGES)) < 1e-5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(6, 6), "has no batch normalization that matches"),
        (lambda: nn.Sequential(nn.BatchNorm1d(6)), "'0': its input is not the output"),
        (
            lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)),
            "has no running statistics",
        ),
        (
            lambda: nn.Sequential(
                nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.BatchNorm1d(6)
            ),
            "'1': its input is not the output",
        ),
        (
            lambda: nn.Sequential(BiasAhead(6, 6), nn.BatchNorm1d(6)),
            "'1': '0' computes more with its weight than a linear layer does",
        ),
    ],
)
def test_where_nothing_can_be_folded_the_stage_says_why(
    build: Callable[[], nn.Module], message: str, plugins: Plugins
) -> None:
    with pytest.raises(StageError, match=message):
        fold(Model(build().eval(), plugins.layers), torch.randn(3, 6))


def test_patterns_choose_among_norms(plugins: Plugins) -> None:
    module = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6)
    ).eval()
    model = Model(module, plugins.layers)
    fold(model, torch.randn(3, 6), exclude=("1",))
    assert isinstance(model.module.get_submodule("1"), nn.BatchNorm1d)
    assert isinstance(model.module.get_submodule("3"), FoldedNorm)


def test_readers_by_hand() -> None:
    net = seeded(lambda: Net(lambda net, x: net.norm(net.conv(x)) + x)).eval()
    readers = find_readers(net, {"conv": -3, "other": -3}, ["norm"], lambda: net(IMAGES))
    assert readers == {"conv": {"norm"}, "other": {ELSEWHERE}}
    readers = find_readers(net, {"conv": -2}, ["norm", "outside"], lambda: net(IMAGES))
    assert readers == {"conv": {ELSEWHERE}, ELSEWHERE: {"norm", "outside"}}


def _timm(name: str) -> nn.Module:
    pytest.importorskip("timm", exc_type=ImportError)  # also where torchvision does not work
    import timm

    made: nn.Module = timm.create_model(name, num_classes=5)
    return made


def _transformers(kind: str, **sizes: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(num_labels=5, return_dict=False, **sizes)
    made: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config)
    return made


@pytest.mark.parametrize(
    ("build", "norms", "size"),
    [
        (
            lambda: _transformers("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2]),
            11,
            32,
        ),
        (lambda: _transformers("MobileNetV2", depth_multiplier=0.1), 52, 32),
        (lambda: _timm("resnet10t"), 14, 32),
        pytest.param(lambda: _timm("mobilenetv3_small_050"), 34, 32, marks=pytest.mark.slow),
    ],
)
def test_every_norm_of_known_networks_is_folded(
    build: Callable[[], nn.Module], norms: int, size: int, plugins: Plugins
) -> None:
    model = Model(seeded(build).eval(), plugins.layers)
    images = torch.rand(2, 3, size, size)
    expected = output_of(model.module, images)
    notes = fold(model, images)
    assert (notes["folded"], notes["kept"]) == (norms, {})
    assert not any("running" in name for name in model.tensors())
    assert relative_difference(expected, output_of(model.module, images)) < 1e-4
