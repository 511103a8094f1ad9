"""Tiny models and isolated folders that tests share."""

import os

# Tiny models gain nothing from threads, and lose much where others use the machine as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from torch import Tensor, nn

from warm import WarmProcess
from zoopress.cards import Card, load_card
from zoopress.evaluation.latency import measure_latency
from zoopress.plugins import Plugins, load_plugins

# The Hub's client reads its endpoint when it is imported, so the test server starts before that.
pytest_plugins = ["hub_server.fixtures", "plugin_distributions"]

# Tests start hundreds of processes: none of them is to compile all sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what runs in the background deaf to Ctrl-C, and so would be all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("zoopress", deadline=None)
settings.load_profile("zoopress")

VOCABULARY, WIDTH, CLASSES = 19, 16, 5

MORE = (
    "plugins/deployment/",
    "plugins/test_conformance.py",
    "publishing/test_exports.py",
    "real_use/",
    "scaffolds/test_scaffold.py",
    "test_docs",
    "test_example_",
    "testing/test_plugin_check.py",
)
"""Tests that `make test` leaves to `make test-more`, by how their paths begin."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    here = Path(__file__).parent
    for item in items:
        path = item.path
        if path.is_relative_to(here) and path.relative_to(here).as_posix().startswith(MORE):
            item.add_marker("more")


@pytest.fixture
def brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure latency for a moment alone: elsewhere it would take most of the time."""
    for module in ("workbench", "artifact_evaluation"):
        brief = partial(measure_latency, seconds=0.01)
        monkeypatch.setattr(f"zoopress.pipeline.{module}.measure_latency", brief)


@pytest.fixture
def brief_evaluation(monkeypatch: pytest.MonkeyPatch, brief_latency: None) -> None:
    """Leave out what reports measure besides fidelity and metrics, for tests of something else."""
    monkeypatch.setattr("zoopress.pipeline.workbench.evaluate", lambda *_: {})


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmProcess]:
    """Commands in processes of their own that need not import torch first: see `warm.py`."""
    process = WarmProcess()
    yield process
    process.close()


@pytest.fixture
def warm_workers(warm: WarmProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process starts with its own interpreter, workers say, need not import torch."""
    monkeypatch.setattr(sys, "executable", warm.python)


class TinyCnn(nn.Module):
    """A grouped, a plain and a transposed convolution; images [n, 4, 8, 8] to [n, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, (3, 2), stride=2, padding_mode="circular", padding=1)
        self.third = nn.ConvTranspose2d(12, 6, 2)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.norm(self.first(input)).relu()
        hidden = self.third(self.second(hidden).relu()).relu()
        result: Tensor = self.head(hidden.mean((2, 3)))
        return result


class TinyLstm(nn.Module):
    """Token ids [n, length] to [n, 5], through two directions and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, 7, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(14, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.head(self.lstm(self.embedding(input))[0][:, -1])
        return result


class TinyTransformer(nn.Module):
    """Token ids [n, length] to logits [n, length, vocabulary], output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("used", torch.ones(VOCABULARY, dtype=torch.bool))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.output(self.block(self.embedding(input)))
        return result


FACTORIES: dict[str, type[nn.Module]] = {
    "cnn": TinyCnn,
    "lstm": TinyLstm,
    "transformer": TinyTransformer,
}


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test off the user's store and settings."""
    monkeypatch.setenv("ZOOPRESS_STORE", str(tmp_path / "default-store"))
    monkeypatch.delenv("ZOOPRESS_BLOCK_PLUGINS", raising=False)


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """All that is installed."""
    return load_plugins()


@pytest.fixture(scope="session")
def factories() -> dict[str, type[nn.Module]]:
    """Classes of tiny models by name."""
    return FACTORIES


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    """Return a function that builds a seeded tiny model in evaluation mode."""

    def build(name: str, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return FACTORIES[name]().eval()

    return build


@pytest.fixture(scope="session")
def tiny_input() -> Callable[[str], Tensor]:
    """Return a function that gives inputs for a tiny model."""

    def make(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if name == "cnn":
            return torch.randn(3, 4, 8, 8, generator=generator)
        return torch.randint(0, VOCABULARY, (3, 6), generator=generator)

    return make


@pytest.fixture
def tiny_card(tmp_path: Path, tiny: Callable[..., nn.Module], plugins: Plugins) -> Card:
    """A card, in `tmp_path`, of a small multi-layer perceptron with random inputs."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    save_file(module.state_dict(), tmp_path / "tiny.safetensors")
    (tmp_path / "tiny_factory.py").write_text(
        textwrap.dedent(
            """
            from torch import nn


            def build():
                return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
            """
        )
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(
        textwrap.dedent(
            """
            name: tiny
            source: path:tiny.safetensors
            factory: tiny_factory.py:build
            data:
              random: {input: {shape: [8]}}
              evaluation_samples: 16
              calibration_samples: 4
            """
        )
    )
    return load_card(str(path), plugins)
