"""Models that lie on disk while they are compressed: the same results, in little memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoopress.cards import Card
from zoopress.errors import InputError
from zoopress.models.on_disk import on_disk
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import load_plugins
from zoopress.progress import Reporter
from zoopress.recipes import load_recipe
from zoopress.store import Store
from zoopress.techniques.journal import Journal
from zoopress.testing.tiny import artifact_bytes

pytestmark = pytest.mark.usefixtures("brief_latency")

LITTLE = 1 << 20
QUANTIZED = {"technique": "weight_quantization", "bits": 4, "group_size": 32}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    """Write a llama of 1.4 MB in two shards, its embedding tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="1MB")
    tokens = {"input_ids": {"shape": [8], "dtype": "int64", "high": 512}}
    return Card.model_validate(
        {
            "name": "llama",
            "source": f"path:{folder}",
            "task": "fidelity",
            "data": {
                "random": tokens,
                "calibration_samples": 4,
                "evaluation_samples": 4,
                "batch_size": 2,
            },
        }
    )


def run(
    card: Card,
    folder: Path,
    stages: list[dict[str, Any]],
    memory: int | None = LITTLE,
    reporter: Reporter | None = None,
) -> Result:
    plugins = load_plugins()
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(json.dumps({"stages": stages}))
    recipe = load_recipe(str(folder / "recipe.yaml"), plugins)
    return compress(
        *(card, recipe, folder / "out", Store(folder / "store"), plugins, reporter),
        memory_bytes=memory,
    )


CHAINS: dict[str, list[dict[str, Any]]] = {
    "quantized": [QUANTIZED],
    "8 bits, coded": [
        {"technique": "weight_quantization", "bits": 8, "symmetric": False},
        {"technique": "entropy_coding"},
    ],
    "pruned, quantized, coded": [
        {"technique": "magnitude_pruning", "sparsity": 0.5},
        QUANTIZED,
        {"technique": "entropy_coding"},
    ],
    "factored, quantized": [{"technique": "truncated_svd", "parameters": 0.5}, QUANTIZED],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_model_on_disk_gives_the_same_result(chain: str, card: Card, tmp_path: Path) -> None:
    there = run(card, tmp_path / "disk", CHAINS[chain])
    here = run(card, tmp_path / "memory", CHAINS[chain], memory=None)
    assert artifact_bytes(there.artifact) == artifact_bytes(here.artifact)
    assert there.report.last.fidelity.cosine == here.report.last.fidelity.cosine
    assert there.report.last.notes == here.report.last.notes
    assert not list((tmp_path / "disk/store/scratch").iterdir())


def test_its_tensors_lie_in_files_and_this_is_told(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    put = Journal.note

    def note(self: Journal, weight: Any, record: Any) -> None:
        put(self, weight, record)
        disk = on_disk()
        assert disk is not None
        seen.append(sum(span.size for span in disk._spans.values()))

    monkeypatch.setattr(Journal, "note", note)
    lines: list[str] = []
    run(card, tmp_path, [QUANTIZED], reporter=Reporter([lambda e: lines.append(str(e["text"]))]))
    # The original's tensors twice, and what is packed.
    assert seen[0] > 2_000_000
    assert sorted(seen) == seen
    assert any("its weights stay on disk" in line for line in lines)


class KilledError(BaseException):
    pass


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Give a list of after how many weights runs are killed, one after the other."""
    at: list[int] = []
    put = Journal.note

    def note(self: Journal, weight: Any, record: Any) -> None:
        put(self, weight, record)
        if at and self._done == at[0]:
            raise KilledError(at.pop(0))

    monkeypatch.setattr(Journal, "note", note)
    return at


@pytest.mark.parametrize("chain", ["quantized", "factored, quantized"])
def test_a_killed_run_goes_on_at_the_next_weight(
    chain: str, card: Card, tmp_path: Path, killed_at: list[int]
) -> None:
    noted: list[str] = []
    put = Journal.note
    whole = run(card, tmp_path / "whole", CHAINS[chain])
    killed_at += [5, 9]
    with pytest.raises(KilledError):
        run(card, tmp_path / "killed", CHAINS[chain])
    folder = next((tmp_path / "killed/store/checkpoints").glob("*/weights-0"))
    (folder / "000005.safetensors").write_bytes(b"damaged")  # as by a full disk

    def note(self: Journal, weight: Any, record: Any) -> None:
        noted.append(weight.name)
        put(self, weight, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "note", note)
        with pytest.raises(KilledError):
            run(card, tmp_path / "killed", CHAINS[chain])
        assert len(noted) == 5  # the fifth to the ninth
        again = run(card, tmp_path / "killed", CHAINS[chain])
    assert artifact_bytes(again.artifact) == artifact_bytes(whole.artifact)
    assert again.report.last.notes == whole.report.last.notes
    assert not (tmp_path / "killed/store/checkpoints").exists() or not list(
        (tmp_path / "killed/store/checkpoints").iterdir()
    )


def test_what_needs_all_of_the_model_is_refused_or_told(card: Card, tmp_path: Path) -> None:
    stage = {"technique": "neuron_pruning", "sparsity": 0.25}
    with pytest.raises(InputError, match=r"'neuron_pruning' needs all of the model in memory"):
        run(card, tmp_path, [stage])
    ranked = {"technique": "magnitude_pruning", "sparsity": 0.5, "scope": "global"}
    with pytest.raises(InputError, match=r"'magnitude_pruning' needs all .* entropy_coding, "):
        run(card, tmp_path, [ranked])
    assert not (tmp_path / "store/scratch").exists()


def test_a_smaller_model_stays_in_memory(card: Card, tmp_path: Path) -> None:
    run(card, tmp_path, [QUANTIZED], memory=1 << 30)
    assert not (tmp_path / "store/scratch").exists()
