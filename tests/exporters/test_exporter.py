"""Exporters: what they write opens without zoopress, computes the same, and appears whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from text_models import save_model
from zoopress.cards import Card
from zoopress.errors import DeploymentError, InputError
from zoopress.exporters import Call, Exporter, Opened, export, open_artifact
from zoopress.exporters.safetensors import Safetensors
from zoopress.models.packing import unpack
from zoopress.pipeline.deployment import export_artifact
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.testing import (
    ConformanceError,
    check_exporter,
    models as testing_models,
    reload_artifact,
    run_chain,
    tiny_artifact,
    tiny_card,
)

PLUGINS = load_plugins()


class Memory(Safetensors):
    """Never opens what it wrote."""

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        return artifact.dense


class Halved(Safetensors):
    """Writes another model."""

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        module = super().read(artifact, folder)
        for parameter in module.parameters():
            parameter.data.mul_(0.5)
        return module


class Nothing(Safetensors):
    """Writes nothing."""

    def write(self, artifact: Opened, folder: Path) -> None:
        pass


class Failing(Safetensors):
    """Stops half-way."""

    def write(self, artifact: Opened, folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("out of luck")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(**globals()))
    kinds: tuple[type[Exporter], ...] = (Memory, Halved, Nothing, Failing)
    names = {kind.__name__.lower(): f"{__name__}:{kind.__name__}" for kind in kinds}
    hook = hookimpl(lambda: names, specname="zoopress_exporters")
    return load_plugins(extra={"mine": SimpleNamespace(hook=hook)})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return tiny_artifact("cnn", tmp_path_factory.mktemp("artifact"))


def test_safetensors_conforms() -> None:
    check_exporter("safetensors")


@pytest.mark.parametrize("model", ["cnn", "lstm"])
def test_torch_export_conforms(model: str) -> None:
    check_exporter("torch_export", models=(model,))


def test_a_state_dict_loads_into_the_original_module(artifact: Opened, tmp_path: Path) -> None:
    done = export("safetensors", artifact, tmp_path / "out", PLUGINS)
    assert [path.name for path in done.files] == ["model.safetensors"]
    module = testing_models.cnn().eval()
    module.load_state_dict(load_file(done.files[0]))
    call = artifact.call("it is compared")
    torch.testing.assert_close(call(module), call(artifact.dense))


def test_a_program_keeps_integers_and_needs_no_zoopress(artifact: Opened, tmp_path: Path) -> None:
    done = export("torch_export", artifact, tmp_path / "out", PLUGINS)
    program = torch.export.load(done.files[0])
    types = {tensor.dtype for tensor in program.state_dict.values()}
    assert torch.int8 in types
    for samples in (1, 5):
        call = artifact.call("it is compared").repeated(samples)
        torch.testing.assert_close(call(program.module()), call(artifact.dense))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("halved", "computes something else"),
        ("nothing", "wrote no file"),
        ("failing", "'failing' cannot write this model: RuntimeError: out of luck"),
    ],
)
def test_what_is_wrong_leaves_no_folder(
    name: str, problem: str, artifact: Opened, plugins: Plugins, tmp_path: Path
) -> None:
    with pytest.raises(DeploymentError, match=problem):
        export(name, artifact, tmp_path / "out", plugins)
    assert list(tmp_path.iterdir()) == []


def test_conformance_finds_an_exporter_that_looks_at_the_model_again(plugins: Plugins) -> None:
    with pytest.raises(ConformanceError, match="come from the files alone"):
        check_exporter("memory", plugins, models=("cnn",))


def test_a_folder_that_holds_something_is_left_alone(artifact: Opened, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        export("safetensors", artifact, tmp_path, PLUGINS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_other_layers_are_refused_with_what_takes_them(tmp_path: Path) -> None:
    kind = PLUGINS.technique("truncated_svd")
    card = tiny_card("cnn", tmp_path)
    made = run_chain([kind(kind.config_type(energy=0.8))], card, tmp_path / "run", PLUGINS)
    model = reload_artifact(made.artifact, card, PLUGINS)
    assert model.edits
    call = Call.of(torch.randn(2, 3, 16, 16))
    opened = open_artifact(made.artifact, PLUGINS, testing_models.cnn, example=call)
    with pytest.raises(DeploymentError, match=r"structure was changed.*replace of.*torch_export"):
        export("safetensors", opened, tmp_path / "plain", PLUGINS)
    done = export("torch_export", opened, tmp_path / "program", PLUGINS)
    assert done.difference is not None
    assert done.difference < 1e-5


def test_masked_and_coded_weights_are_written_too(tmp_path: Path) -> None:
    chain = []
    for name, options in (
        ("magnitude_pruning", {"sparsity": 0.6}),
        ("weight_quantization", {"bits": 4}),
        ("entropy_coding", {}),
    ):
        kind = PLUGINS.technique(name)
        chain.append(kind(kind.config_type(**options)))
    card = tiny_card("transformer", tmp_path)
    made = run_chain(chain, card, tmp_path / "run", PLUGINS)
    done = export_artifact(made.artifact, "safetensors", tmp_path / "plain", PLUGINS, card)
    assert done.difference == 0
    zeros = [float((t == 0).float().mean()) for t in load_file(done.files[0]).values()]
    assert max(zeros) > 0.5


def bert_card(folder: Path) -> Card:
    save_model(folder / "model", "BertModel")
    return Card.model_validate(
        {
            "name": "bert",
            "source": f"path:{folder / 'model'}",
            "task": "fidelity",
            "data": {
                "random": {"input_ids": {"shape": [12], "dtype": "int64", "high": 20}},
                "evaluation_samples": 8,
                "calibration_samples": 8,
            },
        }
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_transformers_opens_a_plain_checkpoint_of_packed_weights(bits: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    card = bert_card(tmp_path)
    kind = PLUGINS.technique("weight_quantization")
    stages = [kind(kind.config_type(bits=bits))]
    made = run_chain(stages, card, tmp_path / "run", PLUGINS)
    done = export_artifact(made.artifact, "safetensors", tmp_path / "plain", PLUGINS, card)
    assert done.difference == 0
    names = {path.name for path in done.files}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "zoopress.json" not in names
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config
    model, told = transformers.AutoModel.from_pretrained(
        tmp_path / "plain", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids = torch.arange(12).view(1, 12)
    expected = reload_artifact(made.artifact, card, PLUGINS).module
    unpack(expected, "all")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).last_hidden_state, expected(ids).last_hidden_state)


def test_a_program_of_a_transformers_model_takes_what_the_task_gives(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    card = bert_card(tmp_path)
    kind = PLUGINS.technique("weight_quantization")
    made = run_chain([kind(kind.config_type())], card, tmp_path / "run", PLUGINS)
    done = export_artifact(made.artifact, "torch_export", tmp_path / "program", PLUGINS, card)
    assert done.difference is not None
    assert done.difference < done.bound
