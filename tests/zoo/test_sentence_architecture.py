"""Encoders in the layout of sentence-transformers give the embeddings that it gives."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoopress
from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card, load_card
from zoopress.errors import ArtifactError, SourceError
from zoopress.models.model import Model
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.sources import Architecture, SourceFiles, build_on_meta, detect_architecture, pull
from zoopress.store import Store
from zoopress_zoo.sentence_architecture import SentenceEncoderArchitecture
from zoopress_zoo.sentence_encoder import SentenceEncoder, pool

transformers = pytest.importorskip("transformers")

SENTENCES = [
    "a zoo",
    "The Zoo keeps many animals",
    "keeps",
    "many zoo a many animals the zoo keeps",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *("a", "the", "The", "zoo", "Zoo", "keeps", "many", "animals", "query", ":")]
POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random BERT and its tokenizer."""
    return _transformer(tmp_path_factory.mktemp("bert"))


def _transformer(folder: Path, padding_side: str = "right") -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side=padding_side,
        model_max_length=16,
    ).save_pretrained(folder)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.7,
    )
    transformers.BertModel(config).eval().save_pretrained(folder)
    return folder


def _theirs(transformer: Path, out: Path, *after: Any, **settings: Any) -> Any:
    """Save an encoder by sentence-transformers, and return it as that library loads it."""
    library = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
        first = modules.Transformer(str(transformer), max_seq_length=12)
        library.SentenceTransformer(
            modules=[first, *after], device="cpu", **settings
        ).save_pretrained(str(out))
        return library.SentenceTransformer(str(out), device="cpu")


def _modules() -> Any:
    pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sentence_transformers.sentence_transformer.modules")


def _open(folder: Path, plugins: Plugins, **card: Any) -> tuple[Architecture, SourceFiles]:
    given = Card(name="x", source=f"path:{folder}", **card)
    files = pull(given, plugins)
    return detect_architecture(given, files, plugins), files


def _ours(folder: Path, plugins: Plugins) -> SentenceEncoder:
    """Load, and check on the way that the module built from the config is the same."""
    architecture, files = _open(folder, plugins)
    module = architecture.load(files).eval()
    assert build_on_meta(architecture).state_dict().keys() == module.state_dict().keys()
    finished = architecture.finish(module)
    assert isinstance(finished, SentenceEncoder)
    return finished


def _agree(ours: SentenceEncoder, theirs: Any, **prompt: Any) -> None:
    expected = theirs.encode(SENTENCES, convert_to_tensor=True, **prompt)
    torch.testing.assert_close(ours.encode(SENTENCES, **prompt), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", [*POOLINGS, ("mean", "max"), ("weightedmean", "cls", "mean")])
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_pooling_gives_what_sentence_transformers_gives(
    pooling: Any, side: str, tmp_path: Path, plugins: Plugins
) -> None:
    library = _modules()
    folder = _transformer(tmp_path / "bert", side)
    theirs = _theirs(folder, tmp_path / "encoder", library.Pooling(16, pooling))
    _agree(_ours(tmp_path / "encoder", plugins), theirs)


def test_modules_after_pooling_give_what_sentence_transformers_gives(
    transformer: Path, tmp_path: Path, plugins: Plugins
) -> None:
    library = _modules()
    torch.manual_seed(0)
    after = [
        library.Pooling(16, ("mean", "cls")),
        library.Dense(32, 24, activation_function=nn.GELU()),
        library.LayerNorm(24),
        library.Dropout(0.3),
        library.Dense(24, 24, bias=False, activation_function=None, use_residual=True),
        library.Normalize(),
        library.Dense(24, 8, use_residual=True),
        library.Normalize(),
    ]
    nn.init.normal_(after[2].norm.weight)
    theirs = _theirs(transformer, tmp_path / "encoder", *after)
    ours = _ours(tmp_path / "encoder", plugins)
    _agree(ours, theirs)
    assert "modules_.0.linear.weight" in ours.state_dict()
    assert any(name.startswith("transformer.encoder.") for name in ours.state_dict())


def test_prompts_stand_before_the_text(transformer: Path, tmp_path: Path, plugins: Plugins) -> None:
    pooling = _modules().Pooling(16, "mean")
    prompts = {"query": "query : ", "other": "zoo "}
    theirs = _theirs(
        transformer, tmp_path / "encoder", pooling, prompts=prompts, default_prompt_name="other"
    )
    ours = _ours(tmp_path / "encoder", plugins)
    _agree(ours, theirs)
    _agree(ours, theirs, prompt_name="query")
    _agree(ours, theirs, prompt="many ")
    with pytest.raises(ValueError, match=r"no prompt 'qery'\. Did you mean 'query'"):
        ours.encode(SENTENCES, prompt_name="qery")


def test_text_is_lowered_and_cut_as_the_model_wants(
    transformer: Path, tmp_path: Path, plugins: Plugins
) -> None:
    _theirs(transformer, tmp_path / "encoder", _modules().Pooling(16, "mean"))
    settings = tmp_path / "encoder" / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 5, "do_lower_case": True}))
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(tmp_path / "encoder"), device="cpu"
    )
    ours = _ours(tmp_path / "encoder", plugins)
    _agree(ours, theirs)
    assert ours.max_tokens == 5
    assert ours.encode(["The"]).equal(ours.encode(["the"]))


def test_a_sentence_alone_is_one_sentence(
    transformer: Path, tmp_path: Path, plugins: Plugins
) -> None:
    theirs = _theirs(transformer, tmp_path / "encoder", _modules().Pooling(16, "mean"))
    ours = _ours(tmp_path / "encoder", plugins)
    one = ours.encode(SENTENCES[1])
    assert one.shape == theirs.encode(SENTENCES[1], convert_to_tensor=True).shape == (16,)
    assert torch.equal(one, ours.encode([SENTENCES[1]])[0])
    assert torch.equal(ours.encode(tuple(SENTENCES)), ours.encode(iter(SENTENCES)))
    assert ours.encode([]).shape == (0, 16)
    with pytest.raises(TypeError, match="int in it: '7'"):
        ours.encode(["a zoo", 7])


def test_a_limit_of_tokens_is_never_beyond_the_positions(tmp_path: Path, plugins: Plugins) -> None:
    transformer = _transformer(tmp_path / "bert")
    _theirs(transformer, tmp_path / "encoder", _modules().Pooling(16, "mean"))
    settings = next((tmp_path / "encoder").rglob("sentence_bert_config.json"))
    settings.write_text(json.dumps({"max_seq_length": 500, "do_lower_case": False}))
    ours = _ours(tmp_path / "encoder", plugins)
    assert ours.max_tokens == 32
    assert ours.encode("zoo " * 100).isfinite().all()


def test_a_transformer_may_have_a_folder_of_its_own(
    transformer: Path, tmp_path: Path, plugins: Plugins
) -> None:
    theirs = _theirs(transformer, tmp_path / "plain", _modules().Pooling(16, "mean"))
    folder = tmp_path / "encoder"
    shutil.copytree(tmp_path / "plain", folder)
    (folder / "0_Transformer").mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and not path.name.startswith(("modules", "config_sentence")):
            path.rename(folder / "0_Transformer" / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    _agree(_ours(folder, plugins), theirs)


def test_an_artifact_of_an_encoder_with_modules_loads_to_the_same(
    transformer: Path, tmp_path: Path, plugins: Plugins
) -> None:
    library = _modules()
    theirs = _theirs(
        transformer, tmp_path / "encoder", library.Pooling(16, "lasttoken"), library.Dense(16, 8)
    )
    architecture, files = _open(tmp_path / "encoder", plugins)
    model = Model(architecture.load(files).eval(), plugins.layers)
    out = tmp_path / "artifact"
    out.mkdir()
    base = Base(name="x", source="path:x", revision="local", size_bytes=1, task="fidelity")
    others = {name: files.folder / name for name in files.others}
    save_artifact(out, model, architecture, base, others)
    loaded, again, _ = load_artifact(out, plugins)
    finished = again.finish(loaded.module)
    assert isinstance(finished, SentenceEncoder)
    _agree(finished, theirs)


def test_artifacts_of_before_there_were_modules_still_load(transformer: Path) -> None:
    arguments = {"class": "BertModel", "pooling": "mean", "normalize": True, "max_tokens": 256}
    module = build_on_meta(SentenceEncoderArchitecture(transformer, dict(arguments)))
    assert all(name.startswith("transformer.") for name in module.state_dict())


def test_the_usual_encoder_records_what_it_always_did(
    transformer: Path, tmp_path: Path, plugins: Plugins
) -> None:
    library = _modules()
    _theirs(transformer, tmp_path / "e", library.Pooling(16, "mean"), library.Normalize())
    architecture, _ = _open(tmp_path / "e", plugins)
    assert architecture.arguments == {
        "class": "BertModel",
        "pooling": "mean",
        "normalize": True,
        "max_tokens": 12,
    }


def test_a_class_with_a_head_is_replaced_by_the_one_without(
    tmp_path: Path, plugins: Plugins
) -> None:
    folder = _transformer(tmp_path / "bert")
    config = transformers.BertConfig.from_pretrained(folder)
    transformers.BertForMaskedLM(config).save_pretrained(folder)  # has no pooler
    _write_encoder(folder, {"pooling_mode_mean_tokens": True})
    architecture, files = _open(folder, plugins)
    module = architecture.load(files)
    assert architecture.arguments["class"] == "BertModel"
    pooler = {n: t for n, t in module.state_dict().items() if "pooler" in n}
    assert pooler
    assert not any(bool(tensor.any()) for tensor in pooler.values())


def _write_encoder(
    folder: Path, pooling: dict[str, Any], *more: tuple[str, dict[str, Any]]
) -> None:
    """Make a transformer's folder an encoder's, as older versions wrote them."""
    kinds = [("Transformer", None), ("Pooling", pooling), *more]
    modules = []
    for number, (kind, config) in enumerate(kinds):
        path = "" if config is None else f"{number}_{kind}"
        if config is not None:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config))
        full = kind if "." in kind else f"sentence_transformers.models.{kind}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": full})
    (folder / "modules.json").write_text(json.dumps(modules))


DENSE = {"in_features": 16, "out_features": 8, "bias": True}


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ({"pooling_mode": "attention"}, (), "pooling must be among"),
        ({"pooling_mode": "mean", "include_prompt": False}, (), "include_prompt"),
        ({}, (("custom_st.Transformer", {}),), "code from the model's repository"),
        ({}, (("CNN", {}),), "understood are Transformer and Pooling"),
        ({}, (("Dense", DENSE | {"activation_function": "os.system"}),), "'os.system'"),
        ({}, (("Dense", DENSE | {"activation_function": "torch.nn.Module"}),), "activation"),
        ({}, (("Dense", DENSE | {"activation_function": "torch.nn.ReLu"}),), "mean 'ReLU'"),
        ({}, (("Dense", DENSE | {"module_input_name": "token_embeddings"}),), "token_embeddings"),
        ({}, (("Dense", {"out_features": 8}),), "not in the layout"),
    ],
)
def test_what_is_not_understood_is_refused(
    pooling: dict[str, Any], more: Any, message: str, tmp_path: Path, plugins: Plugins
) -> None:
    folder = _transformer(tmp_path)
    _write_encoder(folder, pooling, *more)
    with pytest.raises(SourceError, match=message):
        _open(folder, plugins)


def test_dense_without_weights_or_with_those_of_another_is_refused(
    tmp_path: Path, plugins: Plugins
) -> None:
    from safetensors.torch import save_file

    folder = _transformer(tmp_path)
    _write_encoder(folder, {}, ("Dense", DENSE))
    architecture, files = _open(folder, plugins)
    with pytest.raises(SourceError, match="expected one file of weights"):
        architecture.load(files)
    weights = {"linear.weight": torch.zeros(8, 4), "linear.bias": torch.zeros(8)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    architecture, files = _open(folder, plugins)
    with pytest.raises(SourceError, match="does not fit the module"):
        architecture.load(files)


@pytest.mark.parametrize(
    "hostile",
    [
        {"pooling": "__class__"},
        {"pooling": []},
        {"pooling": [["mean"]]},
        {"max_tokens": 0},
        {"folder": "../elsewhere"},
        {"folder": 3},
        {"modules": [{"type": "Dense", "inputs": 16, "outputs": 1 << 60, "activation": "Tanh"}]},
        {"modules": [{"type": "Dense", "inputs": 16, "outputs": 8, "activation": "Module"}]},
        {"modules": [{"type": "Linear"}]},
        {"modules": ["Dense"]},
        {"modules": {}},
        {"modules": [{"type": "Normalize"}] * 1000},
        {"modules": [{"type": "Dropout", "share": 7}]},
        {"modules": [{"type": "Dropout", "share": "x"}]},
        {"class": "AutoConfig"},
    ],
)
def test_hostile_arguments_are_refused(hostile: dict[str, Any], transformer: Path) -> None:
    arguments = {"class": "BertModel", "pooling": "mean", "normalize": True, "max_tokens": 8}
    with pytest.raises(ArtifactError):
        build_on_meta(SentenceEncoderArchitecture(transformer, arguments | hostile))


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_changes_no_embedding(kind: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 3, 4)
    junk = torch.full((1, 2, 4), 7.0)
    alone = pool(hidden, torch.ones(1, 3, dtype=torch.long), kind)
    right = pool(torch.cat([hidden, junk], 1), torch.tensor([[1, 1, 1, 0, 0]]), kind)
    left = pool(torch.cat([junk, hidden], 1), torch.tensor([[0, 0, 1, 1, 1]]), kind)
    torch.testing.assert_close(right, alone)
    torch.testing.assert_close(left, alone)


@pytest.mark.parametrize("own_folder", [False, True], ids=["top", "folder"])
@pytest.mark.parametrize(
    "stages",
    [
        "{technique: float_precision}",
        "{technique: weight_quantization, bits: 8, kinds: [linear, embedding], "
        "exclude: ['modules_.*']}, {technique: entropy_coding}",
    ],
    ids=["native", "packed"],
)
def test_a_compressed_encoder_opens_in_sentence_transformers(
    transformer: Path, tmp_path: Path, plugins: Plugins, stages: str, own_folder: bool
) -> None:
    library = _modules()
    folder = tmp_path / "encoder"
    modules = (library.Pooling(16, "mean"), library.Dense(16, 8), library.Normalize())
    _theirs(transformer, folder, *modules)
    if own_folder:
        inside = folder / "0_Transformer"
        inside.mkdir()
        kept = ("modules.json", "config_sentence_transformers.json", "README.md")
        for path in [p for p in folder.iterdir() if p.is_file() and p.name not in kept]:
            path.rename(inside / path.name)
        listed = json.loads((folder / "modules.json").read_text())
        listed[0]["path"] = "0_Transformer"
        (folder / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "text.txt").write_text("\n".join(f"zoo {i} keeps many animals" for i in range(40)))
    (tmp_path / "card.yaml").write_text(
        "name: tiny\nsource: path:encoder\ntask: sentence-similarity\n"
        "data: {text: text.txt, calibration_samples: 8, evaluation_samples: 16}\n"
    )
    (tmp_path / "recipe.yaml").write_text(f"stages: [{stages}]\n")
    card = load_card(str(tmp_path / "card.yaml"), plugins)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
    result = compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), plugins)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sentence_transformers.SentenceTransformer(str(result.artifact), device="cpu")
    _agree(zoopress.load(result.artifact), theirs)  # type: ignore[arg-type]
