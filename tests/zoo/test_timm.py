"""Models of timm by name: what is understood needs no timm; what is built does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zoopress.cards import Card
from zoopress.errors import ArtifactError, SourceError
from zoopress.plugins import Plugins
from zoopress.sources import Architecture, SourceFiles, build_on_meta, detect_architecture, pull
from zoopress_zoo.timm_models import Timm

RESNET: dict[str, Any] = {
    "architecture": "resnet10t",
    "num_classes": 7,
    "num_features": 512,
    "pretrained_cfg": {
        "tag": "c3_in1k",
        "input_size": [1, 176, 176],
        "fixed_input_size": False,
        "num_classes": 7,
        "url": "https://example.org/evil.pth",
    },
}
VIT: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 0,
    "pretrained_cfg": {"input_size": [3, 32, 32], "fixed_input_size": True, "num_classes": 1000},
    "model_args": {"depth": 1, "embed_dim": 24, "num_heads": 3, "global_pool": "avg"},
}


def _timm() -> Any:
    pytest.importorskip("timm", exc_type=ImportError)  # also where torchvision does not work
    import timm

    return timm


def _write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if not (folder / "model.safetensors").exists():
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def _open(folder: Path, plugins: Plugins) -> tuple[Architecture, SourceFiles]:
    card = Card(name="x", source=f"path:{folder}")
    files = pull(card, plugins)
    return detect_architecture(card, files, plugins), files


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        (RESNET, {"num_classes": 7, "in_chans": 1}),
        (
            VIT,
            {"num_classes": 0, "in_chans": 3, "img_size": [32, 32], "depth": 1, "embed_dim": 24}
            | {"num_heads": 3, "global_pool": "avg"},
        ),
        (
            VIT | {"model_args": {"dynamic_img_size": True}},
            {"num_classes": 0, "in_chans": 3} | {"dynamic_img_size": True},
        ),
        (
            {"architecture": "resnet18", "num_classes": 5, "input_size": [3, 224, 224]},
            {"num_classes": 5, "in_chans": 3},
        ),
        ({"architecture": "resnet18.a1_in1k"}, {}),
        ({"architecture": "dla34", "num_classes": -1}, {}),
    ],
)
def test_the_config_says_name_and_arguments(
    config: dict[str, Any], arguments: dict[str, Any], tmp_path: Path, plugins: Plugins
) -> None:
    architecture, _ = _open(_write(tmp_path, config), plugins)
    assert isinstance(architecture, Timm)
    assert architecture.arguments == {"model": config["architecture"], "arguments": arguments}


HOSTILE: list[dict[str, Any]] = [
    {"model": "hf-hub:org/name"},
    {"model": "hf_hub:org"},
    {"model": "local-dir:."},
    {"model": "org/name"},
    {"model": "../resnet18"},
    {"model": "resnet18\n"},
    {"model": ""},
    {"model": ["resnet18"]},
    {"model": None},
    {},
    *(
        {"model": "resnet18", "arguments": arguments}
        for arguments in (
            {"pretrained": True},
            {"pretrained_cfg": "x"},
            {"pretrained_cfg_overlay": {"url": "x"}},
            {"checkpoint_path": "weights"},
            {"cache_dir": "x"},
            {"features_only": True},
            {"device": "cuda"},
            {"block": {"a": 1}},
            {"act_layer": "torch.nn/ReLU"},
            {"act_layer": "os:system"},
            {"layers": [1, "x"]},
            {"layers": [[1]]},
            {"num_classes": 1 << 40},
            {"num_classes": float("nan")},
            {"__class__": 1},
            {"Block": 1},
            [1],
        )
    ),
]


@pytest.mark.parametrize("arguments", HOSTILE)
def test_hostile_arguments_are_refused_without_timm(arguments: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        build_on_meta(Timm(tmp_path, arguments))


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "hf-hub:org/name"},
        {"architecture": 3},
        {"model_args": {"checkpoint_path": "x"}},
        {"model_args": ["x"]},
        {"pretrained_cfg": "x"},
    ],
)
def test_a_config_that_asks_for_more_is_refused_with_its_path(
    change: dict[str, Any], tmp_path: Path, plugins: Plugins
) -> None:
    with pytest.raises(SourceError, match=r"config\.json"):
        _open(_write(tmp_path, RESNET | change), plugins)


def test_without_timm_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(SourceError, match=r"zoopress\[timm\]"):
        Timm(tmp_path, {"model": "resnet18"}).build()


@pytest.mark.parametrize("config", [RESNET, VIT])
def test_models_load_as_they_were_saved(
    config: dict[str, Any], tmp_path: Path, plugins: Plugins
) -> None:
    library = _timm()
    arguments = (
        {"num_classes": 7, "in_chans": 1}
        if config is RESNET
        else {"num_classes": 0, "img_size": 32} | config["model_args"]
    )
    torch.manual_seed(0)
    model = library.create_model(config["architecture"], **arguments).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    architecture, files = _open(_write(tmp_path, config), plugins)
    built = build_on_meta(architecture)
    loaded = architecture.load(files)
    assert built.state_dict().keys() == loaded.state_dict().keys()
    image = torch.randn(1, 1 if config is RESNET else 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet10x"}, "has no model 'resnet10x'"),
        ({"model_args": {"no_such_argument": 1}}, "cannot build it"),
        ({"num_classes": 9}, "does not fit the module.*different models"),
    ],
)
def test_what_timm_cannot_build_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, plugins: Plugins
) -> None:
    library = _timm()
    model = library.create_model("resnet10t", num_classes=7, in_chans=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    architecture, files = _open(_write(tmp_path, RESNET | change), plugins)
    with pytest.raises((SourceError, ArtifactError), match=message):
        architecture.load(files)
