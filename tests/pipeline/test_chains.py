"""Chains of every technique, on every kind of model, from the files a user would write."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import zoopress
from zoopress.cards import Card, load_card
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.models.weights import as_matrix
from zoopress.pipeline.artifact_evaluation import evaluate_artifact
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.sources import load_callable
from zoopress.store import Store
from zoopress.testing import reload_artifact, seeded

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()

FACTORY_FILE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def cnn(width=16):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        Block(width, width), Block(width, 2 * width, stride=2), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 48), nn.ReLU(),
        nn.Dropout(0.1), nn.Linear(48, 10),
    )


class Recurrent(nn.Module):
    def __init__(self, cell, layers, bidirectional):
        super().__init__()
        self.embedding = nn.Embedding(50, 24, padding_idx=0)
        self.rnn = cell(24, 32, layers, batch_first=True, bidirectional=bidirectional)
        outputs = 64 if bidirectional else 32
        self.head = nn.Sequential(nn.Linear(outputs, 64), nn.Tanh(), nn.Linear(64, 12))

    def forward(self, ids):
        outputs, _ = self.rnn(self.embedding(ids))
        return self.head(outputs.mean(1))


def lstm():
    return Recurrent(nn.LSTM, 2, False)


def gru():
    return Recurrent(nn.GRU, 1, True)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 12)

    def forward(self, ids):
        return self.head(self.encoder(self.embedding(ids)).mean(1))


def encoder():
    return Encoder()


def images():
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def tokens():
    return {"ids": torch.randint(1, 50, (40, 9), generator=torch.Generator().manual_seed(1))}


def batches():
    generator = torch.Generator().manual_seed(2)
    return [{"input_ids": torch.randint(1, 60, (8, 9), generator=generator)} for _ in range(5)]
"""

SAMPLES = {"calibration_samples": 16, "evaluation_samples": 24, "batch_size": 8}
TOKENS = {"shape": [9], "dtype": "int64", "low": 1, "high": 50}

NEURON = {"technique": "neuron_pruning", "sparsity": 0.25}
MAGNITUDE = {"technique": "magnitude_pruning", "sparsity": 0.6}
QUANTIZE = {"technique": "weight_quantization", "bits": 4, "group_size": 32}
SVD = {"technique": "truncated_svd", "parameters": 0.6}
CODE = {"technique": "entropy_coding"}
HALF = {"technique": "float_precision"}
GRID = {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 4}}
BOOK = {"technique": "codebook_quantization", "bits": 4}
LATTICE = {"technique": "lattice_quantization", "bits_per_weight": 4}
STEPS: dict[str, dict[str, Any]] = {
    "neuron": NEURON,
    "magnitude": MAGNITUDE,
    "quantize": QUANTIZE,
    "svd": SVD,
    "code": CODE,
    "half": HALF,
    "grid": GRID,
    "book": BOOK,
    "lattice": LATTICE,
}

MODELS = ("cnn", "lstm", "gru", "encoder", "bert", "gpt2")
CHAINS = (
    "neuron magnitude quantize code",
    "svd magnitude quantize code",
    "neuron svd quantize code",
    "svd neuron magnitude quantize code",
    "neuron svd magnitude quantize code",
    "code neuron magnitude quantize",
    "magnitude neuron quantize code",
    "code magnitude neuron quantize",
    "svd code quantize",
    "magnitude quantize",
    "half svd neuron magnitude quantize code",
    "neuron magnitude half quantize code",
    "neuron svd magnitude grid",
    "half magnitude grid",
    "neuron svd magnitude book code",
    "neuron svd lattice",
    "half neuron magnitude lattice",
)
FAST = {
    ("cnn", "svd neuron magnitude quantize code"),
    ("lstm", "neuron magnitude quantize code"),
    ("gru", "magnitude neuron quantize code"),
    ("encoder", "neuron svd magnitude quantize code"),
    ("bert", "neuron svd quantize code"),
    ("gpt2", "code neuron magnitude quantize"),
    ("gpt2", "half magnitude grid"),
    ("lstm", "neuron svd magnitude book code"),
    ("encoder", "neuron svd lattice"),
}
CASES = [
    pytest.param(
        model,
        chain,
        id=f"{model}: {chain}",
        marks=() if (model, chain) in FAST else (pytest.mark.slow,),
    )
    for model in MODELS
    for chain in CHAINS
]


def make_card(model: str, folder: Path) -> Card:
    """Write a model, its inputs and its card, in another way for each model."""
    (folder / "models.py").write_text(FACTORY_FILE)
    card: dict[str, Any] = {"name": model}
    if model in ("bert", "gpt2"):
        save_transformer(model, folder / "model")
        card["source"] = "path:model"
        card["data"] = (
            {"random": {"input_ids": TOKENS}}
            if model == "bert"
            else {"inputs": "models.py:batches"}
        )
    else:
        built = seeded(load_callable(f"models.py:{model}", folder))
        card["factory"] = f"models.py:{model}"
        if model in ("cnn", "gru"):
            torch.save(built.state_dict(), folder / "weights.pth")
            card["source"] = "path:weights.pth"
        else:
            save_file(built.state_dict(), folder / "weights.safetensors")
            card["source"] = "path:weights.safetensors"
        card["data"] = make_data(model, folder)
    card["data"] |= SAMPLES
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return load_card(str(folder / "card.yaml"), PLUGINS)


def make_data(model: str, folder: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    if model == "cnn":
        images = torch.randn(40, 3, 16, 16, generator=generator)
        save_file({"0": images}, folder / "images.safetensors")
        return {"file": "images.safetensors"}
    if model == "encoder":
        ids = torch.randint(1, 50, (40, 9), generator=generator)
        np.savez(folder / "ids.npz", ids=ids.numpy())
        return {"file": "ids.npz"}
    return {"inputs": "models.py:tokens"} if model == "gru" else {"random": {"ids": TOKENS}}


def save_transformer(model: str, folder: Path) -> None:
    sizes = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}
    build: Any
    if model == "bert":
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 64, "max_position_embeddings": 32, "num_labels": 5}
        config = transformers.BertConfig(**sizes)
        build = partial(transformers.BertForSequenceClassification, config)
    else:
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
        build = partial(transformers.GPT2LMHeadModel, transformers.GPT2Config(**sizes))
    made: Any = seeded(build)
    made.save_pretrained(folder)


def run(chain: str, card: Card, folder: Path) -> Result:
    recipe = {"stages": [STEPS[step] for step in chain.split()]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return compress(
        card,
        load_recipe(str(folder / "recipe.yaml"), PLUGINS),
        folder / "out",
        Store(folder / "store"),
        PLUGINS,
    )


def dense_masked(model: Model) -> list[tuple[Tensor, Tensor]]:
    """Return each pruned weight as the network uses it, beside its mask."""
    packed = packed_weights(model.module)
    tensors = model.tensors()
    found = []
    for name, mask in model.masks.items():
        if name in tensors and name.rpartition(".")[0] not in packed:
            found.append((tensors[name], mask))
        else:
            weight = packed[name.rpartition(".")[0]]
            found.append((as_matrix(weight.dense(), weight.output_axis), mask))
    return found


def first_output(module: nn.Module, batch: Any) -> Tensor:
    with torch.inference_mode():
        output = module(**batch) if "0" not in batch else module(batch["0"])
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize(("model", "chain"), CASES)
def test_chain_runs_shrinks_and_reloads(model: str, chain: str, tmp_path: Path) -> None:
    card = make_card(model, tmp_path)
    result = run(chain, card, tmp_path)
    report = result.report
    steps = chain.split()

    sizes = [stage.weight_bytes for stage in report.stages]
    assert sizes == sorted(sizes, reverse=True)
    quantized = {"quantize", "grid", "book", "lattice"} & set(steps)
    assert report.compression_ratio > (3 if quantized and len(steps) > 2 else 2)
    assert result.artifact.joinpath("model.zpz").exists() == bool(
        {"code", "grid", "lattice"} & set(steps)
    )
    for stage in report.stages:
        fidelity = stage.fidelity
        for figure in (fidelity.cosine, fidelity.label_loyalty, fidelity.probability_loyalty):
            assert figure is not None
            assert math.isfinite(figure)
        assert stage.reload_difference == 0

    factory = f"{tmp_path / 'models.py'}:{model}" if card.factory else None
    loaded = zoopress.load(result.artifact, factory=factory)
    again = reload_artifact(result.artifact, card, PLUGINS)
    batch = PLUGINS.resolve("tasks", "fidelity")(card, tmp_path).batches("test")[0]
    outputs = first_output(loaded, batch)
    packed = zoopress.load(result.artifact, factory=factory, unpacking="none")
    assert torch.equal(first_output(packed, batch), first_output(again.module, batch))
    # Made dense, sums are taken in another order.
    torch.testing.assert_close(outputs, first_output(packed, batch), rtol=1e-5, atol=1e-6)
    assert outputs.isfinite().all()

    masked = dense_masked(again)
    assert bool(masked) == ("magnitude" in steps)
    for weight, mask in masked:
        assert bool((weight[~mask] == 0).all())
    if masked:
        zeros = sum(int((weight == 0).sum()) for weight, _ in masked)
        assert zeros >= report.last.pruned
        assert report.last.pruned > 0.4 * sum(mask.numel() for _, mask in masked)

    figures = evaluate_artifact(result.artifact, card, PLUGINS)
    metrics = report.metrics()
    assert figures["finite"]
    assert figures["size_bytes"] == metrics["size_bytes"]
    for name in ("cosine", "label_loyalty", "probability_loyalty", "compression_ratio"):
        assert figures[name] == pytest.approx(metrics[name], abs=1e-4)


@pytest.mark.parametrize(
    "chain",
    [
        "quantize magnitude",
        "quantize neuron",
        "magnitude svd",
        "quantize half",
        "book magnitude",
        "lattice neuron",
    ],
)
def test_chain_in_an_order_that_undoes_work_is_refused_with_one_that_works(
    chain: str, tmp_path: Path
) -> None:
    card = make_card("cnn", tmp_path)
    working = ", ".join(STEPS[step]["technique"] for step in reversed(chain.split()))
    with pytest.raises(zoopress.ZoopressError, match=f"This order works: {working}"):
        run(chain, card, tmp_path)
    assert not (tmp_path / "out").exists()


def test_half_precision_after_single_weights_were_packed_says_where_it_belongs(
    tmp_path: Path,
) -> None:
    card = make_card("cnn", tmp_path)
    some = {**QUANTIZE, "include": ["4.*"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"stages": [some, HALF]}))
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), PLUGINS)
    with pytest.raises(zoopress.ZoopressError, match="Put this stage before the one that quant"):
        compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), PLUGINS)
