"""Tiny models of transformers with tokenizers, and cards of tasks on text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoopress.cards import Card
from zoopress.cells.cell import open_original
from zoopress.plugins import load_plugins
from zoopress.tasks import Task

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>")
WORDS = (*"abcdefghijklmnop", "play", "##ing", "##s", "un", "##do")
VOCABULARY = len(SPECIAL) + len(WORDS)
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "BertModel": ("BertConfig", _TEXT),
    "BertForSequenceClassification": ("BertConfig", _TEXT),
    "BertForTokenClassification": ("BertConfig", _TEXT),
    "LlamaForCausalLM": (
        "LlamaConfig",
        _TEXT | {"num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 4},
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1}
        | {"num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 4},
    ),
    "CLIPModel": (
        "CLIPConfig",
        {
            "text_config": _TEXT | {"eos_token_id": 3},
            "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"intermediate_size": 24, "image_size": 16, "patch_size": 8},
            "projection_dim": 8,
        },
    ),
}


def save_model(folder: Path, kind: str, **config: Any) -> Any:
    """Save a random model and a tokenizer of words and word pieces; return the model."""
    import transformers

    settings, arguments = CONFIGS[kind]
    torch.manual_seed(0)
    made = getattr(transformers, settings)(**arguments, **config)
    model = getattr(transformers, kind)(made).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder, ends="T5" in kind)
    return model


def save_tokenizer(folder: Path, ends: bool = False) -> None:
    """Save a tokenizer like BERT's; with `ends` one that only puts an end token behind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 4)]
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token=None if ends else "[CLS]",
        sep_token=None if ends else "[SEP]",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"]
        if ends
        else ["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines and return the address of the dataset."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file:{path}"


def make_task(folder: Path, task: str, **data: Any) -> Task:
    """Return a task on the model in a folder; splits are small unless `data` says otherwise."""
    counts = {"evaluation_samples": 4, "calibration_samples": 2, "batch_size": 3}
    card = Card(name="tiny", source=f"path:{folder}", task=task, data=counts | data)
    plugins = load_plugins()
    made: Task = plugins.resolve("tasks", task)(card, folder)
    return made


def open_task(folder: Path, task: str, **data: Any) -> tuple[Task, nn.Module]:
    """Return a task and the model in a folder, opened as a run does."""
    card = make_task(folder, task, **data).card
    original = open_original(card, load_plugins())
    return original.task, original.architecture.load(original.files).eval()
