"""The grid of a layer's input: its integers, and that it stays with its layer."""

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zoopress
from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.errors import ArtifactError, StageError
from zoopress.evaluation.macs import count_macs
from zoopress.models.input_grid import InputGrid, input_grids, make_input_grid
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.store import file_digest
from zoopress.tasks import open_task
from zoopress.testing.models import cnn, lstm
from zoopress.testing.tiny import seeded, tiny_card
from zoopress_plugins.quantization.weight_quantization import quantize
from zoopress_zoo.factory import Factory

BASE = Base(name="tiny", source="path:x", revision="local", size_bytes=9, task="fidelity")
STATIC = {"bits": 8, "symmetric": False, "per": "tensor", "dynamic": False}


def tensors_of(low: Tensor, high: Tensor, **arguments: Any) -> dict[str, Tensor]:
    grid = InputGrid(**{**STATIC, **arguments}, channels=low.numel() or None)
    scale, zero = grid.range(low, high)
    return {"scale": scale, "zero_point": zero.to(grid.dtype)}


def on(layer: nn.Module, x: Tensor, **arguments: Any) -> InputGrid:
    """Return a grid for a layer that spans an input."""
    grid = make_input_grid(layer, **arguments)
    if not grid.dynamic:
        low, high = x.amin(), x.amax()
        if grid.per == "channel":
            rows = x.movedim(grid.axis, 0).flatten(1)
            low, high = rows.amin(1), rows.amax(1)
        scale, zero = grid.range(low, high)
        grid.scale, grid.zero_point = scale, zero.to(grid.dtype)
    return grid


LAYERS = {
    "linear": (lambda: nn.Linear(6, 3), (4, 5, 6)),
    "conv": (lambda: nn.Conv2d(6, 3, 3), (4, 6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(6, 3, 3), (4, 6, 5)),
    "gru": (lambda: nn.GRU(6, 3, batch_first=True), (4, 5, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=60)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    per=st.sampled_from(["tensor", "token", "channel"]),
    dynamic=st.booleans(),
    size=st.sampled_from([0.0, 1e-42, 1e-3, 1.0, 1e30, 1e38]),
    offset=st.sampled_from([0.0, 1.0, -5.0]),
)
def test_codes_and_scale_give_the_values_within_half_a_step(
    kind: str, bits: int, symmetric: bool, per: Any, dynamic: bool, size: float, offset: float
) -> None:
    make, shape = LAYERS[kind]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(bits)) * 2 - 1
    x = ((x + offset) * size).clamp(-1.5e38, 1.5e38)
    arguments = {"bits": bits, "symmetric": symmetric, "per": per, "dynamic": dynamic}
    if per == "token" and (not dynamic or kind in ("conv", "transposed")):
        with pytest.raises(ValueError, match="token"):
            make_input_grid(make(), **arguments)
        return
    grid = on(make(), x, **arguments)
    codes, scale, zero = grid.codes(x)
    rounded = grid(x)
    assert codes.dtype == zero.dtype == (torch.int8 if symmetric else torch.uint8)
    assert grid.limits[0] <= int(codes.min()) <= int(codes.max()) <= grid.limits[1]
    assert rounded.dtype == x.dtype
    torch.testing.assert_close(
        rounded, (codes.float() - zero.float()) * scale, rtol=0, atol=0, equal_nan=True
    )
    # Where the range fits, and the zero point is rounded, too: so a step at most.
    assert bool(((rounded.double() - x.double()).abs() <= scale.double() * 1.001).all())
    torch.testing.assert_close(grid(rounded.clone()), rounded, rtol=1e-2 if dynamic else 0, atol=0)


def test_nan_stays_and_takes_nothing_from_the_others() -> None:
    x = torch.tensor([[0.5, -1.0, torch.nan], [2.0, torch.inf, -torch.inf]])
    for per in ("tensor", "token"):
        grid = InputGrid(8, False, per, True)
        rounded = grid(x)
        assert rounded.isnan().tolist() == x.isnan().tolist()
        assert rounded.isinf().sum() == 0
        torch.testing.assert_close(rounded[0, :2], x[0, :2], atol=0.02, rtol=0)
        codes, _, zero = grid.codes(x)
        assert codes[0, 2] == zero.flatten()[0]


def test_gradients_go_straight_through_within_the_range() -> None:
    layer = nn.Linear(3, 2)
    grid = on(layer, torch.tensor([-1.0, 1.0]), symmetric=True)
    x = torch.tensor([0.3, -0.7, 5.0], requires_grad=True)
    rounded = grid(x)
    assert torch.equal(rounded.detach(), grid(x.detach()))
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0]
    again = torch.func.grad(lambda values: grid(values).sum())(x.detach())
    assert torch.equal(again, x.grad)


def quantized(build: Any = lstm) -> Model:
    """Return a model of which every layer that can has a grid."""
    model = Model(seeded(build), load_plugins().layers)
    limits = torch.tensor(-2.0), torch.tensor(2.5)
    for path, layer in list(model.module.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.RNNBase)):
            per = "channel" if isinstance(layer, nn.Conv2d) else "tensor"
            low, high = limits
            if per == "channel":
                low, high = low.repeat(layer.in_channels), high.repeat(layer.in_channels)
            model.quantize_input(path, {**STATIC, "per": per}, tensors_of(low, high, per=per))
    return model


INPUTS = {lstm: torch.arange(24).view(2, 12), cnn: torch.randn(2, 3, 16, 16)}


@pytest.mark.parametrize("build", [lstm, cnn])
def test_a_model_is_rounded_saved_loaded_copied_and_pickled(build: Any, tmp_path: Path) -> None:
    before, x = seeded(build), INPUTS[build]
    model = quantized(build)
    with torch.inference_mode():
        outputs = model.module(x)
        assert not torch.equal(outputs, before(x))
        torch.testing.assert_close(outputs, before(x), atol=0.5, rtol=0.5)
        assert torch.equal(copy.deepcopy(model.module)(x), outputs)
        assert torch.equal(pickle.loads(pickle.dumps(model.module))(x), outputs)
        buffer = io.BytesIO()
        torch.save(model.module, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), outputs)
        loaded = stored(model, build, tmp_path)
        assert torch.equal(loaded.module(x), outputs)
        assert input_grids(loaded.module).keys() == input_grids(model.module).keys()


def stored(model: Model, build: Any, folder: Path, storage: str = "zpz") -> Model:
    folder.mkdir(exist_ok=True)
    model.storage = storage
    save_artifact(folder, model, factory(build), BASE, {})
    return load_artifact(folder, load_plugins(), build)[0]


def factory(build: Any) -> Factory:
    found = Factory(Path(), {"factory": "anything:build", "arguments": {}})
    found.use_factory(build)
    return found


@pytest.mark.parametrize(
    ("tensor", "value", "words"),
    [
        ("scale", torch.tensor(torch.nan), "not a positive number"),
        ("scale", torch.tensor(0.0), "not a positive number"),
        ("scale", torch.ones(3), "architecture has"),
        ("zero_point", torch.tensor(3, dtype=torch.int8), "architecture has"),
    ],
)
def test_hostile_grids_are_refused(tensor: str, value: Tensor, words: str, tmp_path: Path) -> None:
    stored(quantized(lstm), lstm, tmp_path, "safetensors")
    file = tmp_path / "compressed.safetensors"
    tensors = load_file(file)
    tensors[f"rnn.input_grid.{tensor}"] = value
    save_file(tensors, file)
    told = json.loads((tmp_path / "zoopress.json").read_text())
    told["files"][file.name] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    (tmp_path / "zoopress.json").write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match=words):
        load_artifact(tmp_path, load_plugins(), lstm)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 9}, "bits must be 1 to 8"),
        ({"per": "row"}, "per must be"),
        ({"per": "token"}, "dynamic"),
        ({"symmetric": 1}, "symmetric must be"),
        ({"groups": 4}, "groups"),
    ],
)
def test_hostile_edits_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    stored(quantized(lstm), lstm, tmp_path)
    manifest = json.loads((tmp_path / "zoopress.json").read_text())
    manifest["edits"][0]["arguments"].update(change)
    (tmp_path / "zoopress.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=words):
        load_artifact(tmp_path, load_plugins(), lstm)


def test_what_can_have_no_grid_is_refused_in_words() -> None:
    model = quantized(lstm)
    tensors = tensors_of(torch.tensor(-1.0), torch.tensor(1.0))
    with pytest.raises(StageError, match="already"):
        model.quantize_input("rnn", STATIC, tensors)
    with pytest.raises(StageError, match="no linear"):
        model.quantize_input("embedding", STATIC, tensors)
    attention = Model(nn.Sequential(nn.MultiheadAttention(8, 2)))
    with pytest.raises(StageError, match="never calls it"):
        attention.quantize_input("0.out_proj", STATIC, tensors)
    bare = Model(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(StageError, match="positive"):
        bare.quantize_input("0", STATIC, {**tensors, "scale": torch.tensor(-1.0)})


def test_a_grid_stays_when_weights_are_packed_or_a_layer_takes_the_place(tmp_path: Path) -> None:
    x = INPUTS[cnn]
    model = quantized(cnn)
    weights = list(model.weights(("linear", "conv")))
    for weight in weights[:4]:
        codes, scale, _ = quantize(weight.matrix(), 8, None, True, False)
        arguments = {"bits": 8, "group_size": codes.shape[1], "symmetric": True}
        model.pack(weight, "quantized", arguments, {"codes": codes, "scale": scale})
    last = weights[-1]
    u, s, vh = torch.linalg.svd(last.matrix(), full_matrices=False)
    made = {"down.weight": vh, "up.weight": u * s, "up.bias": last.module.bias}
    model.replace(last.path, "factored_linear", {"rank": len(s)}, made)
    with torch.inference_mode():
        dense = quantized(cnn).module(x)
        outputs = model.module(x)
        torch.testing.assert_close(outputs, dense, atol=0.05, rtol=0.05)
        assert len(input_grids(model.module)) == len(weights)
        loaded = stored(model, cnn, tmp_path).module
        assert torch.equal(loaded(x), outputs)
        # Where the grid were gone, the inputs were exact.
        before = seeded(cnn).get_submodule(last.path)
        wide = torch.full((1, before.in_features), 77.0)
        assert not torch.allclose(loaded.get_submodule(last.path)(wide), before(wide), rtol=0.1)
        zoopress.unpack(loaded)
        assert type(loaded.get_submodule(last.path)) is nn.Linear
        torch.testing.assert_close(loaded(x), outputs, atol=1e-4, rtol=1e-4)
        assert len(input_grids(loaded)) == len(weights)


def test_casts_leave_the_grid_and_round_inputs_in_their_type() -> None:
    model = quantized(lstm).module.bfloat16()
    grid = input_grids(model)["rnn"]
    assert grid.scale is not None
    assert grid.scale.dtype == torch.float32
    assert grid(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert model(INPUTS[lstm]).isfinite().all()


def test_packed_sequences_and_named_inputs_are_rounded() -> None:
    layer = seeded(lambda: nn.GRU(6, 3, batch_first=True))
    x = torch.randn(2, 4, 6)
    plain = copy.deepcopy(layer)
    model = Model(layer)
    model.quantize_input("", {**STATIC, "per": "token", "dynamic": True}, {})
    rounded = InputGrid(8, False, "token", True)(x)
    lengths = torch.tensor([4, 2])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wanted = nn.utils.rnn.pack_padded_sequence(rounded, lengths, batch_first=True)
    with torch.inference_mode():
        assert torch.equal(layer(input=x)[0], plain(rounded)[0])
        assert torch.equal(layer(packed)[0].data, plain(wanted)[0].data)
        assert not torch.equal(layer(x)[0], plain(x)[0])


def test_operations_are_counted_as_before(tmp_path: Path) -> None:
    plugins = load_plugins()
    task = open_task(tiny_card("lstm", tmp_path), tmp_path, plugins)
    batch = task.batches("test")[0]
    assert count_macs(task, quantized(lstm).module, batch) == count_macs(task, seeded(lstm), batch)
