"""A tensor of a file on the Hub is read by ranges: index and tensor, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hub_server.fixtures import HubFixture
from zoopress.artifacts.checkpoints import open_zpz
from zoopress.coding.layout import StoredTensor
from zoopress.coding.zpz import write_zpz
from zoopress.commands.cli import app
from zoopress.errors import ArtifactError

CARD = "---\nlicense: apache-2.0\n---\n"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}": torch.randn(100, 300 + i, generator=generator) for i in range(20)}


@pytest.fixture
def place(hub: HubFixture, tensors: dict[str, torch.Tensor], tmp_path: Path) -> str:
    """The URL of a file of 2 MB."""
    write_zpz(tmp_path / "model.zpz", {n: StoredTensor(t) for n, t in tensors.items()})
    content = (tmp_path / "model.zpz").read_bytes()
    hub.create_repo("zoo/model", {"README.md": CARD, "model.zpz": content})
    hub.requests.clear()
    return "hf://zoo/model/model.zpz"


def ranges(hub: HubFixture) -> list[int]:
    """Return how many bytes of the file each request asked for."""
    sizes = []
    for request in hub.requests:
        if request.method == "GET" and ("/cdn/" in request.path or "/resolve/" in request.path):
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
            assert found, "a request for the whole file"
            sizes.append(int(found[2]) - int(found[1]) + 1)
    return sizes


def test_a_tensor_is_fetched_alone(
    hub: HubFixture, place: str, tensors: dict[str, torch.Tensor]
) -> None:
    with open_zpz(place) as reader:
        assert torch.equal(reader.read("layer.7"), tensors["layer.7"])
        stored = reader.stored_bytes("layer.7")
        whole = reader.size
    fetched = ranges(hub)
    small = [size for size in fetched if size <= 1 << 14]
    assert sorted(set(fetched))[-1] == stored
    assert len(small) + fetched.count(stored) == len(fetched)
    assert len(hub.requests) < 10
    assert sum(fetched) < stored * 2 + 2 * (1 << 14) + 10 < whole / 5  # a redirect repeats a range


def test_the_commands_read_urls(
    place: str, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "one.safetensors"
    result = CliRunner().invoke(app, ["decode", place, "--tensor", "layer.3", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert torch.equal(load_file(out)["layer.3"], tensors["layer.3"])
    shown = CliRunner().invoke(app, ["inspect", place])
    assert shown.exit_code == 0
    assert "layer.19" in shown.output


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("url", ["hf://zoo/model/other.zpz", "hf://zoo/none/model.zpz", "xx://a"])
def test_what_is_not_there_is_told(url: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be opened"), open_zpz(url):
        pass
