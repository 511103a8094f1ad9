"""Which files of a repository a user of its model needs."""

from __future__ import annotations

import random
from pathlib import PurePosixPath

import pytest
from hypothesis import given, strategies as st

from zoopress.errors import SourceError
from zoopress_zoo.selection import FORMATS, Selection, select


def _files(text: str) -> list[str]:
    return text.split()


BERT = _files(
    """
    README.md .gitattributes LICENSE config.json coreml/fill-mask/model.mlpackage
    flax_model.msgpack model.onnx model.safetensors pytorch_model.bin rust_model.ot tf_model.h5
    tokenizer.json tokenizer_config.json vocab.txt
    """
)
GPT2 = _files(
    """
    64-8bits.tflite README.md config.json flax_model.msgpack generation_config.json merges.txt
    model.safetensors onnx/config.json onnx/decoder_model.onnx onnx/vocab.json pytorch_model.bin
    rust_model.ot tf_model.h5 tokenizer.json tokenizer_config.json vocab.json
    """
)
LLAMA = _files(
    """
    LICENSE.txt README.md USE_POLICY.md config.json generation_config.json
    model-00001-of-00002.safetensors model-00002-of-00002.safetensors
    model.safetensors.index.json original/consolidated.00.pth original/params.json
    original/tokenizer.model special_tokens_map.json tokenizer.json tokenizer_config.json
    """
)
MISTRAL = _files(
    """
    config.json consolidated.safetensors model-00001-of-00002.safetensors
    model-00002-of-00002.safetensors model.safetensors.index.json params.json tekken.json
    tokenizer.json tokenizer.model.v3 chat_template.jinja
    """
)
ENCODER = _files(
    """
    1_Pooling/config.json 2_Dense/config.json 2_Dense/model.safetensors
    2_Dense/pytorch_model.bin README.md config.json config_sentence_transformers.json
    data_config.json model.safetensors modules.json onnx/model.onnx openvino/openvino_model.bin
    pytorch_model.bin sentence_bert_config.json special_tokens_map.json spiece.model
    tokenizer.json train_script.py tokenizer_config.json
    """
)
OLD_ENCODER = _files(
    """
    0_Transformer/config.json 0_Transformer/pytorch_model.bin
    0_Transformer/sentence_bert_config.json 0_Transformer/vocab.txt 1_Pooling/config.json
    modules.json similarity_evaluation_sts-test_results.csv
    """
)
TIMM = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"]
QUANTS = [f"llama-2-7b.{kind}.gguf" for kind in ("Q2_K", "Q4_0", "Q4_K_M", "Q5_K_S", "Q8_0", "F16")]
THEBLOKE = ["LICENSE.txt", "Notice", "README.md", "USE_POLICY.md", "config.json", *QUANTS]
TRAINED = _files(
    """
    config.json optimizer.pt scheduler.pt scaler.pt rng_state.pth rng_state_0.pth
    training_args.bin trainer_state.json pytorch_model.bin
    global_step10/mp_rank_00_model_states.pt vocab.txt
    """
)
VARIANTS = _files(
    """
    config.json model.fp16.safetensors model.safetensors pytorch_model.bin
    pytorch_model.fp16.bin
    """
)
DIFFUSION = _files(
    """
    model_index.json unet/config.json unet/diffusion_pytorch_model.safetensors
    text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors
    text_encoder/pytorch_model.bin vae/diffusion_pytorch_model.bin
    """
)
ZERO_BASED = [f"model-0000{n}-of-00002.safetensors" for n in range(3)]
SHARDED_BIN = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]


@pytest.mark.parametrize(
    ("names", "within", "weights", "others"),
    [
        (
            BERT,
            "",
            ["model.safetensors"],
            ["LICENSE", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"],
        ),
        (
            GPT2,
            "",
            ["model.safetensors"],
            _files(
                """
                config.json generation_config.json merges.txt tokenizer.json
                tokenizer_config.json vocab.json
                """
            ),
        ),
        (
            LLAMA,
            "",
            _files(
                """
                model-00001-of-00002.safetensors model-00002-of-00002.safetensors
                model.safetensors.index.json
                """
            ),
            _files(
                """
                LICENSE.txt USE_POLICY.md config.json generation_config.json
                special_tokens_map.json tokenizer.json tokenizer_config.json
                """
            ),
        ),
        (
            MISTRAL,
            "",
            _files(
                """
                model-00001-of-00002.safetensors model-00002-of-00002.safetensors
                model.safetensors.index.json
                """
            ),
            ["chat_template.jinja", "config.json", "tekken.json", "tokenizer.json"],
        ),
        (
            ENCODER,
            "",
            ["model.safetensors", "2_Dense/model.safetensors"],
            _files(
                """
                1_Pooling/config.json 2_Dense/config.json config.json
                config_sentence_transformers.json modules.json
                sentence_bert_config.json special_tokens_map.json spiece.model
                tokenizer.json tokenizer_config.json
                """
            ),
        ),
        (
            OLD_ENCODER,
            "",
            ["0_Transformer/pytorch_model.bin"],
            _files(
                """
                0_Transformer/config.json 0_Transformer/sentence_bert_config.json
                0_Transformer/vocab.txt 1_Pooling/config.json modules.json
                """
            ),
        ),
        (TIMM, "", ["model.safetensors"], ["config.json"]),
        (
            THEBLOKE,
            "llama-2-7b.Q4_0.gguf",
            ["llama-2-7b.Q4_0.gguf"],
            ["LICENSE.txt", "Notice", "USE_POLICY.md", "config.json"],
        ),
        (["a.gguf", "mmproj-a.gguf"], "", ["a.gguf"], []),
        (TRAINED, "", ["pytorch_model.bin"], ["config.json", "vocab.txt"]),
        (VARIANTS, "", ["model.safetensors"], ["config.json"]),
        (VARIANTS, "model.fp16.safetensors", ["model.fp16.safetensors"], ["config.json"]),
        (DIFFUSION, "text_encoder", ["model.safetensors"], ["config.json"]),
        (DIFFUSION, "text_encoder/", ["model.safetensors"], ["config.json"]),
        (DIFFUSION, "unet", ["diffusion_pytorch_model.safetensors"], ["config.json"]),
        (
            DIFFUSION,
            "text_encoder/model.fp16.safetensors",
            ["model.fp16.safetensors"],
            ["config.json"],
        ),
        ([*ZERO_BASED, "config.json"], "", ZERO_BASED, ["config.json"]),
        (
            [*SHARDED_BIN, "pytorch_model.bin.index.json"],
            "pytorch_model.bin.index.json",
            [*SHARDED_BIN, "pytorch_model.bin.index.json"],
            [],
        ),
        (
            ["part_a.safetensors", "part_b.safetensors", "model.safetensors.index.json"],
            "",
            ["part_a.safetensors", "part_b.safetensors", "model.safetensors.index.json"],
            [],
        ),
        (["model.safetensors", *LLAMA], "", ["model.safetensors"], None),
        (["best.pth", "last.ckpt"], "", ["best.pth"], []),
        (["weights.pt"], "", ["weights.pt"], []),
        (["a.bin", "b.pth"], "", ["a.bin"], []),
        (["resnet50.a1_in1k.safetensors", "x.bin"], "", ["resnet50.a1_in1k.safetensors"], []),
        (["adapter_model.safetensors", "pytorch_model.bin"], "", ["pytorch_model.bin"], []),
        (["m.safetensors", "additional_chat_templates/rag.jinja"], "", ["m.safetensors"], None),
        (
            ["m.safetensors", "LICENSE.py", "NOTICE.bin", "LICENSE (1).txt"],
            "",
            ["m.safetensors"],
            [],
        ),
        (["m.safetensors", "Licence-MIT.md"], "", ["m.safetensors"], ["Licence-MIT.md"]),
    ],
)
def test_real_layouts(
    names: list[str], within: str, weights: list[str], others: list[str] | None
) -> None:
    found = select(names, within)
    assert list(found.weights) == weights
    if others is not None:
        assert list(found.others) == others


def test_the_folder_of_what_was_named_is_told() -> None:
    assert select(DIFFUSION, "unet").folder == "unet"
    assert select(DIFFUSION, "text_encoder/model.fp16.safetensors").folder == "text_encoder"
    assert select(BERT).folder == select(THEBLOKE, QUANTS[0]).folder == ""


def test_a_template_of_many_is_a_companion() -> None:
    names = ["m.safetensors", "additional_chat_templates/rag.jinja"]
    assert select(names).others == ("additional_chat_templates/rag.jinja",)


@pytest.mark.parametrize(
    ("names", "within", "message"),
    [
        ([], "", "no file at all"),
        (["README.md"], "", "There are no weights"),
        (["tf_model.h5", "config.json"], "", "TensorFlow"),
        (THEBLOKE, "", r"6 files of weights.*llama-2-7b\.Q2_K\.gguf.*hub:org/name/llama"),
        (["a.safetensors", "b.safetensors"], "", r"a\.safetensors, b\.safetensors\. Name one"),
        (["a.safetensors", "b.safetensors", "pytorch_model.bin"], "", "2 files of weights"),
        (["adapter_model.safetensors", "adapter_config.json"], "", "merge_and_unload"),
        (["consolidated.safetensors", "params.json"], "", "name it in the card"),
        (DIFFUSION, "", r"Sub-folders hold some: text_encoder, unet, vae.*hub:org/name/text_enc"),
        (LLAMA[:5] + LLAMA[6:], "", r"one of 2 parts, and part 1 is missing|part 1"),
        (["x-00001-of-00003.safetensors", "x-00003-of-00003.safetensors"], "", "part 2 is missing"),
        (LLAMA, "model-00001-of-00002.safetensors", r"one of 2 parts.*index\.json"),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], "", "2 files of weights"),
        (["a-00001-of-00002.gguf"], "", "llama-gguf-split"),
        (LLAMA, "tokenizer.json", "holds no weights that can be read"),
        (LLAMA, "orignal", "no folder or file 'orignal'.*Did you mean 'original'"),
        (["../model.safetensors", "/model.safetensors", "a\\b.safetensors"], "", "no file at all"),
    ],
)
def test_what_cannot_be_decided_is_refused(names: list[str], within: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        select(names, within)


# --- whatever the names

_FILES = sorted(
    {
        name
        for names in (
            BERT,
            GPT2,
            LLAMA,
            MISTRAL,
            ENCODER,
            OLD_ENCODER,
            TIMM,
            THEBLOKE,
            TRAINED,
            VARIANTS,
            DIFFUSION,
            ZERO_BASED,
            SHARDED_BIN,
        )
        for name in names
    }
)
_ODD = st.text(alphabet="ab/._-0123456789 \\", min_size=1, max_size=20)
_SUFFIXES = st.sampled_from([*FORMATS, ".gguf", ".json", ".py", ".md", ".index.json", ""])
_NAMES = st.lists(
    st.sampled_from(_FILES) | st.builds(lambda stem, suffix: stem + suffix, _ODD, _SUFFIXES),
    max_size=25,
    unique=True,
)
_INELIGIBLE = ("adapter", "consolidated", "training", "optimizer", "scheduler", "scaler", "rng")


def _try(names: list[str], within: str = "") -> Selection | None:
    try:
        return select(names, within)
    except SourceError:
        return None


@given(_NAMES, st.sampled_from(["", "text_encoder", "unet", "0_Transformer", "a"]))
def test_the_selection_is_sound(names: list[str], within: str) -> None:
    found = _try(names, within)
    if found is None:
        return
    before = f"{found.folder}/" if found.folder else ""
    chosen = [*found.weights, *found.others]
    assert {before + name for name in chosen} <= set(names)
    assert len(chosen) == len(set(chosen))
    assert found.weights
    assert not any(name.endswith((".py", "README.md")) for name in chosen)
    assert not any(name.endswith((*FORMATS, ".gguf")) for name in found.others)
    for folder in {str(PurePosixPath(name).parent) for name in found.weights}:
        here = [n for n in found.weights if str(PurePosixPath(n).parent) == folder]
        formats = {PurePosixPath(name.removesuffix(".index.json")).suffix for name in here}
        assert len(formats) == 1


@given(_NAMES)
def test_no_pickle_is_taken_where_there_are_safetensors(names: list[str]) -> None:
    found = _try(names)
    if found is None or not any(n.endswith((".bin", ".pth", ".pt")) for n in found.weights):
        return
    folders = {
        str(PurePosixPath(name).parent)
        for name in found.weights
        if name.endswith((".bin", ".pth", ".pt"))
    }
    for name in names:
        if name.endswith(".safetensors") and str(PurePosixPath(name).parent) in folders:
            odd = name.startswith("/") or "\\" in name or str(PurePosixPath(name)) != name
            assert odd or PurePosixPath(name).name.startswith(_INELIGIBLE)


@given(_NAMES, st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(names: list[str], shuffler: random.Random) -> None:
    other = list(names)
    shuffler.shuffle(other)
    assert _try(names) == _try(other)


@given(_NAMES)
def test_what_lies_deeper_does_not_matter(names: list[str]) -> None:
    """Nothing outside the folder is looked at."""
    inside = _try([f"sub/{name}" for name in names] + ["model.safetensors", "LICENSE"], "sub")
    alone = _try(names)
    clean = [n for n in names if not n.startswith("/")]
    if clean == names and alone is not None:
        assert inside is not None
        assert (inside.weights, inside.others) == (alone.weights, alone.others)
