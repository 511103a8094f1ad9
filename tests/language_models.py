"""Tiny language models as artifacts, for tests of what opens them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from text_models import VOCABULARY, save_model
from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card
from zoopress.cells.cell import open_original
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.testing.tiny import context_for

PLUGINS = load_plugins()


def llama_card(folder: Path, **config: Any) -> Card:
    """Save a tiny random Llama into a folder and return its card."""
    save_model(folder / "model", "LlamaForCausalLM", **config)
    inputs = {"input_ids": {"shape": [12], "dtype": "int64", "high": VOCABULARY}}
    return Card.model_validate(
        {
            "name": "llama",
            "source": f"path:{folder / 'model'}",
            "task": "fidelity",
            "data": {"random": inputs, "evaluation_samples": 8, "calibration_samples": 8},
        }
    )


def compressed(card: Card, folder: Path, *stages: tuple[str, dict[str, Any]]) -> Path:
    """Apply techniques to a card's model, without evaluating it, and return the artifact."""
    original = open_original(card, PLUGINS)
    model = Model(original.architecture.load(original.files).eval(), PLUGINS.layers)
    for name, options in stages:
        kind = PLUGINS.technique(name)
        technique = kind(kind.config_type.model_validate(options))
        technique.apply(model, context_for(card, folder / "context", PLUGINS))
    artifact = folder / "artifact"
    artifact.mkdir(parents=True)
    base = Base(name=card.name, source="path:x", revision="x", size_bytes=1, task=card.task)
    others = {name: original.files.folder / name for name in original.files.others}
    save_artifact(artifact, model, original.architecture, base, others)
    return artifact


TEXTS = [
    "The quick brown fox, it isn't lazy. 12 345",
    "def foo(bar): return bar[1] # naïve café — 東京",
]


def decoder_card(folder: Path, family: str = "Llama", splits: str = "gpt-2", **config: Any) -> Card:
    """Save a tiny random decoder with a tokenizer of byte pairs, and return its card.

    Args:
        folder: where to.
        family: of transformers, "Llama" or "Qwen2".
        splits: how the tokenizer splits text: "gpt-2", "smollm", "sentencepiece", or "odd".
        config: of the model, besides or instead of what is tiny here.
    """
    import torch
    import transformers

    tokenizer = byte_pairs(splits)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**{**sizes, **heads, **ids, **config})
    model = getattr(transformers, f"{family}ForCausalLM")(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    inputs = {"input_ids": {"shape": [12], "dtype": "int64", "high": len(tokenizer)}}
    return Card.model_validate(
        {
            "name": "decoder",
            "source": f"path:{folder / 'model'}",
            "task": "fidelity",
            "data": {"random": inputs, "evaluation_samples": 4, "calibration_samples": 4},
        }
    )


def byte_pairs(splits: str) -> Any:
    """Return a tokenizer of byte pairs that splits text in a given way."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    spaced = splits == "sentencepiece"
    tokenizer = Tokenizer(models.BPE(byte_fallback=spaced, unk_token="<unk>" if spaced else None))
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<unk>"] + [f"<0x{n:02X}>" for n in range(256)] * spaced,
        initial_alphabet=[] if spaced else pre_tokenizers.ByteLevel.alphabet(),
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if spaced:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteFallback()
    else:
        before = {
            "smollm": [pre_tokenizers.Digits(individual_digits=True)],
            "odd": [pre_tokenizers.Split(Regex("[aeiou]"), "isolated")],
        }
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before.get(splits, []), level])
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    )
