"""Layer removal leaves an ordinary, shorter model, in memory, on disk and in transformers."""

import copy
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

import zoopress
from digits_reader import digits_card, press
from zoopress.artifacts.artifact import load_artifact
from zoopress.artifacts.manifest import read_manifest
from zoopress.cards import load_card
from zoopress.errors import StageError
from zoopress.models.edits import Keep, apply_edit
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.models.stacks import find_stacks, outermost
from zoopress.plugins import Plugins
from zoopress.techniques import Context, Outcome
from zoopress_plugins.pruning.layer_removal import LayerRemoval, LayerRemovalConfig, evenly_spread
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
)

pytestmark = pytest.mark.usefixtures("brief_evaluation")

TEXT: dict[str, Any] = {
    **{"vocab_size": 99, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    **{"max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
BOTH: dict[str, Any] = {
    **{"vocab_size": 99, "d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 24},
    **{"decoder_attention_heads": 2, "decoder_ffn_dim": 24, "pad_token_id": 0, "bos_token_id": 1},
    **{"eos_token_id": 2, "decoder_start_token_id": 1},
}
IDS = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def layer_types(layers: int) -> list[str]:
    return ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(layers)]


MODELS: dict[str, tuple[Callable[[int], Any], dict[str, Tensor]]] = {
    "bert": (
        lambda n: tf.BertModel(tf.BertConfig(**TEXT, num_hidden_layers=n)),
        {"input_ids": IDS},
    ),
    "distilbert": (
        lambda n: tf.DistilBertModel(
            tf.DistilBertConfig(vocab_size=99, dim=16, n_layers=n, n_heads=2, hidden_dim=24)
        ),
        {"input_ids": IDS},
    ),
    "gpt2": (
        lambda n: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                **{"vocab_size": 99, "n_embd": 16, "n_layer": n, "n_head": 2},
                **{"bos_token_id": 1, "eos_token_id": 2},
            )
        ),
        {"input_ids": IDS},
    ),
    "llama": (
        lambda n: tf.LlamaForCausalLM(
            tf.LlamaConfig(**TEXT, num_hidden_layers=n, num_key_value_heads=1)
        ),
        {"input_ids": IDS},
    ),
    "vit": (
        lambda n: tf.ViTModel(
            tf.ViTConfig(
                **{"hidden_size": 16, "num_hidden_layers": n, "num_attention_heads": 2},
                **{"intermediate_size": 24, "image_size": 32, "patch_size": 8},
            )
        ),
        {"pixel_values": PIXELS},
    ),
    "t5": (
        lambda n: tf.T5ForConditionalGeneration(
            tf.T5Config(
                **{"vocab_size": 99, "d_model": 16, "num_layers": n, "num_heads": 2, "d_ff": 24},
                **{"d_kv": 8, "decoder_start_token_id": 0, "num_decoder_layers": n},
            )
        ),
        {"input_ids": IDS, "decoder_input_ids": IDS},
    ),
    "bart": (
        lambda n: tf.BartForConditionalGeneration(
            tf.BartConfig(**BOTH, encoder_layers=n, decoder_layers=n)
        ),
        {"input_ids": IDS},
    ),
}
KEPT = [0, 2, 3]


def built(name: str, layers: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(layers)
        return MODELS[name][0](layers).eval()


def remove(
    module: nn.Module, *args: Tensor, inputs: Any = None, **config: Any
) -> tuple[Model, Outcome]:
    model = Model(module)

    def call(run: nn.Module, batch: Any) -> Tensor:
        try:
            with torch.inference_mode():
                output = run(*args, **batch)
        except (RuntimeError, IndexError) as error:
            raise StageError(str(error)) from error
        return output if isinstance(output, Tensor) else output[0]

    context = Context(
        **{"seed": 0, "device": torch.device("cpu"), "batches": lambda: [inputs or {}]},
        **{"call": call, "progress": lambda *_: None, "checkpoint": Path()},
    )
    return model, LayerRemoval(LayerRemovalConfig(**config)).apply(model, context)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_computes_what_a_model_built_with_fewer_layers_does(name: str) -> None:
    inputs = MODELS[name][1]
    module = built(name, 4)
    before = module.state_dict()
    model, outcome = remove(module, inputs=inputs, keep=KEPT)
    fresh = built(name, len(KEPT))
    stacks = [stack.path for stack in outermost(find_stacks(fresh))]
    assert outcome.notes["kept"] == dict.fromkeys(stacks, KEPT)
    renamed = {}
    for key in fresh.state_dict():
        stack = next((path for path in stacks if key.startswith(f"{path}.")), None)
        source = key
        if stack is not None:
            position, _, rest = key.removeprefix(f"{stack}.").partition(".")
            source = f"{stack}.{KEPT[int(position)]}.{rest}"
        renamed[key] = before[source]
    fresh.load_state_dict(renamed)
    with torch.inference_mode():
        torch.testing.assert_close(model.module(**inputs)[0], fresh(**inputs)[0])
    # The config is that of the shorter model in whatever counts or lists layers.
    after, expected = model.module.config.to_dict(), fresh.config.to_dict()  # type: ignore[union-attr,operator]
    assert {k: v for k, v in after.items() if "layer" in k} == {
        k: v for k, v in expected.items() if "layer" in k
    }
    positions = [m.layer_idx for m in model.module.modules() if hasattr(m, "layer_idx")]
    assert positions == [m.layer_idx for m in fresh.modules() if hasattr(m, "layer_idx")]


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_generation_uses_the_cache_of_the_layers_that_are_left(name: str) -> None:
    model, _ = remove(
        built(name, 4), inputs=MODELS[name][1], keep=[1, 3] if name != "t5" else [0, 3]
    )
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    options["pad_token_id"] = 0
    module: Any = model.module
    with_cache = module.generate(IDS, use_cache=True, **options)
    assert torch.equal(with_cache, module.generate(IDS, use_cache=False, **options))


def test_a_mixture_of_attentions_keeps_each_layer_its_own() -> None:
    config = tf.Gemma3TextConfig(
        **TEXT,
        **{"num_hidden_layers": 5, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3},
        layer_types=layer_types(5),
    )
    torch.manual_seed(0)
    module = tf.Gemma3ForCausalLM(config).eval()
    model, _ = remove(module, inputs={"input_ids": IDS}, keep=[1, 2, 4])
    kept: Any = model.module
    assert kept.config.layer_types == [layer_types(5)[i] for i in (1, 2, 4)]
    assert [layer.self_attn.is_sliding for layer in kept.model.layers] == [True, False, True]


# ----- on disk ---------------------------------------------------------------------------------


def pressed(name: str, stages: str, folder: Path, plugins: Plugins) -> Path:
    built(name, 4).save_pretrained(folder / name)
    (folder / "card.yaml").write_text(
        f"name: {name}\nsource: path:{name}\ndata:\n"
        "  random: {input_ids: {shape: [9], dtype: int64, low: 3, high: 99}}\n"
        "  calibration_samples: 4\n  evaluation_samples: 8\n"
    )
    result = press(load_card(str(folder / "card.yaml"), plugins), stages, folder / "run", plugins)
    return result.artifact


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_shorter_model_opens_in_transformers_without_zoopress(
    name: str, tmp_path: Path, plugins: Plugins
) -> None:
    artifact = pressed(name, "[{technique: layer_removal, keep: [0, 3]}]", tmp_path, plugins)
    manifest = read_manifest(artifact)
    assert manifest.native
    assert not manifest.edits
    config = json.loads((artifact / "config.json").read_text())
    assert config["n_layer" if name == "gpt2" else "num_hidden_layers"] == 2
    expected, _ = remove(built(name, 4), inputs={"input_ids": IDS}, keep=[0, 3])
    opened = type(built(name, 4)).from_pretrained(artifact)
    with torch.inference_mode():
        torch.testing.assert_close(opened(IDS)[0], expected.module(IDS)[0])


def test_removed_pruned_and_quantized_layers_survive_saving_together(
    tmp_path: Path, plugins: Plugins
) -> None:
    stages = """
    - {technique: neuron_pruning, sparsity: 0.25, include: ["*mlp*"]}
    - {technique: layer_removal, layers: 3}
    - {technique: magnitude_pruning, sparsity: 0.5}
    - {technique: weight_quantization, bits: 8, kinds: [linear]}
    - {technique: layer_removal, keep: [0, 2]}
    - {technique: entropy_coding}"""
    artifact = pressed("llama", stages, tmp_path, plugins)
    model, _, manifest = load_artifact(artifact, plugins)
    # What config.json could say before the first mask is in there.
    assert json.loads((artifact / "config.json").read_text())["num_hidden_layers"] == 3
    assert [edit.indices for edit in manifest.edits if isinstance(edit, Keep)] == [[0, 2]]
    assert {name.split(".")[2] for name in model.masks if "layers" in name} == {"0", "1"}
    assert len(packed_weights(model.module)) == 2 * 7 + 1
    # The quantizer that transformers finds opens it, too; the cache has two layers.
    for module in (zoopress.load(artifact), tf.AutoModelForCausalLM.from_pretrained(artifact)):
        assert module.config.num_hidden_layers == 2
        ids = module.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
        again = module.generate(
            IDS, max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=False
        )
        assert torch.equal(ids, again)


def test_layers_and_neurons_that_both_went_are_told_by_a_config(
    tmp_path: Path, plugins: Plugins
) -> None:
    stages = """
    - {technique: layer_removal, layers: 2}
    - {technique: neuron_pruning, sparsity: 0.25, include: ["*mlp*"]}"""
    artifact = pressed("llama", stages, tmp_path, plugins)
    config = json.loads((artifact / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (2, 18)
    assert read_manifest(artifact).native


def test_a_model_of_a_factory_is_shorter_and_smaller(tmp_path: Path, plugins: Plugins) -> None:
    result = press(
        digits_card(tmp_path), "[{technique: layer_removal, sparsity: 0.5}]", tmp_path, plugins
    )
    stage = result.report.stages[-1]
    assert stage.touched == ["layers.1", "layers.3"]
    assert stage.weight_bytes < 0.7 * stage.weight_bytes_before


# ----- the edit --------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Blocks that know their position, one weight of which is tied to the output."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stack = nn.ModuleList(
            nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}) for _ in range(count)
        )
        for position, block in enumerate(self.stack):
            block["a"].layer_idx = position
        self.num_layers = count
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.stack[0]["a"].weight  # type: ignore[index,union-attr]


subsets = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.just(n), st.sets(st.integers(0, n - 1), min_size=1).map(sorted), st.booleans()
    )
)


@given(case=subsets)
def test_blocks_masks_and_packed_weights_move_together(
    case: tuple[int, list[int], bool], plugins: Plugins
) -> None:
    count, kept, packs = case
    module = Blocks(count)
    model = Model(module, plugins.layers)
    for weight in model.weights():
        model.mask(weight, torch.rand(3, 3) > 0.5)
    if packs:
        config = WeightQuantizationConfig(bits=4, include=("*.b.weight",))
        WeightQuantization(config).apply(model, context())
    before, masks = model.tensors(), dict(model.masks)
    model.keep("stack", kept)
    names = {
        f"stack.{new}.{rest}": f"stack.{old}.{rest}"
        for new, old in enumerate(kept)
        for rest in (
            "a.weight",
            "a.bias",
            *(
                n.partition(".")[2].partition(".")[2]
                for n in before
                if n.startswith(f"stack.{old}.b.")
            ),
        )
    }
    names |= {"tied.weight": "tied.weight", "tied.bias": "tied.bias"}
    after = model.tensors()
    assert after.keys() == names.keys()
    assert all(torch.equal(tensor, before[names[name]]) for name, tensor in after.items())
    # The weight that the first block shares with the output outlives the block, mask and all.
    expected = {new: masks[old] for new, old in names.items() if old in masks}
    if 0 not in kept:
        expected["tied.weight"] = masks["stack.0.a.weight"]
    assert model.masks.keys() == expected.keys()
    assert all(torch.equal(mask, expected[name]) for name, mask in model.masks.items())
    assert [block["a"].layer_idx for block in module.stack] == list(range(len(kept)))  # type: ignore[index]
    assert module.num_layers == len(kept)
    # Replayed on a new model without values, the edit makes the same structure.
    with torch.device("meta"):
        fresh = Blocks(count)
        apply_edit(fresh, model.edits[-1], plugins.layers)
    assert [name for name, _ in fresh.stack.named_modules()] == [
        name for name, _ in Blocks(len(kept)).stack.named_modules()
    ]


def context() -> Context:
    return Context(
        **{"seed": 0, "device": torch.device("cpu"), "batches": list, "call": lambda m, b: m(b)},
        **{"progress": lambda *_: None, "checkpoint": Path()},
    )


@pytest.mark.parametrize(
    ("module", "indices", "reason"),
    [
        ("stack", [], "some of 0 to 3"),
        ("stack", [0, 4], "some of 0 to 3"),
        ("stack", [-1, 2], "some of 0 to 3"),
        ("stack", [2, 2], "rising"),
        ("stack", [2, 1], "rising"),
        ("stack", list(range(1000)), "some of 0 to 3"),
        ("tied", [0], "no list"),
        ("", [0], "no list"),
        ("stack.0", [0], "no list"),
        ("stack.7", [0], "no module"),
        ("__class__", [0], "no module"),
    ],
)
def test_edits_that_do_not_fit_are_refused_and_change_nothing(
    module: str, indices: list[int], reason: str
) -> None:
    blocks = Blocks(4)
    with pytest.raises(ValueError, match=reason):
        apply_edit(blocks, Keep(module=module, indices=indices), {})
    assert len(blocks.stack) == blocks.num_layers == 4


@pytest.mark.parametrize("indices", ["01", [0.0], [True], {"0": 1}, None, ["0"]])
def test_positions_that_are_no_integers_are_refused(indices: Any) -> None:
    with pytest.raises(ValidationError):
        Keep.model_validate({"module": "stack", "indices": indices})


# ----- which layers ----------------------------------------------------------------------------


def test_layers_are_spread_evenly_from_the_first_on() -> None:
    assert evenly_spread(6, 3) == (0, 2, 4)
    assert evenly_spread(12, 6) == (0, 2, 4, 6, 8, 10)
    assert evenly_spread(12, 5) == (0, 2, 4, 7, 9)
    assert evenly_spread(5, 1) == (0,)
    for size in range(1, 40):
        for count in range(1, size + 1):
            kept = evenly_spread(size, count)
            assert len(set(kept)) == count
            gaps = [b - a for a, b in zip(kept, (*kept[1:], size), strict=True)]
            assert max(gaps) - min(gaps) <= 1


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x)) + self.short(x)
        return result


class Growing(nn.Module):
    """Puts what it makes beside what it gets, as DenseNet does."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.norm(self.conv(x))], 1)


def test_a_layer_that_changes_the_shape_stays() -> None:
    stage = nn.Sequential(Residual(3, 8), Residual(8, 8), Residual(8, 8))
    x = torch.randn(2, 3, 4, 4)
    whole = nn.Sequential(stage, nn.Flatten(), nn.Linear(128, 5)).eval()
    model, outcome = remove(copy.deepcopy(whole), x, layers=2)
    assert outcome.notes["kept"] == {"0": [0, 1]}
    with torch.inference_mode():
        expected = whole[2](stage[1](stage[0](x)).flatten(1))
        torch.testing.assert_close(model.module(x), expected)
    with pytest.raises(
        StageError, match=r"'0.0' cannot be removed: of .* it makes \[2, 8, 4, 4\].*\[0, 1, 2\]"
    ):
        remove(copy.deepcopy(whole), x, keep=[1, 2])


@pytest.mark.parametrize(
    ("module", "config", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"layers": 1}, "none"),
        (nn.Sequential(Growing(4), Growing(6), Growing(8)), {"layers": 1}, "of .* it makes"),
    ],
)
def test_a_model_without_removable_layers_is_refused(
    module: nn.Module, config: dict[str, Any], reason: str
) -> None:
    x = torch.randn(2, 4) if isinstance(module[0], nn.Linear) else torch.randn(2, 4, 3, 3)  # type: ignore[index]
    with pytest.raises(StageError, match=f"No list of equal layers.*{reason}"):
        remove(module.eval(), x, **config)


def test_the_layers_of_a_stage_go_and_not_the_stage() -> None:
    whole = nn.Sequential(
        *(
            nn.Sequential(Residual(before, after), Residual(after, after), Residual(after, after))
            for before, after in ((4, 4), (4, 6))
        )
    ).eval()
    _, outcome = remove(whole, torch.randn(2, 4, 3, 3), layers=1)
    assert outcome.notes["kept"] == {"0": [0], "1": [0]}


def test_a_layer_with_a_table_of_its_own_stays() -> None:
    with pytest.raises(
        StageError, match=r"block.0' cannot be removed: no other.*relative_attention"
    ):
        remove(built("t5", 4), inputs=MODELS["t5"][1], keep=[1, 2])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"keep": [0, 4]}, "layers 0 to 3"),
        ({"layers": 4}, "nothing to remove"),
        ({"layers": 9}, "nothing to remove"),
        ({"layers": 2, "include": ["decoder.*"]}, "'encoder.layer': 4"),
    ],
)
def test_what_cannot_be_done_is_said(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        remove(built("bert", 4), inputs=MODELS["bert"][1], **config)


@pytest.mark.parametrize(
    "config", [{}, {"layers": 2, "keep": [0]}, {"keep": [2, 1]}, {"keep": [-1]}, {"keep": []}]
)
def test_a_config_says_one_way_which_layers_stay(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LayerRemovalConfig(**config)


def test_stacks_can_be_chosen_by_name() -> None:
    model, outcome = remove(
        built("bart", 4), inputs=MODELS["bart"][1], layers=2, include=["*decoder*"]
    )
    assert outcome.notes["kept"] == {"model.decoder.layers": [0, 2]}
    config: Any = model.module.config
    assert (config.encoder_layers, config.decoder_layers) == (4, 2)


def test_every_choice_of_layers_runs() -> None:
    for kept in combinations(range(4), 2):
        remove(built("gpt2", 4), inputs=MODELS["gpt2"][1], keep=kept)
