import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zoopress.cards import load_card
from zoopress.cells.cell import open_original
from zoopress.errors import CardError, SourceError
from zoopress.plugins import load_plugins
from zoopress.sources import pull

PLUGINS = load_plugins()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def card(folder: Path, source: str, factory: str = "net.py:build", extra: str = "") -> str:
    (folder / "net.py").write_text(
        textwrap.dedent("""
            from torch import nn

            def build(width=4):
                first = nn.Linear(width, width)
                second = nn.Linear(width, width)
                second.weight = first.weight
                return nn.Sequential(first, nn.ReLU(), second)
        """)
    )
    path = folder / "card.yaml"
    path.write_text(
        f"name: net\nsource: {source}\nfactory: {factory}\n{extra}\n"
        'data: {random: {"0": {shape: [4]}}}\n'
    )
    return str(path)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    tensors = []
    for seed in (0, 0, 1):
        files = pull(load_card(card(tmp_path, f"initial:{seed}"), PLUGINS), PLUGINS)
        tensors.append(load_file(files.folder / "model.safetensors")["0.weight"])
        (files.folder / "model.safetensors").unlink()
    assert torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[0], tensors[2])


def test_what_was_made_once_is_found_again_and_arguments_make_it_another(tmp_path: Path) -> None:
    first = pull(load_card(card(tmp_path, "initial:0"), PLUGINS), PLUGINS)
    made = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = pull(load_card(card(tmp_path, "initial:0"), PLUGINS), PLUGINS)
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == made
    wider = pull(
        load_card(card(tmp_path, "initial:0", extra="factory_arguments: {width: 6}"), PLUGINS),
        PLUGINS,
    )
    assert wider.revision != first.revision


def test_tied_weights_load_tied(tmp_path: Path) -> None:
    original = open_original(load_card(card(tmp_path, "initial:3"), PLUGINS), PLUGINS)
    module = original.architecture.load(original.files)
    assert module.get_parameter("0.weight") is module.get_parameter("2.weight")


def test_making_one_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pull(load_card(card(tmp_path, "initial:9"), PLUGINS), PLUGINS)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("source", ["initial:first", "initial:-1", "initial:1.5"])
def test_a_seed_that_is_no_whole_number_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(CardError, match="a whole number"):
        pull(load_card(card(tmp_path, source), PLUGINS), PLUGINS)


def test_without_a_factory_there_is_nothing_to_initialize(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text('name: net\nsource: "initial:0"\ndata: {random: {"0": {shape: [4]}}}\n')
    with pytest.raises(CardError, match="factory"):
        pull(load_card(str(path), PLUGINS), PLUGINS)


def test_wrong_arguments_name_the_factory(tmp_path: Path) -> None:
    wrong = card(tmp_path, "initial:0", extra="factory_arguments: {depth: 6}")
    with pytest.raises(SourceError, match="depth"):
        pull(load_card(wrong, PLUGINS), PLUGINS)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises(SourceError, match="XDG_CACHE_HOME"):
        pull(load_card(card(tmp_path, "initial:0"), PLUGINS), PLUGINS)
