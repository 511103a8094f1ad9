"""Texts are cut where a model's positions end, on the way from its folder to a run."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from zoopress.cards import load_card
from zoopress.cards.maker import Wish, card_maker
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store
from zoopress_zoo.positions import most_tokens

pytestmark = pytest.mark.usefixtures("brief_latency")

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def roberta(positions: int) -> Any:
    config = transformers.RobertaConfig(**SMALL, max_position_embeddings=positions, pad_token_id=1)
    return transformers.RobertaForSequenceClassification(config)


def bert(positions: int) -> Any:
    config = transformers.BertConfig(**SMALL, max_position_embeddings=positions)
    return transformers.BertForSequenceClassification(config)


def gpt2(positions: int) -> Any:
    sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


MODELS = {"roberta": roberta, "bert": bert, "gpt2": gpt2}


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer that knows nothing of the model's positions."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "the", "of", "a", "to"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


@pytest.mark.parametrize("positions", [64, 20])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text", [True, False])
def test_a_card_that_was_made_runs(
    tmp_path: Path, plugins: Plugins, name: str, positions: int, text: bool
) -> None:
    torch.manual_seed(0)
    MODELS[name](positions).save_pretrained(tmp_path / "model")
    if text:
        write_tokenizer(tmp_path / "model")
    maker = card_maker("path", plugins)
    assert maker is not None
    made = maker.draft(str(tmp_path / "model"), Wish(folder=tmp_path))
    assert "data" not in made.missing, made.missing
    values = {**made.values, "name": "m", "source": "path:model"}
    data = {**values["data"], "calibration_samples": 8, "evaluation_samples": 32}
    (tmp_path / "card.yaml").write_text(json.dumps({**values, "data": data}))
    (tmp_path / "recipe.yaml").write_text("stages: [{technique: weight_quantization, bits: 8}]\n")
    done = compress(
        load_card(str(tmp_path / "card.yaml"), plugins),
        load_recipe(str(tmp_path / "recipe.yaml"), plugins),
        tmp_path / "out",
        Store(tmp_path / "store"),
        plugins,
    )
    assert done.report.last.fidelity.cosine > 0.9


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("text-classification", lambda words: {"text": " ".join(words), "label": len(words) % 2}),
        ("text-generation", lambda words: {"text": " ".join(words * 4)}),
    ],
)
def test_tasks_with_labels_cut_there_too(
    tmp_path: Path, plugins: Plugins, task: str, rows: Any
) -> None:
    torch.manual_seed(0)
    (roberta if task == "text-classification" else gpt2)(40).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    generator = random.Random(0)
    lines = [
        json.dumps(rows([generator.choice(["the", "of", "a", "zoo"]) for _ in range(90 + i)]))
        for i in range(64)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "card.yaml").write_text(
        f"name: m\nsource: path:model\ntask: {task}\ndata: {{dataset: 'file:rows.jsonl', "
        "calibration_samples: 8, evaluation_samples: 16}\n"
    )
    card = load_card(str(tmp_path / "card.yaml"), plugins)
    (tmp_path / "recipe.yaml").write_text("stages: [{technique: weight_quantization, bits: 8}]\n")
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
    out, store = tmp_path / "out", Store(tmp_path / "store")
    assert compress(card, recipe, out, store, plugins).report.last.fidelity.cosine > 0.9


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 0}, 65),
        ({"model_type": "gpt2", "n_positions": 32, "n_ctx": 48}, 32),
        ({"text_config": {"max_position_embeddings": 77}, "vision_config": {"n_positions": 9}}, 77),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": "64"}, None),
        ({}, None),
    ],
)
def test_how_many_tokens_a_config_allows(config: dict[str, Any], most: int | None) -> None:
    assert most_tokens(config) == most
