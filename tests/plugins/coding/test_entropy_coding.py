"""Entropy coding stores the same tensors in about as many bits as they hold."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoopress.errors import StageError
from zoopress.plugins import load_plugins
from zoopress.techniques import Technique
from zoopress.testing import reload_artifact, run_chain, tiny_card
from zoopress_plugins.coding.entropy_coding import EntropyCoding, EntropyCodingConfig

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()
CODING = EntropyCoding(EntropyCodingConfig())


def technique(name: str, **config: Any) -> Technique[Any]:
    kind = PLUGINS.technique(name)
    return kind(kind.config_type(**config))


def entropy_bits(codes: Tensor) -> float:
    """Return the least bits that codes take if each is coded by its frequency."""
    counts = codes.unique(return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def test_every_tensor_is_the_same_after_coding(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    chain = [technique("magnitude_pruning", sparsity=0.7), technique("weight_quantization", bits=5)]
    plain = run_chain(chain, card, tmp_path / "plain", PLUGINS)
    coded = run_chain([*chain, CODING], card, tmp_path / "coded", PLUGINS)
    before = reload_artifact(plain.artifact, card, PLUGINS)
    after = reload_artifact(coded.artifact, card, PLUGINS)
    assert before.tensors().keys() == after.tensors().keys()
    for name, tensor in before.tensors().items():
        assert torch.equal(tensor, after.tensors()[name])
    assert coded.report.last.weight_bytes < plain.report.last.weight_bytes
    assert coded.report.last.fidelity == plain.report.last.fidelity


def test_codes_take_little_more_than_their_entropy(tmp_path: Path) -> None:
    from zoopress.coding.bits import unpack_codes

    def bell_shaped(tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            if tensor.ndim > 1:
                torch.nn.init.normal_(tensor, std=0.05, generator=torch.Generator().manual_seed(0))

    card = tiny_card("cnn", tmp_path, bell_shaped)
    eight_bits = technique("weight_quantization", bits=8, kinds=("conv",), clipping="none")
    result = run_chain([eight_bits, CODING], card, tmp_path / "out", PLUGINS)
    model = reload_artifact(result.artifact, card, PLUGINS)
    layouts = model.code_layouts()
    codes = {n: unpack_codes(model.tensors()[n], x.bits, x.per_row) for n, x in layouts.items()}
    least = sum(entropy_bits(values) for values in codes.values()) / 8
    others = sum(t.nbytes for n, t in model.tensors().items() if n not in layouts)
    assert result.report.last.weight_bytes < 1.1 * (least + others) + 2500
    plain = sum(math.prod(values.shape) for values in codes.values())
    assert least < 0.95 * plain


def test_later_stages_are_coded_too(tmp_path: Path) -> None:
    card = tiny_card("lstm", tmp_path)
    chain = [CODING, technique("magnitude_pruning", sparsity=0.5)]
    result = run_chain(chain, card, tmp_path / "out", PLUGINS)
    assert [path.name for path in result.artifact.glob("model.*")] == ["model.zpz"]
    sizes = [stage.weight_bytes for stage in result.report.stages]
    assert sizes[1] < 0.7 * sizes[0]


def test_coding_twice_in_the_same_way_is_refused(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    huffman = technique("entropy_coding", coder="huffman")
    for chain, coder in (([CODING, CODING], "auto"), ([huffman, huffman], "huffman")):
        with pytest.raises(StageError, match=f"already, by 'coder: {coder}'; leave this stage out"):
            run_chain(chain, card, tmp_path / coder, PLUGINS)


def test_a_second_stage_may_choose_another_coder(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    prune = technique("magnitude_pruning", sparsity=0.9)
    quantize = technique("codebook_quantization", bits=5)
    coders = [technique("entropy_coding", coder=name) for name in ("adaptive", "huffman")]
    result = run_chain([prune, quantize, *coders], card, tmp_path / "out", PLUGINS)
    alone = run_chain([prune, quantize, coders[1]], card, tmp_path / "alone", PLUGINS)
    adaptive, huffman = (stage.weight_bytes for stage in result.report.stages[2:])
    assert adaptive < huffman
    files = [(each.artifact / "model.zpz").read_bytes() for each in (result, alone)]
    assert files[0] == files[1]


def test_a_later_stage_keeps_to_the_coder(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    huffman = technique("entropy_coding", coder="huffman")
    quantize = technique("codebook_quantization", bits=5)
    before = run_chain([huffman, quantize], card, tmp_path / "before", PLUGINS)
    after = run_chain([quantize, huffman], card, tmp_path / "after", PLUGINS)
    assert reload_artifact(before.artifact, card, PLUGINS).coder == "huffman"
    files = [(each.artifact / "model.zpz").read_bytes() for each in (before, after)]
    assert files[0] == files[1]
    plain = run_chain([CODING, quantize], card, tmp_path / "plain", PLUGINS)
    assert reload_artifact(plain.artifact, card, PLUGINS).coder == "auto"


def test_coding_touches_no_property_of_other_stages() -> None:
    effects = CODING.effects()
    assert not effects.requires | effects.adds | effects.destroys
