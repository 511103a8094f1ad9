"""Make the artifacts, the run and the store beside this file: with zoopress as of commit 476007b.

That was the last one before the core's modules moved into rooms. Run as

    git worktree add OLD 476007b
    pip install --no-deps --target SITE OLD
    PYTHONPATH=SITE python make.py OUT

What it leaves below OUT:

    inputs.safetensors            what each network is run on, by the network's name
    outputs.safetensors           what each artifact gave when it was made, by the artifact's name
    cards/NETWORK.yaml            the networks' cards; their weights are gone
    artifacts/NETWORK-STATE/      one in each state
    run/                          the folder of a whole run: artifact, report, metrics, plots
    store/                        with all results of that run, in entries/
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors.torch import save_file
from zoopress.card import load_card
from zoopress.compress import compress
from zoopress.recipe import load_recipe
from zoopress.source import load_callable

import zoopress
from zoopress.plugins import load_plugins
from zoopress.store import Store

MODELS = Path(__file__).with_name("models.py")
TOKENS = {"shape": [9], "dtype": "int64", "low": 1, "high": 40}
DATA: dict[str, Any] = {
    "cnn": {"random": {"0": {"shape": [3, 8, 8]}}},
    "lstm": {"random": {"ids": TOKENS}},
    "encoder": {"random": {"ids": TOKENS}},
    "bert": {"random": {"input_ids": TOKENS}},
}
SAMPLES = {"calibration_samples": 8, "evaluation_samples": 8, "batch_size": 4}

MASKED = {"technique": "magnitude_pruning", "sparsity": 0.6}
NEURONS = {"technique": "neuron_pruning", "sparsity": 0.25}
FACTORED = {"technique": "truncated_svd", "parameters": 0.6}
QUANTIZED = {"technique": "weight_quantization", "bits": 4, "group_size": 16}
THREE_BITS = {"technique": "weight_quantization", "bits": 3, "group_size": 8, "symmetric": False}
GRID = {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 4}}
CODEBOOK = {"technique": "codebook_quantization", "bits": 3}
LATTICE = {"technique": "lattice_quantization", "bits_per_weight": 4}
HALF = {"technique": "float_precision"}
FOLDED = {"technique": "batch_norm_folding"}
REMOVED = {"technique": "layer_removal", "layers": 1}
CODED = {"technique": "entropy_coding"}

STATES: dict[str, list[dict[str, Any]]] = {
    "cnn-masked": [MASKED],
    "cnn-quantized": [QUANTIZED],
    "cnn-masked-quantized": [MASKED, QUANTIZED],
    "cnn-three_bits": [MASKED, THREE_BITS],
    "cnn-grid": [GRID],
    "cnn-codebook": [MASKED, CODEBOOK],
    "cnn-lattice": [LATTICE],
    "cnn-half": [HALF],
    "cnn-factored": [FACTORED],
    "cnn-neurons": [NEURONS],
    "cnn-folded": [FOLDED],
    "cnn-coded": [MASKED, CODED],
    "lstm-masked": [MASKED | {"kinds": ["linear", "recurrent", "embedding"]}],
    "lstm-everything": [FACTORED, NEURONS, MASKED, QUANTIZED, CODED],
    "encoder-removed": [REMOVED],
    "encoder-grid": [NEURONS, MASKED, GRID],
    "bert-removed": [REMOVED],
    "bert-half": [HALF],
    "bert-quantized": [NEURONS, MASKED, QUANTIZED, CODED],
}
RUN = [NEURONS, MASKED, QUANTIZED, CODED]


def main(out: Path) -> None:
    """Make all of it."""
    plugins = load_plugins()
    inputs, outputs = {}, {}
    (out / "cards").mkdir(parents=True)
    (out / "weights").mkdir()
    os.chdir(out)  # so that no path of this machine gets into a file
    for name, data in DATA.items():
        inputs[name] = make_network(name, data)
    recipes = Path(tempfile.mkdtemp())
    for state, stages in STATES.items():
        name = state.partition("-")[0]
        run(name, state, stages, recipes, Store(recipes / "store"), recipes / "out", plugins)
        shutil.copytree(recipes / "out" / state / "artifact", out / "artifacts" / state)
        outputs[state] = answer(name, out / "artifacts" / state, inputs[name])
    run("lstm", "run", RUN, recipes, Store(out / "store"), out, plugins)
    save_file(inputs, "inputs.safetensors")
    save_file(outputs, "outputs.safetensors")
    shutil.rmtree(recipes)
    for gone in ("weights", "store/locks", "store/hashes", "store/gc.lock"):
        remove(out / gone)
    for page in out.glob("artifacts/*/README.md"):
        page.unlink()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_network(name: str, data: dict[str, Any]) -> torch.Tensor:
    """Write a network's weights and its card; return what it is run on."""
    torch.manual_seed(0)
    card: dict[str, Any] = {"name": name, "license": "mit", "data": data | SAMPLES}
    if name == "bert":
        config = transformers.BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=12,
            num_labels=6,
        )
        transformers.BertForSequenceClassification(config).save_pretrained("weights/bert")
        card |= {"source": "path:../weights/bert", "base_model": "acme/tiny-bert"}
    else:
        network = load_callable(f"models.py:{name}", MODELS.parent)()
        save_file(network.state_dict(), f"weights/{name}.safetensors")
        card |= {"source": f"path:../weights/{name}.safetensors"}
        card |= {"factory": f"../models.py:{name}"}
    Path(f"cards/{name}.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    if name == "cnn":
        return torch.randn(4, 3, 8, 8)
    return torch.randint(1, 40, (4, 9))


def run(
    name: str,
    state: str,
    stages: list[dict[str, Any]],
    recipes: Path,
    store: Store,
    out: Path,
    plugins: Any,
) -> None:
    """Take a network through a chain."""
    recipe = recipes / f"{state}.yaml"
    recipe.write_text(yaml.safe_dump({"stages": stages}))
    card = load_card(f"cards/{name}.yaml", plugins)
    compress(card, load_recipe(str(recipe), plugins), out / state, store, plugins)


def answer(name: str, artifact: Path, given: torch.Tensor) -> torch.Tensor:
    """Return what an artifact makes of its inputs."""
    factory = None if name == "bert" else load_callable(f"models.py:{name}", MODELS.parent)
    model = zoopress.load(artifact, factory=factory, unpacking="none")
    with torch.inference_mode():
        output = model(given)
    return getattr(output, "logits", output)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
